"""Names of runs and of their checkpoints: RUN, RUN@best, RUN@last, RUN@STEP, RUN/checkpoints/STEP.

Only the JSON records are read here, by one process or by all.
"""

import re
from pathlib import Path
from typing import NamedTuple

from gad_jax.base import files
from gad_jax.base.errors import UserError
from gad_jax.training import restoring
from gad_jax.training.retention import Retention

WAYS = "RUN, RUN@best, RUN@last or RUN@STEP"


class Named(NamedTuple):
    """A run directory, and which of its checkpoints: 'best', 'last' or a number."""

    run: Path
    which: str

    @property
    def checkpoints(self) -> Path:
        """The directory of the run's checkpoints."""
        return self.run / "checkpoints"


def is_run(path: str | Path) -> bool:
    """Returns whether the path is a run directory."""
    return (Path(path) / "config.yaml").is_file()


def parse(name: str | Path) -> Named:
    """Returns what a name says, whether or not there is such a run.

    A directory whose name has an '@' is taken as it is, and ~/ is the home directory. Raises
    UserError for RUN@ and something else.
    """
    text = files.from_home(str(name))
    path = Path(text)
    if path.parent.name == "checkpoints" and path.name.isdigit():
        return Named(path.parent.parent, str(int(path.name)))
    run, at, which = text.rpartition("@")
    if not at or path.exists():
        return Named(path, "last")
    if which in ("best", "last") or re.fullmatch("[0-9]+", which):
        return Named(Path(run), which if which.isalpha() else str(int(which)))
    if is_run(run):
        raise UserError(f"{name}: {which!r} names no checkpoint; write {WAYS}")
    return Named(path, "last")


def names_run(name: str | Path) -> bool:
    """Returns whether a name is that of a run, or of one of its checkpoints."""
    return is_run(parse(name).run)


def means_run(name: str | Path) -> bool:
    """Returns whether a name is that of a run, or says which checkpoint of one, there or not."""
    run = parse(name).run
    return is_run(run) or run != Path(files.from_home(str(name)))


def step(named: Named) -> int | None:
    """Returns the step that is named; None for the newest one.

    Raises UserError where the run has no best checkpoint.
    """
    if named.which == "last":
        return None
    if named.which != "best":
        return int(named.which)
    retention = Retention(1, keep_best=True)
    records = read_records(named.checkpoints)
    for number, record in records.items():
        retention.mark(number, record["score"], record["meta"])
    best = retention.best(sorted(records))
    if best is None:
        raise UserError(
            f"{named.run}@best: no checkpoint of this run has an evaluation of acceptable length "
            f"(checkpoint.best_min_length_ratio and best_max_length_ratio); name {named.run}@last, "
            f"or @STEP of {sorted(records)}"
        )
    return best


def read_records(checkpoints: Path) -> dict[int, restoring.Meta]:
    """Returns the records of the complete checkpoints that can be read, by step, ascending."""
    found = {}
    for path in checkpoints.glob("*"):
        if path.name.isascii() and path.name.isdigit():
            try:
                found[int(path.name)] = restoring.read_record(path)
            except (UserError, *restoring.UNREADABLE):
                continue  # who restores it says so
    return dict(sorted(found.items()))
