"""What the KV cache takes, and a cache that does not fit."""

import jax
import pytest

from gad_jax.base.errors import UserError
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models.config import DecoderConfig, alike
from gad_jax.rollout import memory

NETWORK = DecoderConfig(
    family="llama", vocabulary=512, width=32, mlp_width=64, layers=2, heads=4, kv_heads=2,
    head_width=8, kinds=alike(1e4), norm_epsilon=1e-6, max_positions=512,
)  # fmt: skip


def test_the_largest_cache_is_known_before() -> None:
    # float32 keys and values, 2 layers of 2 heads of width 8, and no more columns than tokens
    assert memory.cache_bytes(NETWORK, 8, 64 + 12) == 2 * 4 * 2 * 2 * 8 * 8 * 76


def test_a_cache_beyond_the_memory_is_refused() -> None:
    def check(slots: int) -> str:
        return memory.check_cache(NETWORK, slots, 76, make_mesh(devices=jax.devices()[:1]))

    # 256 bytes a token
    assert check(8) == "decode cache: at most 0.00016 GB a device for 8 slots of 76 tokens"
    with pytest.raises(UserError, match=r"lower --rollout\.slots"):
        check(10**8)
