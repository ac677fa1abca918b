"""The bytes of weights, gradients and moments that the parts of a step move."""

import dataclasses

import jax.numpy as jnp

from gad_jax.models import costs, quantised
from gad_jax.models.config import DecoderConfig
from gad_jax.settings.config import Config
from gad_jax.training import bases
from gad_jax.types import PackedRows


def reshard_bytes(config: Config, network: DecoderConfig, shards: int) -> float:
    """Returns the bytes of making the decode copy: weights are read, and written for each shard.

    Of a quantised base only the adapters are copied.
    """
    adapters = 4.0 * costs.adapter_weights(network)
    if network.quantisation != "none":
        return adapters * (config.mesh.replica + shards)
    size = itemsize(network)
    held = 4.0 if network.lora is None else jnp.dtype(bases.dtype(config, network)).itemsize
    experts = float(network.experts.count) if network.experts else None
    numbers = costs.layer_weights(network, experts) + network.width * network.vocabulary
    return held * costs.parameters(network) * config.mesh.replica + size * numbers * shards


def update_bytes(network: DecoderConfig, rows: PackedRows, readers: int, replicas: int) -> float:
    """Returns the bytes that an update moves on all devices; `readers` as in `read_bytes`.

    The weights are read in three passes of each micro-batch, gradients are read and written in each
    (2 ×), and the optimizer reads and writes weights, gradients and moments once (8 ×, float32); of
    a network with adapters, these are the adapters'.
    """
    float32 = 4.0 * costs.trained_parameters(network) * replicas
    return 3 * read_bytes(network, rows, readers) + float32 * (2 * rows.tokens.shape[0] + 8)


def read_bytes(network: DecoderConfig, rows: PackedRows, readers: int) -> float:
    """Returns the bytes that a pass of every micro-batch reads of the weights, on all devices.

    `readers` are the data shards: the devices of a tensor axis read each its part.
    """
    floats = dataclasses.replace(network, quantisation="none")
    size = itemsize(network)
    whole = size * costs.parameters(floats)
    whole += (moved_by_kernels(network) - size) * costs.layer_weights(floats)
    return whole * rows.tokens.shape[0] * readers


def moved_by_kernels(network: DecoderConfig) -> float:
    """Returns the bytes per number of a layer's kernels that a pass moves.

    A quantised kernel is read, written as floats, and these are read: XLA dequantises into memory,
    as the compiled programs show.
    """
    size = itemsize(network)
    if network.quantisation == "none":
        return size
    return quantised.bytes_of_a_number(network.quantisation) + 2 * size


def itemsize(network: DecoderConfig) -> float:
    return 4.0 if network.compute_dtype == "float32" else 2.0
