"""Sampling as two compiled programs: `prefill`, once per prompt, and `decode`, the loop.

The prompt's cache is held once per group and shared by its samples; each sample adds a cache of its
own. The weights are the training weights, gathered, cast and split by layer once per rollout:
a loop over unrolled layers updates its caches in place, where a scan would copy them.

Randomness is folded from (key, prompt index, sample index, position), so a sample does not depend
on which others are drawn beside it, nor on the devices.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from gad_jax import buckets, sharding
from gad_jax.models import decoder
from gad_jax.models.decoder import DecoderConfig
from gad_jax.rollout.sampling import GREEDY, Sampler, sample
from gad_jax.types import Params, Rollout, Segments

PROMPT_MULTIPLE = 32
"""Prompts are padded to buckets of this many tokens."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a compiled rollout is specialised for."""

    samples: int
    max_new_tokens: int
    end_tokens: tuple[int, ...]
    pad_token: int
    sampler: Sampler = GREEDY


class Weights(NamedTuple):
    """The decode copy of a network: one tree per layer, and the rest."""

    layers: tuple[Params, ...]
    rest: Params


class Prefix(NamedTuple):
    """What `prefill` leaves of a batch of prompts: caches by layer, and the next logits."""

    keys: tuple[Float[Array, "B K P C"], ...]
    values: tuple[Float[Array, "B K P C"], ...]
    lengths: Int[Array, " B"]
    logits: Float[Array, "B V"]


class Loop(NamedTuple):
    """The state of the decode loop. `position` tokens have been sampled of every response."""

    position: Int[Array, ""]
    keys: tuple[Float[Array, "B N K R C"], ...]
    values: tuple[Float[Array, "B N K R C"], ...]
    tokens: Int[Array, "B N R"]
    logprobs: Float[Array, "B N R"]
    lengths: Int[Array, "B N"]
    finished: Bool[Array, "B N"]


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
    return Weights(split, whole)


@sharding.jit(static="config")
def prefill(
    config: DecoderConfig, params: Params, prompts: Int[Array, "B P"], lengths: Int[Array, " B"]
) -> Prefix:
    """Runs the prompts, padded on the right, and keeps what sampling needs of them.

    A length of 0 is no prompt: a row that only completes the batch, whose responses stay empty.
    """
    count, width = prompts.shape
    index = jnp.arange(width)
    real = (index < lengths[:, None]).astype(jnp.int32)
    positions = jnp.broadcast_to(index, (count, width), out_sharding=sharding.spec("batch", None))
    x, cache = decoder.hidden(
        config, params, prompts, positions, Segments(real, real), collect_cache=True
    )
    ends = jnp.maximum(lengths - 1, 0)
    last = jnp.take_along_axis(x, ends[:, None, None], axis=1)[:, 0]
    logits = decoder.project(last, decoder.head_kernel(config, params))
    keys, values = (tuple(z[i] for i in range(config.layers)) for z in cache)
    return Prefix(keys, values, lengths, sharding.reshard(logits, "batch", None))


@sharding.jit(static=("config", "settings"))
def decode(
    config: DecoderConfig,
    settings: Settings,
    weights: Weights,
    prefix: Prefix,
    key: Array,
    indices: Int[Array, " B"],
) -> Rollout:
    """Samples every response until its end token or the limit, in one compiled loop."""
    keys = _sample_keys(key, indices, settings.samples)
    logits = jnp.repeat(
        prefix.logits, settings.samples, axis=0, out_sharding=sharding.spec("batch", None)
    )
    state = _append(settings, _empty(config, settings, prefix), logits, keys)

    def going_on(state: Loop) -> Array:
        return (state.position < settings.max_new_tokens) & ~jnp.all(state.finished)

    def step(state: Loop) -> Loop:
        state, logits = _forward(config, weights, prefix, state)
        return _append(settings, state, logits, keys)

    state = jax.lax.while_loop(going_on, step, state)
    return Rollout(state.tokens, state.logprobs, state.lengths, state.finished)


def generate(
    config: DecoderConfig,
    params: Params,
    prompts: list[np.ndarray],
    indices: np.ndarray,
    key: Array,
    settings: Settings,
    mesh: jax.sharding.Mesh,
    weights: Weights | None = None,
) -> Rollout:
    """Returns responses to ragged prompts, as numpy arrays; `indices` number the prompts for the
    random keys. Pass `weights` (from `prepare`) where several batches share them.

    Example: two prompts, `settings.samples` = 4, at most 16 tokens → tokens [2, 4, 16].
    """
    count = len(prompts)
    padded = -(-count // sharding.data_shards(mesh)) * sharding.data_shards(mesh)
    longest = max(len(prompt) for prompt in prompts)
    tokens = np.full((padded, buckets.round_up(longest, PROMPT_MULTIPLE)), settings.pad_token)
    lengths = np.zeros(padded, np.int32)
    numbers = np.zeros(padded, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
        lengths[row] = len(prompt)
        numbers[row] = indices[row]
    arrays = sharding.put((tokens.astype(np.int32), lengths, numbers), mesh, "batch")
    weights = prepare(config, params) if weights is None else weights
    prefix = prefill(config, params, arrays[0], arrays[1])
    rollout = decode(config, settings, weights, prefix, key, arrays[2])
    return jax.tree.map(lambda x: x[:count], sharding.fetch(rollout))


def _sample_keys(key: Array, indices: Int[Array, " B"], samples: int) -> Array:
    """Returns the keys of all responses, [B·N]."""
    flat = sharding.spec("batch")
    prompt = jnp.repeat(indices, samples, out_sharding=flat)
    sample = jnp.broadcast_to(
        jnp.arange(samples), (indices.size, samples), out_sharding=sharding.spec("batch", None)
    )
    sample = sample.reshape(prompt.size, out_sharding=flat)
    fold = jax.random.fold_in
    return jax.vmap(lambda p, s: fold(fold(key, p), s))(prompt, sample)


def _empty(config: DecoderConfig, settings: Settings, prefix: Prefix) -> Loop:
    size = (prefix.lengths.shape[0], settings.samples)
    dtype = prefix.keys[0].dtype

    def zeros(shape: tuple[int, ...], kind: Any, *axes: str | None) -> Array:
        where = sharding.spec("batch", None, *axes)
        return jnp.zeros((*size, *shape), kind, out_sharding=where)

    def cache() -> tuple[Array, ...]:
        shape = (config.kv_heads, settings.max_new_tokens, config.head_width)
        axes = ("kv_heads", None, None)
        return tuple(zeros(shape, dtype, *axes) for _ in range(config.layers))

    response = (settings.max_new_tokens,)
    return Loop(
        position=jnp.zeros((), jnp.int32),
        keys=cache(),
        values=cache(),
        tokens=zeros(response, jnp.int32, None) + settings.pad_token,
        logprobs=zeros(response, jnp.float32, None),
        lengths=zeros((), jnp.int32),
        finished=jnp.broadcast_to(
            prefix.lengths[:, None] == 0, size, out_sharding=sharding.spec("batch", None)
        ),
    )


def _append(settings: Settings, state: Loop, logits: Float[Array, "BN V"], keys: Array) -> Loop:
    """Draws the next token of every response that goes on, and writes it down."""
    shape = state.finished.shape
    here = jax.vmap(lambda k: jax.random.fold_in(k, state.position))(keys)
    uniform = jax.vmap(lambda k: jax.random.uniform(k))(here)
    token, logprob = (
        x.reshape(shape, out_sharding=sharding.spec("batch", None))
        for x in _sample_locally(logits, uniform, settings.sampler)
    )
    going_on = ~state.finished
    token = jnp.where(going_on, token, settings.pad_token)
    logprob = jnp.where(going_on, logprob, 0.0)
    ended = jnp.any(token[..., None] == jnp.asarray(settings.end_tokens), axis=-1)

    def write(target: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(target, new[..., None], state.position, axis=2)

    return state._replace(
        position=state.position + 1,
        tokens=write(state.tokens, token),
        logprobs=write(state.logprobs, logprob),
        lengths=state.lengths + going_on,
        finished=state.finished | (going_on & ended),
    )


def _sample_locally(
    logits: Float[Array, "BN V"], uniform: Float[Array, " BN"], sampler: Sampler
) -> tuple[Int[Array, " BN"], Float[Array, " BN"]]:
    """Returns `sample` of each row, computed where the row lives."""
    rows = sharding.spec("batch")
    draw = partial(sample, sampler=sampler)
    if rows is None:
        return draw(logits, uniform)
    specs = (sharding.spec("batch", None), rows)
    return jax.shard_map(draw, in_specs=specs, out_specs=(rows, rows), check_vma=False)(
        logits, uniform
    )


def _forward(
    config: DecoderConfig, weights: Weights, prefix: Prefix, state: Loop
) -> tuple[Loop, Float[Array, "BN V"]]:
    """Runs the newest token of every response; returns the grown caches and the next logits."""
    count, samples, _ = state.tokens.shape
    newest = state.position - 1
    flat = sharding.spec("batch")
    tokens = jax.lax.dynamic_index_in_dim(state.tokens, newest, axis=2, keepdims=False)
    positions = jnp.repeat(prefix.lengths + newest, samples, out_sharding=flat)
    angles = decoder.rotation(config, positions)
    rest = weights.rest
    x = decoder.embed(config, rest, tokens.reshape(count * samples, out_sharding=flat))
    keys, values = [], []
    for layer, layer_params in enumerate(weights.layers):
        block = nnx.merge(decoder.block_graph(config), layer_params)
        cache = _LayerCache(
            prefix.keys[layer],
            prefix.values[layer],
            prefix.lengths,
            state.keys[layer],
            state.values[layer],
            newest,
        )
        x, (new_keys, new_values) = block(x, angles, cache.attend)
        keys.append(new_keys)
        values.append(new_values)
    x = decoder.final_norm(config, rest, x)
    logits = decoder.project(x, decoder.head_kernel(config, rest))
    state = state._replace(keys=tuple(keys), values=tuple(values))
    return state, sharding.reshard(logits, "batch", None)


@dataclasses.dataclass
class _LayerCache:
    """One layer's caches: the prompt's, shared by the group, and each sample's own."""

    prompt_keys: Float[Array, "B K P C"]
    prompt_values: Float[Array, "B K P C"]
    prompt_lengths: Int[Array, " B"]
    keys: Float[Array, "B N K R C"]
    values: Float[Array, "B N K R C"]
    newest: Int[Array, ""]

    def attend(
        self, query: Float[Array, "n H C"], key: Float[Array, "n K C"], value: Float[Array, "n K C"]
    ) -> tuple[Float[Array, "n H C"], tuple[Array, Array]]:
        """Writes the newest key and value, and attends to the prompt and to what was sampled."""
        count, samples, kv_heads, limit, width = self.keys.shape
        split = sharding.spec("batch", None, "kv_heads", None, None)
        shared = query.shape[1] // kv_heads
        q = query.reshape(count, samples, kv_heads, shared, width, out_sharding=split)
        q = q * jnp.asarray(width**-0.5, q.dtype)
        keys, values = (
            jax.lax.dynamic_update_slice_in_dim(
                cache,
                new.reshape(count, samples, kv_heads, 1, width, out_sharding=split),
                self.newest,
                axis=3,
            )
            for cache, new in ((self.keys, key), (self.values, value))
        )
        in_prompt = jnp.arange(self.prompt_keys.shape[2]) < self.prompt_lengths[:, None]
        sampled = jnp.arange(limit) <= self.newest
        kind = jnp.float32
        to_prompt = jnp.einsum(
            "bnkgc,bkpc->bnkgp", q, self.prompt_keys, preferred_element_type=kind
        )
        to_own = jnp.einsum("bnkgc,bnkrc->bnkgr", q, keys, preferred_element_type=kind)
        to_prompt = jnp.where(in_prompt[:, None, None, None], to_prompt, -jnp.inf)
        to_own = jnp.where(sampled, to_own, -jnp.inf)
        top = jnp.maximum(to_prompt.max(-1, keepdims=True), to_own.max(-1, keepdims=True))
        to_prompt, to_own = jnp.exp(to_prompt - top), jnp.exp(to_own - top)
        total = to_prompt.sum(-1, keepdims=True) + to_own.sum(-1, keepdims=True)
        mixed = jnp.einsum(
            "bnkgp,bkpc->bnkgc",
            to_prompt.astype(q.dtype),
            self.prompt_values,
            preferred_element_type=kind,
        ) + jnp.einsum(
            "bnkgr,bnkrc->bnkgc", to_own.astype(q.dtype), values, preferred_element_type=kind
        )
        out = (mixed / total).astype(q.dtype)
        whole = sharding.spec("batch", "heads", None)
        return out.reshape(query.shape, out_sharding=whole), (keys, values)
