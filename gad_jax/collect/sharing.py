"""Passes checked rows on: a dataset card in a file, and an upload to the Hugging Face hub."""

from pathlib import Path

from gad_jax import __version__
from gad_jax.base import files
from gad_jax.base.errors import UserError
from gad_jax.collect import card
from gad_jax.collect.card import Made, Seen
from gad_jax.collect.check import Check
from gad_jax.collect.faults import Found


def prepare(check: Check) -> None:
    """Makes the dataset on the hub, before the work, so that it is not done in vain. Raises
    UserError for a name that is none, and for what the hub refuses."""
    if check.push:
        from gad_jax.training import pushing  # here: what it needs takes time, and few push

        (repository,) = pushing.repositories(check.push, ["rows"]).values()
        pushing.create(repository, check.public, "dataset")


def refuse_unfit(check: Check, found: Found) -> None:
    """Raises UserError where no line would be shared, or one with something like a key."""
    if not check.shares:
        return
    if not found.kept(check.drop).any():
        raise UserError(
            f"--out: no line is left of {found.lines}, and there is nothing to share; choose the "
            "faults to drop with --drop"
        )
    if check.push and "secret" not in check.drop and (count := found.count("secret")):
        have = "line has" if count == 1 else "lines have"
        raise UserError(
            f"--push={check.push}: {count} {have} something in the form of an API key; add secret "
            "to --drop"
        )


def share(check: Check, seen: Seen, made: Made) -> None:
    """Writes the card of the lines in `--out`, and uploads both, where either is asked for."""
    out = Path(check.out)
    if check.shares and not check.license.strip():
        print("the card states no licence; --license does, such as --license=cc-by-4.0")
    if check.card:
        text = card.write(seen, made, out.name.partition(".")[0], out.name)
        files.write_atomic(check.card, text)
        print(f"{check.card}: the card of {out.name}")
    if check.push:
        from gad_jax.training import pushing

        about = card.write(seen, made, check.push.split("/")[1], card.ROWS, check.push).encode()
        message = f"{seen.rows} rows, gad-jax {__version__}"
        content = {card.ROWS: out, "README.md": about}
        print(pushing.upload_rows(check.push, content, message), flush=True)
