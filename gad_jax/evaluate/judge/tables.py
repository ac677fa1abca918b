"""A judge's scores as tables, with the lengths next to every score."""

from collections.abc import Sequence

from gad_jax.evaluate.judge.contests import Score
from gad_jax.training.report.page import Table

_TITLES = {
    "reference": "{judge} rates the answers next to those of {against}",
    "pairwise": "{judge} prefers the answers to those of {against}",
}
_RULES = {
    "reference": (
        "Both answers are rated from 1 to 10; the score is 100 · s / (s + s of the other), "
        "the mean of both orders."
    ),
    "pairwise": (
        "The score is the share of contests won, a tie counting half, the mean of both orders. An "
        "answer wins or loses where both orders say so; else it is a tie."
    ),
}
_NOTE = (
    "{rule} 50 is parity. Means over prompts, with 95 % intervals.{compared} At equal length: what "
    "the score would be if both answers were as long as each other, by the regression of "
    "AlpacaEval 2 (arXiv:2404.04475){extrapolated}. Shown first: the mean score of the answer in "
    "the first place; 50 for a judge without position bias. Unread: verdicts that give no score; "
    "missing: contests without a verdict on both orders, which do not count."
)
_COMPARED = (
    " Difference: the score minus that of {first}, paired by prompt; if 0 is outside the interval, "
    "this judge prefers one of them."
)


def tables(scores: Sequence[Score], judge: str) -> dict[str, list[Table]]:
    """Returns the tables of each prompt set, one for each protocol."""
    found: dict[str, list[Table]] = {}
    for prompts in dict.fromkeys(score.prompts for score in scores):
        for protocol in dict.fromkeys(score.protocol for score in scores):
            rows = [s for s in scores if (s.prompts, s.protocol) == (prompts, protocol)]
            if rows:
                found.setdefault(prompts, []).append(_table(rows, judge))
    return found


def _table(scores: Sequence[Score], judge: str) -> Table:
    protocol = scores[0].protocol
    compared = any(score.difference for score in scores)
    rows = [(score.student, _cells(score, compared)) for score in scores]
    extrapolated = any(score.one_sided for score in scores)
    return Table(
        title=_TITLES[protocol].format(judge=judge, against=scores[0].against),
        columns=list(rows[0][1]),
        rows=[(student, list(cells.values())) for student, cells in rows],
        note=_NOTE.format(
            rule=_RULES[protocol],
            compared=_COMPARED.format(first=scores[0].student) if compared else "",
            extrapolated=(
                "; a * marks scores where nearly all of one side's answers are longer, which is "
                "an extrapolation"
                if extrapolated
                else ""
            ),
        ),
    )


def _cells(score: Score, compared: bool) -> dict[str, str]:
    known = score.judged > 0
    cells = {
        "score": str(score.score) if known else "–",
        "tokens": _number(score.tokens),
        "other's": _number(score.against_tokens),
        "at equal length": (
            f"{score.length_controlled}{'*' if score.one_sided else ''}" if known else "–"
        ),
    }
    if compared:
        cells["difference"] = "–" if score.difference is None else str(score.difference)
    if score.wins is not None:
        cells["win / tie / lose"] = f"{score.wins} / {score.ties} / {score.losses}"
    return cells | {
        "prompts": str(score.judged),
        "shown first": f"{score.first_place:.1f}" if known else "–",
        "unread": str(score.unparsable),
        "missing": str(score.missing),
    }


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
