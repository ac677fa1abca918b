"""The results of the votes: shares with intervals over prompts, and agreement of annotators."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gad_jax.evaluate.human.ballots import Ballot, Vote, Votes, same
from gad_jax.metrics import statistics
from gad_jax.metrics.statistics import Interval


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of the first of two students; shares in percent, a tie counts half, 50 is parity.

    `score` is the mean over prompts of the annotators' mean. `left` is the share of the answers
    shown first. `alpha` is Krippendorff's for win, tie and lose: NaN if no prompt has two
    annotators, or all votes are the same. Equal answers count as ties in `score` only.
    """

    students: tuple[str, str]
    prompts: int
    voted: int
    equal: int
    tokens: tuple[float | None, float | None]
    score: Interval
    length_controlled: Interval
    one_sided: bool
    wins: int
    ties: int
    losses: int
    left: float
    alpha: float
    annotators: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Returns the result for a JSON file; null where there is no number."""
        found = dataclasses.asdict(self)
        for name in ("score", "length_controlled"):
            numbers = getattr(self, name)._asdict()
            found[name] = {k: None if math.isnan(v) else v for k, v in numbers.items()}
        return found | {
            name: None if math.isnan(found[name]) else found[name] for name in ("alpha", "left")
        }


def result(ballots: Sequence[Ballot], votes: Votes) -> Result:
    """Returns the result of the votes on these ballots, for the first student of each."""
    by_ballot: dict[str, list[Vote]] = {}
    counts: dict[str, int] = {}
    for annotator in votes.annotators():
        own = votes.of(annotator)
        found = [own[ballot.key] for ballot in ballots if ballot.key in own and not same(ballot)]
        for vote in found:
            by_ballot.setdefault(vote["ballot"], []).append(vote)
        if found:
            counts[annotator] = len(found)
    first, second = (side.student for side in ballots[0].sides)
    units = [[_outcome(vote, first) for vote in unit] for unit in by_ballot.values()]
    all_votes = [outcome for unit in units for outcome in unit]
    judged = [ballot for ballot in ballots if same(ballot) or ballot.key in by_ballot]
    shares = [_share(by_ballot.get(ballot.key, []), first) for ballot in judged]
    lengths, others = ([float(len(b.sides[n].text)) for b in judged] for n in (0, 1))
    places = {"left": 1.0, "tie": 0.5, "right": 0.0}
    left = [places[vote["choice"]] for unit in by_ballot.values() for vote in unit]
    return Result(
        students=(first, second),
        prompts=len(ballots),
        voted=len(by_ballot),
        equal=sum(map(same, ballots)),
        tokens=(_tokens(judged, 0), _tokens(judged, 1)),
        score=statistics.mean_interval(shares, bounds=statistics.SHARES).percent(),
        length_controlled=statistics.length_controlled(shares, lengths, others).percent(),
        one_sided=statistics.one_sided(lengths, others),
        wins=all_votes.count("win"),
        ties=all_votes.count("tie"),
        losses=all_votes.count("lose"),
        left=100 * float(np.mean(left)) if left else math.nan,
        alpha=statistics.alpha(units),
        annotators=counts,
    )


def table(found: Result) -> dict[str, dict[str, str]]:
    """Returns the result as a row for the console, with the lengths next to the score."""
    first = found.students[0]
    tokens = ["–" if number is None else f"{number:.1f}" for number in found.tokens]
    return {
        first: {
            "score": str(found.score) if found.voted or found.equal else "–",
            "tokens": tokens[0],
            "other's": tokens[1],
            "at equal length": (
                f"{found.length_controlled}{'*' if found.one_sided else ''}" if found.voted else "–"
            ),
            "win / tie / lose": f"{found.wins} / {found.ties} / {found.losses}",
        }
    }


def sentences(found: Result, broken: int = 0) -> list[str]:
    """Returns sentences with what the table does not show; `broken` lines are no votes."""
    people = ", ".join(f"{name} {count}" for name, count in found.annotators.items()) or "none"
    agreement = (
        "unknown: it needs prompts with two annotators, and votes that differ"
        if math.isnan(found.alpha)
        else f"{found.alpha:.2f} (Krippendorff's alpha; 1 is full agreement, 0 is chance)"
    )
    said = [
        f"votes: {people}; {found.voted} of {found.prompts - found.equal} prompts have some"
        + (f", {found.equal} more have equal answers and count as ties" if found.equal else ""),
        f"agreement: {agreement}",
    ]
    if not math.isnan(found.left):
        said.append(f"the answer shown first got {found.left:.1f} % (50: no position bias)")
    if broken:
        said.append(f"{broken} lines of the file are no votes and do not count")
    if found.one_sided and found.voted:
        said.append("* nearly all of one side's answers are longer: an extrapolation")
    return said


def _outcome(vote: Vote, first: str) -> str:
    return "tie" if vote["winner"] == "tie" else "win" if vote["winner"] == first else "lose"


def _share(unit: Sequence[Vote], first: str) -> float:
    shares = [{"win": 1.0, "tie": 0.5, "lose": 0.0}[_outcome(vote, first)] for vote in unit]
    return float(np.mean(shares)) if shares else 0.5


def _tokens(ballots: Sequence[Ballot], side: int) -> float | None:
    known = [b.sides[side].tokens for b in ballots]
    numbers = [number for number in known if number is not None]
    return float(np.mean(numbers)) if numbers else None
