"""`python -m gad_jax.bench update`: a training step against what the machine can do.

The step is cross-entropy on full rows (SeqKD), the part that every update shares; a torch step of
the same model and tokens is timed after it where torch is installed. Large matrix products are
timed after every step, so that a step's share of their rate is of two times side by side: the
rate of a shared machine changes within minutes.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from gad_jax.base import exits
from gad_jax.settings import options
from gad_jax.settings.fields import option

WARM_UP = 2
"""Steps before those that are timed: the first compiles, and both find their memory."""


@dataclasses.dataclass(frozen=True)
class Update:
    """What is measured."""

    model: str = option("smollm2-135m-instruct", "model, as in --student.path")
    rows: int = option(8, "rows of a step", "rows")
    row_tokens: int = option(256, "length of a row", "tokens")
    steps: int = option(5, f"steps to time, after {WARM_UP} that are not", "steps")
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
    return exits.run_guarded(lambda: _run(chosen))


class Ours(NamedTuple):
    """The step that is measured."""

    step: Callable[[], None]
    flops: float
    """Useful operations of forward and backward pass."""
    compute_dtype: str


class Timed(NamedTuple):
    """Seconds of steps, and of the matrix products after each."""

    steps: np.ndarray
    products: np.ndarray


def _run(chosen: Update) -> int:
    from gad_jax.distributed import ceilings, devices
    from gad_jax.models import source

    directory = source.resolve(chosen.model)
    mine = ours(chosen, directory)
    product, product_flops = ceilings.product(mine.compute_dtype)
    tokens = chosen.rows * chosen.row_tokens

    def timed(step: Callable[[], None]) -> Timed:
        for _ in range(WARM_UP):
            step()
        rounds = [
            (_seconds(step), statistics.median(ceilings.times(product, budget=0.25)))
            for _ in range(chosen.steps)
        ]
        return Timed(*np.array(rounds).T)

    def show(name: str, times: Timed) -> None:
        rates, ceiling = mine.flops / times.steps, product_flops / times.products
        shares = rates / ceiling
        seconds = np.median(times.steps)
        print(
            f"{name}: median of {chosen.steps} steps {seconds:.3g} s, {tokens / seconds:,.0f} "
            f"tokens/s, {np.median(rates) / 1e9:,.0f} GFLOP/s = {np.median(shares):.0%} of a large "
            f"matrix product's {np.median(ceiling) / 1e9:,.0f} "
            f"({shares.min():.0%} to {shares.max():.0%})"
        )

    compiling = devices.CompileCounter()
    times = timed(mine.step)
    print(
        f"{chosen.rows} × {chosen.row_tokens} tokens, {mine.compute_dtype}, compiled in "
        f"{compiling.seconds:.0f} s; after each step a large matrix product is timed"
    )
    show("gad_jax", times)
    if chosen.torch:
        step = torch_step(chosen, directory)
        if step is None:
            print("torch is not installed, so there is no step to compare with")
        else:
            others = timed(step)
            show("torch", others)
            ratio = np.median(others.steps) / np.median(times.steps)
            print(f"gad_jax is {ratio:.2f} times as fast as torch")
    return exits.Exit.OK


def ours(chosen: Update, directory: Any) -> Ours:
    """Returns the step of this program."""
    import jax

    from gad_jax.core import packing, steps
    from gad_jax.distributed.mesh import data_shards, make_mesh
    from gad_jax.models import costs
    from gad_jax.settings import config as settings
    from gad_jax.settings import sections
    from gad_jax.training import state

    config = settings.Config(
        stage="seqkd",
        student=sections.Student(path=str(directory), remat=chosen.remat),
        data=sections.Data(max_prompt_tokens=1),
        rollout=sections.Rollout(max_new_tokens=chosen.row_tokens),
    )
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        networks = state.network_configs(config)
        program = state.make_program(config, "seqkd", *networks)
        start = state.load(config.student.path, config.seed, mesh)
        training = state.begin_stage(
            start, program, mesh, lambda: state.load_discriminator(config, networks[1], mesh)
        )
        rng = np.random.default_rng(0)
        ids = rng.integers(0, networks[0].vocabulary, (chosen.rows, chosen.row_tokens), np.int32)
        packed = packing.pack(
            [row[:1] for row in ids],
            [[row[1:]] for row in ids],
            row_tokens=chosen.row_tokens,
            shards=data_shards(mesh),
            known={(1, chosen.rows, chosen.row_tokens)},
        )
        rows = packing.place(packed, mesh)

    def step() -> None:
        nonlocal training
        with jax.set_mesh(mesh):
            training, metrics = steps.seqkd_step(program, training, rows)
            jax.block_until_ready(metrics)

    flops = costs.training_flops(networks[0], costs.packed_work(packed))
    return Ours(step, flops, networks[0].compute_dtype)


def torch_step(chosen: Update, directory: Any) -> Callable[[], None] | None:
    """Returns the same step in transformers on torch, where JAX computes half in torch's mixed
    precision; None without torch."""
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

    return step


def _seconds(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started
