"""Which answers are compared, and the scores from their verdicts. `verdicts` requests those."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gad_jax.base.errors import UserError
from gad_jax.evaluate.judge.settings import TEACHER, Judge
from gad_jax.metrics import statistics
from gad_jax.metrics.judging import protocol as protocols
from gad_jax.metrics.statistics import Interval
from gad_jax.settings.requests import LONGEST
from gad_jax.teacher.questions import Messages, Question, Teacher, request_key
from gad_jax.training.report.answers import Answers
from gad_jax.training.report.comparison import seeds

Texts = Mapping[str, Sequence["Said"]]
"""The judge's replies so far in their order, by `reply_key`."""


class Said(NamedTuple):
    """The text of a reply, and why it ended."""

    text: str
    finish_reason: str


def reply_key(judge: Teacher, messages: Messages) -> str:
    """Returns the key of a question's replies. The limit of their length is left out: a reply that
    ended before it does not depend on it, so another limit pays for none again."""
    free = {name: value for name, value in judge.parameters.items() if name not in LONGEST}
    return request_key(Teacher(judge.model, judge.system, free), messages)


@dataclasses.dataclass(frozen=True)
class Contest:
    """An answer against another one to the same prompt; the judge sees both orders.

    `tokens` are None where they are not known.
    """

    prompts: str
    protocol: protocols.Protocol
    student: str
    against: str
    id: str
    number: int
    sample: int
    request: str
    text: str
    other: str
    tokens: int | None
    other_tokens: int | None

    @property
    def shown(self) -> tuple[str, str, str]:
        """The texts that the judge sees, in any order."""
        return self.request, self.text, self.other

    def share(self, said: Said) -> float | None:
        """Returns the share of the answer in the first place, None if the reply cannot be read."""
        return protocols.share(self.protocol, said.text, self.shown, said.finish_reason)

    def questions(self, judge: Teacher, repeat: int = 0) -> tuple[Question, Question]:
        """Returns the two questions: with the answer in the first place, and in the second."""
        orders = ((self.text, self.other), (self.other, self.text))
        sent = [protocols.question(self.protocol, self.request, *order) for order in orders]
        name = f"{self.prompts}/{self.id}: {self.student} against {self.against}"
        first, second = (
            Question(request_key(judge, messages), repeat, name, messages, messages)
            for messages in sent
        )
        return first, second


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The result of a contest: the share that the answer got in each order, None where no verdict
    could be read. `unread` counts the verdicts that could not be read."""

    contest: Contest
    shares: tuple[float | None, float | None]
    unread: int

    @property
    def share(self) -> float | None:
        """The mean of both orders, in [0, 1]; None unless both have a verdict."""
        first, second = self.shares
        return None if first is None or second is None else (first + second) / 2

    def to_json(self) -> dict[str, Any]:
        """Returns the line to store; the texts are in the files of answers and verdicts."""
        kept = ("prompts", "protocol", "student", "against", "id", "sample", "tokens")
        named = {name: getattr(self.contest, name) for name in kept}
        return named | {
            "against_tokens": self.contest.other_tokens,
            "shares": list(self.shares),
            "score": None if self.share is None else 100 * self.share,
            "unparsable": self.unread,
        }


@dataclasses.dataclass(frozen=True)
class Score:
    """A student's score against another one on a prompt set, in [0, 100]; 50 is parity.

    Wins and losses are contests in which both orders agree; all three counts are None for ratings.
    `first_place` is the mean score of the answer shown first: 50 for a judge without position bias.
    `difference` is the score minus that of the first student with the same opponent, paired by
    prompt; None for that student.
    """

    prompts: str
    protocol: protocols.Protocol
    student: str
    against: str
    judged: int
    tokens: float | None
    against_tokens: float | None
    score: Interval
    length_controlled: Interval
    one_sided: bool
    wins: int | None
    ties: int | None
    losses: int | None
    first_place: float
    unparsable: int
    missing: int
    difference: Interval | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the score for a JSON file; null where there is no number."""
        found = dataclasses.asdict(self)
        for name in ("score", "length_controlled", "difference"):
            if (interval := getattr(self, name)) is not None:
                numbers = interval._asdict()
                found[name] = {k: None if math.isnan(v) else v for k, v in numbers.items()}
        return found


def contests(answers: Sequence[Answers], judge: Judge) -> list[Contest]:
    """Returns the contests of one prompt set, from each student's answers to the same prompts."""
    names = [one.label for one in answers]
    baseline = judge.baseline or (names[0] if len(names) > 1 else TEACHER)
    found: list[Contest] = []
    for protocol in judge.protocols:
        against = judge.reference if protocol == "reference" else baseline
        flag = "reference" if protocol == "reference" else "baseline"
        if against not in (*names, TEACHER):
            raise UserError(
                f"--judge.{flag}={against} is no student here; name one of "
                f"{', '.join([*names, TEACHER])}"
            )
        for name in names if against == TEACHER else [*names, TEACHER]:
            if name != against:
                found += _meet(answers, protocol, name, against)
    return found


def _meet(
    answers: Sequence[Answers], protocol: protocols.Protocol, student: str, against: str
) -> list[Contest]:
    first = answers[0]
    found = []
    for number, line in enumerate(first.lines):
        left, right = (_of(answers, name, number) for name in (student, against))
        for sample in range(max(len(left), len(right)) if left and right else 0):
            text, tokens = left[sample % len(left)]
            other, other_tokens = right[sample % len(right)]
            found.append(
                Contest(
                    prompts=first.prompts,
                    protocol=protocol,
                    student=student,
                    against=against,
                    id=line["id"],
                    number=number,
                    sample=sample,
                    request=line["prompt"],
                    text=text,
                    other=other,
                    tokens=tokens,
                    other_tokens=other_tokens,
                )
            )
    return found


def _of(answers: Sequence[Answers], name: str, number: int) -> list[tuple[str, int | None]]:
    """Returns a student's or the teacher's answers to a prompt, and their token counts."""
    if name == TEACHER:
        line = answers[0].lines[number]
        return [(line["teacher"], line["teacher_tokens"])] if line["teacher"] else []
    (one,) = (one for one in answers if one.label == name)
    return [(answer["text"], answer["tokens"]) for answer in one.lines[number]["answers"]]


def judgement(contest: Contest, judge: Teacher, texts: Texts) -> Judgement:
    """Returns the result of the verdicts so far. Of retries, the first that can be read counts."""
    shares: list[float | None] = []
    unread = 0
    for question in contest.questions(judge):
        found: float | None = None
        for said in texts.get(reply_key(judge, question.sent), ()):
            found = contest.share(said)
            if found is not None:
                break
            unread += 1
        shares.append(found)
    first, second = shares
    return Judgement(contest, (first, None if second is None else 1 - second), unread)


def scores(judgements: Sequence[Judgement]) -> list[Score]:
    """Returns a score per prompt set, protocol, student and opponent, in their order.

    Students that are seeds of one, such as gad#1 and gad#2, get one more score for all of them.
    """
    groups: dict[tuple[str, ...], dict[str, list[Judgement]]] = {}
    for one in judgements:
        c = one.contest
        students = groups.setdefault((c.prompts, c.protocol, c.against), {})
        students.setdefault(c.student, []).append(one)
    found: list[Score] = []
    for students in groups.values():
        names = list(students)
        first = _shares(students[names[0]])
        own = {
            name: _score(group, None if name == names[0] else first)
            for name, group in students.items()
        }
        found += own.values()
        for name, members in seeds(names).items():
            several = [_shares(students[member]) for member in members]
            compared = None if names[0] in members else first
            found.append(_over_seeds(name, [own[m] for m in members], several, compared))
    return found


def _score(group: Sequence[Judgement], first: Mapping[int, float] | None) -> Score:
    """Returns the score of one student: means over the samples of a prompt, then over prompts.

    `first` are the shares of the student that this one is compared with.
    """
    contest = group[0].contest
    judged = [one for one in group if one.share is not None]
    by_prompt = _shares(group)
    shares = list(by_prompt.values())
    # Characters, as in AlpacaEval 2: the two answers may be counted with different tokenizers.
    lengths = list(_by_prompt(judged, lambda one: len(one.contest.text)).values())
    others = list(_by_prompt(judged, lambda one: len(one.contest.other)).values())
    pairs = contest.protocol == "pairwise"
    decided = [set(one.shares) for one in judged]
    wins, losses = decided.count({1.0}), decided.count({0.0})
    return Score(
        prompts=contest.prompts,
        protocol=contest.protocol,
        student=contest.student,
        against=contest.against,
        judged=len(shares),
        tokens=_mean(_by_prompt(judged, lambda one: one.contest.tokens)),
        against_tokens=_mean(_by_prompt(judged, lambda one: one.contest.other_tokens)),
        score=statistics.mean_interval(shares, bounds=statistics.SHARES).percent(),
        length_controlled=statistics.length_controlled(shares, lengths, others).percent(),
        one_sided=statistics.one_sided(lengths, others),
        wins=wins if pairs else None,
        ties=len(judged) - wins - losses if pairs else None,
        losses=losses if pairs else None,
        first_place=100 * float(np.mean([_first_place(one) for one in judged])) if judged else 50.0,
        unparsable=sum(one.unread for one in group),
        missing=len(group) - len(judged),
        difference=None if first is None else _difference(by_prompt, first),
    )


def _over_seeds(
    name: str,
    own: Sequence[Score],
    shares: Sequence[Mapping[int, float]],
    first: Mapping[int, float] | None,
) -> Score:
    """Returns one score for the seeds of a student, over the prompts that all have a verdict on."""
    both = [number for number in shares[0] if all(number in other for other in shares)]
    table = np.asarray([[side[number] for number in both] for side in shares])
    if not both:
        return dataclasses.replace(own[0], student=name, judged=0, difference=None)
    controlled = Interval(*np.mean([one.length_controlled for one in own], axis=0).tolist())
    difference = None
    if first is not None:
        moved = [_difference(side, first).value for side in shares]
        mean = dict(zip(both, table.mean(axis=0).tolist(), strict=True))
        difference = statistics.over_seeds(_difference(mean, first), moved)
    tokens = [one.tokens for one in own if one.tokens is not None]
    counts = ("wins", "ties", "losses", "unparsable", "missing")
    sums = {
        n: sum(getattr(one, n) for one in own) for n in counts if getattr(own[0], n) is not None
    }
    return dataclasses.replace(
        own[0],
        student=name,
        judged=len(both),
        tokens=float(np.mean(tokens)) if tokens else None,
        score=statistics.seeds_interval(table, bounds=statistics.SHARES).percent(),
        length_controlled=statistics.over_seeds(
            controlled, [one.length_controlled.value for one in own]
        ),
        one_sided=any(one.one_sided for one in own),
        first_place=float(np.mean([one.first_place for one in own])),
        difference=difference,
        **sums,
    )


def _difference(shares: Mapping[int, float], first: Mapping[int, float]) -> Interval:
    both = [number for number in shares if number in first]
    after, before = ([side[number] for number in both] for side in (shares, first))
    return statistics.difference_interval(after, before, bounds=statistics.SHARES).percent()


def _first_place(one: Judgement) -> float:
    """Returns the mean share of the answer shown first."""
    first, second = one.shares
    assert first is not None
    assert second is not None
    return (first + 1 - second) / 2


def _shares(judgements: Sequence[Judgement]) -> dict[int, float]:
    return _by_prompt(judgements, lambda one: one.share)


def _by_prompt(judgements: Sequence[Judgement], value: Any) -> dict[int, float]:
    """Returns the mean of a value over each prompt's contests; prompts without one are left out."""
    found: dict[int, list[float]] = {}
    for one in judgements:
        if (number := value(one)) is not None:
            found.setdefault(one.contest.number, []).append(number)
    return {prompt: float(np.mean(numbers)) for prompt, numbers in found.items()}


def _mean(values: Mapping[int, float]) -> float | None:
    return float(np.mean(list(values.values()))) if values else None
