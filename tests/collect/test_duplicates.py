"""Shingles by hand; near duplicates and overlaps."""

import numpy as np

from gad_jax.collect.duplicates import Overlap, near_duplicates, shingles, signature

pytest_plugins = ["tests.run_fixtures"]


def test_shingles_by_hand() -> None:
    assert len(shingles("a b c d e f", 5)) == 2
    assert len(shingles("A, b", 5)) == 1
    np.testing.assert_array_equal(shingles("A, b!", 5), shingles("a b", 5))
    assert len(shingles("…", 5)) == 0


def test_near_duplicates_are_those_that_share_most_shingles() -> None:
    random = np.random.default_rng(0)
    base = [f"w{n}" for n in random.integers(0, 5000, 400)]
    near, far = list(base), list(base)
    near[200] = "other"  # 5 of 396 shingles
    far[::10] = ["other"] * 40  # 40 places, each in five shingles: half of them differ
    texts = [" ".join(words) for words in (base, near, far, base[::-1])]
    found = near_duplicates(np.stack([signature(text) for text in texts]))
    assert found.tolist() == [False, True, False, False]


def test_overlap_is_a_run_of_thirteen_words() -> None:
    run = " ".join(f"w{n}" for n in range(20))
    overlap = Overlap([run, "Short one."])
    assert overlap.whole("short, ONE")
    assert not overlap.whole("short")
    assert overlap.shares("before " + " ".join(f"w{n}" for n in range(3, 16)) + " after")
    assert not overlap.shares(" ".join(f"w{n}" for n in range(12)))
