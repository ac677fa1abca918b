"""`python -m gad_jax.bench update`: a training step against what the machine can do.

The step is cross-entropy on full rows (SeqKD), the part that every update shares. A torch step of
the same model and tokens is timed after it, if torch is installed. Large matmuls are timed after
every step, so that a step is compared with the rate of the same moment: the rate of a shared
machine changes within minutes.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from gad_jax.base import exits
from gad_jax.bench import limits, peers
from gad_jax.core import packing, steps
from gad_jax.distributed import ceilings, devices
from gad_jax.distributed.mesh import data_shards, make_mesh
from gad_jax.models import costs, source
from gad_jax.settings import sections
from gad_jax.settings.config import Config
from gad_jax.training import architectures, state

if TYPE_CHECKING:
    from gad_jax.bench.__main__ import UpdateBench


WARM_UP = 2
"""Untimed first steps: the first compiles, and both allocate their memory."""


class Ours(NamedTuple):
    """The step that is measured."""

    step: Callable[[], None]
    flops: float
    """Analytic FLOPs of the forward and the backward pass."""
    compute_dtype: str


class Timed(NamedTuple):
    """Seconds of each step, and of the matmul after it."""

    steps: np.ndarray
    matmuls: np.ndarray


class _Matmul(NamedTuple):
    """A large matmul, and its FLOPs."""

    run: Callable[[], jax.Array]
    flops: float


def run(chosen: "UpdateBench") -> int:
    """Runs the benchmark; returns the exit code."""
    directory = source.resolve(chosen.model)
    if chosen.matmul == "float8":
        devices.require_float8_here()
    mine = ours(chosen, directory)
    matmul = _Matmul(*ceilings.matmul(mine.compute_dtype))
    compiling = devices.CompileCounter()
    times = _time(mine.step, matmul, chosen.steps)
    print(
        f"{chosen.rows} × {chosen.row_tokens} tokens, {mine.compute_dtype}, compiled in "
        f"{compiling.seconds:.0f} s; after each step a large matmul is timed"
    )
    tokens = chosen.rows * chosen.row_tokens
    _show("gad_jax", times, tokens, mine.flops, matmul)
    if chosen.torch:
        step = torch_step(chosen, directory)
        if step is None:
            print("torch is not installed, so there is no step to compare with")
        else:
            others = _time(step, matmul, chosen.steps)
            _show("torch", others, tokens, mine.flops, matmul)
            ratio = np.median(others.steps) / np.median(times.steps)
            print(f"gad_jax is {ratio:.2f} times as fast as torch")
    return exits.Exit.OK


def _time(step: Callable[[], None], matmul: _Matmul, count: int) -> Timed:
    for _ in range(WARM_UP):
        step()
    rounds = [
        (_seconds(step), statistics.median(ceilings.times(matmul.run, budget=0.25)))
        for _ in range(count)
    ]
    return Timed(*np.array(rounds).T)


def _show(name: str, times: Timed, tokens: int, flops: float, matmul: _Matmul) -> None:
    rates, ceiling = flops / times.steps, matmul.flops / times.matmuls
    shares = rates / ceiling
    seconds = np.median(times.steps)
    print(
        f"{name}: median of {len(times.steps)} steps {seconds:.3g} s, {tokens / seconds:,.0f} "
        f"tokens/s, {np.median(rates) / 1e9:,.0f} GFLOP/s = {np.median(shares):.0%} of a large "
        f"matmul's {np.median(ceiling) / 1e9:,.0f} ({shares.min():.0%} to {shares.max():.0%})"
    )


def ours(chosen: "UpdateBench", directory: Path) -> Ours:
    """Returns a SeqKD step of gad_jax."""
    config = Config(
        stage="seqkd",
        student=sections.Student(
            str(directory), matmul=chosen.matmul, remat=chosen.remat, unroll=chosen.unroll
        ),
        data=sections.Data(max_prompt_tokens=1),
        rollout=sections.Rollout(max_new_tokens=chosen.row_tokens),
    )
    mesh = make_mesh(devices=jax.devices()[:1])  # as what it is compared with
    with jax.set_mesh(mesh):
        architectures.check_devices(config)
        networks = architectures.configs(config)
        longest = chosen.row_tokens
        limits.check(networks[0], chosen.model, longest, f"--row_tokens={longest}")
        program = state.make_program(config, "seqkd", *networks)
        start = state.load(config, networks[0], mesh)
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

    flops = costs.training_flops(networks[0], costs.packed_work(networks[0], packed))
    return Ours(step, flops, networks[0].compute_dtype)


def torch_step(chosen: "UpdateBench", directory: Path) -> Callable[[], None] | None:
    """Returns the same step in transformers on torch; None without torch.

    Where JAX computes in bfloat16, or rounds to it, torch does so by its automatic mixed precision.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    from transformers import AutoModelForCausalLM

    device, dtype = peers.torch_device()
    model: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype="float32", use_safetensors=True
    )
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    shape = (chosen.rows, chosen.row_tokens)
    ids = torch.randint(0, model.config.vocab_size, shape, device=device)
    half = torch.autocast(device, torch.bfloat16, enabled="bfloat16" in (dtype, chosen.matmul))

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
