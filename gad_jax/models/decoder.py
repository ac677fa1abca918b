"""The one decoder architecture, on packed rows: tokens to hidden states, logits or scores.

Pre-norm, rotary positions, grouped-query attention, gated mlp. Families (llama, qwen2, qwen3)
differ by switches of `DecoderConfig`. The modules are Flax NNX, used without state: a network is
its config and a nested dict of arrays (`Params`); the functions that run it take both.

The parameters of all layers are stacked on a leading axis and run under `jax.lax.scan`, so compile
time does not grow with the depth. Decoding unrolls the layers instead (`rollout/ring.py`).

Elsewhere: the block of one layer (`layers.py`), attention kernels (`attention.py`),
log-probabilities (`logprobs.py`), reading and writing weights (`weights.py`).
"""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from gad_jax.distributed import sharding
from gad_jax.models import attention
from gad_jax.models.config import DecoderConfig
from gad_jax.models.layers import Block, Linear, Norm, initial_weights, remat, rotation, unflatten
from gad_jax.types import Params, Segments


class Decoder(nnx.Module):
    """Embedding, stacked blocks, final norm, and a vocabulary or a score head.

    It defines the parameter tree; what the functions below compute uses its parts directly.
    """

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.embedding = nnx.Param(
            initial_weights(rngs.params(), (config.vocabulary, config.width))
        )
        self.layers = jax.vmap(lambda r: Block(config, r))(rngs.split(config.layers))
        self.final_norm = Norm(config.width, config.norm_epsilon)
        if config.head == "score":
            self.score = Linear(rngs, ("scale", config.width), ("scale", 1), bias=True)
        elif not config.tied:
            self.head = Linear(rngs, ("embed", config.width), ("vocabulary", config.vocabulary))


def init(config: DecoderConfig, key: Array) -> Params:
    """Returns random float32 parameters, for tests and benchmarks (real ones: `weights.load`)."""
    return nnx.to_pure_dict(nnx.state(Decoder(config, nnx.Rngs(key))))


def init_score(config: DecoderConfig, key: Array, stddev: float = 0.02) -> Params:
    """Returns a fresh score head: weights from N(0, stddev), bias 0.

    The discriminator is the generator's network with this head (arXiv:2511.10643, section 2).
    """
    kernel = stddev * jax.random.normal(key, (config.width, 1), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(1, jnp.float32)}


def abstract(config: DecoderConfig) -> Params:
    """Returns the parameter tree as `jax.ShapeDtypeStruct`, without computing anything."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


@lru_cache
def block_graph(config: DecoderConfig) -> nnx.GraphDef:
    """Returns the static part of one layer; `nnx.merge` with its arrays gives a `Block`."""
    return nnx.graphdef(nnx.eval_shape(lambda: Block(config, nnx.Rngs(0))))


def embed(config: DecoderConfig, params: Params, tokens: Int[Array, " n"]) -> Float[Array, "n D"]:
    """Returns the embeddings of the tokens, in the compute dtype."""
    table = sharding.gather(params["embedding"].astype(config.compute_dtype), "vocabulary", "embed")
    return table.at[tokens].get(out_sharding=sharding.spec("batch", None))


def final_norm(
    config: DecoderConfig, params: Params, x: Float[Array, "n D"]
) -> Float[Array, "n D"]:
    """Returns the hidden states after the last norm, which both heads read."""
    graph = nnx.graphdef(nnx.eval_shape(lambda: Norm(config.width, config.norm_epsilon)))
    return nnx.merge(graph, params["final_norm"])(x)


def hidden(
    config: DecoderConfig,
    params: Params,
    tokens: Int[Array, "M T"],
    positions: Int[Array, "M T"],
    segments: Segments,
    collect_cache: bool = False,
) -> tuple[Float[Array, "M T D"], Any]:
    """Returns the last hidden states (after the final norm) and the KV cache of all layers.

    `positions` count from 0 in each sequence, `segments` say which tokens see each other. The cache
    is (keys, values), [L M K T C] each, with `collect_cache`, else None.
    """
    rows, length = tokens.shape
    flat = sharding.spec("batch")
    # [M T] → [n] and back at the end: see the note on two-dimensional activations in `layers.py`.
    x = embed(config, params, tokens.reshape(rows * length, out_sharding=flat))
    angles = rotation(config, positions.reshape(rows * length, out_sharding=flat))
    mask = attention.visible(segments)

    def attend(query: Array, key: Array, value: Array) -> tuple[Array, Any]:
        q = unflatten(query, rows, "heads")
        k, v = (unflatten(z, rows, "kv_heads") for z in (key, value))
        mixed = attention.attend(q, k, v, mask)
        cache = (k.swapaxes(1, 2), v.swapaxes(1, 2)) if collect_cache else None
        return mixed.reshape(query.shape, out_sharding=sharding.spec("batch", "heads", None)), cache

    def layer(x: Array, layer_params: Params) -> tuple[Array, Any]:
        with jax.named_scope("layer"):
            return nnx.merge(block_graph(config), layer_params)(x, angles, attend)

    x, cache = jax.lax.scan(remat(layer, config.remat), x, params["layers"])
    x = final_norm(config, params, x)
    shape = (rows, length, config.width)
    return x.reshape(shape, out_sharding=sharding.spec("batch", None, None)), cache


def head(config: DecoderConfig, params: Params) -> Array:
    """Returns the parameter that projects to the vocabulary: the embedding itself where tied."""
    return params["embedding"] if config.tied else params["head"]["kernel"]


def head_axes(config: DecoderConfig) -> tuple[str, str]:
    """Returns the logical axes of `head`."""
    return ("vocabulary", "embed") if config.tied else ("embed", "vocabulary")


def head_kernel(config: DecoderConfig, head: Float[Array, "*head"]) -> Float[Array, "*head"]:
    """Returns `head` as `project` takes it: in the compute dtype, its FSDP shards gathered."""
    return sharding.gather(head.astype(config.compute_dtype), *head_axes(config))


def project(
    config: DecoderConfig, x: Float[Array, "n D"], kernel: Float[Array, "*head"]
) -> Float[Array, "n V"]:
    """Returns float32 logits of hidden states; `kernel` comes from `head_kernel`."""
    # A tied head is the embedding [V D]; naming its axes costs no transposed copy.
    subscripts = "nd,vd->nv" if config.tied else "nd,dv->nv"
    out = sharding.spec("batch", "vocabulary")
    return jnp.einsum(subscripts, x, kernel, out_sharding=out).astype(jnp.float32)


def logits(
    config: DecoderConfig,
    params: Params,
    tokens: Int[Array, "M T"],
    positions: Int[Array, "M T"],
    segments: Segments,
) -> Float[Array, "M T V"]:
    """Returns the float32 logits of every position.

    For small inputs: M·T·V numbers at once. Training works in chunks (`core/forward.py`).
    """
    x, _ = hidden(config, params, tokens, positions, segments)
    rows, length, width = x.shape
    flat = x.reshape(rows * length, width, out_sharding=sharding.spec("batch", None))
    y = project(config, flat, head_kernel(config, head(config, params)))
    out = sharding.spec("batch", None, "vocabulary")
    return y.reshape(rows, length, config.vocabulary, out_sharding=out)


def score(
    config: DecoderConfig,
    params: Params,
    tokens: Int[Array, "M T"],
    positions: Int[Array, "M T"],
    segments: Segments,
) -> Float[Array, "M T"]:
    """Returns the score at every position, float32: D(x, y) in arXiv:2511.10643.

    A response's score is that of its last token. The head works in float32: the scores of a group
    differ by less than bfloat16 resolves.
    """
    x, _ = hidden(config, params, tokens, positions, segments)
    head = params["score"]
    return jnp.sum(x.astype(jnp.float32) * head["kernel"][:, 0], axis=-1) + head["bias"]
