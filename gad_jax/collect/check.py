"""`python -m gad_jax.collect check`: what is in files of teacher text, and which lines to drop."""

import dataclasses

from gad_jax.base import exits
from gad_jax.settings import options
from gad_jax.settings.fields import FieldError, option, section
from gad_jax.settings.sections import Columns

FAULTS = ("cut", "refused", "empty", "duplicate", "near_duplicate", "overlap", "secret")
"""What a line can be dropped for."""


@dataclasses.dataclass(frozen=True)
class Check:
    """Which files are checked, against what, and what is written."""

    files: str = option(
        "", "rows as for training; several with commas", positional=True, location=True
    )
    against: str = option(
        "", "evaluation sets that must not be in the files; several with commas", location=True
    )
    data: Columns = section(Columns, "columns of the files")
    tokenizer: str = option("", "model whose tokenizer counts; empty: 4 bytes count as a token")
    skip_invalid: bool = option(False, "skip and count malformed rows instead of stopping")
    json: bool = option(False, "print the numbers as JSON")
    out: str = option("", "JSONL file for the lines that are kept, unchanged", location=True)
    drop: tuple[str, ...] = option(
        FAULTS, "with --out: the faults whose lines are dropped; any of " + ", ".join(FAULTS)
    )
    license: str = option("", "licence of the rows, for the manifest and the dataset card")
    card: str = option(
        "", "with --out: file for the lines' dataset card, such as README.md", location=True
    )
    push: str = option(
        "", "with --out: upload the lines with a card to the dataset ORG/NAME of Hugging Face's hub"
    )
    public: bool = option(False, "a dataset that --push makes is public; else private")

    @property
    def shares(self) -> bool:
        """Whether the lines get a dataset card."""
        return bool(self.card or self.push)

    def __post_init__(self) -> None:
        if not self.files:
            raise FieldError("files", "no file is given; name one or several to check")
        unknown = sorted(set(self.drop) - set(FAULTS))
        if unknown:
            raise FieldError("drop", f"drop={','.join(unknown)} is none of {', '.join(FAULTS)}")
        for name in ("card", "push"):
            if getattr(self, name) and not self.out:
                raise FieldError(name, f"{name} is about the lines of --out; give a file there")
        if self.public and not self.push:
            raise FieldError("public", "public is about --push; give --push=ORG/NAME too")


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    check = options.parse(
        Check,
        argv,
        program="python -m gad_jax.collect check",
        description="Counts what is in files of teacher text; writes one without the bad lines.",
    )

    def run() -> int:
        from gad_jax.collect import checking

        return checking.run(check)

    return exits.run_guarded(run)
