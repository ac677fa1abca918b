"""`python -m gad_jax.evaluate human`: its settings. Imports no jax."""

import dataclasses
from pathlib import Path

from gad_jax.settings.fields import FieldError, option


@dataclasses.dataclass(frozen=True)
class Human:
    """Which answers people vote on, and the port of the page."""

    answers: str = option(
        "", "a run, or a directory that gad_jax.evaluate wrote", positional=True, location=True
    )
    students: tuple[str, ...] = option(
        (), "the two to compare, one may be 'teacher'; empty: the last and the first"
    )
    prompts: str = option("", "name of the prompt set; empty: all of them")
    limit: int = option(0, "vote only on the first prompts of each set; 0: all", "prompts")
    votes: str = option(
        "", "file of votes; empty: votes.jsonl in the directory of the answers", location=True
    )
    port: int = option(8765, "port of the page, which only this computer can reach; 0: a free one")
    seed: int = option(
        0, "seed for the order of prompts and sides, which differs between annotators"
    )
    results: bool = option(False, "show the results of the votes, and exit")

    def __post_init__(self) -> None:
        if not self.answers:
            raise FieldError(
                "answers", "nothing to vote on; name a run, or what gad_jax.evaluate wrote"
            )
        if self.students and len(set(self.students)) != 2:
            raise FieldError(
                "students", f"students has {len(set(self.students))} names; two are compared"
            )
        if self.limit < 0:
            raise FieldError("limit", f"limit={self.limit} must be 0 or more")
        if not 0 <= self.port <= 65535:
            raise FieldError("port", f"port={self.port} must be from 0 to 65535")

    @property
    def path(self) -> Path:
        """The file of votes."""
        return Path(self.votes or Path(self.answers) / "votes.jsonl")
