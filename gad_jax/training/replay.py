"""The student's older answers, of which the discriminator sees some again (Persistent Negatives,
arXiv:2609.30864).

The pool is on the host, whole in every process. What is in it follows from the steps so far, so all
processes hold the same. A checkpoint has it (`arrays`), and a resumed run continues with it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gad_jax.settings.config import Config
from gad_jax.training import randomness

Arrays = dict[str, np.ndarray]
Answers = list[list[np.ndarray]]
"""Tokens of several answers to each prompt of a batch."""


class _Group(NamedTuple):
    """The answers of one row: one after the other, the oldest first."""

    tokens: np.ndarray
    lengths: np.ndarray
    born: np.ndarray  # the step of each answer

    def newest(self, count: int) -> "_Group":
        surplus = len(self.lengths) - count
        if surplus <= 0:
            return self
        first = self.lengths[:surplus].sum()
        # copied: a slice would keep the surplus in memory
        return _Group(
            self.tokens[first:].copy(), self.lengths[surplus:].copy(), self.born[surplus:].copy()
        )

    def answer(self, number: int) -> np.ndarray:
        start = self.lengths[:number].sum()
        return self.tokens[start : start + self.lengths[number]]


class Drawn(NamedTuple):
    """Older answers of each prompt of a batch, at most `places` of them, and their ages in steps.

    They take the last of the group's places."""

    places: int
    answers: Answers
    ages: list[int]

    def mixed(self, fresh: Answers) -> Answers:
        """Returns the samples of each prompt with older answers in their places."""
        return [
            [*group[: len(group) - len(older)], *older]
            for group, older in zip(fresh, self.answers, strict=True)
        ]

    def old(self, samples: int) -> np.ndarray:
        """Returns which places hold older answers: [B N], bool."""
        counts = np.asarray([len(older) for older in self.answers])
        return np.arange(samples) >= samples - counts[:, None]

    def metrics(self, samples: int) -> dict[str, float]:
        """Returns the share of older answers among the samples in D's batch, and their mean age."""
        share = len(self.ages) / (len(self.answers) * samples)
        age = {"replay/age": float(np.mean(self.ages))} if self.ages else {}
        return {"replay/share": share} | age


class Pool:
    """The newest `kept` answers of every row; `replayed` of them are drawn at a time.

    The newest are kept, and not a sample of all, because they are nearest to the policy that D
    judges, and because their age is then bounded.
    """

    def __init__(self, seed: int, replayed: int, kept: int, vocabulary: int) -> None:
        self.seed, self.replayed, self.kept = seed, replayed, kept
        self.dtype = token_dtype(vocabulary)
        self._groups: dict[int, _Group] = {}

    def __len__(self) -> int:
        """Answers of all rows."""
        return sum(len(group.lengths) for group in self._groups.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all answers."""
        return sum(part.nbytes for group in self._groups.values() for part in group)

    def draw(self, rows: Sequence[int] | np.ndarray, step: int) -> Drawn:
        """Returns older answers of the rows of a batch; of a row, all are as likely, and none is
        drawn twice. `step` counts the steps that are done."""
        answers: Answers = []
        ages: list[int] = []
        for place, row in enumerate(rows):
            answers.append([])
            if (group := self._groups.get(int(row))) is None:
                continue
            draws = randomness.replay_draws(self.seed, step, place)
            for number in draws.permutation(len(group.lengths))[: self.replayed].tolist():
                answers[-1].append(group.answer(number))
                ages.append(step - int(group.born[number]))
        return Drawn(self.replayed, answers, ages)

    def add(self, rows: Sequence[int] | np.ndarray, answers: Answers, step: int) -> None:
        """Keeps a batch's answers, which were sampled when `step` steps were done."""
        for row, fresh in zip(rows, answers, strict=True):
            tokens = np.concatenate(fresh).astype(self.dtype)
            lengths = np.asarray([len(answer) for answer in fresh], np.int32)
            group = _Group(tokens, lengths, np.full(len(fresh), step, np.int32))
            if (before := self._groups.get(int(row))) is not None:
                group = _Group(*map(np.concatenate, zip(before, group, strict=True)))
            self._groups[int(row)] = group.newest(self.kept)

    def arrays(self) -> Arrays:
        """Returns the pool as a few arrays, for a checkpoint; none where it is empty."""
        if not self._groups:
            return {}
        rows = sorted(self._groups)
        groups = [self._groups[row] for row in rows]
        parts = {
            f"replay_{name}": np.concatenate([getattr(group, name) for group in groups])
            for name in _Group._fields
        }
        counts = np.asarray([len(group.lengths) for group in groups], np.int32)
        return parts | {"replay_rows": np.asarray(rows, np.int32), "replay_counts": counts}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces what the pool holds by what `arrays` returned."""
        self._groups = {}
        if "replay_rows" not in arrays:
            return
        tokens, lengths, born = (arrays[f"replay_{name}"] for name in _Group._fields)
        first = start = 0
        for row, count in zip(arrays["replay_rows"], arrays["replay_counts"], strict=True):
            own = lengths[first : first + count]
            end = start + own.sum()
            group = _Group(tokens[start:end], own, born[first : first + count])
            # copies: a slice would keep the whole array in memory when its neighbours are gone
            self._groups[int(row)] = _Group(*(part.copy() for part in group))
            first, start = first + count, end


def token_dtype(vocabulary: int) -> np.dtype:
    """Returns the smallest dtype that holds the tokens of a vocabulary."""
    return np.dtype(np.uint16 if vocabulary <= 2**16 else np.int32)


def make(config: Config, vocabulary: int) -> Pool | None:
    """Returns the empty pool of a run, or None where it replays nothing."""
    options, samples = config.discriminator, config.rollout.samples
    if not options.replay_share:
        return None
    return Pool(config.seed, options.replayed(samples), options.kept(samples), vocabulary)


def expected_bytes(config: Config, vocabulary: int, rows: int, length: float) -> int:
    """Returns the bytes of a full pool of answers of this mean length; 0 where there is none."""
    pool = make(config, vocabulary)
    each = 0 if pool is None else pool.dtype.itemsize * length + 8
    return 0 if pool is None else int(rows * pool.kept * each)
