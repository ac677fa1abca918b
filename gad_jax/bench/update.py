"""`python -m gad_jax.bench update`: a training step against what the machine can do.

The step is cross-entropy on full rows (SeqKD), the part that every update shares; a torch step of
the same model and tokens is timed beside it where torch is installed.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from gad_jax import guard, options
from gad_jax.config import option


@dataclasses.dataclass(frozen=True)
class Update:
    """What is measured."""

    model: str = option("smollm2-135m-instruct", "model, as in --student.path")
    rows: int = option(8, "rows of a step", "rows")
    row_tokens: int = option(256, "length of a row", "tokens")
    steps: int = option(5, "steps to time, after two that are not", "steps")
    remat: Literal["full", "dots", "none"] = option("dots", "as --student.remat")
    torch: bool = option(True, "also time a torch step, if torch is installed")

    def __post_init__(self) -> None:
        for name in ("rows", "row_tokens", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    chosen = options.parse(
        Update,
        argv,
        program="python -m gad_jax.bench update",
        description="Seconds of a training step, as a ratio to matrix products and to torch.",
    )
    return guard.run_guarded(lambda: _run(chosen))


def _run(chosen: Update) -> int:
    from gad_jax import ceilings
    from gad_jax.models import source

    directory = source.resolve(chosen.model)
    seconds, flops, compute_dtype, compile_seconds = ours(chosen, directory)
    best = ceilings.measure(compute_dtype)
    tokens = chosen.rows * chosen.row_tokens
    rate = flops / seconds
    print(
        f"{chosen.rows} × {chosen.row_tokens} tokens, {compute_dtype}: median of {chosen.steps} "
        f"steps {seconds:.3g} s, {tokens / seconds:,.0f} tokens/s, compiled in "
        f"{compile_seconds:.0f} s"
    )
    print(
        f"{rate / 1e9:,.0f} GFLOP/s = {rate / best.flops_per_second:.0%} of the "
        f"{best.flops_per_second / 1e9:,.0f} of a large matrix product "
        f"(memory is read at {best.bytes_per_second / 1e9:.0f} GB/s)"
    )
    if chosen.torch:
        theirs = torch_step(chosen, directory)
        if theirs is None:
            print("torch is not installed, so there is no step to compare with")
        else:
            print(f"torch: median {theirs:.3g} s; ours is {theirs / seconds:.2f} times as fast")
    return guard.Exit.OK


def ours(chosen: Update, directory: Any) -> tuple[float, float, str, float]:
    """Returns seconds and useful operations of a step, the dtype, and the seconds of compiling."""
    import jax

    from gad_jax import config as settings
    from gad_jax import costs, sharding, state, steps
    from gad_jax.data import packing

    config = settings.Config(
        stage="seqkd",
        student=settings.Student(path=str(directory), remat=chosen.remat),
        data=settings.Data(max_prompt_tokens=1),
        rollout=settings.Rollout(max_new_tokens=chosen.row_tokens),
    )
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        networks = state.network_configs(config)
        program = state.make_program(config, "seqkd", *networks)
        start = state.load(config, networks[0], mesh)
        training = state.begin_stage(start, config, "seqkd", program, mesh)
        rng = np.random.default_rng(0)
        ids = rng.integers(0, networks[0].vocabulary, (chosen.rows, chosen.row_tokens), np.int32)
        packed = packing.pack(
            [row[:1] for row in ids],
            [[row[1:]] for row in ids],
            row_tokens=chosen.row_tokens,
            shards=sharding.data_shards(mesh),
            known={(1, chosen.rows, chosen.row_tokens)},
        )
        rows = packing.place(packed, mesh)

        def step() -> None:
            nonlocal training
            training, metrics = steps.seqkd_step(program, training, rows)
            jax.block_until_ready(metrics)

        counter = sharding.CompileCounter()
        seconds = _median(step, chosen.steps)
    flops = costs.training_flops(networks[0], costs.packed_work(packed))
    return seconds, flops, networks[0].compute_dtype, counter.seconds


def torch_step(chosen: Update, directory: Any) -> float | None:
    """Returns the seconds of the same step in transformers on torch, where JAX computes half in
    torch's mixed precision; None without torch."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    from transformers import AutoModelForCausalLM

    from gad_jax.bench import peers

    device, dtype = peers.torch_device()
    model: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype="float32", use_safetensors=True
    )
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    shape = (chosen.rows, chosen.row_tokens)
    ids = torch.randint(0, model.config.vocab_size, shape, device=device)
    half = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")

    def step() -> None:
        optimizer.zero_grad()
        with half:
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        optimizer.step()
        loss.item()  # waits for the device

    return _median(step, chosen.steps)


def _median(step: Callable[[], None], count: int) -> float:
    times = []
    for _ in range(count + 2):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])
