"""Counts what is in files of teacher text, shows it, and writes the lines without faults."""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from gad_jax.base import exits, files, next_command
from gad_jax.base.console import make_console
from gad_jax.base.errors import UserError
from gad_jax.base.redaction import printable
from gad_jax.collect import faults, sharing
from gad_jax.collect.card import Made, Seen
from gad_jax.collect.check import FAULTS, Check
from gad_jax.collect.duplicates import Overlap
from gad_jax.collect.faults import Found
from gad_jax.data import sources
from gad_jax.data.sources.fields import Fields
from gad_jax.data.sources.rows import Record
from gad_jax.data.tokenizer import load_tokenizer
from gad_jax.models import source
from gad_jax.settings import fields

_LONGEST_NAME = 60
_EDGES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def run(check: Check) -> int:
    """Checks the files that the settings name; returns the exit code."""
    if check.out:
        _refuse_existing(check)
        sharing.prepare(check)
    held_out = [
        row.messages[-1]["content"]
        for name in _names(check.against)
        for row in sources.read(name, need_response=False)
    ]
    count_tokens = _counter(check.tokenizer)
    against = Overlap(held_out)
    found = faults.check(_records(check), count_tokens, against, check.skip_invalid, _fields(check))
    numbers = _numbers(found)
    for line in found.notes.lines(check.files):
        print(line, file=sys.stderr if check.json else sys.stdout)
    if check.json:
        print(json.dumps(numbers, indent=1, ensure_ascii=True))
    else:
        _show(numbers, found, check)
    if check.out:
        sharing.refuse_unfit(check, found)
        sharing.share(check, *_write(check, found, numbers))
    if not found.responses:
        raise UserError(f"none of {found.lines} lines has a response; give a teacher's file")
    _say_next(check, numbers)
    return exits.Exit.OK


def _say_next(check: Check, numbers: dict[str, Any]) -> None:
    """Names the training on what was written, or the writing where there is something to drop."""
    bad = any(numbers["faults"].values()) or numbers["invalid"]
    rows = check.out or check.files
    if bad and not check.out:
        first = Path(_names(check.files)[0])
        folder = first.parent if first.exists() else Path()
        out = files.fresh(folder / f"{_stem(check.files)}.checked.jsonl")
        flags = [f"--{name}={value}" for name, value in _given(check)]
        next_command.say(
            "collect", "check", check.files, *flags, f"--out={out}", to_stderr=check.json
        )
    else:
        columns = [f"--{name}={value}" for name, value in _columns(check)]
        flags = (f"--data.train={rows}", *columns, f"--run_dir=runs/{_stem(rows)}", "--dry_run")
        next_command.say("train", *flags, to_stderr=check.json)


def _stem(names: str) -> str:
    """Returns `teacher` for `data/teacher.checked.jsonl,more.jsonl`."""
    return Path(_names(names)[0]).name.partition(".")[0] or "own"


def _given(check: Check) -> Iterator[tuple[str, str]]:
    """Yields the settings that decide which lines are dropped, where they are not the defaults."""
    for name in ("against", "tokenizer", "skip_invalid"):
        value = getattr(check, name)
        if value:
            yield name, fields.show(value)
    yield from _columns(check)
    if check.drop != FAULTS:
        yield "drop", fields.show(check.drop)


def _columns(check: Check) -> Iterator[tuple[str, str]]:
    """Yields the settings that name columns: lines stay unchanged, so training needs them."""
    for name in ("prompt", "response"):
        if value := getattr(check.data, name):
            yield f"data.{name}", value


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _records(check: Check) -> Iterator[Record]:
    for name in _names(check.files):
        yield from sources.records(name, "train", need_response=True)


def _fields(check: Check) -> Fields:
    return Fields(check.data.prompt, check.data.response)


def _refuse_existing(check: Check) -> None:
    files.make_writable(Path(check.out).absolute().parent, "--out")
    written = (Path(check.out), _manifest(check))
    for path in written:
        if path.exists():
            raise UserError(f"--out: {path} is there; choose another name or delete it")
    if not check.card:
        return
    files.make_writable(Path(check.card).absolute().parent, "--card")
    if Path(check.card).exists():
        raise UserError(f"--card: {check.card} is there; choose another name or delete it")
    if Path(check.card).resolve() in [path.resolve() for path in written]:
        raise UserError(f"--card: {check.card} is what --out writes; choose another name")


def _manifest(check: Check) -> Path:
    return Path(check.out).with_name(f"{Path(check.out).name.removesuffix('.jsonl')}.manifest.json")


def _counter(model: str) -> Any:
    if not model:
        return lambda texts: [-(-len(text.encode()) // 4) for text in texts]
    tokenizer = load_tokenizer(source.resolve(model))
    return lambda texts: [len(ids) for ids in tokenizer(texts)["input_ids"]]


def _numbers(found: Found) -> dict[str, Any]:
    return {
        "lines": found.lines,
        "responses": found.responses,
        "invalid": dict(found.invalid.most_common()),
        "finish_reasons": dict(found.reasons.most_common()),
        "faults": {fault: found.count(fault) for fault in FAULTS},
        "e-mail addresses": found.emails,
        "thoughts": found.thoughts,
        "scripts": dict(found.scripts.most_common()),
        "teachers": dict(found.teachers.most_common()),
        "prompt_tokens": _histogram(found.prompt_tokens),
        "response_tokens": _histogram(found.response_tokens),
    }


def _histogram(lengths: Any) -> dict[str, Any]:
    """Returns mean, 95th percentile, maximum, and the counts up to each edge."""
    if not len(lengths):
        return {"mean": None, "p95": None, "longest": None, "up_to": {}}
    places = np.searchsorted(_EDGES, lengths)
    counts = np.bincount(places, minlength=len(_EDGES) + 1).tolist()
    labels = [*(f"{edge}" for edge in _EDGES), f"over {_EDGES[-1]}"]
    return {
        "mean": round(float(lengths.mean()), 1),
        "p95": int(np.percentile(lengths, 95)),
        "longest": int(lengths.max()),
        "up_to": dict(zip(labels, counts, strict=True)),
    }


def _show(numbers: dict[str, Any], found: Found, check: Check) -> None:
    console = make_console()
    console.print(f"{found.lines} lines with {found.responses} responses")
    table = Table(title="Share of the lines", title_justify="left", title_style="bold")
    for column in ("", "lines", "share"):
        table.add_column(column, justify="left" if not column else "right")
    groups = {
        "": numbers["faults"]
        | {"e-mail addresses": found.emails, "thoughts before the answer": found.thoughts},
        "ended: ": numbers["finish_reasons"],
        "script: ": numbers["scripts"],
        "teacher: ": numbers["teachers"],
    }
    for lead, counts in groups.items():
        for name, count in counts.items():
            shown = Text(printable(lead + name.replace("_", " "))[:_LONGEST_NAME])
            table.add_row(shown, str(count), f"{count / found.lines:.1%}")
        table.add_section()
    for reason, count in numbers["invalid"].items():
        table.add_row(Text(printable(f"skipped: {reason}")), str(count), "")
    console.print(table)
    unit = f"tokens of {check.tokenizer}" if check.tokenizer else "tokens, 4 bytes counted as one"
    for what in ("prompt", "response"):
        lengths = numbers[f"{what}_tokens"]
        console.print(
            f"[bold]{what}s[/bold] ({unit}): mean {lengths['mean']}, 95 % up to {lengths['p95']}, "
            f"longest {lengths['longest']}"
        )
        for label, count, bar in _bars(lengths["up_to"]):
            console.print(f"{label:>9}  {bar} {count}")


def _bars(counts: dict[str, int]) -> list[tuple[str, int, str]]:
    """Returns the bins from the first to the last that is not empty, with their bars; empty bins
    between them are there too."""
    filled = [place for place, count in enumerate(counts.values()) if count]
    if not filled:
        return []
    most = max(counts.values())
    return [
        (label, count, "█" * max(round(40 * count / most), count > 0))
        for label, count in list(counts.items())[filled[0] : filled[-1] + 1]
    ]


def _write(check: Check, found: Found, numbers: dict[str, Any]) -> tuple[Seen, Made]:
    """Writes the kept lines in bounded memory, then the manifest; a crash leaves neither.

    Returns what a dataset card says of them, counted where there is to be one."""
    kept, seen = found.kept(check.drop), Seen()
    lines = faults.valid(_records(check), _fields(check))
    with files.replacing(check.out) as file:
        for keep, (record, responses) in zip(kept, lines, strict=True):
            if keep:
                if check.shares:
                    seen.add(record, responses)
                file.write(json.dumps(record, ensure_ascii=False, default=str).encode() + b"\n")
    manifest = {
        "sources": {name: _digest(name) for name in _names(check.files)},
        "against": _names(check.against),
        "license": check.license,
        "dropped": {fault: found.count(fault) for fault in check.drop},
        "lines": {"in": found.lines, "out": int(kept.sum())},
        "found": numbers,
    }
    files.write_atomic(_manifest(check), json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    print(
        f"{check.out}: {int(kept.sum())} of {found.lines} lines; {_manifest(check)} has the details"
    )
    dropped = manifest["dropped"] | {"malformed": sum(found.invalid.values())}
    return seen, Made(
        tuple(_names(check.files)), tuple(_names(check.against)), dropped, check.license
    )


def _digest(name: str) -> str | None:
    """Returns the sha256 of a file; None if the name is not a file."""
    if not Path(name).is_file():
        return None
    with open(name, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
