"""Seconds per step: a full GAD step (both networks) here, a policy-only GRPO step in TRL.

    python benchmarks/gad_step.py ours           in the project's environment
    python benchmarks/gad_step.py trl            in one with torch and trl installed

Both train SmolLM2-135M-Instruct in float32 on 8 prompts of the bundled set × 4 samples × at most 64
new tokens, at temperature 0.8, with one optimizer step. Further flags go to our run, as
`--student.remat=full`; TRL takes `--bf16` alone, for automatic mixed precision. Run one after the
other on an idle machine, and compare medians.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

PROMPTS, SAMPLES, NEW_TOKENS = 8, 4, 64
REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))


def ours(steps: int, more: list[str]) -> list[float]:
    """Returns the seconds of each GAD step, rollout included, with the run's own loop."""
    import jax

    from gad_jax.base import exits
    from gad_jax.base.jsonl import read_rows
    from gad_jax.distributed.mesh import make_mesh
    from gad_jax.settings import options
    from gad_jax.settings.config import Config
    from gad_jax.training import setup

    class NoStop(exits.StopRequest):
        def __init__(self) -> None:
            self.requested = self.ready = False

    with tempfile.TemporaryDirectory() as directory:
        flags = [
            *("--config=own", "--data.train=bundled", "--data.max_prompt_tokens=128"),
            "--batch.row_tokens=512",
            f"--run_dir={directory}",
            "--stage=gad",
            f"--gad.steps={steps}",
            "--data.heldout=",
            f"--checkpoint.every={steps + 1}",
            f"--batch.prompts={PROMPTS}",
            f"--rollout.samples={SAMPLES}",
            f"--rollout.max_new_tokens={NEW_TOKENS}",
            *more,
        ]
        config = options.read(Config, flags, program="benchmark", description="")
        mesh = make_mesh()
        with jax.set_mesh(mesh):
            trainer = setup.build(config, mesh)
            trainer.run(NoStop())
            trainer.close()
        rows = read_rows(Path(directory) / "metrics.jsonl")
    for row in rows:
        parts = {name: round(row[name], 1) for name in row if name.startswith("seconds/")}
        print(parts, "compiles", row["compiles"], "length", row["response/length"])
    return [row["seconds/step"] for row in rows if row["compiles"] == 0]


def trl(steps: int, more: list[str]) -> list[float]:
    """Returns the seconds of each step of TRL's GRPOTrainer, generation included."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from gad_jax.models import source

    directory = source.resolve("smollm2-135m-instruct")
    lines = (REPOSITORY / "gad_jax/data/bundled/train.jsonl").read_text().splitlines()
    prompts = [{"prompt": json.loads(line)["messages"]} for line in lines]
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            seconds.append(time.perf_counter() - self.started)
            print(f"{seconds[-1]:.1f} s", flush=True)

    with tempfile.TemporaryDirectory() as out:
        options = GRPOConfig(
            output_dir=out,
            per_device_train_batch_size=PROMPTS * SAMPLES,
            num_generations=SAMPLES,
            max_completion_length=NEW_TOKENS,
            temperature=0.8,
            learning_rate=1e-6,
            max_steps=steps,
            bf16="--bf16" in more,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
        )
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(directory, dtype="float32"),
            processing_class=AutoTokenizer.from_pretrained(directory),
            reward_funcs=lambda completions, **_: [
                float(len(answer[0]["content"])) for answer in completions
            ],
            args=options,
            train_dataset=Dataset.from_list(prompts),
            callbacks=[Clock()],
        )
        trainer.train()
    return seconds[1:]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=("ours", "trl"))
    parser.add_argument("--steps", type=int, default=6)
    chosen, more = parser.parse_known_args()
    if chosen.side == "trl" and {*more} - {"--bf16"}:
        parser.error(f"trl takes --bf16 alone, and this is {' '.join(more)}")
    measured = {"ours": ours, "trl": trl}[chosen.side](chosen.steps, more)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert measured, "every step compiled something; give more --steps"
    print(
        f"{chosen.side}: median {statistics.median(measured):.1f} s per step, "
        f"{min(measured):.1f} to {max(measured):.1f}, of {len(measured)} steps; "
        f"peak memory {peak:.1f} GiB"
    )
