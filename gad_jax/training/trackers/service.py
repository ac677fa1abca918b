"""What a run asks of an experiment tracker. A tracker is one file next to this one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol


def sample_file(step: int, name: str) -> str:
    """Returns the name of the file of a text: 000040-step-40.md."""
    return f"{step:06d}-{re.sub('[^a-z0-9]+', '-', name.lower())}.md"


Outcome = Literal["finished", "stopped", "failed"]
"""How a run ended. One that was stopped or failed may resume."""


@dataclass(frozen=True)
class About:
    """What a tracker is told of a run. Settings are by dotted name, without secrets.

    `id` is what the tracker called the run when it was opened before; empty: it is new.
    """

    project: str
    name: str
    tags: tuple[str, ...]
    settings: Mapping[str, Any]
    directory: Path
    id: str = ""


class Service(Protocol):
    """One run in a tracker, open. All calls come from one thread, one after the other.

    An exception says that the tracker has not got it; the same call comes again later.
    """

    id: str
    link: str
    """Where a browser shows the run, or a sentence that says how to."""

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes finite metrics of a step."""
        ...

    def text(self, step: int, name: str, markdown: str) -> None:
        """Takes a text of a step."""
        ...

    def close(self, outcome: Outcome) -> None:
        """Says that no more comes from this process, and waits until all has arrived."""
        ...
