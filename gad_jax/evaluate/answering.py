"""Answers prompt sets with each student, and scores the answers; resumes incomplete files."""

import math
import sys
from functools import partial
from typing import Any

import jax

from gad_jax.base import files, shortage, verbosity
from gad_jax.data import sources, thoughts
from gad_jax.data.chat import Chat
from gad_jax.data.sources.rows import Row, conversation_text
from gad_jax.distributed.mesh import make_mesh
from gad_jax.evaluate.answers import AnswerFile
from gad_jax.evaluate.settings import Evaluate, split_label
from gad_jax.metrics import overlap
from gad_jax.metrics.scoring import Scorer
from gad_jax.rollout import memory
from gad_jax.rollout.answering import Responder
from gad_jax.settings import template_arguments
from gad_jax.settings.decoding import Decoding
from gad_jax.training import loading
from gad_jax.training.report.answers import Answers

_SETTINGS = ("template", "samples", "temperature", "top_k", "top_p", "max_new_tokens", "seed")


def answer_all(evaluate: Evaluate) -> list[Answers]:
    """Returns every student's answers to every set, and makes the missing ones."""
    sets = {}
    for label, source in map(split_label, evaluate.prompts):
        rows = sources.read(
            source,
            split="test",
            need_response=False,
            prompt_field=evaluate.data.prompt,
            response_field=evaluate.data.response,
        )
        for note in rows.notes:
            print(note, file=sys.stderr, flush=True)
        sets[label] = list(rows.rows[: evaluate.limit or None])
    found: list[Answers] = []
    with files.lock_run(evaluate.directory, "--out"):
        for label, model in map(split_label, evaluate.model):
            open_files = []
            for prompts, rows in sets.items():
                about = {"label": label, "model": model, "prompts": prompts}
                about |= {name: getattr(evaluate, name) for name in _SETTINGS}
                about |= {"discriminator": evaluate.discriminator}
                arguments = template_arguments.canonical(evaluate.chat_template_kwargs)
                about |= {"chat_template_kwargs": arguments}
                path = evaluate.directory / prompts / f"{label}.jsonl"
                open_files.append(AnswerFile(path, rows, about))
            if not all(file.complete for file in open_files):
                _answer(evaluate, model, open_files)
            for file in open_files:
                said = f"{file.path}: {len(file.rows)} prompts, {file.origin}"
                verbosity.say(said, to_stderr=True)
            found += [file.answers() for file in open_files]
    return found


def _answer(evaluate: Evaluate, model: str, open_files: list[AnswerFile]) -> None:
    """Completes the files of one student, batch by batch."""
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        network = loading.load_student(model, mesh)
        chat = network.load_chat(evaluate.template, evaluate.chat_template_kwargs)
        waits = f"{open_files[0].about['label']}: the first answers of {model} wait for compiling"
        verbosity.say(waits, to_stderr=True)
        advice = partial(
            memory.advice,
            network.config,
            evaluate.samples * evaluate.batch,
            network.config.max_positions,
            "--batch",
            "lower --max_new_tokens",
        )
        with shortage.explained(advice):
            _complete(evaluate, network, chat, mesh, open_files)


def _complete(
    evaluate: Evaluate,
    network: loading.Network,
    chat: Chat,
    mesh: jax.sharding.Mesh,
    open_files: list[AnswerFile],
) -> None:
    responder = Responder(network.config, network.params, chat, mesh, Decoding.of(evaluate))
    scorer, scored_by = _load_scorer(evaluate, mesh) if evaluate.discriminator else (None, "")
    for file in (each for each in open_files if not each.complete):
        file.begin(network.origin, scored_by)
        while not file.complete:
            start = len(file.lines)
            rows = file.rows[start : start + evaluate.batch]
            lines = _lines(rows, start, responder)
            if scorer is not None:
                _add_scores(rows, lines, scorer)
            file.append(lines)
            said = f"{file.path}: {len(file.lines)} of {len(file.rows)}"
            verbosity.say(said, to_stderr=True)


def _load_scorer(evaluate: Evaluate, mesh: jax.sharding.Mesh) -> tuple[Scorer, str]:
    """Returns the discriminator, and the step that its weights are of."""
    network = loading.load_from_run(evaluate.discriminator, "discriminator", mesh)
    return Scorer(network.config, network.params, network.load_chat(), mesh), network.origin


def _add_scores(rows: list[Row], lines: list[dict[str, Any]], scorer: Scorer) -> None:
    """Adds the discriminator's score of each answer, and of the teacher's."""
    conversations, texts, complete, places = [], [], [], []
    for row, line in zip(rows, lines, strict=True):
        scored = [
            (answer, "score", answer["text"], answer["finished"]) for answer in line["answers"]
        ]
        if line["teacher"] and scored:
            scored.append((line, "teacher_score", line["teacher"], True))
        for place, name, text, finished in scored:
            conversations.append(row.messages)
            texts.append(text)
            complete.append(finished)
            places.append((place, name))
    for (place, name), score in zip(places, scorer(conversations, texts, complete), strict=True):
        place[name] = None if math.isnan(score) else score


def _lines(rows: list[Row], start: int, responder: Responder) -> list[dict[str, Any]]:
    """Returns the lines of some rows; the first one is row number `start` of the set."""
    prompts = responder.encode([row.messages for row in rows])
    short = [n for n, prompt in enumerate(prompts) if len(prompt) <= responder.longest_prompt]
    answered: dict[int, list[dict[str, Any]]] = {}
    if short:
        groups = responder.answers([prompts[n] for n in short], [start + n for n in short])
        answered = {
            n: [answer._asdict() for answer in g] for n, g in zip(short, groups, strict=True)
        }
    lines = []
    for number, row in enumerate(rows):
        teacher = thoughts.split_teacher(row.responses[0]).answer or None if row.responses else None
        line = {
            "id": row.id,
            "prompt": conversation_text(row.messages),
            "teacher": teacher,
            "teacher_tokens": len(responder.chat.encode_response(teacher)) if teacher else None,
            "answers": answered.get(number, []),
        }
        for answer in line["answers"]:
            answer |= overlap.scores(teacher, answer["text"]) if teacher else {}
        lines.append(line)
    return lines
