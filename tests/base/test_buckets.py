"""Shapes are rounded up to few sizes, and not by much."""

import pytest

from gad_jax.base.buckets import round_up

SIZES = range(1, 4097)


@pytest.mark.parametrize(
    ("size", "multiple", "bucket"),
    [(1, 1, 1), (8, 1, 8), (9, 1, 10), (13, 1, 14), (17, 1, 20), (70, 32, 96), (300, 32, 320)],
)
def test_by_hand(size: int, multiple: int, bucket: int) -> None:
    assert round_up(size, multiple) == bucket


@pytest.mark.parametrize("multiple", [1, 2, 3, 8, 32])
def test_a_bucket_holds_its_size_and_wastes_at_most_a_quarter(multiple: int) -> None:
    for size in SIZES:
        bucket, needed = round_up(size, multiple), -(-size // multiple) * multiple
        assert bucket % multiple == 0
        assert needed <= bucket <= 1.25 * needed


@pytest.mark.parametrize("multiple", [1, 2, 3, 8, 32])
def test_buckets_grow_with_the_size_and_are_their_own_buckets(multiple: int) -> None:
    buckets = [round_up(size, multiple) for size in SIZES]
    assert buckets == sorted(buckets)
    assert all(round_up(bucket, multiple) == bucket for bucket in buckets)


def test_there_are_few() -> None:
    # eight, then four in each of nine doublings
    assert len({round_up(size) for size in SIZES}) == 8 + 4 * 9
    assert len({round_up(size, 32) for size in SIZES}) == 8 + 4 * 4


def test_nothing_needs_one() -> None:
    assert round_up(0, 4) == 4
