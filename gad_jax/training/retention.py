"""Which checkpoints of a run stay: the newest, the best, and the last one without an alarm."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Marks(NamedTuple):
    """What is known of a checkpoint: its score, which scores it compares with, and whether no alarm
    that stops a run was near."""

    score: float | None = None
    group: str = ""
    good: bool = True


class Retention:
    """Orbax preservation policy. `marks` are those of the steps, as far as their records can be
    read.

    The newest `newest` stay and, with `keep_best`, the best. A run that an alarm stops must still
    have a checkpoint to return to: while all of the newest are bad, the last good one stays in
    place of the oldest of them.
    """

    def __init__(self, newest: int, keep_best: bool) -> None:
        self._newest, self._keep_best = newest, keep_best
        self.marks: dict[int, Marks] = {}

    def mark(
        self, step: int, score: float | None, meta: Mapping[str, Any], good: bool = True
    ) -> None:
        """Remembers what the record of a step says of it."""
        group = str(meta.get("ranking", meta.get("stage", "")))  # 0.1 did not store it
        self.marks[step] = Marks(score, group, good)

    @property
    def most(self) -> int:
        """The most checkpoints that stay."""
        return max(self._newest, 2) + self._keep_best

    def best(self, steps: list[int]) -> int | None:
        """Returns the step with the highest score, of equals the newest; None where none has one.

        Scores of different groups, such as those of different stages, do not compare: the group of
        the newest score counts.
        """
        scored = [step for step in steps if self._of(step).score is not None]
        if not scored:
            return None
        group = self._of(max(scored)).group
        same = [(self._of(step).score, step) for step in scored if self._of(step).group == group]
        return max(same)[1]

    def beats(self, score: float | None, meta: Mapping[str, Any], steps: list[int]) -> bool:
        """Returns whether a step after these, with this score and `meta`, would be the best."""
        after = max(steps, default=0) + 1
        trial = Retention(self._newest, self._keep_best)
        trial.marks = dict(self.marks)
        trial.mark(after, score, meta)
        return trial.best([*steps, after]) == after

    def kept(self, steps: list[int]) -> set[int]:
        """Returns those of the steps, which ascend, that stay."""
        kept = set(steps[-self._newest :])
        good = max((step for step in steps if self._of(step).good), default=None)
        if good is not None and good not in kept:
            kept = {*steps[-max(self._newest - 1, 1) :], good}
        best = self.best(steps) if self._keep_best else None
        return kept if best is None else kept | {best}

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        """Returns for each checkpoint, oldest first, whether it stays."""
        del context
        kept = self.kept([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]

    def _of(self, step: int) -> Marks:
        return self.marks.get(step, Marks())
