"""What is compared on the personas, as flags of `gad_jax.train`; a method is a line of METHODS."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from gad_jax.settings.fields import did_you_mean

START = "start"
"""The student before training: the teacher's network without a persona."""

TEACHER = "teacher"

JUDGE = "gad"
"""The method whose discriminator chooses among samples."""


class Method(NamedTuple):
    """What the report calls it, and its flags of `gad_jax.train`; without any, it trains nothing.

    It begins at the student of the method `start`. Where `chosen`, its answers are the best of
    several by the discriminator of `JUDGE`: those that it trains on, or else those that it gives,
    and then its log-probabilities are not known.
    """

    says: str
    flags: tuple[str, ...] = ()
    start: str = START
    chosen: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The methods that come before it."""
        return (self.start, JUDGE) if self.chosen else ()


def _gad(says: str, *flags: str) -> Method:
    return Method(says, ("--stage=warmup,gad", *flags))


METHODS = {
    START: Method("start"),
    "seqkd": Method("SeqKD", ("--stage=seqkd",)),
    "seqkd_shorter": Method("SeqKD, 1 epoch", ("--stage=seqkd", "--seqkd.epochs=1")),
    "seqkd_longer": Method("SeqKD, 3 ×", ("--stage=seqkd", "--seqkd.epochs=9")),
    "gad": _gad("GAD"),
    "gad_replay": _gad("GAD, replay 0.5", "--discriminator.replay_share=0.5"),
    "gad_gate": _gad("GAD, gate at 0.9", "--discriminator.accuracy_gate=0.9"),
    "gad_smoothing": _gad("GAD, smoothing 0.1", "--discriminator.label_smoothing=0.1"),
    "gad_debiased": _gad("GAD, length-debiased", "--discriminator.length_debias=true"),
    "soda": Method("SODA", ("--stage=dpo", "--dpo.epochs=3")),
    "seqkd_soda": Method(
        "SeqKD, then SODA", ("--stage=seqkd,dpo", "--seqkd.epochs=1", "--dpo.epochs=2")
    ),
    "best_of_8": Method("best of 8 by D", start="seqkd", chosen=True),
    "rejection_sampling": Method(
        "SFT on best of 8 by D", ("--stage=seqkd", "--seqkd.epochs=1"), start="seqkd", chosen=True
    ),
}
"""Each trains for three epochs of the teacher's rows, except the shorter SeqKD (one, as GAD's
warm-up), the longer one (nine) and rejection sampling, which adds one epoch on the student's own
best answers."""


class Entry(NamedTuple):
    """A method as it is run: `name`, which may end in @RATE, and the entries that it builds on.

    `start` is the entry whose student it begins at, `judge` the one whose discriminator chooses.
    """

    name: str
    method: Method
    says: str
    flags: tuple[str, ...]
    start: str
    judge: str

    @property
    def trains(self) -> bool:
        """Whether there is a run of its own."""
        return bool(self.flags)

    @property
    def directory(self) -> str:
        """The name of its directory and files: in that of a run, @ would name a step."""
        return self.name.replace("@", "_at_")


def entries(text: str) -> tuple[Entry, ...]:
    """Returns the methods of a list with commas: names of `METHODS`, or all of them.

    `seqkd@3e-4` is SeqKD at this rate of the generator, in the last stage. Raises ValueError for
    what is unknown, given twice, or comes before what it builds on.
    """
    found: dict[str, Entry] = {}
    for name in METHODS if text == "all" else map(str.strip, text.split(",")):
        if name in found:
            raise ValueError(f"methods names {name!r} twice; name it once")
        found[name] = _entry(name, [*found])
    return tuple(found.values())


def _entry(name: str, before: Sequence[str]) -> Entry:
    base, at, rate = name.partition("@")
    method = METHODS.get(base)
    if method is None or base == TEACHER:
        known = did_you_mean(base, METHODS) or f"; use {', '.join(METHODS)}, or all"
        raise ValueError(f"methods names {name!r}{known}")
    says, flags = method.says, method.flags
    if at:
        says, flags = f"{says}, {rate}", (*flags, _rate(name, flags, rate))
    # A rate is part of a name: the last entry of a method is the one to build on.
    places = {one.partition("@")[0]: one for one in before}
    for need in method.needs:
        if need not in places:
            raise ValueError(f"methods names {name!r}, which needs {need!r} before it")
    judge = places.get(JUDGE, "") if method.chosen else ""
    return Entry(name, method, says, flags, places.get(method.start, START), judge)


def _rate(name: str, flags: Sequence[str], rate: str) -> str:
    stages = [flag.partition("=")[2] for flag in flags if flag.startswith("--stage=")]
    if not stages:
        raise ValueError(f"methods names {name!r}, which trains nothing; give it without a rate")
    if not re.fullmatch(r"\d+(\.\d+)?(e[-+]?\d+)?", rate):
        raise ValueError(f"methods names {name!r}; write a learning rate after @, as 3e-4")
    return f"--{stages[0].split(',')[-1]}.generator_learning_rate={rate}"
