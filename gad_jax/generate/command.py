"""Loads the student and answers."""

import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from gad_jax.base import exits, files, next_command, shortage, verbosity
from gad_jax.base.errors import UserError
from gad_jax.data import sources
from gad_jax.data.sources.rows import Rows
from gad_jax.distributed.mesh import make_mesh
from gad_jax.generate import conversation
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout import memory
from gad_jax.rollout.answering import Answer, Responder
from gad_jax.settings.decoding import Decoding
from gad_jax.training import loading

if TYPE_CHECKING:
    from gad_jax.generate.__main__ import Generate


def run(generate: "Generate") -> int:
    """Answers what the settings name; returns the exit code."""
    # Mistakes in the paths are reported before the model loads, which takes much longer.
    if generate.out:
        files.make_writable(Path(generate.out).absolute().parent, "--out")
        if Path(generate.out).is_dir():
            raise UserError(f"--out={generate.out} is a directory; name a file in it")
    rows = _read(generate) if generate.file else None
    if rows is None and not generate.prompt and sys.stdin.isatty() and sys.stdout.isatty():
        with shortage.explained(lambda: "lower --max_new_tokens or use a smaller --model"):
            conversation.run(generate)
        next_command.say("serve", "--model", generate.model, to_stderr=True)
        return exits.Exit.OK
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        network = loading.load_student(generate.model, mesh)
        chat = network.load_chat(generate.template, generate.chat_template_kwargs)
        with shortage.explained(partial(_memory_advice, generate, network.config)):
            answer = Responder(network.config, network.params, chat, mesh, Decoding.of(generate))
            if rows is not None:
                _answer_file(generate, rows, answer)
            elif generate.prompt:
                asked = [{"role": "user", "content": generate.prompt}]
                print("\n\n".join(_shown(answer.ask([asked])[0])))
            else:
                _answer_lines(network.origin, answer)
    if sys.stderr.isatty():  # a person reads it, not a program
        next_command.say("serve", "--model", generate.model, to_stderr=True)
    return exits.Exit.OK


def _memory_advice(generate: "Generate", config: DecoderConfig) -> str:
    slots = generate.samples * (generate.batch if generate.file else 1)
    longest = config.max_positions
    return memory.advice(config, slots, longest, "--batch", "lower --samples and --max_new_tokens")


def _read(generate: "Generate") -> Rows:
    rows = sources.read(
        generate.file,
        need_response=False,
        prompt_field=generate.data.prompt,
        response_field=generate.data.response,
    )
    for note in rows.notes:
        print(note, file=sys.stderr)
    return rows


def _answer_file(generate: "Generate", rows: Any, answer: Responder) -> None:
    """Answers the rows batch by batch, one line per row.

    Lines are printed as soon as their batch is answered. A file is written at the end and appears
    when it is complete, so that an interrupted run never leaves half of one.
    """
    lines: list[str] = []
    for start in range(0, len(rows), generate.batch):
        batch = rows.rows[start : start + generate.batch]
        for row, answers in zip(batch, answer.ask([r.messages for r in batch]), strict=True):
            record = {
                "id": row.id,
                "messages": list(row.messages),
                "responses": [one.text for one in answers],
            }
            if any(one.thoughts for one in answers):
                record["thoughts"] = [one.thoughts for one in answers]
            lines.append(json.dumps(record, ensure_ascii=False))
            if not generate.out:
                print(lines[-1], flush=True)
        if generate.out:
            verbosity.say(f"{start + len(batch)} of {len(rows)}", to_stderr=True)
    if generate.out:
        files.write_atomic(Path(generate.out), "\n".join(lines) + "\n")


def _answer_lines(origin: str, answer: Responder) -> None:
    print(f"{origin}. Each line is a new conversation; an empty one or Ctrl-D ends.")
    for line in _typed():
        for text in _shown(answer.ask([[{"role": "user", "content": line}]])[0]):
            print(text, end="\n\n", flush=True)


def _shown(answers: Sequence[Answer]) -> Iterator[str]:
    """Yields the texts of answers; thoughts go to stderr, so that what is piped is the answer."""
    for one in answers:
        if one.thoughts:
            cut = "" if one.text or one.finished else " (cut before an answer)"
            print(f"[thoughts{cut}]\n{one.thoughts}\n[answer]", file=sys.stderr, flush=True)
        yield one.text


def _typed() -> Iterator[str]:
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if not line:
            return
        yield line
