"""Writes the report of one run, from what is in its directory."""

from pathlib import Path

from gad_jax.base import files
from gad_jax.training.report import NAME, page, runs
from gad_jax.training.report.answers import from_run


def write(run: Path) -> Path | None:
    """Writes RUN/report.html; returns it, or None for a run without steps and evaluations.

    Raises UserError for a damaged evaluation.
    """
    found = from_run(run)
    if not found and not runs.rows(run):
        return None
    files.write_atomic(run / NAME, page.render(page.collect(found, {str(run): run})))
    return run / NAME
