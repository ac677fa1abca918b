"""`python -m gad_jax.bench scaling`: what each device sends in an update, from 1 device to 8.

A training step of a small network is compiled for simulated devices that share the weights. The
transfers in the compiled program are compared with those that the layout needs.
"""

from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from gad_jax.base import exits
from gad_jax.core import packing, steps
from gad_jax.distributed import hlo, targets
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models.config import DecoderConfig, alike
from gad_jax.settings import sections
from gad_jax.settings.config import Config
from gad_jax.training import state

if TYPE_CHECKING:
    from gad_jax.bench.__main__ import ScalingBench

_VOCABULARY, _LEAST_ROWS, _ROW_TOKENS = 512, 16, 64


class Sent(NamedTuple):
    """Bytes that a device sends in an update: all-gathers of weights, reductions of gradients in a
    replica, and reductions between replicas."""

    gathered: float
    gradients: float
    between_replicas: float


def run(chosen: "ScalingBench") -> int:
    """Runs the benchmark; returns the exit code."""
    names = [name.replace("_", " ") for name in Sent._fields]
    print("devices" + "".join(f"{name:>18} MB  by layout" for name in names))
    for count in chosen.devices:
        pairs = zip(sent(chosen, count), by_layout(chosen, count), strict=True)
        print(f"{count:7}" + "".join(f"{a / 1e6:21.3f}{b / 1e6:11.3f}" for a, b in pairs))
    return exits.Exit.OK


def by_layout(chosen: "ScalingBench", count: int) -> Sent:
    """Returns the bytes that the layout makes each of `count` devices send.

    A device of n sends (n - 1)/n of what it gathers. Layers are gathered in each micro-batch: in
    the forward pass, and again in the backward pass, which recomputes it. Embedding and head are
    gathered once. Gradients are reduced in each micro-batch, in float32. On a CPU, XLA uses an
    all-reduce, which sends twice as much as a reduce-scatter.

    With replicas, these reductions stay within a replica. The embedding's gradient is then computed
    from the tokens' ids and gradients, which are gathered. At the end the replicas all-reduce once
    what each device has summed of its shard.
    """
    width, replica, times = chosen.width, chosen.replica, chosen.micro_batches
    embedding = head = _VOCABULARY * width
    layers = chosen.layers * (width * (2 * width + 2 * width // 2) + 3 * width * 2 * width)
    norms = (2 * chosen.layers + 1) * width
    fsdp = count // replica
    share = 4 * (fsdp - 1) / fsdp
    tokens = _rows(count) * _ROW_TOKENS // replica * (width + 1) if replica > 1 else 0
    reduced = layers + head + norms + (embedding if replica == 1 else 0)
    part = (layers + embedding + head) / fsdp + norms
    return Sent(
        gathered=share * (times * (2 * layers + tokens) + embedding + head),
        gradients=share * times * 2 * reduced,
        between_replicas=4 * (replica - 1) / replica * 2 * part,
    )


def _rows(count: int) -> int:
    """Returns the rows of a micro-batch, as many on each device."""
    return count * -(-_LEAST_ROWS // count)


def sent(chosen: "ScalingBench", count: int) -> Sent:
    """Returns the bytes that each of `count` devices sends in the compiled step."""
    network = DecoderConfig(
        family="llama",
        vocabulary=_VOCABULARY,
        width=chosen.width,
        mlp_width=2 * chosen.width,
        layers=chosen.layers,
        heads=4,
        kv_heads=2,
        head_width=chosen.width // 4,
        norm_epsilon=1e-6,
        max_positions=_ROW_TOKENS,
        kinds=alike(1e4),
    )
    mesh = make_mesh(chosen.replica, 0, 1, targets.devices(targets.parse(f"cpu:{count}")))
    micro_batches = chosen.micro_batches
    number = _rows(count) * micro_batches
    rows = packing.pack(
        [np.ones(1, np.int32)] * number,
        [[np.ones(_ROW_TOKENS - 1, np.int32)]] * number,
        row_tokens=_ROW_TOKENS,
        micro_batches=micro_batches,
        shards=count,
        known={(micro_batches, _rows(count), _ROW_TOKENS)},
    )
    # Several chunks of the vocabulary projection: its gradient must still be reduced only once.
    config = Config(stage="seqkd", batch=sections.Batch(vocabulary_chunk=32))
    with jax.set_mesh(mesh):
        program = state.make_program(config, "seqkd", network, network)
        start = state.abstract(program, mesh)
        traced = steps.seqkd_step.trace(program, start, packing.abstract(rows, mesh))
        text = traced.lower().compile().as_text() or ""
    found = hlo.collectives(text, per_node=count // chosen.replica)
    bytes_of = dict.fromkeys(Sent._fields, 0)
    for kind, _, across, _, size in found:
        inside = "gathered" if kind == "all-gather" else "gradients"
        bytes_of[inside if across == 1 else "between_replicas"] += size
    return Sent(**bytes_of)
