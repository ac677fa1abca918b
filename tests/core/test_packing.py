"""Packed rows: nothing lost, nothing doubled, nobody sees a neighbour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gad_jax.base import buckets
from gad_jax.core.layout import ROW_PARTS
from gad_jax.core.packing import pack, padding_share, place
from gad_jax.distributed import devices
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import attention
from gad_jax.types import PackedRows
from tests.core.texts import Texts, array, draw


def check(
    rows: PackedRows, prompts: list[np.ndarray], responses: Texts, logprobs: Texts | None
) -> None:
    """Reads every prompt and response back from the rows; all else must be zero."""
    samples = len(responses[0])
    own, prefix = rows.segments
    seen = np.zeros(own.shape, bool)
    assert sorted(rows.groups.ravel()) == list(range(len(prompts)))
    for micro, groups in enumerate(rows.groups):
        for number, group in enumerate(groups):
            prompt = prompts[group]
            for member, response in enumerate(responses[group]):
                row, last = rows.ends[micro, number, member]
                first = last - len(response)
                mine = (micro, row, slice(first, last + 1))
                at = (micro, row)
                columns = np.arange(own.shape[-1])
                # the response's segment: the prompt's last token, then the response
                segment, shared = own[micro, row, last], prefix[micro, row, last]
                assert 0 < shared < segment
                np.testing.assert_array_equal(columns[own[at] == segment], columns[mine[-1]])
                np.testing.assert_array_equal(prefix[mine], shared)
                np.testing.assert_array_equal(rows.tokens[mine], [prompt[-1], *response])
                start = len(prompt) - 1
                positions = np.arange(start, start + len(response) + 1)
                np.testing.assert_array_equal(rows.positions[mine], positions)
                # what it predicts: every token of the response, once
                scored = (micro, row, slice(first, last))
                np.testing.assert_array_equal(rows.targets[scored], response)
                assert rows.mask[scored].all()
                assert not rows.mask[micro, row, last]
                np.testing.assert_array_equal(rows.sequences[scored], group * samples + member)
                paid = 0 if logprobs is None else logprobs[group][member]
                np.testing.assert_array_equal(rows.sampled_logprobs[scored], paid)
                # its prefix: the rest of the prompt, before it, in the same row
                ahead = columns[own[at] == shared]
                np.testing.assert_array_equal(rows.tokens[at][ahead], prompt[:-1])
                np.testing.assert_array_equal(rows.positions[at][ahead], np.arange(start))
                np.testing.assert_array_equal(prefix[at][ahead], shared)
                assert (ahead < first).all()
                assert not seen[mine].any()
                seen[mine] = True
                seen[at][ahead] = True
    np.testing.assert_array_equal(seen, own > 0)
    assert rows.mask.sum() == sum(len(r) for group in responses for r in group)
    for leaf in (rows.targets, rows.sequences, rows.sampled_logprobs):
        assert (leaf[~rows.mask] == 0).all()
    for leaf in (rows.tokens, rows.positions, prefix):
        assert (leaf[~seen] == 0).all()


def test_thresholds_stand_where_the_log_probs_stand() -> None:
    values = [[array(5, 2) / 8, array(6) / 8]]
    rows = pack([array(7, 8)], [[array(5, 2), array(6)]], values, values, row_tokens=32)
    np.testing.assert_array_equal(rows.thresholds, rows.sampled_logprobs)
    assert rows.sampled_logprobs.max() == 6 / 8
    assert pack([array(7, 8)], [[array(5, 2), array(6)]], values, row_tokens=32).thresholds is None


def test_the_example_of_the_docstring() -> None:
    rows = pack([array(7, 8)], [[array(5, 2), array(6)]], row_tokens=32)
    assert rows.tokens.tolist() == [[[7, 8, 5, 2, 8, 6, 0, 0]]]
    assert rows.positions.tolist() == [[[0, 1, 2, 3, 1, 2, 0, 0]]]
    assert rows.segments.own.tolist() == [[[1, 2, 2, 2, 3, 3, 0, 0]]]
    assert rows.segments.prefix.tolist() == [[[1, 1, 1, 1, 1, 1, 0, 0]]]
    assert rows.targets.tolist() == [[[0, 5, 2, 0, 6, 0, 0, 0]]]
    assert rows.mask.tolist() == [[[False, True, True, False, True, False, False, False]]]
    assert rows.sequences.tolist() == [[[0, 0, 0, 0, 1, 0, 0, 0]]]
    assert rows.ends.tolist() == [[[[0, 3], [0, 5]]]]
    assert rows.groups.tolist() == [[0]]
    assert padding_share(rows) == 2 / 8


def test_who_sees_whom_in_the_example() -> None:
    rows = pack([array(7, 8)], [[array(5, 2), array(6)]], row_tokens=32)
    visible = attention.visible(
        *jax.tree.map(lambda x: jnp.asarray(x[0]), (rows.segments, rows.positions))
    )
    assert np.asarray(visible[0]).astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 0, 0, 0, 1, 0, 0, 0],  # the second response sees the prompt, not the first
        [1, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 1, 0],  # padding sees itself
        [0, 0, 0, 0, 0, 0, 0, 1],
    ]


def test_a_group_that_does_not_fit_goes_on_in_another_row_with_its_prompt() -> None:
    prompt, responses = array(7, 8, 9), [[array(1, 2, 3, 4, 5, 6, 1), array(2, 3), array(4, 5)]]
    rows = pack([prompt], responses, row_tokens=10)
    assert rows.tokens.tolist() == [
        [[7, 8, 9, 1, 2, 3, 4, 5, 6, 1], [7, 8, 9, 2, 3, 9, 4, 5, 0, 0]]
    ]
    assert rows.segments.prefix.tolist() == [[[1] * 10, [1] * 8 + [0] * 2]]
    assert rows.ends.tolist() == [[[[0, 9], [1, 4], [1, 7]]]]
    assert rows.sequences[rows.mask].tolist() == [0] * 7 + [1, 1, 2, 2]
    check(rows, [prompt], responses, None)


def test_a_prompt_of_one_token_has_no_prefix_to_share() -> None:
    prompts, responses = [array(7), array(8)], [[array(1, 2), array(3)], [array(4), array(5)]]
    rows = pack(prompts, responses, row_tokens=16)
    assert rows.tokens[0, 0, :9].tolist() == [7, 1, 2, 7, 3, 8, 4, 8, 5]
    assert rows.positions[0, 0, :9].tolist() == [0, 1, 2, 0, 1, 0, 1, 0, 1]
    check(rows, prompts, responses, None)


def test_an_empty_response_ends_at_the_prompt_and_predicts_nothing() -> None:
    prompts, responses = [array(7, 8)], [[array(), array(3)]]
    rows = pack(prompts, responses, row_tokens=8)
    row, last = rows.ends[0, 0, 0]
    assert rows.tokens[0, row, last] == 8
    check(rows, prompts, responses, None)


def test_a_pair_longer_than_a_row_is_refused() -> None:
    with pytest.raises(AssertionError):
        pack([array(1, 2, 3)], [[array(4, 5, 6)]], row_tokens=5)


def test_prompts_must_split_over_micro_batches() -> None:
    with pytest.raises(AssertionError):
        pack([array(1)] * 3, [[array(2)]] * 3, row_tokens=8, micro_batches=2)


@pytest.mark.parametrize("seed", range(30))
def test_everything_comes_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    micro_batches, shards = int(rng.choice([1, 2, 4])), int(rng.choice([1, 2, 4]))
    count = micro_batches * int(rng.integers(1, 5))
    row_tokens = int(rng.choice([21, 24, 40, 100]))
    prompts, responses, logprobs = draw(rng, count, int(rng.integers(1, 6)))
    rows = pack(
        prompts,
        responses,
        logprobs if seed % 2 else None,
        row_tokens=row_tokens,
        micro_batches=micro_batches,
        shards=shards,
    )
    check(rows, prompts, responses, logprobs if seed % 2 else None)
    micro, count_of_rows, length = rows.tokens.shape
    assert micro == micro_batches
    assert count_of_rows % shards == 0
    assert count_of_rows == buckets.round_up(count_of_rows, shards, ROW_PARTS)
    assert length % (row_tokens // 8) == 0
    assert length <= 1.5 * row_tokens
    assert {leaf.shape for leaf in jax.tree.leaves(rows._replace(ends=None, groups=None))} == {
        rows.tokens.shape
    }


def test_packing_is_deterministic() -> None:
    first, second = (
        pack(*draw(np.random.default_rng(5), 8, 3), row_tokens=40, micro_batches=2)
        for _ in range(2)
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_place_splits_rows_over_the_data_shards_and_nothing_else() -> None:
    mesh = make_mesh(1, 4, 2)
    prompts, responses, logprobs = draw(np.random.default_rng(7), 4, 3)
    rows = pack(prompts, responses, logprobs, row_tokens=24, micro_batches=2, shards=4)
    placed = place(rows, mesh)
    jax.tree.map(np.testing.assert_array_equal, devices.fetch(placed), rows)
    split = jax.tree.leaves(placed._replace(ends=None, groups=None))
    assert {leaf.sharding.spec for leaf in split} == {P(None, ("replica", "fsdp"), None)}
    assert {leaf.is_fully_replicated for leaf in (placed.ends, placed.groups)} == {True}
