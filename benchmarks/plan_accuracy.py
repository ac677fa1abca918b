"""Predicted and measured seconds of a GAD step, and on a GPU also its memory.

    python benchmarks/plan_accuracy.py                        on a CPU
    python benchmarks/plan_accuracy.py measure FILE           on a GPU: runs, and writes the results
    python benchmarks/plan_accuracy.py compare FILE h100:1x1  anywhere with the GPU's compiler

On a CPU, in float32: random networks of 3 and 25 million parameters, and SmolLM2. On one GPU:
random networks with the shapes of Qwen2.5-0.5B and 1.5B. The plan gets the mean lengths of the run.
Run it on an idle machine.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).parents[1]
FLAGS = ("--stage=gad", "--gad.discriminator_only_steps=0")
PROMPT_TOKENS = 60
"""About the mean of the bundled prompts."""

GIB = 2**30


class Setting(NamedTuple):
    """The networks to measure, by name, and how."""

    sizes: dict[str, dict[str, Any] | str]
    """Fields of a DecoderConfig, or the name of a model."""

    flags: tuple[str, ...]
    """For both run and plan."""

    limit: int
    """Most tokens of a response."""

    ends: float
    """Share of the vocabulary that ends a response of a random network."""

    steps: int


CPU = Setting(
    {
        "3 M": {"layers": 6, "width": 192, "mlp_width": 512, "heads": 6, "kv_heads": 2}
        | {"head_width": 32},
        "25 M": {"layers": 12, "width": 448, "mlp_width": 1216, "heads": 8, "kv_heads": 4}
        | {"head_width": 56},
        "SmolLM2-135M": "smollm2-135m-instruct",
    },
    (
        *("--config=own", "--data.max_prompt_tokens=128", "--batch.row_tokens=512"),
        *("--batch.prompts=8", "--rollout.samples=4"),
    ),
    limit=128,
    ends=0.03,
    steps=8,
)
QWEN = {"family": "qwen2", "qkv_bias": True, "tied": True, "vocabulary": 151_936}
GPU = Setting(
    {
        "Qwen2.5-0.5B": {"layers": 24, "width": 896, "mlp_width": 4864, "heads": 14, "kv_heads": 2}
        | {"head_width": 64, **QWEN},
        "Qwen2.5-1.5B": {"layers": 28, "width": 1536, "mlp_width": 8960, "heads": 12, "kv_heads": 2}
        | {"head_width": 128, **QWEN},
    },
    (
        *("--config=qwen2.5-3b-gad", "--mesh.replica=1", "--mesh.fsdp=1", "--batch.prompts=16"),
        *("--batch.micro_batch_prompts=4", "--data.max_prompt_tokens=512"),
    ),
    limit=768,
    ends=1 / 385,
    steps=8,
)


def random_config(sizes: dict[str, Any]) -> Any:
    """Returns random-tiny's DecoderConfig with other sizes."""
    from gad_jax.models import source, weights

    return dataclasses.replace(weights.read_config(source.resolve("random-tiny")), **sizes)


def write_random(directory: Path, ends: float, sizes: dict[str, Any]) -> None:
    """Writes a random network with random-tiny's tokenizer.

    Its tokens are about equally likely, and the share `ends` of them ends a response.
    """
    import jax

    from gad_jax.data.tokenizer import load_tokenizer
    from gad_jax.models import decoder, source, writing
    from gad_jax.models.carried import Carried

    config = random_config(sizes)
    params = jax.jit(decoder.init, static_argnums=0)(config, jax.random.key(0))
    count = round(ends * config.vocabulary)
    end_tokens = (258, *range(config.vocabulary - count + 1, config.vocabulary))
    tiny = source.resolve("random-tiny")
    carried = Carried(tiny, load_tokenizer(tiny), end_tokens, tiny)
    writing.save(directory, config, params, carried)


def write_config(directory: Path, sizes: dict[str, Any]) -> None:
    """Writes config.json alone: a plan reads nothing else."""
    from gad_jax.models import families

    config = random_config(sizes)
    text = json.dumps(families.write(config))
    (directory / "config.json").write_text(text, encoding="utf-8")


def run(model: str, directory: Path, setting: Setting) -> dict[str, float]:
    """Returns the medians over steps that compiled nothing, and a GPU's peak memory in bytes.

    A CPU's memory is compared by `plan_memory.py`.
    """
    from gad_jax.base.jsonl import read_rows

    command = [sys.executable, "-m", "gad_jax.train", *FLAGS, *setting.flags]
    command += ["--data.train=bundled", "--data.heldout=", "--data.template=none"]
    command += ["--export=false", "--checkpoint.every=1000", "--checkpoint.keep=1"]
    command += ["--data.stop_at_cut_share=1"]  # a random tokenizer has long responses
    command += [f"--gad.steps={setting.steps}", f"--rollout.max_new_tokens={setting.limit}"]
    command += [f"--student.path={model}", f"--run_dir={directory / 'run'}"]
    log, metrics = directory / "log", directory / "run/metrics.jsonl"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=REPOSITORY)
    rows: list[dict[str, Any]] = []
    while len(rows) < setting.steps and process.poll() is None:
        time.sleep(0.2)
        rows = read_rows(metrics) if metrics.exists() else []
    process.kill()  # before it saves a checkpoint, which does not belong to a step
    process.wait()
    assert len(rows) == setting.steps, log.read_text()
    steady = [row for row in rows if row["compiles"] == 0]
    assert steady, "every step compiled something"

    def median(key: str) -> float:
        return statistics.median(row[key] for row in steady)

    peak = steady[-1].get("memory/peak_gib", 0) * GIB
    parts = ("rollout", "step", "reshard", "update")
    return {
        "peak": peak,
        "length": median("response/length"),
        "rollout_tokens_per_second": median("tokens_per_second/rollout"),
        "padding": median("packing/padding"),
        **{part: median(f"seconds/{part}") for part in parts},
    }


def plan(model: str, length: float, setting: Setting, target: str) -> dict[str, Any]:
    """Returns the plan of the same step."""
    command = [sys.executable, "-m", "gad_jax.plan", *FLAGS, *setting.flags, "--json"]
    command += [f"--target={target}", f"--student.path={model}"]
    command += [f"--prompt_tokens={PROMPT_TOKENS}", f"--response_tokens={length}"]
    command += [f"--rollout.max_new_tokens={setting.limit}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr or done.stdout
    return json.loads(done.stdout)


def measure(setting: Setting, file: Path | None = None) -> dict[str, dict[str, float]]:
    """Returns the measurements of each size, and writes the file after each."""
    found = {}
    for name, size in setting.sizes.items():
        with tempfile.TemporaryDirectory() as scratch:
            model = size if isinstance(size, str) else f"{scratch}/model"
            if not isinstance(size, str):
                write_random(Path(model), setting.ends, size)
            found[name] = run(model, Path(scratch), setting)
        print(name, json.dumps(found[name]), flush=True)
        if file:
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def compare(setting: Setting, found: dict[str, dict[str, float]], target: str) -> None:
    """Prints the table."""
    print("| parameters | | predicted | actual | predicted / actual |\n|---|---|---|---|---|")
    for name, actual in found.items():
        size = setting.sizes[name]
        with tempfile.TemporaryDirectory() as scratch:
            model = size if isinstance(size, str) else scratch
            if not isinstance(size, str):
                write_config(Path(scratch), size)
            expected = plan(model, actual["length"], setting, target)
        phases = {phase["name"]: phase["seconds"] for phase in expected["steps"][-1]["phases"]}
        rollout = sum(seconds for part, seconds in phases.items() if part.startswith("rollout"))
        peak = max(program["total_bytes"] for program in expected["programs"])
        rows = [
            ("step, s", expected["steps"][-1]["seconds"], actual["step"]),
            ("rollout, s", rollout, actual["rollout"]),
            ("updates, s", sum(phases.values()) - rollout, actual["step"] - actual["rollout"]),
        ]
        if actual["peak"]:
            rows.append(("memory, GiB", peak / GIB, actual["peak"] / GIB))
        for what, planned, measured in rows:
            ratio = planned / measured
            print(f"| {name} | {what} | {planned:.2f} | {measured:.2f} | {ratio:.2f} |", flush=True)


def main(arguments: list[str]) -> None:
    """Runs the command."""
    match arguments:
        case []:
            compare(CPU, measure(CPU), "cpu:1")
        case ["measure", file]:
            measure(GPU, Path(file))
        case ["compare", file, target]:
            compare(GPU, json.loads(Path(file).read_text()), target)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))
    main(sys.argv[1:])
