"""What programs start on a GPU: the tables, and the counts of the real decode loop and update."""

import io
import json

import pytest
from rich.console import Console

from gad_jax.distributed.kernels import Kernel, Launches
from gad_jax.plan import __main__ as plan
from gad_jax.plan import launches
from gad_jax.plan.programs import Compiled

pytest_plugins = ["tests.run_fixtures"]

DOT = Kernel("gemm.1", "nd,df->nf/dot_general", 96, 929 * 10**6, True)
ADD = Kernel("add.1", "add", 25, 10**6, False)


def test_the_tables_fit_a_terminal_of_80_columns() -> None:
    found = Launches([DOT, ADD, DOT._replace(name="gemm.2", times=48)], graphs=1, waits=2)
    large = Launches([DOT._replace(times=1_234_567, bytes=3 * 10**12)], graphs=98_765, waits=43_210)
    text = io.StringIO()
    console = Console(file=text, width=80, highlight=False, markup=False)
    programs = [
        Compiled("rollout: prefill", {}, [], 1.0),
        Compiled("rollout: decode", {}, [], 1.0, launches=found, needed=1_746 * 10**6),
        Compiled("gad: G and D update", {}, [], 1.0, launches=large),
    ]
    launches.show(programs, 24, console)
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in text.getvalue()
    [row] = (line.split() for line in lines if line.startswith("rollout: decode  "))
    # 169 kernels, 6 + 1 in each of 24 layers, 1.86 GB of 1.746, 144 of 169 in graphs.
    assert row[2:] == ["169", "7", "1.86", "1.06", "85%", "1", "2"]
    [row] = (line.split() for line in lines if line.startswith("gad: G and D update  "))
    assert row[5:] == ["1,234,567", "–", "3,000", "–", "100%", "98,765", "43,210"]
    assert not any(line.startswith("rollout: prefill") for line in lines)


@pytest.mark.parametrize("target", ["", "--target=cpu:8", "--target=v5p:2x2x4"])
def test_kernels_are_those_of_one_kind_of_gpu(refused, target: str) -> None:
    said = refused(plan.main, "--config=tiny", "--kernels", *([target] if target else []))
    assert "kernels are counted in programs for one kind of GPU" in said
    assert "--target=h100:1x1" in said


@pytest.mark.slow
def test_the_decode_loop_of_half_a_billion_parameters(command, tmp_path) -> None:
    """Holds what was counted on 2026-11-29 (jaxlib 0.11.2): it may only fall.

    Needs XLA's compiler for GPUs, without a device; see docs/planning.md.
    """
    pytest.importorskip("jax_plugins.xla_cuda13")
    network = {"model_type": "qwen2", "vocab_size": 151_936, "max_position_embeddings": 32_768}
    network |= {"hidden_size": 896, "intermediate_size": 4_864, "num_hidden_layers": 24}
    network |= {"num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True}
    network |= {"rope_theta": 1e6, "rms_norm_eps": 1e-6, "torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(network))
    flags = [f"--student.path={tmp_path}", "--stage=gad", "--batch.prompts=8", "--kernels"]
    flags += ["--batch.micro_batch_prompts=1", "--target=h100:1x1"]
    flags += ["--mesh.replica=1", "--mesh.fsdp=1"]
    limits = ["--data.max_prompt_tokens=256", "--rollout.max_new_tokens=256"]
    done = command("plan", "--config=qwen2.5-3b-gad", *flags, *limits, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    programs = {each["name"]: each["launches"] for each in json.loads(done.stdout)["programs"]}
    decode, update = programs["rollout: decode"], programs["gad: G and D update"]
    assert decode["kernels_per_layer"] <= 12
    assert decode["kernels"] <= 324
    assert decode["host_waits"] <= 1 / 8
    assert decode["in_graphs"] > 0.97
    assert decode["bytes"] <= 1.45 * decode["needed_bytes"]
    assert update["host_waits"] == 0
    assert update["in_graphs"] > 0.99
    assert update["bytes"] <= 726e9  # of G and D, in eight micro-batches
