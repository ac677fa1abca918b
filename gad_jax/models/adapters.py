"""The two parts of a network with adapters: a frozen base, and the tree that is trained.

Trained are the adapters and a score head; kernels, biases, norms and embeddings are the base. A
network without adapters has no base: all of it is trained. Nothing here copies an array but
`merge` and `merge_layer`.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gad_jax.distributed import sharding
from gad_jax.models import decoder, quantised
from gad_jax.models.config import DecoderConfig, Lora
from gad_jax.types import Params

_NAMES = ("lora_a", "lora_b")


def split(config: DecoderConfig, params: Params) -> tuple[Params | None, Params]:
    """Returns the base (None without adapters) and the trained tree of a whole network."""
    if config.lora is None:
        return None, params
    base: Params = {name: leaf for name, leaf in params.items() if name not in ("layers", "score")}
    trained: Params = {"score": params["score"]} if "score" in params else {}
    base["layers"], trained["layers"] = {}, {}
    for name, part in params["layers"].items():
        base["layers"][name] = {key: leaf for key, leaf in part.items() if key not in _NAMES}
        if adapter := {key: part[key] for key in _NAMES if key in part}:
            trained["layers"][name] = adapter
    return base, trained


def join(base: Params | None, trained: Params) -> Params:
    """Returns the whole network: the inverse of `split`."""
    if base is None:
        return trained
    layers = {
        name: {**part, **trained["layers"].get(name, {})} for name, part in base["layers"].items()
    }
    return {**base, **trained, "layers": layers}


def without_head(base: Params) -> Params:
    """Returns a generator's base as its discriminator shares it."""
    return {name: leaf for name, leaf in base.items() if name != "head"}


def abstract(config: DecoderConfig, dtype: DTypeLike = jnp.float32) -> tuple[Params | None, Params]:
    """Returns `split` of the network's shapes; what of the base is not quantised is of this dtype,
    vectors apart."""
    base, trained = split(config, decoder.abstract(config))

    def one(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        name = sharding.path_name(path)
        kept = leaf.dtype if is_vector(name) or quantised.is_part(name) else dtype
        return jax.ShapeDtypeStruct(leaf.shape, kept)

    return base and jax.tree_util.tree_map_with_path(one, base), trained


def is_vector(path: str) -> bool:
    """Returns whether a parameter is a norm's scale, a bias or of a score head: float32 always."""
    return path.endswith(("scale", "bias")) or path.startswith("score/")


def init(config: DecoderConfig, key: Array) -> Params:
    """Returns fresh adapters on the host: A uniform in ± 1/√(input width), B zeros.

    With B = 0 the network computes what its base does. A is as in PEFT, whose Kaiming initialiser
    with a = √5 has these bounds.
    """
    _, trained = split(config, decoder.abstract(dataclasses.replace(config, head="vocabulary")))
    leaves, tree = jax.tree_util.tree_flatten_with_path(trained)

    def one(number: int, path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if not sharding.path_name(path).endswith("lora_a"):
            return np.zeros(leaf.shape, leaf.dtype)
        bound = leaf.shape[1] ** -0.5
        own = jax.random.fold_in(key, number)
        return np.asarray(jax.random.uniform(own, leaf.shape, minval=-bound, maxval=bound))

    return jax.tree.unflatten(tree, [one(i, *each) for i, each in enumerate(leaves)])


def merge_layer(lora: Lora, layer: Params) -> Params:
    """Returns one layer's parameters with adapters merged: kernel + scale · A B, in float32."""
    return {
        name: _merged(lora, _axes(name), part) if _NAMES[0] in part else part
        for name, part in layer.items()
    }


def merge(config: DecoderConfig, params: Params, dtype: DTypeLike = jnp.float32) -> Params:
    """Returns the whole network with adapters merged, for `config.merged`, its kernels in `dtype`.

    The sum is taken in float32, one projection of all layers at a time. A quantised base is merged
    as it was trained on: dequantised.
    """
    if config.lora is None:
        return params

    def cast(path: Any, leaf: Array) -> Array:
        return leaf if is_vector(sharding.path_name(path)) else leaf.astype(dtype)

    layers = {}
    for name, part in params["layers"].items():
        part = quantised.whole_part(name, part)
        layers[name] = _merge_all(config.lora, name, part, dtype) if _NAMES[0] in part else part
    return jax.tree_util.tree_map_with_path(cast, {**params, "layers": layers})


@partial(jax.jit, static_argnames=("lora", "name", "dtype"))
def _merge_all(lora: Lora, name: str, part: Params, dtype: DTypeLike) -> Params:
    merged = _merged(lora, ("layers", *_axes(name)), part)
    return {**merged, "kernel": merged["kernel"].astype(dtype)}


def _axes(name: str) -> tuple[str | None, ...]:
    return sharding.parameter_axes(f"layers/{name}/kernel")[1:]


def _merged(lora: Lora, axes: tuple[str | None, ...], part: Params) -> Params:
    kernel: Float[Array, "*layers in out"] = part["kernel"].astype(jnp.float32)
    a, b = (part[name].astype(jnp.float32) for name in _NAMES)
    # On a GPU the default precision of float32 matmuls is lower.
    added = jnp.einsum(
        "...ir,...ro->...io",
        a,
        b,
        precision=jax.lax.Precision.HIGHEST,
        out_sharding=sharding.spec(*axes),
    )
    rest = {key: leaf for key, leaf in part.items() if key not in _NAMES}
    return {**rest, "kernel": kernel + lora.scale * added}
