"""What the generator is paid in the GAD stage: D's score, and terms that a user adds.

Only the form of a term is checked here; files, models and services are opened when a run starts.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from gad_jax.settings.fields import (
    Checked,
    FieldError,
    did_you_mean,
    leaves,
    option,
    section,
    show,
)
from gad_jax.settings.reward_judge import RewardJudge

RULES = ("length", "format", "finished")
"""Built-in terms."""

JUDGE, MODEL = "judge", "model:"
"""The term of a judge, and what the name of a reward model is led by."""

_FORMS = f"{', '.join(RULES)}, {JUDGE}, {MODEL}PATH, FILE.py:FUNCTION or MODULE:FUNCTION"


class Term(NamedTuple):
    """A term of the reward: its name in the metrics, what was given, and its weight.

    `source` is a rule's name, judge, model:PATH, FILE.py:FUNCTION or MODULE:FUNCTION.
    """

    name: str
    kind: Literal["rule", "function", "model", "judge"]
    source: str
    weight: float


@dataclass(frozen=True)
class Reward(Checked):
    """A response's reward r = w_D·z(D) + Σ w·clip(z(e)), with extra terms e (docs/rewards.md)."""

    discriminator: float = option(
        1.0, "weight of the discriminator's score; 0: none is used", minimum=0
    )
    extra: tuple[str, ...] = option(
        (),
        "further terms with their weights, as length=0.2,my_rewards.py:brevity=0.5: rules ("
        f"{', '.join(RULES)}), functions of a file or a module, model:PATH, or judge",
    )
    normalise: Literal["group", "batch", "none"] = option(
        "group",
        "z: each term minus its mean, over its standard deviation, among the samples of a prompt "
        "or of the step; none: as it is",
    )
    clip: float = option(
        math.inf, "z of an extra term is clipped at ± this; inf: never", above=0, infinite=True
    )
    format: str = option(
        "", "regular expression to find in a response: the term format is 1 if it is there, else 0"
    )
    min_length_ratio: float = option(
        0.5,
        "the term length is 0 from this many times the teacher's tokens on, and less below",
        minimum=0,
    )
    max_length_ratio: float = option(
        1.5,
        "the term length is 0 up to this many times the teacher's tokens, and less above",
        above=0,
    )
    timeout: float = option(
        60.0,
        "longest time of one call of a function, or of one search for format",
        "seconds",
        above=0,
    )
    judge: RewardJudge = section(RewardJudge, "the judge of the term judge")

    def __post_init__(self) -> None:
        super().__post_init__()
        terms = self.terms
        # One text for the same terms: a run resumes however they are written.
        # A path with an = keeps its weight of 1, or the path's end would be read as a weight.
        written = (
            t.source + ("" if t.weight == 1 and "=" not in t.source else f"={show(t.weight)}")
            for t in terms
        )
        object.__setattr__(self, "extra", tuple(written))
        if not terms:
            self._refuse_unused()
            return
        if not self.discriminator and not any(term.weight for term in terms):
            raise FieldError(
                "discriminator",
                "discriminator=0, and no term of extra has a weight: nothing would be paid; give "
                "one a weight, as in length=0.2",
                "extra",
            )
        self._check_rules({term.source for term in terms})

    @property
    def terms(self) -> tuple[Term, ...]:
        """The extra terms, in their order."""
        read = [_read(text) for text in self.extra]
        twice = [
            source for source, count in Counter(term.source for term in read).items() if count > 1
        ]
        if twice:
            raise FieldError("extra", f"extra names {twice[0]} twice; name it once")
        names = _names(read)
        return tuple(term._replace(name=name) for term, name in zip(read, names, strict=True))

    def rehearsed(self) -> "Reward":
        """Returns a reward like this one without its judge and models, for a step that tries a run:
        `finished` stands for them where nothing else is left."""
        kept = [term for term in self.terms if term.kind in ("rule", "function")]
        if len(kept) == len(self.terms):
            return self
        texts = [f"{term.source}={show(term.weight)}" for term in kept]
        if not any(term.weight for term in kept):
            texts = [text for text in texts if not text.startswith("finished=")] + ["finished"]
        return replace(self, extra=tuple(texts), judge=RewardJudge())

    def _refuse_unused(self) -> None:
        """Raises FieldError for a setting that has no effect without extra terms."""
        if not self.discriminator:
            raise FieldError(
                "discriminator",
                "discriminator=0 leaves no reward; name another one, as in "
                "--reward.extra=my_rewards.py:brevity",
            )
        for leaf in leaves(type(self), self):
            default = next(one.value for one in leaves(type(self)) if one.path == leaf.path)
            if leaf.value != default:
                raise FieldError(
                    leaf.path,
                    f"{leaf.path}={show(leaf.value)} changes nothing without extra terms; name "
                    "some with --reward.extra, or leave it out",
                )

    def _check_rules(self, named: set[str]) -> None:
        defaults = {leaf.path: leaf.value for leaf in leaves(type(self))}
        if JUDGE in named and not self.judge.model:
            raise FieldError(
                "extra",
                "extra names judge, and there is none; name a model with --reward.judge.model, and "
                "where it is with --reward.judge.base_url",
                "judge.model",
            )
        if JUDGE not in named and self.judge != RewardJudge():
            judge = [leaf for leaf in leaves(type(self), self) if leaf.path.startswith("judge.")]
            given = next(leaf for leaf in judge if leaf.value != defaults[leaf.path])
            raise FieldError(
                given.path,
                f"{given.path}={show(given.value)} is for the term judge, which --reward.extra "
                "does not name",
            )
        if self.format and "format" not in named:
            raise FieldError(
                "format", "format is for the term format, which --reward.extra does not name"
            )
        if "format" in named and not self.format:
            raise FieldError(
                "extra",
                "extra names format, and there is none; give a regular expression with "
                r"--reward.format, as in --reward.format='^\{.*\}$'",
            )
        try:
            re.compile(self.format)
        except re.error as error:
            raise FieldError(
                "format", f"format={self.format!r} is no regular expression ({error}); correct it"
            ) from None
        for name in ("min_length_ratio", "max_length_ratio"):
            if getattr(self, name) != defaults[name] and "length" not in named:
                raise FieldError(
                    name, f"{name} is for the term length, which --reward.extra does not name"
                )
        if not self.min_length_ratio < self.max_length_ratio:
            raise FieldError(
                "min_length_ratio",
                f"min_length_ratio={self.min_length_ratio} must be less than the maximum, "
                f"{self.max_length_ratio}",
                "max_length_ratio",
            )


def is_file(place: str) -> bool:
    """Returns whether the part before a function's name is a file; else it is a module."""
    return place.endswith(".py") or "/" in place


def _read(text: str) -> Term:
    """Returns a term as it was written. Raises FieldError for one that has no known form."""
    source, given, weight = text.rpartition("=")
    source = (source if given else weight).strip()
    try:
        value = float(weight) if given else 1.0
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise FieldError(
            "extra",
            f"extra: {weight.strip()!r} is no weight of {source}; write a number, as in "
            f"{source or 'length'}=0.5; behind a path that has an =, write =1",
        )
    if source in RULES:
        return Term(source, "rule", source, value)
    if source == JUDGE:
        return Term(source, "judge", source, value)
    if source.startswith(MODEL) and source != MODEL:
        return Term("model", "model", source, value)
    place, colon, function = source.rpartition(":")
    if not colon and is_file(source):
        raise FieldError("extra", f"extra: {source} names no function; write {source}:FUNCTION")
    module = re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", place) is not None
    if not (place and function.isidentifier() and (is_file(place) or module)):
        guess = did_you_mean(source, [*RULES, JUDGE])
        raise FieldError("extra", f"extra: {source!r} is no term{guess or f'; write {_FORMS}'}")
    return Term(function, "function", source, value)


def _names(terms: Sequence[Term]) -> list[str]:
    """Returns names for the metrics: short ones, with the place in front where two are alike, and
    as much of its path as makes them differ."""
    reserved = ("mean", "std", "minus_teacher", "discriminator")
    alike = Counter([*(term.name for term in terms), *reserved])
    names = [_long_name(term, 1) if alike[term.name] > 1 else term.name for term in terms]
    for parts in range(2, max((len(Path(term.source).parts) for term in terms), default=0) + 1):
        alike = Counter(names)
        names = [
            _long_name(term, parts) if alike[name] > 1 else name
            for term, name in zip(terms, names, strict=True)
        ]
    if len(set(names)) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        raise FieldError(
            "extra", f"extra has two terms called {name} in the metrics; rename a function or file"
        )
    return names


def _long_name(term: Term, parts: int) -> str:
    """Returns a term's name with the last parts of its path in front."""
    if term.kind == "model":
        return ".".join(["model", *_last(term.source.removeprefix(MODEL), parts)])
    if term.kind == "function":
        place = term.source.rpartition(":")[0].removesuffix(".py")
        return ".".join([*_last(place, parts), term.name])
    return term.name


def _last(path: str, parts: int) -> list[str]:
    return [part.strip("/") for part in Path(path).parts[-parts:]]
