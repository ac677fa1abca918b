"""The dataset card of checked rows: README.md, with the front matter that the hub reads.

It says what the rows themselves say, and nothing of this machine. Who may use them is for their
owner to say: a licence stands there only if one was given.
"""

import dataclasses
import datetime
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from gad_jax import __version__
from gad_jax.base.redaction import markdown_code, printable
from gad_jax.collect.faults import EMAIL, all_text
from gad_jax.models import provenance

ROWS = "train.jsonl"
"""The rows' file in a dataset of the hub, which takes it for the split `train`."""

_LICENCES = re.compile(
    r"apache-2\.0|mit|cc0-1\.0|odc-by|odbl|pddl|cdla-sharing-1\.0|cdla-permissive-[12]\.0|unknown"
    r"|cc-by(-sa|-nc|-nd|-nc-sa|-nc-nd)?-4\.0|cc-by(-sa|-nc|-nc-sa|-nc-nd)?-3\.0"
)
"""The hub's names of licences that fit text; it takes any other as `other` with a name."""

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))
_NAMED = 5
_COLUMNS = {
    "key": "hash of the request",
    "sample": "number of the response among those to its prompt, from 0",
    "id": "name of the line",
    "prompt_id": "where the prompt was read: file and line",
    "messages": "the conversation, whose last message is the prompt",
    "teacher_response": "the teacher's response",
    "finish_reason": "why the response ended, in the provider's words",
    "request_id": "the provider's name of the request",
    "model": "the model that answered, as its server calls itself",
    "teacher": "the model that was asked",
    "system": "system prompt that the teacher saw",
    "parameters": "sampling parameters of the request",
    "usage": "tokens that were billed",
    "time": "when the response came, UTC",
    "reasoning": "the teacher's thought before the response",
}
"""Of the lines that `collect` writes."""


@dataclasses.dataclass
class Seen:
    """What the rows say of themselves, counted as they are written."""

    rows: int = 0
    responses: int = 0
    emails: int = 0
    columns: Counter[str] = dataclasses.field(default_factory=Counter)
    """Of each column the rows that have something in it."""
    teachers: Counter[str] = dataclasses.field(default_factory=Counter)
    parameters: Counter[str] = dataclasses.field(default_factory=Counter)
    reasons: Counter[str] = dataclasses.field(default_factory=Counter)
    days: set[str] = dataclasses.field(default_factory=set)

    def add(self, record: dict[str, Any], responses: int) -> None:
        """Counts a row with so many responses."""
        self.rows += 1
        self.responses += responses
        for name, value in record.items():
            self.columns[str(name)] += value not in (None, "", [], {})
        self.emails += EMAIL.search(all_text(record)) is not None
        if teacher := record.get("teacher"):
            model = record.get("model") or teacher
            self.teachers[f"{teacher}" if model == teacher else f"{teacher} ({model})"] += 1
        if isinstance(given := record.get("parameters"), dict):
            shown = json.dumps(given, ensure_ascii=False, default=str)
            self.parameters[shown if given else "defaults of the provider"] += 1
        if reason := record.get("finish_reason"):
            self.reasons[str(reason)] += 1
        if day := _day(record.get("time")):
            self.days.add(day)


@dataclasses.dataclass(frozen=True)
class Made:
    """How the rows were made, apart from what they say: `dropped` counts lines by their fault."""

    sources: tuple[str, ...]
    against: tuple[str, ...]
    dropped: dict[str, int]
    licence: str


def write(seen: Seen, made: Made, name: str, file: str, where: str = "") -> str:
    """Returns README.md of rows in `file`; `where` is their dataset on the hub, if they have one.

    `name` is the title.
    """
    from huggingface_hub import DatasetCard  # here: half a second, for those who share

    parts = [_summary(seen, name), _facts(seen, made), _columns(seen), _use(file, where)]
    parts.append(_licence(made))
    text = "\n\n".join(parts)
    return str(DatasetCard(f"---\n{_front_matter(seen, made, name, file)}\n---\n\n{text}\n"))


def _front_matter(seen: Seen, made: Made, name: str, file: str) -> str:
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        **licence(made.licence),
        pretty_name=printable(name),
        size_categories=next((size for most, size in _SIZES if seen.rows < most), "n>1M"),
        task_categories=["text-generation"],
        tags=["distillation", "synthetic", "gad"],
        configs=[{"config_name": "default", "data_files": file}],
    )
    return data.to_yaml().strip()


def licence(stated: str) -> dict[str, Any]:
    """Returns the fields of a card for a licence as a user states it; {} where none is stated."""
    name = re.sub(r"[\s_]+", "-", stated.strip().lower())
    if not name:
        return {}
    known = _LICENCES.fullmatch(name)
    return {"license": name} if known else {"license": "other", "license_name": name}


def _summary(seen: Seen, name: str) -> str:
    teachers = " and ".join(_most(seen.teachers)) or "a teacher that the rows do not name"
    return (
        f"# {printable(name)}\n\nPrompts, and what {teachers} answered. A student can be distilled "
        f"from them. Checked with gad-jax {__version__}."
    )


def _facts(seen: Seen, made: Made) -> str:
    days = sorted(seen.days)
    dropped = [f"{fault.replace('_', ' ')} {n}" for fault, n in made.dropped.items() if n]
    table = {
        "rows": f"{seen.rows}",
        "responses": f"{seen.responses}",
        "teacher": _counted(seen.teachers, seen.rows),
        "sampling parameters": _counted(seen.parameters, seen.rows),
        "rows with a system prompt for the teacher": f"{seen.columns['system'] or ''}",
        "collected": " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "",
        "why responses ended": _counted(seen.reasons, seen.rows),
        "made from": ", ".join(markdown_code(_public(source)) for source in made.sources),
        "lines left out": ", ".join(dropped) or "none",
        "overlap left out with": ", ".join(markdown_code(_public(one)) for one in made.against),
        "rows with an e-mail address": f"{seen.emails}, counted by its form; no other personal "
        "data was looked for",
    }
    lines = [f"| {name} | {value} |" for name, value in table.items() if value]
    return "\n".join(["## What the rows say", "", "| | |", "|---|---|", *lines])


def _columns(seen: Seen) -> str:
    ours = {"key", "sample", "teacher_response"} <= set(seen.columns)
    lines = [
        f"| {markdown_code(name)} | {filled} | {_COLUMNS.get(name, '') if ours else ''} |"
        for name, filled in seen.columns.items()
    ]
    return "\n".join(
        ["## Columns", "", "| column | rows with a value | |", "|---|---|---|", *lines]
    )


def _use(file: str, where: str) -> str:
    read = f'"{where}"' if where else f'"json", data_files="{file}"'
    return "\n".join(
        [
            *("## How to use them", "", "```python", "from datasets import load_dataset", ""),
            *(f'rows = load_dataset({read}, split="train")', "```", "", "```bash"),
            *(f"python -m gad_jax.train --data.train={where or file}", "```"),
        ]
    )


def _licence(made: Made) -> str:
    stated = f"{markdown_code(made.licence)}" if made.licence.strip() else "not stated"
    return (
        f"## Licence\n\nLicence of the rows: {stated}. The prompts may have a licence of their "
        "own. The terms of the teacher's provider may limit what its responses are used for, and "
        "whether they may be passed on. Nobody has checked either here."
    )


def _counted(counts: Counter[str], rows: int) -> str:
    """Returns the names with their counts, the most frequent first; of all `rows`, the name."""
    if [*counts.values()] == [rows]:
        return markdown_code(next(iter(counts)))
    found = [f"{markdown_code(name)} {count}" for name, count in counts.most_common(_NAMED)]
    more = len(counts) - _NAMED
    return ", ".join(found) + (f" and {more} more" if more > 0 else "")


def _most(counts: Counter[str]) -> list[str]:
    return [markdown_code(name) for name, _ in counts.most_common(2)]


def _public(name: str) -> str:
    """Returns a name of the hub, else the last part of a path."""
    known = provenance.is_hub_id(name.partition(":")[0])
    return name if known and not Path(name).suffix else Path(name).name


def _day(time: Any) -> str:
    try:
        return datetime.datetime.fromisoformat(time).date().isoformat()
    except (TypeError, ValueError):
        return ""
