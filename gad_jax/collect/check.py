"""`python -m gad_jax.collect check`: what is in files of teacher text; a file without the bad."""

import dataclasses
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gad_jax.base import exits, files
from gad_jax.base.errors import UserError
from gad_jax.settings import options
from gad_jax.settings.fields import option

if TYPE_CHECKING:
    from gad_jax.collect.checking import Found
    from gad_jax.data.sources.rows import Record

_DROPPED = ("cut", "refused", "empty", "duplicate", "near_duplicate", "overlap", "secret")
_EDGES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclasses.dataclass(frozen=True)
class Check:
    """Which files are checked, against what, and what is written."""

    files: str = option("", "rows as for training; several with commas", positional=True)
    against: str = option("", "evaluation sets that must not be in them; several with commas")
    tokenizer: str = option(
        "", "model whose tokenizer counts; empty: 4 bytes are taken for a token"
    )
    skip_invalid: bool = option(False, "count and leave out malformed rows instead of stopping")
    json: bool = option(False, "print the numbers as JSON")
    out: str = option("", "JSONL file for the lines that are kept, as they were")
    drop: tuple[str, ...] = option(
        _DROPPED, "with --out: the lines to leave out; any of " + ", ".join(_DROPPED)
    )
    license: str = option("", "licence of the rows, for the manifest")

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("no file is given; name one or several to check")
        unknown = sorted(set(self.drop) - set(_DROPPED))
        if unknown:
            raise ValueError(f"drop={','.join(unknown)} is none of {', '.join(_DROPPED)}")


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    check = options.parse(
        Check,
        argv,
        program="python -m gad_jax.collect check",
        description="Counts what is in files of teacher text; writes one without the bad lines.",
    )
    return exits.run_guarded(partial(_run, check))


def _run(check: Check) -> int:
    from gad_jax.collect import checking
    from gad_jax.collect.duplicates import Overlap
    from gad_jax.data import sources

    if check.out:
        _refuse_existing(check)
    held_out = [
        row.messages[-1]["content"]
        for name in _names(check.against)
        for row in sources.read(name, need_response=False)
    ]
    count_tokens = _counter(check.tokenizer)
    found = checking.check(_records(check), count_tokens, Overlap(held_out), check.skip_invalid)
    numbers = _numbers(found)
    if check.json:
        print(json.dumps(numbers, indent=1, ensure_ascii=False))
    else:
        _show(numbers, found, check)
    if check.out:
        _write(check, found, numbers)
    return exits.Exit.OK


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _records(check: Check) -> "Iterator[Record]":
    from gad_jax.data import sources

    for name in _names(check.files):
        yield from sources.records(name, "train", need_response=True)


def _refuse_existing(check: Check) -> None:
    files.make_writable(Path(check.out).absolute().parent, "--out")
    for path in (Path(check.out), _manifest(check)):
        if path.exists():
            raise UserError(f"--out: {path} is there; choose another name or delete it")


def _manifest(check: Check) -> Path:
    return Path(check.out).with_name(f"{Path(check.out).name.removesuffix('.jsonl')}.manifest.json")


def _counter(model: str) -> Any:
    if not model:
        return lambda texts: [-(-len(text.encode()) // 4) for text in texts]
    from gad_jax.data.tokenizer import load_tokenizer
    from gad_jax.models import source

    tokenizer = load_tokenizer(source.resolve(model))
    return lambda texts: [len(ids) for ids in tokenizer(texts)["input_ids"]]


def _numbers(found: "Found") -> dict[str, Any]:
    from gad_jax.collect.checking import FAULTS

    return {
        "lines": found.lines,
        "responses": found.responses,
        "invalid": dict(found.invalid.most_common()),
        "finish_reasons": dict(found.reasons.most_common()),
        "faults": {fault: found.count(fault) for fault in FAULTS},
        "e-mail addresses": found.emails,
        "scripts": dict(found.scripts.most_common()),
        "teachers": dict(found.teachers.most_common()),
        "prompt_tokens": _histogram(found.prompt_tokens),
        "response_tokens": _histogram(found.response_tokens),
    }


def _histogram(lengths: Any) -> dict[str, Any]:
    """Returns mean, 95th percentile, maximum, and how many are up to each edge."""
    import numpy as np

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


def _show(numbers: dict[str, Any], found: "Found", check: Check) -> None:
    from rich.table import Table

    from gad_jax.base.console import make_console

    console = make_console()
    console.print(f"{found.lines} lines with {found.responses} responses")
    table = Table(title="Share of the lines", title_justify="left", title_style="bold")
    for column in ("", "lines", "share"):
        table.add_column(column, justify="left" if not column else "right")
    groups = {
        "": numbers["faults"] | {"e-mail addresses": found.emails},
        "ended: ": numbers["finish_reasons"],
        "script: ": numbers["scripts"],
        "teacher: ": numbers["teachers"],
    }
    for lead, counts in groups.items():
        for name, count in counts.items():
            table.add_row(lead + name.replace("_", " "), str(count), f"{count / found.lines:.1%}")
        table.add_section()
    for reason, count in numbers["invalid"].items():
        table.add_row(f"left out: {reason}", str(count), "")
    console.print(table)
    unit = f"tokens of {check.tokenizer}" if check.tokenizer else "tokens, 4 bytes taken for one"
    for what in ("prompt", "response"):
        lengths = numbers[f"{what}_tokens"]
        console.print(
            f"[bold]{what}s[/bold] ({unit}): mean {lengths['mean']}, 95 % up to {lengths['p95']}, "
            f"longest {lengths['longest']}"
        )
        most = max(lengths["up_to"].values(), default=0)
        for label, count in lengths["up_to"].items():
            if count:
                console.print(f"{label:>9}  {'█' * max(round(40 * count / most), 1)} {count}")


def _write(check: Check, found: "Found", numbers: dict[str, Any]) -> None:
    """Writes the kept lines in bounded memory, then the manifest; a crash leaves neither."""
    from gad_jax.collect import checking

    kept = found.kept(check.drop)
    with files.replacing(check.out) as file:
        for keep, record in zip(kept, checking.valid(_records(check)), strict=True):
            if keep:
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
        f"{check.out}: {int(kept.sum())} of {found.lines} lines; {_manifest(check)} says the rest"
    )


def _digest(name: str) -> str | None:
    """Returns the sha256 of a file; None for what is none."""
    import hashlib

    if not Path(name).is_file():
        return None
    with open(name, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
