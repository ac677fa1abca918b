"""Sequences of different lengths in one array."""

import numpy as np

from gad_jax.data.ragged import Ragged

SEQUENCES = [[1, 2, 3], [], [4], [5, 6]]


def lists(ragged):
    return [ragged[index].tolist() for index in range(len(ragged))]


def test_sequences_come_back():
    ragged = Ragged.of(SEQUENCES)
    assert lists(ragged) == SEQUENCES
    assert ragged.lengths.tolist() == [3, 0, 1, 2]
    assert ragged[0].dtype == np.int32
    assert lists(Ragged.of([])) == lists(Ragged.joined([])) == []


def test_parts_are_joined_also_those_that_were_cut():
    cut = Ragged.of(SEQUENCES).cut(2)
    assert lists(cut) == [[1, 2], [], [4], [5, 6]]
    assert lists(Ragged.joined([cut, Ragged.of([[7]]), cut.take(np.array([3, 0]))])) == [
        *([1, 2], [], [4], [5, 6]),
        [7],
        *([5, 6], [1, 2]),
    ]


def test_taking_and_cutting_copy_no_tokens():
    ragged = Ragged.of(SEQUENCES)
    some = ragged.take(np.array([True, False, False, True])).cut(1)
    assert lists(some) == [[1], [5]]
    assert some.flat is ragged.flat
