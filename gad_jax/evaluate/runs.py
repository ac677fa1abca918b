"""What a report says about runs: what they were trained on and when, and their learning curves."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gad_jax.base.errors import UserError
from gad_jax.evaluate.answers import evaluations
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.training import metric_rows

METRICS = "metrics.jsonl"


def name(run: Path) -> str:
    """Returns a run's name: that of its directory."""
    return run.resolve().name


def about(run: Path) -> str:
    """Returns a run's teacher rows, its student, and the time of its last step."""
    parts = [str(run)]
    try:
        config = options.load(Config, run / "config.yaml")
        parts += [f"teacher rows {config.data.train}", f"student {config.student.path}"]
    except UserError:  # of another version; the rest is known all the same
        pass
    if (run / METRICS).is_file():
        at = time.localtime((run / METRICS).stat().st_mtime)
        parts.append(f"last step {time.strftime('%Y-%m-%d %H:%M', at)}")
    return ", ".join(parts)


def title(runs: Iterable[Path], labels: Iterable[str]) -> str:
    """Returns the title of a report on students, led by the names of their runs."""
    names = ", ".join(dict.fromkeys(map(name, runs)))
    students = " · ".join(labels)
    return f"{names}: {students}" if names else students


def rows(run: Path) -> list[dict[str, Any]]:
    """Returns the rows of a run's metrics.jsonl, none if it is not there; first the evaluation
    before training, which no step has."""
    found = metric_rows.read(run / METRICS) if (run / METRICS).is_file() else []
    if not found:
        return []
    stage = found[0]["stage"]
    before = (one for one in evaluations(run) if one.step == 0)
    return [{"step": 0, "stage": stage} | one.metrics for one in before] + found
