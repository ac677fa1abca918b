"""`python -m gad_jax.bench scaling`: what each device sends in an update, from 1 device to 8.

A training step of a small network is compiled for simulated devices that share the weights, and
the transfers in the program are compared with what the layout must send.
"""

import dataclasses

from gad_jax import guard, options
from gad_jax.config import option
from gad_jax.planning import targets


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The network and the devices."""

    layers: int = option(3, "layers of the network", "layers")
    width: int = option(128, "its width; 4 heads, mlp of twice the width, 512 tokens", "features")
    devices: tuple[int, ...] = option((1, 2, 4, 8), "numbers of devices", "devices")

    def __post_init__(self) -> None:
        if self.layers < 1 or self.width < 8 or self.width % 8:
            raise ValueError(
                f"layers={self.layers} must be 1 or more and width={self.width} a multiple of 8"
            )
        for count in self.devices:
            if count < 1 or self.width % count:
                raise ValueError(f"devices={count} does not divide width={self.width}")


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    chosen = options.parse(
        Scaling,
        argv,
        program="python -m gad_jax.bench scaling",
        description="Bytes that each device sends in an update, against the layout's arithmetic.",
    )
    return guard.run_guarded(lambda: _run(chosen))


def _run(chosen: Scaling) -> int:
    largest = max(chosen.devices)
    targets.prepare_environment(targets.parse(f"cpu:{largest}"))
    print("devices  gathered MB  by layout  gradients MB  by layout")
    for count in chosen.devices:
        gathered, gradients = sent(chosen, count)
        layout = by_layout(chosen, count)
        numbers = (gathered, layout[0], gradients, layout[1])
        print(f"{count:7}" + "".join(f"{size / 1e6:12.3f}" for size in numbers))
    return guard.Exit.OK


def by_layout(chosen: Scaling, count: int) -> tuple[float, float]:
    """Returns the bytes that FSDP sends per device: gathered weights, and gradients.

    A device of n sends (n - 1)/n of what it gathers. Layers are gathered in the forward pass and,
    since it is computed again, in the backward pass; embedding and head once. Gradients are reduced
    once, in float32: on a CPU XLA sends them to all, which is twice a reduce-scatter.
    """
    width = chosen.width
    layer = width * (2 * width + 2 * width // 2) + 3 * width * 2 * width
    ends = 2 * 512 * width
    layers, norms = chosen.layers * layer, (2 * chosen.layers + 1) * width
    share = 4 * (count - 1) / count
    return share * (2 * layers + ends), share * 2 * (layers + ends + norms)


def sent(chosen: Scaling, count: int) -> tuple[int, int]:
    """Returns the bytes that the compiled step sends per device: all-gathers, and the rest."""
    import jax
    import numpy as np

    from gad_jax import config as settings
    from gad_jax import sharding, state, steps
    from gad_jax.data import packing
    from gad_jax.models.decoder import DecoderConfig
    from gad_jax.planning import hlo

    network = DecoderConfig(
        family="llama",
        vocabulary=512,
        width=chosen.width,
        mlp_width=2 * chosen.width,
        layers=chosen.layers,
        heads=4,
        kv_heads=2,
        head_width=chosen.width // 4,
        rope_theta=1e4,
        norm_epsilon=1e-6,
        max_positions=64,
    )
    mesh = sharding.make_mesh(1, count, 1, jax.devices()[:count])
    prompts, answers = [np.ones(1, np.int32)] * 16, [[np.ones(63, np.int32)]] * 16
    rows = packing.pack(prompts, answers, row_tokens=64, shards=count, known={(1, 16, 64)})
    # Several chunks of the vocabulary projection, whose gradient is reduced once all the same.
    config = settings.Config(stage="seqkd", batch=settings.Batch(vocabulary_chunk=32))
    with jax.set_mesh(mesh):
        program = state.make_program(config, "seqkd", network, network)
        start = state.abstract(config, "seqkd", program, mesh)
        traced = steps.seqkd_step.trace(program, start, packing.abstract(rows, mesh))
        found = hlo.collectives(traced.lower().compile().as_text(), per_node=count)
    gathered = sum(transfer.bytes for transfer in found if transfer.kind == "all-gather")
    return gathered, sum(transfer.bytes for transfer in found) - gathered
