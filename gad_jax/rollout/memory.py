"""How much memory the KV cache of the slots needs, and how many slots there are by default."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gad_jax.base.errors import UserError
from gad_jax.base.shortage import gigabytes
from gad_jax.distributed import devices
from gad_jax.distributed.mesh import data_shards
from gad_jax.models import costs
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout.queue import PackedPrompts, cache_capacity, make_queue
from gad_jax.rollout.ring import layer_positions


def default_slots() -> int:
    """Returns the default slots of a data shard.

    Each step reads all weights once for all slots. An accelerator needs more of them than a CPU
    before it is busy with anything but reading weights.
    """
    return 32 if devices.platform() == "cpu" else 64


def cache_bytes(config: DecoderConfig, slots: int, longest: int) -> int:
    """Returns the largest bytes of a data shard's KV cache for sequences of at most `longest`."""
    positions = sum(layer_positions(config, cache_capacity(longest, longest)))
    return token_bytes(config) // config.layers * slots * positions


def token_bytes(config: DecoderConfig) -> int:
    """Returns the bytes of one token's keys and values in all layers."""
    itemsize = jnp.dtype(config.compute_dtype).itemsize
    return 2 * config.layers * config.kv_heads * config.head_width * itemsize


class DecodeBatch(NamedTuple):
    """What is decoded at once: the tokens of each prompt, [B], and how many responses it gets of at
    most how many tokens; the most tokens of both together; and slots (0: the default)."""

    prompts: np.ndarray
    samples: int
    max_new_tokens: int
    longest: int
    slots: int

    def packed(self, shards: int) -> PackedPrompts:
        """Returns the prompts as decoding takes them, of zeros."""
        prompts = [np.zeros(length, np.int32) for length in self.prompts]
        limits = np.full(len(prompts), self.max_new_tokens)
        return make_queue(prompts, np.arange(len(prompts)), limits, shards)


def decode_bytes(
    config: DecoderConfig, batch: DecodeBatch, mesh: jax.sharding.Mesh
) -> dict[str, dict[str, int]]:
    """Returns what prefill and decode take on a device, next to the weights, in bytes by kind."""
    shards, tensor = data_shards(mesh), mesh.shape["tensor"]
    packed = batch.packed(shards)
    size = jnp.dtype(config.compute_dtype).itemsize
    prompt_cache = token_bytes(config) * packed.size // tensor
    slots = min(batch.slots or default_slots(), packed.prompts_per_shard * batch.samples)
    cache = cache_bytes(config, slots, batch.longest) // tensor
    positions = packed.rows[0].size // shards
    wide = 2 * config.mlp_width + 3 * config.heads * config.head_width + 4 * config.width
    working = positions * size * wide // tensor + prompt_cache
    kept = {"prompt KV cache": prompt_cache}
    floats = _dequantised_bytes(config, tensor)
    return {
        "prefill": kept | {"temporary": working + floats},
        "decode": kept | {"KV cache": cache, "temporary": floats},
    }


def _dequantised_bytes(config: DecoderConfig, tensor: int) -> int:
    """Returns the bytes of a quantised layer's gate and up kernels as floats, its largest two."""
    if config.decoding.quantisation == "none":
        return 0
    size = jnp.dtype(config.compute_dtype).itemsize
    return 2 * config.width * config.mlp_width * size // tensor


def check_cache(
    config: DecoderConfig,
    slots: int,
    longest: int,
    mesh: jax.sharding.Mesh,
    advice: str = (
        "lower --rollout.slots, --rollout.max_new_tokens or --data.max_prompt_tokens, or raise "
        "--mesh.tensor"
    ),
    prompt_tokens: int = 0,
) -> str:
    """Returns a sentence on the largest KV cache for sequences of at most `longest` tokens.

    `slots` are per data shard (0: the default); `prompt_tokens` are those cached outside of
    them. Raises UserError, with the advice, when the cache is larger than a device's
    memory.
    """
    slots = slots or default_slots()
    needed = cache_bytes(config, slots, longest) + prompt_tokens * token_bytes(config)
    needed /= mesh.shape["tensor"] * 1e9
    size = (
        f"{needed:.2g} GB a device for {slots} slots of {cache_capacity(longest, longest)} tokens"
    )
    if prompt_tokens:
        size += f" and {prompt_tokens} tokens of prompts"
    memory = devices.device_memory()
    if needed * 1e9 > memory:
        raise UserError(
            f"the decode cache may need {size}, and a device has {memory / 1e9:.1f} GB; {advice}"
        )
    return f"decode cache: at most {size}"


def advice(config: DecoderConfig, slots: int, longest: int, flag: str, others: str) -> str:
    """Returns what to set where decoding ran out of memory: how many slots fit, by arithmetic.

    The weights are there twice, as they were read and as decoding reads them. `flag` sets the
    `slots`; `others` names what else lowers memory.
    """
    size = jnp.dtype(config.compute_dtype).itemsize
    weights = (4 + size) * costs.parameters(config)
    each = cache_bytes(config, 1, longest)
    room = devices.device_memory() - weights
    fit = min(int(room // each), slots - 1)
    held = f"the weights take {gigabytes(weights)} and each answer at once {gigabytes(each)}"
    if fit < 1:
        return f"{held}: use a smaller --model, or {others}"
    return f"{held}: set {flag}={1 << (fit.bit_length() - 1)}, or {others}"
