"""Splits a public set of prompts into rows for training and held-out rows.

Two passes over the source keep a few bytes per row. The text of a prompt and the seed decide
whether it is held out. So all rows of a prompt are on one side, and later rows move few prompts.
"""

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gad_jax.base import exits, files, next_command
from gad_jax.base.errors import UserError
from gad_jax.collect.prepare import RECIPES, Prepare, Recipe
from gad_jax.data import sources
from gad_jax.data.sources.formats import parse
from gad_jax.data.sources.rows import Invalid, Row


def run(prepare: Prepare) -> int:
    """Writes the files of a recipe and their manifest; returns the exit code."""
    recipe = RECIPES[prepare.recipe]
    directory = Path(prepare.out)
    files.make_writable(directory, "--out")
    paths = [directory / recipe.train, directory / recipe.heldout, directory / "manifest.json"]
    for path in paths:
        if path.exists():
            raise UserError(f"--out: {path} is there; choose another directory or delete it")
    skipped: Counter[str] = Counter()
    least: list[int] = []  # a heap of the negated numbers of the held-out prompts
    prompts: set[int] = set()
    for row in _rows(prepare, recipe, skipped):
        number = _number(row, prepare.seed)
        if number not in prompts:
            prompts.add(number)
            push = heapq.heappush if len(least) < prepare.heldout else heapq.heappushpop
            if prepare.heldout:
                push(least, -number)
    if len(prompts) <= prepare.heldout:
        raise UserError(
            f"{prepare.source or recipe.source} has {len(prompts)} prompts and "
            f"--heldout={prepare.heldout} leaves none to train on; lower it"
        )
    counts = _write(prepare, recipe, {-number for number in least}, paths)
    manifest = {
        "recipe": prepare.recipe,
        "source": prepare.source or recipe.source,
        "license": prepare.license,
        "seed": prepare.seed,
        "invalid": dict(skipped.most_common()),
        "lines": counts,
    }
    files.write_atomic(paths[2], json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    for reason, count in skipped.items():
        print(f"{count} rows skipped: {reason}")
    print(
        f"{paths[0]}: {counts['train']} lines; {paths[1]}: {counts['heldout']}; "
        f"{counts['repeated']} repeated ones dropped"
    )
    if recipe.responses:
        held_out = paths[1] if prepare.heldout else ""
        next_command.say(
            "train", f"--data.train={paths[0]}", f"--data.heldout={held_out}", "--dry_run"
        )
    else:
        out = files.fresh(directory / "teacher.jsonl")
        flags = (f"--prompts={paths[0]}", "--model=MODEL", f"--out={out}", "--dry_run")
        next_command.say("collect", *flags)
    return exits.Exit.OK


def _write(
    prepare: Prepare, recipe: Recipe, held_out: set[int], paths: list[Path]
) -> dict[str, int]:
    """Writes both files, each line once; returns the numbers of lines."""
    counts = {"train": 0, "heldout": 0, "repeated": 0}
    seen: set[bytes] = set()
    with files.replacing(paths[0]) as train, files.replacing(paths[1]) as heldout:
        for row in _rows(prepare, recipe, Counter()):
            line = _line(row, recipe)
            content = json.dumps([line["messages"], line.get("teacher_response")])
            digest = hashlib.blake2b(content.encode(), digest_size=16).digest()
            if digest in seen:
                counts["repeated"] += 1
                continue
            seen.add(digest)
            side = "heldout" if _number(row, prepare.seed) in held_out else "train"
            counts[side] += 1
            file = heldout if side == "heldout" else train
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    return counts


def _line(row: Row, recipe: Recipe) -> dict[str, Any]:
    line: dict[str, Any] = {"id": row.id, "messages": list(row.messages)}
    if recipe.responses:
        line["teacher_response"] = row.responses[0] if len(row.responses) == 1 else row.responses
    return line


def _number(row: Row, seed: int) -> int:
    """Returns a number that depends on the prompt and the seed alone."""
    content = json.dumps([seed, row.messages])
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "big")


def _rows(prepare: Prepare, recipe: Recipe, skipped: Counter[str]) -> Iterator[Row]:
    read: Callable[[Any], Any] = (lambda x: x) if recipe.responses else first_turn
    name = prepare.source or recipe.source
    for where, record in sources.records(name, "train", need_response=recipe.responses):
        try:
            yield parse(where, read(record), recipe.responses)
        except Invalid as problem:
            if not prepare.skip_invalid:
                raise UserError(
                    f"{where}: {problem}; mend the row or pass --skip_invalid"
                ) from None
            skipped[problem.reason] += 1


def first_turn(record: Any) -> Any:
    """Returns a record with the first user message of a conversation, in ShareGPT's form or
    OpenAI's, under `prompt`. Anything else is returned unchanged."""
    if not isinstance(record, dict):
        return record
    turns = record.get("conversations") or record.get("conversation") or record.get("messages")
    for turn in turns if isinstance(turns, list) else ():
        if isinstance(turn, dict) and turn.get("from", turn.get("role")) in ("human", "user"):
            named = record.get("id", record.get("conversation_id"))
            return {"id": named, "prompt": turn.get("value", turn.get("content"))}
    return record
