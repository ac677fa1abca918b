"""Collects what is missing in the file of responses, then writes the manifest and a report."""

import asyncio
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

from gad_jax.base import exits, files, next_command, verbosity
from gad_jax.base.errors import UserError
from gad_jax.base.redaction import printable
from gad_jax.collect.settings import Collect
from gad_jax.data import sources
from gad_jax.teacher import batching, collection, questions
from gad_jax.teacher.batching import Batch
from gad_jax.teacher.collection import BatchMode, Service, Terms
from gad_jax.teacher.questions import Question, Teacher
from gad_jax.teacher.requests import Requests
from gad_jax.teacher.store import Contents, Store


def run(collect: Collect) -> int:
    """Collects the responses that the settings name; returns the exit code."""
    service = None if collect.local else _service(collect)
    teacher = Teacher(collect.teacher_name, collect.system, collect.sampling)
    rows = sources.read(
        collect.prompts,
        skip_invalid=collect.skip_invalid,
        skip_flag="--skip_invalid",
        need_response=False,
        prompt_field=collect.data.prompt,
        response_field=collect.data.response,
    )
    for note in rows.notes:
        print(printable(note))
    wanted = questions.from_rows(rows, teacher, collect.samples)
    for reason, count in rows.skipped.items():
        print(f"{count} prompts skipped: {reason}")
    repeated = len(rows) - len(wanted) // collect.samples
    verbosity.say(f"{len(rows)} prompts ({repeated} repeated), {len(wanted)} responses wanted")
    path = Path(collect.out)
    if service is not None and (unset := service.endpoint.unset_variable):
        print(f"the environment variable {unset} is not set: requests carry no key", flush=True)
    if collect.dry_run:
        terms = Terms.of(collect, collect.max_requests)
        refused = _refused_before(collect, wanted)
        collection.dry_run(path, wanted, terms, collect.tokenizer or collect.local, refused)
        return exits.Exit.OK
    with files.lock_file(path, "--out"):
        return _collect(collect, service, teacher, wanted)


def _service(collect: Collect) -> Service:
    try:
        return Service.of(collect, collect.max_requests)
    except ValueError as error:
        raise UserError(f"--{error}") from None


def _collect(
    collect: Collect, service: Service | None, teacher: Teacher, wanted: Sequence[Question]
) -> int:
    open_batches = _open_batches(collect)
    store = Store.open(Path(collect.out))
    try:
        refused = _refused_before(collect, wanted)
        missing = collection.missing(wanted, store.contents, refused)
        there = len(wanted) - len(missing) - len(refused - store.contents.have)
        verbosity.say(f"{there} of them are in {collect.out}; asking for the others")
        if open_batches:
            on_their_way = batching.responses(open_batches)
            verbosity.say(f"{on_their_way} are on their way in batches already")
        started = time.time()
        if service is None:
            from gad_jax.collect import local  # the only part that needs jax

            requests = asyncio.run(local.collect(collect, teacher, store, missing))
        else:
            mode = BatchMode(collect.batch_requests, collect.poll_seconds, open_batches)
            running = collection.collect(
                service, teacher, store, missing, mode if collect.batch else None
            )
            requests = asyncio.run(running)
    finally:
        store.close()
    still_refused = _refused(collect, wanted) - store.contents.have
    _write_manifest(collect, teacher, store.contents, requests, len(still_refused))
    collection.report(requests, len(missing), time.time() - started)
    if missing and not requests.answered and requests.ended == "done":
        raise UserError(
            f"none of {len(missing)} responses came; "
            f"{collection.sibling(Path(collect.out), 'failed.jsonl')} has the reasons"
        )
    if missing and not store.contents.have and requests.ended == "budget":
        raise UserError(
            f"none of {len(missing)} responses came: the caps allow not even one; raise them"
        )
    if store.contents.have:
        checked = files.fresh(collection.sibling(Path(collect.out), "checked.jsonl"))
        next_command.say("collect", "check", collect.out, f"--out={checked}")
    return exits.Exit.OK


def _refused_before(collect: Collect, wanted: Sequence[Question]) -> set[tuple[str, int]]:
    """Returns which of these questions earlier runs found refused, and says how many."""
    if collect.retry_refused:
        return set()
    refused = _refused(collect, wanted)
    if refused:
        print(
            f"{len(refused)} were refused in an earlier run and are not asked again; "
            "--retry_refused asks"
        )
    return refused


def _refused(collect: Collect, wanted: Sequence[Question]) -> set[tuple[str, int]]:
    """Returns which of these questions the file of failures has as refused."""
    known = collection.refused_before(Path(collect.out))
    return known & {(question.key, question.sample) for question in wanted}


def _open_batches(collect: Collect) -> list[Batch]:
    found = batching.open_batches(collect.out)
    if found and not collect.batch:
        raise UserError(
            f"{batching.responses(found)} responses are on their way in batches; add --batch to "
            f"wait for them, or delete {batching.directory(collect.out)} to give them up"
        )
    return found


def _write_manifest(
    collect: Collect, teacher: Teacher, contents: Contents, requests: Requests, refused: int
) -> None:
    """Writes what was asked, how, and what came; `refused` counts earlier runs' refusals too."""
    spent = requests.budget.spent
    manifest = {
        "source": collect.prompts,
        "base_url": "" if collect.local else collect.base_url,
        "teacher": dataclasses.asdict(teacher),
        "samples": collect.samples,
        "ended": requests.ended,
        "responses": len(contents.have),
        "finish_reasons": dict(contents.reasons.most_common()),
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.completion_tokens,
        "cost": requests.budget.cost,
        "missing": {"refused": refused, "unanswered": requests.unanswered},
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    files.write_atomic(collection.sibling(Path(collect.out), "manifest.json"), text)
