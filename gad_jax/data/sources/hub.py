"""Datasets of the Hugging Face hub, through the `datasets` library (optional)."""

from collections.abc import Iterator

from gad_jax.base.errors import UserError, first_line
from gad_jax.data.sources.rows import Record


def records(name: str, split: str, config: str = "") -> Iterator[Record]:
    """Yields (name:row, object) for each row of a split, counted from 1."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{name}: no such file, and hub datasets need the package datasets; install it or "
            "give a file"
        ) from error

    try:
        dataset = datasets.load_dataset(name, *([config] if config else []), split=split)
    except Exception as error:  # offline, unknown, gated, no such split: each another class
        named = "" if "onfig name" not in str(error) else ", or name one as ORG/NAME:CONFIG:SPLIT"
        raise UserError(
            f"{name}: neither a file nor a hub dataset that can be loaded now "
            f"({first_line(error)}); give a downloaded file{named}"
        ) from error
    for number, record in enumerate(dataset, start=1):
        yield f"{name}:{number}", record
