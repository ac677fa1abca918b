"""Plans of small runs on simulated devices, and the advice for a run that does not fit."""

import json

import jax
import pytest

from gad_jax.distributed import chips, devices
from gad_jax.plan import __main__ as plan
from gad_jax.plan import command
from gad_jax.settings import options
from tests.plan.test_cards import PRESETS

pytest_plugins = ["tests.run_fixtures"]

RUN = ("--config=tiny", "--stage=gad")
FLAGS = (*RUN, "--target=cpu:8", "--response_tokens=1", "--rollout.max_new_tokens=2")
"""Several tests plan this run: what one has traced or compiled, the others have."""

SMALL = chips.Chip("cpu", 1e12, 1e6, 1e9, 1e9, 1e9, 0.5, 0.0, "a device of one megabyte")


def test_a_run_that_is_too_large_is_told_what_to_change(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gad_jax.plan.estimate.chip_of", lambda _: SMALL)
    assert plan.main(list(FLAGS)) == 3
    out = " ".join(capsys.readouterr().out.split())  # lines are as wide as the terminal
    assert "It does not fit: gad: G and D update needs 0." in out
    assert "- split or reduce what is computed at once: a smaller --batch.micro_batch" in out


def test_every_iteration_of_the_decode_loop_takes_the_latency_of_its_layers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = chips.Chip("cpu", 1e12, 1e12, 1e9, 1e9, 1e9, 0.5, 0.25, "a device that hesitates")
    monkeypatch.setattr("gad_jax.plan.estimate.chip_of", lambda _: slow)
    monkeypatch.setattr("gad_jax.plan.slices.measure", lambda *_: {})
    assert plan.main([*FLAGS, "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err.endswith(
        "next: python -m gad_jax.train --config=tiny --stage=gad --rollout.max_new_tokens=2 "
        "--dry_run\n"
    )
    [step] = json.loads(printed.out)["steps"]
    phases = {phase["name"]: phase for phase in step["phases"]}
    decode = phases.pop("rollout: decode")
    assert decode["latency_seconds"] == 2 * 2 * 0.25  # two tokens in every slot, two layers
    assert decode["transfer_seconds"] > 0  # whether any shard is busy, each iteration
    waiting = 1 + decode["transfer_seconds"]
    work = max(decode["compute_seconds"], decode["memory_seconds"])
    assert decode["seconds"] == pytest.approx(waiting + work)
    assert {phase["latency_seconds"] for phase in phases.values()} == {0}


def test_a_program_that_the_compiler_refuses_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_large(*_: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: needs 40G\nof 31G")

    monkeypatch.setattr("gad_jax.plan.estimate.chip_of", lambda _: SMALL)  # not measured
    monkeypatch.setattr("jax.stages.Lowered.compile", too_large)
    assert plan.main(list(FLAGS)) == 3
    out = " ".join(capsys.readouterr().out.split())  # lines are as wide as the terminal
    assert "It does not fit: the compiler refused " in out
    assert "(RESOURCE_EXHAUSTED: needs 40G)" in out
    assert "- split or reduce the weights over more devices" in out


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--target=h10:8"], "'h10' is not one of rtx4090, l4"),
        (
            ["--target=cpu:8", "--mesh.fsdp=3"],
            "has 8 devices and the mesh replica=1 × fsdp=3 × tensor=1 takes 3",
        ),
        (
            ["--target=cpu:8", "--mesh.tensor=4"],
            "tensor=4 of the mesh does not divide the 2 key/value heads",
        ),
        (["--target=cpu:3"], "fsdp=3 of the mesh does not divide the 32 features"),
        (["--response_tokens=-1"], "response_tokens=-1.0 must be 1 or more, or 0"),
        (
            ["--target=cpu:8", "--response_tokens=51", "--rollout.max_new_tokens=50"],
            "--response_tokens=51 is a mean beyond the run's limit, --rollout.max_new_tokens=50",
        ),
        (["--target=cpu:2049"], "a CPU simulates at most 2048 devices"),
        (["--targe=cpu:8"], "did you mean"),
        (["--student.path=nothing-here"], "'nothing-here' is neither a built-in model"),
    ],
)
def test_mistakes(refused, flags: list[str], sentence: str) -> None:
    assert sentence in refused(plan.main, *RUN, *flags)


@pytest.mark.parametrize(
    ("flags", "means"),
    [
        ([], (150.0, 385.0)),
        (["--data.max_prompt_tokens=200", "--rollout.max_new_tokens=512"], (100.0, 256.0)),
        (["--response_tokens=400", "--rollout.max_new_tokens=512"], (150.0, 400.0)),
        (["--prompt_tokens=200", "--data.max_prompt_tokens=200"], (200.0, 385.0)),
    ],
)
def test_mean_lengths_are_those_given_or_far_from_the_limit(
    flags: list[str], means: tuple[float, float]
) -> None:
    limits = ["--data.max_prompt_tokens=2048", "--rollout.max_new_tokens=1536"]
    kept = [one for one in limits if not any(f.split("=")[0] in one for f in flags)]
    given = [plan._long(flag) for flag in ("--config=tiny", *kept, *flags)]
    settings = options.read(plan.PlanCommand, given, program="plan", description="")
    found = command._lengths(settings)
    assert (found.prompt, found.response) == means


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([], []),
        (["--target=cpu:1"], []),
        (["--kernels", "--config=tiny", "--target=h100:1x1"], ["--config=tiny"]),
        (["--target", "h100:1x1", "--kernels", "--config", "tiny"], ["--config", "tiny"]),
        (["--plan.json", "--seed=2", "--json=true", "--dry_run"], ["--seed=2"]),
    ],
)
def test_the_next_command_has_the_flags_of_the_run(given: list[str], kept: list[str]) -> None:
    assert plan._without_plan(given) == kept


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, refused) -> None:
    def no_plugin(*_: object, **__: object) -> None:
        raise RuntimeError("Unknown backend cuda\nmore")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", no_plugin)
    said = refused(plan.main, "--config=tiny", "--target=h100:1x8")
    assert "the cuda compiler cannot be used here (Unknown backend cuda)" in said
    assert "jax-cuda13-pjrt" in said


def test_programs_may_be_compiled_for_another_platform() -> None:
    assert devices.platform() == "cpu"
    with devices.compiling_for("gpu"):
        assert devices.platform() == "gpu"
    assert devices.platform() == "cpu"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "target"),
    [
        ("qwen2.5-3b-gad", "h100:2x8"),
        ("qwen2.5-7b-gad", "h100:2x8"),
        ("qwen2.5-14b-gad", "h100:2x8"),
        ("llama-3.2-3b-gad", "h100:2x8"),
        ("llama-3.1-8b-gad", "h100:2x8"),
        ("llama-3.1-8b-gad", "h100:1x8"),
        ("qwen2.5-14b-gad", "v5p:2x2x4"),
    ],
)
def test_the_presets_fit_what_they_are_meant_for(command, config: str, target: str) -> None:
    """Needs the target's compiler, without its devices; see docs/planning.md."""
    pytest.importorskip("libtpu" if target.startswith("v5p") else "jax_plugins.xla_cuda13")
    flags = ["--mesh.replica=1"] if target.endswith("1x8") else []
    done = command("plan", f"--config={config}", f"--target={target}", *flags, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    planned = json.loads(done.stdout)
    assert planned["devices"] == (8 if flags else 16)
    assert planned["fits"]
    assert planned["padding"]["packed"] < 0.1
    [update] = (each for each in planned["programs"] if each["name"] == "gad: G and D update")
    if planned["mesh"]["replica"] == 2:
        # Each device's part of both networks' gradients crosses once: 2 · 1/2 of its bytes.
        across = sum(found["bytes"] for found in update["collectives"] if found["across"] > 1)
        parts = update["bytes"]["generator"] + update["bytes"]["discriminator"]
        assert parts <= across < 1.01 * parts


@pytest.mark.slow
@pytest.mark.parametrize(("config", "card"), PRESETS.items())
def test_the_presets_for_one_card_fit_it(command, config: str, card: str) -> None:
    """Needs the CUDA compiler, without its devices; see docs/planning.md."""
    pytest.importorskip("jax_plugins.xla_cuda13")
    flags = (f"--config={config}", f"--target={card}:1x1", "--stage=gad", "--json")
    done = command("plan", *flags, "--gad.discriminator_only_steps=0")
    assert done.returncode == 0, done.stdout + done.stderr
    planned = json.loads(done.stdout)
    assert planned["fits"]
    assert 60 < planned["steps"][0]["seconds"] < 120


def test_rounded_updates_are_not_planned_for_a_card_without_their_matmuls(refused) -> None:
    said = refused(plan.main, *RUN, "--target=a100-80:1x1", "--student.matmul=float8")
    assert "the device is a100-80:1x1, of compute capability 8.0; give" in said
