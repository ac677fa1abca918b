"""Sequences of different lengths in one array."""

import numpy as np

from gad_jax.data.ragged import Groups, Ragged

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


def test_groups_are_taken_joined_and_cut():
    groups = Groups.of(Ragged.of(SEQUENCES), [2, 0, 1, 1])

    def nested(groups):
        return [[one.tolist() for one in groups[n]] for n in range(len(groups.sizes))]

    assert nested(groups) == [[[1, 2, 3], []], [], [[4]], [[5, 6]]]
    taken = groups.take(np.array([3, 1, 0, 3]))
    assert nested(taken) == [[[5, 6]], [], [[1, 2, 3], []], [[5, 6]]]
    assert nested(taken.cut(1)) == [[[5]], [], [[1], []], [[5]]]
    assert nested(Groups.joined([taken.cut(2), groups.take(np.array([2]))])) == [
        *([[5, 6]], [], [[1, 2], []], [[5, 6]]),
        [[4]],
    ]
    assert nested(groups.take(np.array([], np.int64))) == []
