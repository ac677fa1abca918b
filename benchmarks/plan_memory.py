"""Predicted and measured memory of a GAD step on a CPU, for three sizes of network.

    python benchmarks/plan_memory.py [--only=NAME] [FLAG ...]

Each size is trained in full and with adapters. Flags are added to the run and to the plan; NAME is
a row, such as "25 M, full".

Measured is one process in a step that compiles nothing: the arrays that it holds before the step,
and by how much its resident memory rises in it. What it holds besides (libraries, programs) comes
in a column of its own, as does the peak of the whole process, which has compiled before. All are
GiB. Run it on a machine with 14 GB free.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from plan_accuracy import GIB, PROMPT_TOKENS, REPOSITORY, write_config, write_random

FLAGS = (
    *("--config=own", "--data.train=bundled", "--data.max_prompt_tokens=128"),
    *("--stage=gad", "--batch.row_tokens=512"),
    *("--batch.prompts=4", "--batch.micro_batch_prompts=2", "--rollout.samples=2"),
    *("--rollout.max_new_tokens=64", "--data.stop_at_cut_share=1"),
)
SIZES: dict[str, dict[str, Any]] = {
    "25 M": {"layers": 12, "width": 448, "mlp_width": 1216, "heads": 8, "kv_heads": 4}
    | {"head_width": 56},
    "130 M": {"layers": 30, "width": 576, "mlp_width": 1536, "heads": 9, "kv_heads": 3}
    | {"head_width": 64, "vocabulary": 49_152, "tied": True},
    "240 M": {"layers": 20, "width": 960, "mlp_width": 2560, "heads": 15, "kv_heads": 5}
    | {"head_width": 64, "vocabulary": 49_152, "tied": True},
}
"""Fields of a DecoderConfig; the second is SmolLM2-135M, the third 20 of the layers of 360M."""

KINDS = {"full": (), "LoRA": ("--lora.rank=16",)}
"""What is trained, and the flags for it."""

STEPS = 6
ENDS = 0.03


def status(field: str) -> int:
    """Returns bytes of this process: VmRSS now, or VmHWM, the most so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise AssertionError(field)


def measure(flags: list[str]) -> dict[str, float]:
    """Returns bytes of a steady step in this process, and the mean length of its samples."""
    import jax

    from gad_jax.base import host_memory
    from gad_jax.distributed.mesh import make_mesh
    from gad_jax.settings import options
    from gad_jax.settings.config import Config
    from gad_jax.training import setup, state

    config = options.read(Config, flags, program="benchmark", description="")
    setup.claim(config)
    mesh = make_mesh()
    peak = 0
    with jax.set_mesh(mesh):
        trainer = setup.build(config, mesh)
        [span] = trainer.spans
        trainer.state = state.begin_stage(
            trainer.state, span.program, mesh, trainer.load_discriminator
        )
        for step in range(STEPS):
            jax.block_until_ready(trainer.state)
            host_memory.give_back()
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
            before = status("VmRSS")
            held = sum(array.nbytes for array in jax.live_arrays())
            trainer.state, metrics = trainer.iteration.run(
                span, step, trainer.state, trainer.frozen, None
            )
            peak = max(peak, status("VmHWM"))
            if metrics["compiles"] == 0:
                risen = status("VmHWM") - before
                return {
                    "step": held + risen,
                    "others": before - held,
                    "peak": peak,
                    "length": metrics["response/length"],
                }
    raise AssertionError("every step compiled something")


def planned(flags: list[str], length: float) -> dict[str, Any]:
    """Returns the plan's largest program."""
    command = [sys.executable, "-m", "gad_jax.plan", *flags, "--target=cpu:1", "--json"]
    command += [f"--prompt_tokens={PROMPT_TOKENS}", f"--response_tokens={length}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.stdout, done.stderr
    return max(json.loads(done.stdout)["programs"], key=lambda program: program["total_bytes"])


def compare(sizes: dict[str, Any], flags: list[str]) -> str:
    """Returns the cells of a row: planned, measured, their ratio, what is besides, the process."""
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        model.mkdir()
        (Path(scratch) / "run").mkdir()
        made = [sys.executable, __file__, "write", str(model), json.dumps(sizes)]
        subprocess.run(made, check=True)  # elsewhere: its memory is not to be missing here
        flags = [*FLAGS, f"--student.path={model}", *flags]
        run = ["--data.heldout=", "--export=false", f"--run_dir={scratch}/run"]
        command = [sys.executable, __file__, "measure", *flags, *run]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        write_config(model, sizes)
        plan = planned(flags, found["length"])
    cells = (plan["total_bytes"], found["step"], found["others"], found["peak"])
    expected, actual, others, peak = (f"{size / GIB:.2f}" for size in cells)
    ratio = plan["total_bytes"] / found["step"]
    return f"{expected} | {actual} | {ratio:.2f} | {others} | {peak} | {plan['name']}"


def main(extra: list[str]) -> None:
    """Prints the table."""
    only = [flag.removeprefix("--only=") for flag in extra if flag.startswith("--only=")]
    extra = [flag for flag in extra if not flag.startswith("--only=")]
    rows = {f"{name}, {kind}": (name, kind) for name in SIZES for kind in KINDS}
    for name in only:
        if name not in rows:
            sys.exit(f"--only={name} is no row; use one of: {'; '.join(rows)}")
    print("| parameters | planned | measured | planned / measured | besides | process | largest |")
    print("|---|---|---|---|---|---|---|")
    for row in only or rows:
        name, kind = rows[row]
        print(f"| {row} | {compare(SIZES[name], [*KINDS[kind], *extra])} |", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(sys.argv[2:])))
    elif sys.argv[1:2] == ["write"]:
        write_random(Path(sys.argv[2]), ENDS, json.loads(sys.argv[3]))
    else:
        main(sys.argv[1:])
