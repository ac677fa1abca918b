"""Kernels of a frozen base in 8 or 4 bits: weights only, with one scale per block of inputs.

A block is `BLOCK` numbers of one output along the input axis, the last one shorter where the width
is no multiple. Its scale is its largest magnitude, in bfloat16 and rounded up, so that no number
falls outside of the codes. A kernel [in, out] becomes {"codes", "scales"}:

    int8  codes [in, out] int8: round(127 · x / scale)                            8.25 bits a number
    nf4   codes [in / 2, out] uint8: two places in `LEVELS`, the even row's low   4.25 bits

Codes of 4 bits are packed here because a CPU keeps a byte for each number of a 4-bit dtype. Blocks
do not depend on the mesh, so neither does what a network computes.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gad_jax.base.errors import UserError
from gad_jax.distributed import sharding
from gad_jax.models.config import DecoderConfig
from gad_jax.types import Params

BLOCK = 64
"""The numbers that share a scale: QLoRA's (arXiv:2305.14314)."""

LEVELS = np.asarray(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
"""NormalFloat-4: quantiles of a normal distribution, and 0 (arXiv:2305.14314, appendix E)."""

_MIDDLES = (LEVELS[1:] + LEVELS[:-1]) / 2
_LARGEST = 127  # of int8, the same on both sides of 0
_TAKEN = re.compile(r"layers/(query|key|value|output|gate|up|down)/kernel")
_PARTS = ("kernel/codes", "kernel/scales")

Read = Callable[[tuple[slice, ...]], np.ndarray]
"""Reads a part of a parameter."""


class Quantised(nnx.Module):
    """The kernel of a projection, quantised; its parameters are made by `quantise`."""

    def __init__(self, kind: str, width_in: int, width_out: int):
        codes, scales = _shapes(kind, (width_in, width_out))
        self.codes = nnx.Param(jnp.zeros(codes, jnp.int8 if kind == "int8" else jnp.uint8))
        self.scales = nnx.Param(jnp.zeros(scales, jnp.bfloat16))


def bytes_of_a_number(kind: str) -> float:
    """Returns the bytes of a number in a quantised kernel, its share of a scale included; 0 where
    kernels are floats."""
    return {"int8": 1.0, "nf4": 0.5}[kind] + 2 / BLOCK if kind != "none" else 0.0


def takes(path: str) -> bool:
    """Returns whether the parameter at this path is quantised: a kernel of a layer's projection."""
    return _TAKEN.fullmatch(path) is not None


def is_part(path: str) -> bool:
    """Returns whether this is the path of codes or scales."""
    return path.endswith(_PARTS)


def quantise(kind: str, kernel: Float[np.ndarray, "in out"]) -> tuple[np.ndarray, np.ndarray]:
    """Returns codes and scales of a kernel, on the host."""
    rows, columns = kernel.shape
    codes_shape, (blocks, _) = _shapes(kind, (rows, columns))
    padded = np.zeros((blocks * BLOCK, columns), np.float32)
    padded[:rows] = kernel
    padded = padded.reshape(blocks, BLOCK, columns)
    scales = _rounded_up(np.abs(padded).max(axis=1))
    divisors = scales.astype(np.float32)[:, None]
    shares = padded / np.where(divisors == 0, 1, divisors)
    shares = shares.reshape(blocks * BLOCK, columns)[:rows]
    if kind == "int8":
        return np.rint(shares * _LARGEST).astype(np.int8), scales
    places = np.searchsorted(_MIDDLES, shares).astype(np.uint8)
    codes = places[::2] | places[1::2] << 4
    assert codes.shape == codes_shape
    return codes, scales


def rounded_layer(layer: Params) -> Params:
    """Returns one layer's parameters, their FSDP shards gathered, with kernels in int8.

    The codes and scales are those of `quantise`, computed on the devices.
    """
    found = dict(layer)
    for name, part in layer.items():
        if takes(path := f"layers/{name}/kernel"):
            kept = sharding.gathered_axes(*sharding.parameter_axes(path)[1:])
            found[name] = {**part, "kernel": _rounded(part["kernel"], *kept)}
    return found


def _rounded(kernel: Float[Array, "in out"], *axes: str | None) -> Params:
    rows, columns = kernel.shape
    blocks = -(-rows // BLOCK)
    # A block may lie across two shards of the inputs, so the inputs of one kernel are gathered.
    whole = sharding.reshard(kernel, None, axes[1]).astype(jnp.float32)
    padded = jnp.pad(whole, ((0, blocks * BLOCK - rows), (0, 0)))
    padded = padded.reshape(blocks, BLOCK, columns)
    # Rounded up to bfloat16 by bits: XLA may drop a cast there and back.
    bits = jax.lax.bitcast_convert_type(jnp.max(jnp.abs(padded), axis=1), jnp.uint32)
    bits = (bits + jnp.uint32(0xFFFF)) & jnp.uint32(0xFFFF0000)
    scales = jax.lax.bitcast_convert_type(bits, jnp.float32)
    shares = padded / jnp.where(scales == 0, 1.0, scales)[:, None]
    codes = jnp.rint(shares.reshape(blocks * BLOCK, columns)[:rows] * _LARGEST).astype(jnp.int8)
    return {
        "codes": sharding.reshard(codes, *axes),
        "scales": sharding.reshard(scales.astype(jnp.bfloat16), None, None),
    }


def dequantise(kernel: Params, dtype: DTypeLike, *axes: str | None) -> Float[Array, "*layers i o"]:
    """Returns the kernel of codes and scales, laid out by the logical `axes`, in this dtype.

    The codes are laid out so already; the scales are whole. Products are float32 before they are
    rounded to `dtype`.
    """
    codes, scales = kernel["codes"], kernel["scales"].astype(jnp.float32)
    if codes.dtype == jnp.int8:
        scales, values = scales * (1 / _LARGEST), codes.astype(jnp.float32)
    else:
        where = sharding.spec(*axes)
        both = jnp.stack([codes & 15, codes >> 4], axis=-2)
        shape = (*codes.shape[:-2], 2 * codes.shape[-2], codes.shape[-1])
        places = both.reshape(shape, out_sharding=where)
        levels = jnp.asarray(LEVELS)
        values = levels.at[places].get(out_sharding=where, mode="promise_in_bounds")
    each = jnp.repeat(scales, BLOCK, axis=-2)[..., : values.shape[-2], :]
    return (values * sharding.reshard(each, *axes)).astype(dtype)


def gathered(kernel: Params, dtype: DTypeLike, *axes: str | None) -> Float[Array, "*layers i o"]:
    """Returns `dequantise` of a stored kernel; `axes` are the parameter's. Its FSDP shards are
    gathered as codes: a quarter to a half of the bytes of bfloat16."""
    codes = sharding.gather(kernel["codes"], *axes)
    scales = sharding.reshard(kernel["scales"], *(None for _ in axes))
    kept = sharding.gathered_axes(*axes)
    return dequantise({"codes": codes, "scales": scales}, dtype, *kept)


def whole_part(name: str, part: Params) -> Params:
    """Returns the parameters of all layers' projections of this name with a float32 kernel."""
    if not isinstance(part.get("kernel"), dict):
        return part
    return {**part, "kernel": _whole_kernel(part["kernel"], name)}


@jax.jit(static_argnames="name")
def _whole_kernel(kernel: Params, name: str) -> Array:
    axes = sharding.parameter_axes(f"layers/{name}/kernel")
    return sharding.reshard(gathered(kernel, jnp.float32, *axes), *axes)


def quantised(kind: str, params: Params) -> Params:
    """Returns a whole network's parameters with the kernels of its layers quantised."""

    def one(path: Any, leaf: Any) -> Any:
        if not takes(sharding.path_name(path)):
            return leaf
        host = np.asarray(leaf)
        return place(kind, lambda index: host[index], host.shape, "", None)

    return jax.tree_util.tree_map_with_path(one, params)


def check(config: DecoderConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError where the mesh cannot divide the quantised kernels of the network."""
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    heads, kv = config.heads * config.head_width, config.kv_heads * config.head_width
    inputs = (("width", config.width, fsdp), ("heads", heads, tensor))
    inputs = (*inputs, ("mlp", config.mlp_width, tensor))
    pack = 2 if config.quantisation == "nf4" else 1
    needs = [(name, size, shards * pack) for name, size, shards in inputs]
    outputs = {"width": config.width, "heads": heads, "key/value heads": kv}
    outputs |= {"mlp": config.mlp_width}
    needs += [(name, size, fsdp * tensor) for name, size in outputs.items()]
    for name, size, divisor in needs:
        if size % divisor:
            raise UserError(
                f"--lora.base_dtype={config.quantisation} on a mesh of fsdp={fsdp} and "
                f"tensor={tensor} needs sizes that {divisor} divides, and the {config.family} "
                f"network has {name} of {size}; use fewer devices for these axes, or "
                "--lora.base_dtype=bfloat16"
            )


def place(
    kind: str, read: Read, shape: tuple[int, ...], name: str, mesh: jax.sharding.Mesh | None
) -> Params:
    """Returns the codes and scales of a kernel of all layers, [layers, in, out], on the mesh.

    It is read and quantised a layer at a time: memory holds one layer's numbers as floats.
    """
    layers, rows, columns = shape
    sizes = [(layers, *size) for size in _shapes(kind, (rows, columns))]
    done: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def of_columns(wanted: slice) -> tuple[np.ndarray, np.ndarray]:
        first, last, _ = wanted.indices(columns)
        for (start, stop), (codes, scales) in done.items():
            if start <= first and last <= stop:
                part = slice(first - start, last - start)
                return codes[..., part], scales[..., part]
        both = [
            np.empty((*size[:2], last - first), dtype)
            for size, dtype in zip(sizes, _dtypes(kind), strict=True)
        ]
        for layer in range(layers):
            index = slice(layer, layer + 1), slice(0, rows), slice(first, last)
            both[0][layer], both[1][layer] = quantise(kind, read(index)[0])
        done[first, last] = both[0], both[1]
        return done[first, last]

    def put(number: int) -> Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            return of_columns(index[2])[number][index[:2]]

        if mesh is None:
            return jnp.asarray(part((slice(None),) * 3))
        where = NamedSharding(
            mesh, sharding.parameter_spec(f"{name}/{('codes', 'scales')[number]}")
        )
        callback: Any = part  # annotated in jax as if an index could be None
        return jax.make_array_from_callback(sizes[number], where, callback)

    return {"codes": put(0), "scales": put(1)}


def _dtypes(kind: str) -> tuple[DTypeLike, DTypeLike]:
    return np.int8 if kind == "int8" else np.uint8, ml_dtypes.bfloat16


def _shapes(kind: str, shape: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the shapes of codes and scales of a kernel [in, out]."""
    rows, columns = shape
    if kind == "nf4" and rows % 2:
        raise UserError(
            f"--lora.base_dtype=nf4 stores two inputs in a byte, and a projection has {rows}; use "
            "--lora.base_dtype=int8"
        )
    return (rows // (2 if kind == "nf4" else 1), columns), (-(-rows // BLOCK), columns)


def _rounded_up(x: np.ndarray) -> np.ndarray:
    """Returns numbers of 0 or more in bfloat16, none smaller than before."""
    down = x.astype(ml_dtypes.bfloat16)
    up = (down.view(np.uint16) + 1).view(ml_dtypes.bfloat16)
    return np.where(down.astype(np.float32) < x, up, down)
