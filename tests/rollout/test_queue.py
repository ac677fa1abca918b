"""Prompts dealt to data shards and packed into rows, and the sizes of caches, by hand."""

import numpy as np
import pytest

from gad_jax.rollout import queue

LENGTHS = (5, 9, 30, 17, 2)


@pytest.fixture
def packed() -> queue.PackedPrompts:
    """Five prompts on two shards; the tokens of prompt p are 100·p, 100·p + 1, …"""
    prompts = [100 * p + np.arange(length, dtype=np.int32) for p, length in enumerate(LENGTHS)]
    indices, limits = np.arange(70, 75), np.arange(1, 6)
    return queue.make_queue(prompts, indices, limits, shards=2)


def test_prompts_are_dealt_by_length_and_packed_first_fit(packed: queue.PackedPrompts) -> None:
    # The first shard has the prompts 2, 1, 4 of 30, 9 and 2 tokens in rows of 32; the second 3, 0.
    assert packed.order.tolist() == [4, 1, 0, 3, 2]
    assert packed.rows.tokens.shape == (4, 32)
    assert packed.rows.own[0].tolist() == [1] * 30 + [2] * 2
    assert packed.rows.own[1].tolist() == [1] * 9 + [0] * 23
    assert packed.rows.own[2].tolist() == [1] * 17 + [2] * 5 + [0] * 10
    assert not packed.rows.own[3].any()
    assert packed.rows.positions[2, :22].tolist() == [*range(17), *range(5)]
    assert packed.rows.tokens[2, 17:22].tolist() == [0, 1, 2, 3, 4]
    assert packed.rows.tokens[0, 30:].tolist() == [400, 401]
    assert (packed.size, packed.longest, packed.prompts_per_shard) == (64, 30, 3)


def test_the_queue_says_where_each_prompt_is(packed: queue.PackedPrompts) -> None:
    found = packed.queue
    assert found.real.tolist() == [3, 2]
    assert found.starts.tolist() == [0, 32, 30, 0, 17, 0]
    assert found.lengths.tolist() == [30, 9, 2, 17, 5, 0]
    assert found.last_tokens.tolist() == [229, 108, 401, 316, 4, 0]
    assert found.indices.tolist() == [72, 71, 74, 73, 70, 0]
    assert found.limits.tolist() == [3, 2, 5, 4, 1, 0]


def test_results_come_back_in_the_order_of_the_prompts(packed: queue.PackedPrompts) -> None:
    of_shards = np.repeat(packed.queue.indices, 2)  # two samples of each
    assert packed.in_order(of_shards, samples=2).tolist() == [[70 + p] * 2 for p in range(5)]


def test_caches_have_few_sizes() -> None:
    # A third more than is needed, as a power of two.
    assert [queue.cache_capacity(n) for n in (1, 48, 49, 96, 97)] == [64, 64, 128, 128, 256]
    assert [queue.cache_capacity(n, longest=100) for n in (1, 49, 97)] == [64, 100, 100]
    assert [bool(queue.is_wasteful(256, needed)) for needed in (85, 86)] == [True, False]
    assert not queue.is_wasteful(64, 1)  # the smallest
    assert [queue.fewer_slots(slots) for slots in (3, 4, 9)] == [0, 1, 2]
