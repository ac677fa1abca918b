"""The file of verdicts while they come: it counts those that cannot be read."""

from collections.abc import Sequence

from gad_jax.evaluate.judge.contests import Contest, Said
from gad_jax.metrics.judging.protocol import MOST_UNREAD
from gad_jax.teacher.questions import Teacher
from gad_jax.teacher.store import Line, Store


class Unreadable(Exception):
    """Too many consecutive verdicts cannot be read."""


class Verdicts(Store):
    """A store that reads each verdict when it has been kept.

    `unread` counts those that cannot be read, `last` is the last of them, and `replies` are those
    since the last one that can be read. `proven` says whether any verdict could be read so far.
    """

    unread = 0
    proven = False

    def watch(self, contests: Sequence[Contest], judge: Teacher, proven: bool) -> None:
        """Sets whose verdicts come, and whether any was readable before."""
        self._contests = {
            question.key: contest for contest in contests for question in contest.questions(judge)
        }
        self.proven = proven
        self.replies: list[Said] = []
        self.last = Said("", "")

    @property
    def in_a_row(self) -> int:
        """How many of the last verdicts cannot be read."""
        return len(self.replies)

    async def add(self, line: Line) -> None:
        """Adds a verdict. Raises Unreadable, after it is kept, if it is one too many."""
        await super().add(line)
        said = Said(line["teacher_response"], line["finish_reason"])
        if self._contests[line["key"]].share(said) is not None:
            self.proven = True
            self.replies.clear()
            return
        self.unread += 1
        self.last = said
        self.replies.append(said)
        if len(self.replies) >= MOST_UNREAD:
            raise Unreadable
