"""What a report says about runs: what they were trained on, how and when, and their curves."""

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gad_jax.base.errors import UserError
from gad_jax.base.redaction import redact
from gad_jax.data.sources import mixture
from gad_jax.metrics import heldout
from gad_jax.settings import fields, options
from gad_jax.settings.config import STAGES, Config
from gad_jax.training import metric_rows, restoring
from gad_jax.training.report.answers import evaluations

METRICS = "metrics.jsonl"
_LONGEST_ROW = 1 << 20  # bytes of the row that is read for its teacher
_SHOWN_APART = ("run_dir", "stage", "student.path", "data.train", "data.heldout")


@dataclasses.dataclass(frozen=True)
class About:
    """A run: what is known of it, by name, and its settings that differ from the defaults, as name,
    value and default. `summary` is its student and its teacher in a few words."""

    name: str
    summary: str
    facts: dict[str, str]
    settings: list[tuple[str, str, str]]


def about(run: Path) -> About:
    """Returns what a run directory says of itself. What this version cannot read is left out."""
    found, settings, summary = {}, [], ""
    try:
        config = options.load(Config, run / "config.yaml")
        settings, count = _settings(config), _prompts(run)
        found = {"student": config.student.path, "teacher": _teachers(config)}
        found["teacher's text"] = config.data.train + (f", {count} prompts" if count else "")
        teacher = found["teacher"] or _last(config.data.train)
        summary = f"{_last(config.student.path)} from {teacher}"
        summary += f", {count} prompts" if count else ""
        found["held out"] = _held_out(run, config)
    except UserError:  # of another version; the rest is known all the same
        pass
    if (run / METRICS).is_file():
        steps = Counter(row["stage"] for row in metric_rows.read(run / METRICS))
        found["steps"] = ", ".join(f"{stage} {count}" for stage, count in steps.items())
        at = time.localtime((run / METRICS).stat().st_mtime)
        found["last step"] = time.strftime("%Y-%m-%d %H:%M", at)
    found["directory"] = str(run)
    facts = {fact: redact(text) for fact, text in found.items() if text}
    return About(run.resolve().name, redact(summary), facts, settings)


def title(found: Mapping[str, About], labels: list[str]) -> str:
    """Returns the title of a report on students and on runs."""
    names = ", ".join(dict.fromkeys(one.name for one in found.values()))
    if len(found) == 1 and (summary := next(iter(found.values())).summary):
        return f"{names}: {summary}"
    students = " · ".join(labels)
    return ": ".join(part for part in (names, students) if part)


def rows(run: Path) -> list[dict[str, Any]]:
    """Returns the rows of a run's metrics.jsonl, none if it is not there; first the evaluation
    before training, which no step has."""
    found = metric_rows.read(run / METRICS) if (run / METRICS).is_file() else []
    if not found:
        return []
    stage = found[0]["stage"]
    before = evaluations(run, f"{heldout.FIRST}.json")
    return [{"step": 0, "stage": stage} | one.metrics for one in before] + found


def _settings(config: Config) -> list[tuple[str, str, str]]:
    """Returns the settings that differ from the defaults, less those of stages of other runs."""
    others = tuple(f"{stage}." for stage in STAGES if stage not in config.stages)
    pairs = zip(fields.leaves(Config, config), fields.leaves(Config), strict=True)
    return [
        (ours.path, redact(fields.show(ours.value)), fields.show(default.value))
        for ours, default in pairs
        if ours.value != default.value and not ours.path.startswith((*_SHOWN_APART, *others))
    ]


def _prompts(run: Path) -> int:
    """Returns the number of training prompts, as the newest checkpoint has it; 0 if not known."""
    steps = [path for path in (run / "checkpoints").glob("*") if path.name.isdigit()]
    for checkpoint in sorted(steps, key=lambda path: int(path.name), reverse=True)[:1]:
        try:
            return int(restoring.read_record(checkpoint)["meta"].get("rows") or 0)
        except (*restoring.UNREADABLE, KeyError, TypeError, ValueError):
            return 0
    return 0


def _held_out(run: Path, config: Config) -> str:
    found = evaluations(run, at_most=1)
    return f"{config.data.heldout}, {len(found[0].examples)} prompts" if found else ""


def _teachers(config: Config) -> str:
    """Returns the models that wrote the training rows, as `collect` names them in each row; "" for
    other rows."""
    names, _ = mixture.split(config.data.train, "--data.train")
    found: dict[str, None] = {}
    for path in map(Path, names):
        try:
            with path.open("rb") as file:
                row = json.loads(file.readline(_LONGEST_ROW))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("teacher"), str):
            found[row["teacher"]] = None
    return ", ".join(found)


def _last(name: str) -> str:
    """Returns a name of the hub or of a built-in, of a path its last part."""
    return Path(name).name if Path(name).is_absolute() or name.startswith(".") else name
