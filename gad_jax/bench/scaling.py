"""`python -m gad_jax.bench scaling`: what each device sends in an update, from 1 device to 8.

A training step of a small network is compiled for simulated devices that share the weights, and
the transfers in the program are compared with what the layout must send.
"""

import dataclasses
from typing import NamedTuple

from gad_jax.base import exits
from gad_jax.distributed import targets
from gad_jax.settings import options
from gad_jax.settings.fields import option

_VOCABULARY, _ROWS, _ROW_TOKENS = 512, 16, 64


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The network and the devices."""

    layers: int = option(3, "layers of the network", "layers")
    width: int = option(128, "its width; 4 heads, mlp of twice the width, 512 tokens", "features")
    devices: tuple[int, ...] = option((1, 2, 4, 8), "numbers of devices", "devices")
    replica: int = option(1, "replicas, each with the weights split over its devices", "replicas")
    micro_batches: int = option(1, "micro-batches of the update", "micro-batches")

    def __post_init__(self) -> None:
        if self.layers < 1 or self.width < 8 or self.width % 8:
            raise ValueError(
                f"layers={self.layers} must be 1 or more and width={self.width} a multiple of 8"
            )
        for count in self.devices:
            if count < 1 or self.width % count:
                raise ValueError(f"devices={count} does not divide width={self.width}")
            if self.replica < 1 or count % self.replica:
                raise ValueError(f"replica={self.replica} does not divide devices={count}")
        if self.micro_batches < 1:
            raise ValueError(f"micro_batches={self.micro_batches} must be 1 or more")


class Sent(NamedTuple):
    """Bytes that a device sends in an update: gathers of weights, reductions of gradients inside of
    a replica, and those between replicas."""

    gathered: float
    gradients: float
    between_replicas: float


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    chosen = options.parse(
        Scaling,
        argv,
        program="python -m gad_jax.bench scaling",
        description="Bytes that each device sends in an update, against the layout's arithmetic.",
    )
    return exits.run_guarded(lambda: _run(chosen))


def _run(chosen: Scaling) -> int:
    largest = max(chosen.devices)
    targets.prepare_environment(targets.parse(f"cpu:{largest}"))
    names = [name.replace("_", " ") for name in Sent._fields]
    print("devices" + "".join(f"{name:>18} MB  by layout" for name in names))
    for count in chosen.devices:
        pairs = zip(sent(chosen, count), by_layout(chosen, count), strict=True)
        print(f"{count:7}" + "".join(f"{a / 1e6:21.3f}{b / 1e6:11.3f}" for a, b in pairs))
    return exits.Exit.OK


def by_layout(chosen: Scaling, count: int) -> Sent:
    """Returns the bytes that the layout makes each of `count` devices send.

    A device of n sends (n - 1)/n of what it gathers. Layers are gathered in each micro-batch, in
    the forward pass and, since it is computed again, in the backward pass; embedding and head once.
    Gradients are reduced in each micro-batch, in float32: on a CPU XLA sends them to all, which is
    twice a reduce-scatter. Where there are replicas, that is inside of one, and the embedding's
    part is made from the tokens' ids and gradients, which are gathered; then the replicas reduce
    what each device has summed of its part, once.
    """
    width, replica, times = chosen.width, chosen.replica, chosen.micro_batches
    embedding = head = _VOCABULARY * width
    layers = chosen.layers * (width * (2 * width + 2 * width // 2) + 3 * width * 2 * width)
    norms = (2 * chosen.layers + 1) * width
    fsdp = count // replica
    share = 4 * (fsdp - 1) / fsdp
    tokens = _ROWS * _ROW_TOKENS // replica * (width + 1) if replica > 1 else 0
    reduced = layers + head + norms + (embedding if replica == 1 else 0)
    part = (layers + embedding + head) / fsdp + norms
    return Sent(
        gathered=share * (times * (2 * layers + tokens) + embedding + head),
        gradients=share * times * 2 * reduced,
        between_replicas=4 * (replica - 1) / replica * 2 * part,
    )


def sent(chosen: Scaling, count: int) -> Sent:
    """Returns the bytes that each of `count` devices sends in the compiled step."""
    import jax
    import numpy as np

    from gad_jax.core import packing, steps
    from gad_jax.distributed import hlo
    from gad_jax.distributed.mesh import make_mesh
    from gad_jax.models.config import DecoderConfig
    from gad_jax.settings import config as settings
    from gad_jax.settings import sections
    from gad_jax.training import state

    network = DecoderConfig(
        family="llama",
        vocabulary=_VOCABULARY,
        width=chosen.width,
        mlp_width=2 * chosen.width,
        layers=chosen.layers,
        heads=4,
        kv_heads=2,
        head_width=chosen.width // 4,
        rope_theta=1e4,
        norm_epsilon=1e-6,
        max_positions=_ROW_TOKENS,
    )
    mesh = make_mesh(chosen.replica, 0, 1, jax.devices()[:count])
    micro_batches = chosen.micro_batches
    number = _ROWS * micro_batches
    rows = packing.pack(
        [np.ones(1, np.int32)] * number,
        [[np.ones(_ROW_TOKENS - 1, np.int32)]] * number,
        row_tokens=_ROW_TOKENS,
        micro_batches=micro_batches,
        shards=count,
        known={(micro_batches, _ROWS, _ROW_TOKENS)},
    )
    # Several chunks of the vocabulary projection, whose gradient is reduced once all the same.
    config = settings.Config(stage="seqkd", batch=sections.Batch(vocabulary_chunk=32))
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
