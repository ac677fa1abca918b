"""The text of a run: its tokenizer's chat, its rows within its limits, and its held-out rows."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gad_jax.base import files, verbosity
from gad_jax.base.errors import UserError, first_line
from gad_jax.data import limits, pipeline, sources, split
from gad_jax.data.chat import Chat
from gad_jax.data.limits import Limits, Stops
from gad_jax.data.pipeline import Encoded, Prepared
from gad_jax.data.sources import mixture
from gad_jax.distributed import processes
from gad_jax.models import source, weights
from gad_jax.settings import baselines, template_arguments
from gad_jax.settings.config import Config, with_limits
from gad_jax.settings.fields import FieldError
from gad_jax.settings.sections import LONGEST_PROMPT

HELD_OUT = "heldout.jsonl"
"""The held-out rows of a run that splits its training rows, in its directory."""


class Text(NamedTuple):
    """What a run learns from. `config` has the limits that were taken from the data.

    `losses` say which large parts of the rows the limits drop or cut.
    """

    config: Config
    chat: Chat
    rows: Prepared
    held_out: Prepared | None
    losses: tuple[str, ...] = ()


class _Stored(NamedTuple):
    """The held-out rows that a run has stored: the keys of their prompts, and the text's sha256."""

    keys: list[str]
    digest: str


def read(config: Config, store: bool = True) -> Text:
    """Returns the text of a run, and prints what it holds.

    With `store`, the rows that are held out of the training rows are written to the run directory;
    a run that has checkpoints holds out the stored ones again.

    Raises UserError for a tokenizer or rows that cannot be used, also when another process does.
    """
    stored = processes.from_first(lambda: _stored(config))
    text, lines = processes.together(lambda: _read(config, _Stored(*stored) if stored else None))
    fingerprints = [text.rows.fingerprint, text.held_out.fingerprint if text.held_out else ""]
    processes.require_same("training data or tokenizer", " ".join(fingerprints))
    if processes.is_first():
        verbosity.say([*lines, *(f"warning: {loss}" for loss in text.losses)])
        if store and text.held_out and config.data.heldout_part is not None:
            _store(config, _to_jsonl(text.held_out))
    return text


def _read(config: Config, stored: _Stored | None) -> tuple[Text, list[str]]:
    """Returns the run's text and the lines that describe it."""
    directory = source.resolve(config.student.path)
    # Its mistakes would be taken for the tokenizer's by transformers.
    networks = [weights.read_config(directory)]
    arguments = template_arguments.parse(config.data.chat_template_kwargs)
    drop = config.data.thoughts == "drop"
    chat = Chat.load(directory, config.data.template, arguments, drop)
    note = chat.check_answers_only() if drop else ""
    if config.discriminator.path:
        networks.append(weights.read_config(source.resolve(config.discriminator.path)))
    positions = min(network.max_positions for network in networks)
    names, shares = mixture.split(config.data.train, "--data.train")
    rejected = baselines.reads_rejected(config) and (config.data.rejected or "rejected")
    encoded = [_encode(config, name, chat, rejected or "") for name in names]
    given = Limits(config.data.max_prompt_tokens, config.rollout.max_new_tokens)
    chosen = limits.choose(encoded, given, LONGEST_PROMPT, positions)
    try:
        config = with_limits(config, chosen.prompt, chosen.response)
    except FieldError as error:
        raise UserError(f"--{error}") from error
    losses = _losses(config, encoded, chosen, positions)
    prepared = [file.limited(chosen.prompt, chosen.response) for file in encoded]
    lines = [note] if note else []
    lines += [note for file in encoded for note in file.source.notes]
    lines += [f"{file.name}: {file.stats}" for file in prepared]
    if chosen != given:
        lines.append(
            f"limits from the data: prompts up to {chosen.prompt} tokens, responses up to "
            f"{chosen.response}; set --data.max_prompt_tokens and --rollout.max_new_tokens to "
            "change them"
        )
    held_out = None
    if config.data.heldout_part is not None:
        prepared, held_out = _hold_out(config, prepared, shares, stored)
        count = len({split.key(row) for row in held_out.rows})
        left = sum(map(len, prepared))
        lines.append(
            f"held out: {count} {'prompt' if count == 1 else 'prompts'} of {config.data.train} "
            f"(--data.heldout={config.data.heldout}); {left} rows are left to train on"
        )
    elif config.data.heldout:
        file = _encode(config, config.data.heldout, chat)
        losses += _losses(config, [file], chosen, positions, stopping=False)
        held_out = file.limited(chosen.prompt, chosen.response)
        lines = [*file.source.notes, f"{held_out.name}: {held_out.stats}", *lines]
    return Text(config, chat, pipeline.mix(prepared, shares), held_out, tuple(losses)), lines


def _encode(config: Config, name: str, chat: Chat, rejected: str = "") -> Encoded:
    rows = sources.read(
        name,
        skip_invalid=config.data.skip_invalid,
        skip_flag="--data.skip_invalid",
        keep_unfinished=config.data.keep_unfinished,
        prompt_field=config.data.prompt,
        response_field=config.data.response,
        rejected_field=rejected,
    )
    drop = config.data.thoughts == "drop"
    return pipeline.encode(rows, chat, config.data.max_invalid_share, drop)


def _losses(
    config: Config,
    encoded: Sequence[Encoded],
    chosen: Limits,
    positions: int,
    stopping: bool = True,
) -> list[str]:
    data = config.data
    stops = (
        Stops(data.stop_at_dropped_share, data.stop_at_cut_share) if stopping else Stops(1.0, 1.0)
    )
    return [
        sentence
        for file in encoded
        # The random network learns nothing from the bundled rows; it is there to try things.
        if not (config.student.path == "random-tiny" and file.source.name.startswith("bundled"))
        for sentence in limits.check(file, chosen, stops, positions)
    ]


def _hold_out(
    config: Config, prepared: list[Prepared], shares: Sequence[float], stored: _Stored | None
) -> tuple[list[Prepared], Prepared]:
    """Returns the rows of each file that are left to train on, and those that are held out."""
    part, seed = config.data.heldout_part, config.data.heldout_seed
    assert part is not None
    keys = set(stored.keys) if stored else split.choose(prepared, shares, part, seed)
    train, held_out = split.divide(prepared, keys, seed)
    left = [file for file in train if file]
    if not left or (shares and len(left) < len(train)):
        empty = ",".join(file.name for file, rest in zip(prepared, train, strict=True) if not rest)
        raise UserError(
            f"--data.heldout={config.data.heldout} leaves no rows of {empty} to train on: its "
            "prompts are held out, also those that another file has; lower it or give more rows"
        )
    found = [file for file in held_out if file]
    whole = pipeline.mix(found, []) if found else None
    if whole is None or (stored and _digest(_to_jsonl(whole)) != stored.digest):
        raise UserError(
            f"{Path(config.run_dir) / HELD_OUT}: the held-out rows of this run are not in "
            f"{config.data.train} any more; give the data it had, or choose another --run_dir"
        )
    return left, whole


def _to_jsonl(rows: Prepared) -> str:
    """Returns rows as a file that every command reads; ids that two files share get a number."""
    lines, seen = [], set[str]()
    for row in rows.rows:
        name = row.id if row.id not in seen else f"{row.id} ({len(seen)})"
        seen.add(name)
        record: dict[str, Any] = {"id": name, "messages": list(row.messages)}
        record["teacher_response"] = list(row.responses)
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    return "".join(lines)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _stored(config: Config) -> tuple[list[str], str] | None:
    """Returns what a run that has checkpoints stored, as JSON can hold it; None for others."""
    run = Path(config.run_dir)
    path = run / HELD_OUT
    if config.data.heldout_part is None or not path.is_file():
        return None
    if not any(step.name.isdigit() for step in run.glob("checkpoints/*")):
        return None
    try:
        text = path.read_text(encoding="utf-8")
        rows = sources.read(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: the run's held-out rows cannot be read ({first_line(error)}); delete the "
            "file, and they are chosen from the data again"
        ) from error
    return [split.key(row) for row in rows], _digest(text)


def _store(config: Config, text: str) -> None:
    """Writes the held-out rows; evaluations of other ones, from a failed start, go."""
    path = Path(config.run_dir) / HELD_OUT
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        for old in path.parent.glob("evaluations/*.json"):
            old.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, text)
