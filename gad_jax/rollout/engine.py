"""Sampling: prompts in, responses out. `prefill` runs the prompts once; `loop.py` has what follows.

The weights are the training weights, gathered, cast and split by layer once per rollout: a loop
over unrolled layers updates its caches in place, where a scan would copy them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gad_jax.base.errors import UserError
from gad_jax.distributed import sharding
from gad_jax.models import decoder
from gad_jax.models.decoder import DecoderConfig
from gad_jax.rollout import loop
from gad_jax.rollout.loop import Settings
from gad_jax.rollout.queue import capacity, fewer_slots, make_queue
from gad_jax.rollout.ring import Prefix, Weights
from gad_jax.types import Params, Rollout, Segments

__all__ = [
    "Segment", "Settings", "Weights", "cache_bytes", "check_cache", "generate", "occupancy",
    "prefill", "prepare", "trace",
]  # fmt: skip


class Segment(NamedTuple):
    """One call of `decode`: so many slots and columns per shard, for so many steps."""

    slots: int
    columns: int
    steps: int


@sharding.jit(static="config")
def prepare(config: DecoderConfig, params: Params) -> Weights:
    """Returns the decode copy of the weights: in the compute dtype, gathered, split by layer."""

    def copy(path: Any, leaf: Array) -> Array:
        axes = sharding.parameter_axes(sharding.path_name(path))
        # norms stay float32, as they are computed
        dtype = leaf.dtype if axes[-1] == "scale" else jnp.dtype(config.compute_dtype)
        return sharding.gather(leaf.astype(dtype), *axes)

    whole = jax.tree_util.tree_map_with_path(copy, params)
    layers = whole.pop("layers")
    split = tuple(jax.tree.map(lambda x, i=i: x[i], layers) for i in range(config.layers))
    head = whole["embedding"] if config.tied else whole.pop("head")["kernel"].T
    return Weights(split, whole, head)


@sharding.jit(static=("config", "size"))
def prefill(
    config: DecoderConfig,
    params: Params,
    size: int,
    tokens: Int[Array, "M W"],
    positions: Int[Array, "M W"],
    own: Int[Array, "M W"],
) -> Prefix:
    """Runs prompts packed into rows, `own` numbering them within their row, and keeps their cache:
    `size` tokens per data shard, at least those of its rows."""
    rows, width = tokens.shape
    _, cache = decoder.hidden(
        config, params, tokens, positions, Segments(own, own), collect_cache=True
    )
    shards = sharding.data_shards(jax.sharding.get_abstract_mesh())

    def line(z: Float[Array, "M K W C"], order: tuple[int, ...]) -> Array:
        """Lays the rows of each shard side by side, and fills up."""
        z = z.transpose(order)
        at = order.index(0)
        shape = [*z.shape[:at], rows * width, *z.shape[at + 2 :]]
        axes: list[str | None] = [None] * len(shape)
        axes[0], axes[at] = "kv_heads", "batch"
        z = z.reshape(shape, out_sharding=sharding.spec(*axes))
        padding = [(0, 0)] * len(shape)
        padding[at] = (0, size - rows * width // shards)
        return sharding.locally(
            lambda x: jnp.pad(x, padding), (sharding.along(at),), sharding.along(at)
        )(z)

    keys = tuple(line(cache[0][i], (1, 3, 0, 2)) for i in range(config.layers))
    values = tuple(line(cache[1][i], (1, 0, 2, 3)) for i in range(config.layers))
    return Prefix(keys, values)


def generate(
    config: DecoderConfig,
    params: Params,
    prompts: list[np.ndarray],
    indices: np.ndarray,
    key: Array,
    settings: Settings,
    mesh: jax.sharding.Mesh,
    weights: Weights | None = None,
    limits: np.ndarray | None = None,
) -> Rollout:
    """Returns responses to ragged prompts, as numpy arrays; `indices` number the prompts for the
    random keys. Pass `weights` (from `prepare`) where several batches share them, and `limits`
    where prompts have limits of their own, each at most `settings.max_new_tokens`.

    Example: two prompts, `settings.samples` = 4, at most 16 tokens → tokens [2, 4, 16].
    """
    return trace(config, params, prompts, indices, key, settings, mesh, weights, limits)[0]


def trace(
    config: DecoderConfig,
    params: Params,
    prompts: list[np.ndarray],
    indices: np.ndarray,
    key: Array,
    settings: Settings,
    mesh: jax.sharding.Mesh,
    weights: Weights | None = None,
    limits: np.ndarray | None = None,
) -> tuple[Rollout, tuple[Segment, ...]]:
    """Returns what `generate` does, and how the loop went."""
    shards = sharding.data_shards(mesh)
    if limits is None:
        limits = np.full(len(prompts), settings.max_new_tokens)
    packed = make_queue(prompts, indices, limits, shards)
    most = max(len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True))
    assert not settings.longest or most <= settings.longest
    rows = sharding.put(packed.rows, mesh, "batch")
    queue = sharding.put(packed.queue, mesh, "batch")
    weights = prepare(config, params) if weights is None else weights
    prefix = prefill(config, params, packed.size, *rows)
    samples = packed.prompts_per_shard * settings.samples
    slots = min(settings.slots or default_slots(), samples)
    columns = capacity(packed.longest, settings.longest)
    state = loop.start(config, settings, slots, columns, samples)
    segments: list[Segment] = []
    while True:
        fewer = fewer_slots(slots) if settings.move_to_fewer else 0
        state, status = loop.decode(config, settings, fewer, weights, prefix, queue, key, state)
        busy, needed, waiting, ended = (
            int(x) for x in sharding.fetch((*status, state.ring.column))
        )
        segments.append(Segment(slots, columns, ended - sum(part.steps for part in segments)))
        if busy + waiting == 0:
            break
        if waiting == 0 and busy <= fewer:
            slots = fewer
        columns = capacity(needed, settings.longest)
        state = loop.resize(state, slots, columns)
    results = (state.tokens, state.logprobs, state.lengths, state.finished)
    ordered: list[Any] = [packed.in_order(x, settings.samples) for x in sharding.fetch(results)]
    return Rollout(*ordered), tuple(segments)


def occupancy(rollout: Rollout, segments: tuple[Segment, ...], shards: int) -> float:
    """Returns the share of the slots' steps that drew a token of a response."""
    steps = shards * sum(part.slots * part.steps for part in segments)
    return float(np.sum(rollout.lengths)) / steps


def default_slots() -> int:
    """Returns the slots of a data shard: few keep a CPU busy, an accelerator needs more."""
    return 32 if sharding.platform() == "cpu" else 64


def cache_bytes(config: DecoderConfig, slots: int, longest: int) -> int:
    """Returns the largest size of a data shard's caches while sequences are at most `longest`."""
    token = 2 * config.layers * config.kv_heads * config.head_width
    return token * jnp.dtype(config.compute_dtype).itemsize * slots * capacity(longest, longest)


def check_cache(
    config: DecoderConfig,
    slots: int,
    longest: int,
    mesh: jax.sharding.Mesh,
    advice: str = (
        "lower --rollout.slots, --rollout.max_new_tokens or --data.max_prompt_tokens, or raise "
        "--mesh.tensor"
    ),
) -> str:
    """Returns a sentence on the largest decode cache while sequences are at most `longest`; 0
    slots are the default ones.

    Raises UserError, with the advice, when that is more than a device's memory.
    """
    slots = slots or default_slots()
    needed = cache_bytes(config, slots, longest) / mesh.shape["tensor"] / 1e9
    size = f"{needed:.2g} GB a device for {slots} slots of {capacity(longest, longest)} tokens"
    memory = sharding.device_memory()
    if needed * 1e9 > memory:
        raise UserError(
            f"the decode cache may need {size}, and a device has {memory / 1e9:.1f} GB; {advice}"
        )
    return f"decode cache: at most {size}"
