"""The one decoder architecture, on packed rows: tokens to hidden states, logits or scores.

Rotary positions, grouped-query attention, gated mlp. Families (llama, qwen3, gemma3, …) differ by
switches of `DecoderConfig`. The modules are Flax NNX, used without state: a network is its config
and a nested dict of arrays (`Params`); the functions that run it take both.

The parameters of all layers are stacked on a leading axis and run under `jax.lax.scan`, so compile
time does not grow with the depth. Where layers differ in kind (a window, other positions), the scan
picks each layer's angles and mask. Decoding unrolls the layers instead (`rollout/ring.py`).

Elsewhere: the block of one layer (`layers.py`), positions (`rope.py`), attention kernels
(`attention.py`), log-probabilities (`logprobs.py`), weights (`weights.py`, `writing.py`).
"""

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh
from jaxtyping import Array, Float, Int

from gad_jax.distributed import sharding
from gad_jax.models import attention, bfloat16
from gad_jax.models.config import DecoderConfig, LayerKind
from gad_jax.models.layers import Block, Linear, Norm, initial_weights, remat, unflatten
from gad_jax.models.rope import Rotation, rotation
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
        self.final_norm = Norm(config.width, config.norm_epsilon, config.norm_offset)
        if config.head == "score":
            self.score = Linear(
                rngs, ("scale", config.width), ("scale", config.score_heads), bias=True
            )
        elif not config.tied:
            self.head = Linear(rngs, ("embed", config.width), ("vocabulary", config.vocabulary))


def init(config: DecoderConfig, key: Array) -> Params:
    """Returns random float32 parameters, for tests and benchmarks (real ones: `weights.load`)."""
    return nnx.to_pure_dict(nnx.state(Decoder(config, nnx.Rngs(key))))


def init_score(config: DecoderConfig, key: Array, stddev: float = 0.02) -> Params:
    """Returns fresh score heads: weights from N(0, stddev), bias 0.

    The discriminator is the generator's network with this head (arXiv:2511.10643, section 2).
    """
    heads = config.score_heads
    kernel = stddev * jax.random.normal(key, (config.width, heads), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(heads, jnp.float32)}


def with_mean_head(config: DecoderConfig, params: Params) -> tuple[DecoderConfig, Params]:
    """Returns a discriminator whose one score is the mean of those of its heads.

    Scores are linear in a head, so its weights are the mean of theirs.
    """
    if config.score_heads == 1:
        return config, params
    head = {name: jnp.mean(leaf, -1, keepdims=True) for name, leaf in params["score"].items()}
    return dataclasses.replace(config, score_heads=1), {**params, "score": head}


def abstract(config: DecoderConfig) -> Params:
    """Returns the parameter tree as `jax.ShapeDtypeStruct`, without computing anything."""
    return jax.tree.map(lambda leaf: leaf, _shapes(config, jax.sharding.get_abstract_mesh()))


@lru_cache(64)  # a start asks fourteen times
def _shapes(config: DecoderConfig, mesh: AbstractMesh) -> Params:
    """`abstract`, of which each caller gets a tree of its own; shapes know the mesh they are of."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def selected(tree: Params, wanted: Callable[[str], bool], above: str = "") -> Params:
    """Returns a parameter tree without the leaves whose path is not wanted."""
    found: Params = {}
    for name, part in tree.items():
        if not isinstance(part, dict):
            if wanted(above + name):
                found[name] = part
        elif inner := selected(part, wanted, f"{above}{name}/"):
            found[name] = inner
    return found


def rounded(config: DecoderConfig, params: Params) -> Params:
    """Returns the network with its layers' kernels in the compute dtype, as every pass takes them.

    A step that rounds them once reads and writes less than one whose forward pass, recomputation
    and backward pass each do it for every micro-batch. Their gradients then have this dtype too,
    which is that of the matmuls they come from. `updates.accumulate` says when a step does it.
    """

    def one(path: Any, leaf: Array) -> Array:
        is_kernel = sharding.path_name(path).endswith("kernel")
        return leaf.astype(config.compute_dtype) if is_kernel else leaf

    return {**params, "layers": jax.tree_util.tree_map_with_path(one, params["layers"])}


@lru_cache
def block_graph(config: DecoderConfig) -> nnx.GraphDef:
    """Returns the static part of one layer; `nnx.merge` with its arrays gives a `Block`."""
    return nnx.graphdef(nnx.eval_shape(lambda: Block(config, nnx.Rngs(0))))


def embed(config: DecoderConfig, params: Params, tokens: Int[Array, " n"]) -> Float[Array, "n D"]:
    """Returns the embeddings of the tokens, in the compute dtype."""
    table = sharding.gather(params["embedding"].astype(config.compute_dtype), "vocabulary", "embed")
    x = table.at[tokens].get(out_sharding=sharding.spec("batch", None))
    scale = config.embedding_scale
    return x if scale == 1.0 else x * jnp.asarray(scale, x.dtype)


def final_norm(
    config: DecoderConfig, params: Params, x: Float[Array, "n D"]
) -> Float[Array, "n D"]:
    """Returns the hidden states after the last norm, which both heads read."""
    norm = (config.width, config.norm_epsilon, config.norm_offset)
    graph = nnx.graphdef(nnx.eval_shape(lambda: Norm(*norm)))
    return nnx.merge(graph, params["final_norm"])(x)


def angles(config: DecoderConfig, kind: LayerKind, positions: Int[Array, " n"]) -> Rotation | None:
    """Returns the rotary angles of the positions in a layer of this kind; None: it has none."""
    return None if kind.rope is None else rotation(kind.rope, config.head_width, positions)


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
    kinds = _kinds(config, positions, segments)

    def attend(mask: Array, query: Array, key: Array, value: Array) -> tuple[Array, Any]:
        q = unflatten(query, rows, "heads")
        k, v = (unflatten(z, rows, "kv_heads") for z in (key, value))
        mixed = attention.attend(q, k, v, mask)
        cache = (k.swapaxes(1, 2), v.swapaxes(1, 2)) if collect_cache else None
        return mixed.reshape(query.shape, out_sharding=sharding.spec("batch", "heads", None)), cache

    def layer(x: Array, of_layer: tuple[Params, Any]) -> tuple[Array, Any]:
        layer_params, kind = of_layer
        turned, mask = kinds if kind is None else jax.tree.map(lambda z: z[kind], kinds)
        with jax.named_scope("layer"):
            block = nnx.merge(block_graph(config), layer_params)
            return block(x, turned, partial(attend, mask))

    pattern = jnp.asarray(config.pattern) if len(config.kinds) > 1 else None
    layers = params["layers"], pattern
    x, cache = jax.lax.scan(remat(layer, config), x, layers, unroll=config.unroll)
    x = final_norm(config, params, x)
    shape = (rows, length, config.width)
    return x.reshape(shape, out_sharding=sharding.spec("batch", None, None)), cache


def _kinds(
    config: DecoderConfig, positions: Int[Array, "M T"], segments: Segments
) -> tuple[Any, Array]:
    """Returns a layer's angles and mask; those of each kind, stacked, where there are several."""
    flat = positions.reshape(positions.size, out_sharding=sharding.spec("batch"))
    turned = [angles(config, kind, flat) for kind in config.kinds]
    masks = [attention.visible(segments, positions, kind.window) for kind in config.kinds]
    if len(config.kinds) == 1:
        return turned[0], masks[0]
    some = next((each for each in turned if each is not None), None)
    if some is not None:  # a rotation by 0 for the layers without positions
        still = (jnp.ones_like(some[0]), jnp.zeros_like(some[1]))
        turned = [still if each is None else each for each in turned]
    return jax.tree.map(lambda *each: jnp.stack(each), *turned), jnp.stack(masks)


def head(config: DecoderConfig, params: Params) -> Array:
    """Returns the parameter that projects to the vocabulary: the embedding itself where tied."""
    return params["embedding"] if config.tied else params["head"]["kernel"]


def head_axes(config: DecoderConfig) -> tuple[str, str]:
    """Returns the logical axes of `head`."""
    return ("vocabulary", "embed") if config.tied else ("embed", "vocabulary")


def head_kernel(config: DecoderConfig, head: Float[Array, "*head"]) -> Float[Array, "*head"]:
    """Returns `head` as `project` takes it: in its matmul's dtype, its FSDP shards gathered."""
    dtype = "bfloat16" if config.matmul == "bfloat16" else config.compute_dtype
    return sharding.gather(head.astype(dtype), *head_axes(config))


def project(
    config: DecoderConfig, x: Float[Array, "n D"], kernel: Float[Array, "*head"]
) -> Float[Array, "n V"]:
    """Returns float32 logits of hidden states; `kernel` comes from `head_kernel`."""
    return scaled(config, products(config, x, kernel).astype(jnp.float32))


def products(
    config: DecoderConfig, x: Float[Array, "n D"], kernel: Float[Array, "*head"]
) -> Float[Array, "n V"]:
    """Returns the products of hidden states and `head_kernel`, in the compute dtype.

    bfloat16 rounds a log-probability by about 0.01; float32 would double the bytes of a chunk.
    """
    out = sharding.spec("batch", "vocabulary")
    if config.matmul == "bfloat16":
        return bfloat16.matmul(x, kernel, out, config.tied)
    # A tied head is the embedding [V D]; naming its axes costs no transposed copy.
    subscripts = "nd,vd->nv" if config.tied else "nd,dv->nv"
    return jnp.einsum(subscripts, x, kernel, out_sharding=out)


def kernel_gradient(
    config: DecoderConfig, x: Float[Array, "n D"], slopes: Float[Array, "n V"]
) -> Float[Array, "*head"]:
    """Returns the gradient of `head_kernel` in float32, from that of the `products`."""
    out = sharding.spec(*sharding.gathered_axes(*head_axes(config)))
    if config.matmul == "bfloat16":
        return bfloat16.outer(*((slopes, x) if config.tied else (x, slopes)), out)
    subscripts = "nv,nd->vd" if config.tied else "nv,nd->dv"
    return jnp.einsum(subscripts, slopes, x, preferred_element_type=jnp.float32, out_sharding=out)


def scaled(config: DecoderConfig, logits: Float[Array, "n V"]) -> Float[Array, "n V"]:
    """Returns the network's logits from those of its head."""
    return logits if config.logit_divisor == 1.0 else logits / config.logit_divisor


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
) -> Float[Array, "M T *heads"]:
    """Returns the score at every position, float32: D(x, y) in arXiv:2511.10643.

    A response's score is that of its last token. The head works in float32: the scores of a group
    differ by less than bfloat16 resolves. Several heads have an axis of their own.
    """
    x, _ = hidden(config, params, tokens, positions, segments)
    head, wide = params["score"], x.astype(jnp.float32)
    if config.score_heads == 1:
        return jnp.sum(wide * head["kernel"][:, 0], axis=-1) + head["bias"]
    each = [jnp.sum(wide * head["kernel"][:, n], axis=-1) for n in range(config.score_heads)]
    return jnp.stack(each, axis=-1) + head["bias"]
