"""What `gad_jax.plan` predicts of a GAD step on this CPU, and what the step then takes.

    python benchmarks/plan_accuracy.py

Three sizes in float32: random networks of 3 and 25 million parameters, and SmolLM2. The plan is
asked for the mean lengths that the run had. Run it on an idle machine.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
FLAGS = (
    *("--config=quickstart", "--stage=gad", "--gad.discriminator_only_steps=0"),
    *("--batch.prompts=8", "--rollout.samples=4"),
)
RUN = (
    *("--data.heldout=", "--export=false", "--checkpoint.every=1000"),
    "--rollout.max_new_tokens=128",
)
PLAN = (
    *("--target=cpu:1", "--json", "--prompt_tokens=60"),
    "--rollout.max_new_tokens=256",  # a plan takes means up to half of it
)
STEPS = 8
GIB = 2**30


def write_random(directory: Path, **sizes: int) -> None:
    """Writes a random network with random-tiny's tokenizer; a response has about 35 tokens."""
    import jax

    from gad_jax.data.tokenizer import load_tokenizer
    from gad_jax.models import decoder, source, weights

    tiny = source.resolve("random-tiny")
    config = dataclasses.replace(weights.read_config(tiny), **sizes)
    ends = (258, *range(300, 314))  # of 512 tokens about equally likely, so that responses end
    params = decoder.init(config, jax.random.key(0))
    weights.save(directory, config, params, load_tokenizer(tiny), ends)


def run(model: str, directory: Path) -> dict[str, float]:
    """Returns the medians of a run's steps that compiled nothing, and the growth of its memory
    from before the first step, in bytes."""
    command = [sys.executable, "-m", "gad_jax.train", *FLAGS, *RUN, f"--gad.steps={STEPS}"]
    command += [f"--student.path={model}", f"--run_dir={directory / 'run'}"]
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=REPOSITORY)
        _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, (directory / "log").read_text()
    lines = [json.loads(line) for line in (directory / "run/metrics.jsonl").open()]
    steady = [line for line in lines if line["compiles"] == 0]
    assert steady, "every step compiled something"

    def median(key: str) -> float:
        return statistics.median(line[key] for line in steady)

    parts = ("rollout", "step")
    return {
        "peak": usage.ru_maxrss * 1024.0,
        "length": median("response/length"),
        **{part: median(f"seconds/{part}") for part in parts},
    }


def plan(model: str, length: float) -> dict[str, Any]:
    """Returns the plan of the same step."""
    command = [sys.executable, "-m", "gad_jax.plan", *FLAGS, *PLAN, f"--student.path={model}"]
    command += [f"--response_tokens={length}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def empty_process() -> float:
    """Returns the memory of a process that has loaded what a run loads, in bytes."""
    code = "import jax, optax, orbax.checkpoint, transformers, datasets; jax.devices()"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY)
    return os.wait4(process.pid, 0)[2].ru_maxrss * 1024.0


def main() -> None:
    """Runs the command."""
    small = {"layers": 6, "width": 192, "mlp_width": 512, "heads": 6, "kv_heads": 2}
    middle = {"layers": 12, "width": 448, "mlp_width": 1216, "heads": 8, "kv_heads": 4}
    sizes: dict[str, Callable[[Path], str]] = {
        "3 M": lambda path: _random(path, head_width=32, **small),
        "25 M": lambda path: _random(path, head_width=56, **middle),
        "135 M": lambda path: "smollm2-135m-instruct",
    }
    base = empty_process()
    print("| parameters | | predicted | actual | predicted / actual |\n|---|---|---|---|---|")
    for name, make in sizes.items():
        with tempfile.TemporaryDirectory() as scratch:
            model = make(Path(scratch))
            actual = run(model, Path(scratch))
            expected = plan(model, actual["length"])
        phases = {phase["name"]: phase["seconds"] for phase in expected["steps"][-1]["phases"]}
        rollout = sum(seconds for part, seconds in phases.items() if part.startswith("rollout"))
        peak = max(program["total_bytes"] for program in expected["programs"])
        rows = (
            ("step, s", expected["steps"][-1]["seconds"], actual["step"]),
            ("rollout, s", rollout, actual["rollout"]),
            ("updates, s", sum(phases.values()) - rollout, actual["step"] - actual["rollout"]),
            ("memory, GiB", peak / GIB, (actual["peak"] - base) / GIB),
        )
        for what, planned, measured in rows:
            ratio = planned / measured
            print(f"| {name} | {what} | {planned:.2f} | {measured:.2f} | {ratio:.2f} |", flush=True)


def _random(path: Path, **sizes: int) -> str:
    write_random(path / "model", **sizes)
    return str(path / "model")


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))
    main()
