"""The votes on a comparison's answers, as tables for its report."""

from collections.abc import Sequence
from pathlib import Path

from gad_jax.evaluate.human import results
from gad_jax.evaluate.human.ballots import TEACHER, Votes, ballots
from gad_jax.training.report.answers import Answers
from gad_jax.training.report.page import Table


def tables(groups: Sequence[Sequence[Answers]], path: Path) -> dict[str, list[Table]]:
    """Returns the tables of each prompt set, one for each pair of students with votes; none if the
    file of votes is missing. Votes on answers that have changed since do not count.

    Raises UserError for a file that is not one of votes.
    """
    if not path.is_file():
        return {}
    votes = Votes(path, read_only=True)
    voted = list(dict.fromkeys(tuple(vote.get("students", ())) for vote in votes.lines))
    found: dict[str, list[Table]] = {}
    for group in groups:
        known = {TEACHER, *(one.label for one in group)}
        for students in voted:
            both = len(students) == 2 and known.issuperset(students)
            several = ballots(group, students) if both else []
            result = results.result(several, votes) if several else None
            if result is not None and result.voted:
                found.setdefault(group[0].prompts, []).append(_table(result, len(votes.broken)))
    return found


def _table(result: results.Result, broken: int) -> Table:
    rows = results.table(result)
    first, second = result.students
    said = results.sentences(result, broken)
    return Table(
        title=f"People prefer the answers of {first} to those of {second}",
        columns=list(rows[first]),
        rows=[(name, list(cells.values())) for name, cells in rows.items()],
        note=(
            "Blind votes. The score is the share won, a tie counting half; 50 is parity. Mean over "
            "prompts, with a 95 % bootstrap interval; at equal length: what it would be if both "
            f"answers were as long as each other. {'. '.join(s[0].upper() + s[1:] for s in said)}."
        ),
    )
