"""`python -m gad_jax.collect`: a teacher's responses to prompts, from an API or a local model.

`python -m gad_jax.collect check` and `prepare` are in `collecting`.
"""

import asyncio
import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gad_jax.base import exits, files
from gad_jax.base.errors import UserError
from gad_jax.settings import options
from gad_jax.teacher.settings import Collect

if TYPE_CHECKING:
    from gad_jax.collect.local import LocalAsking
    from gad_jax.teacher.batching import Batch
    from gad_jax.teacher.budget import Budget, Caps, Prices, Use
    from gad_jax.teacher.questions import Question, Teacher
    from gad_jax.teacher.requests import Collection
    from gad_jax.teacher.store import Contents

_BYTES_PER_TOKEN = 4  # of English, roughly


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["check"]:
        from gad_jax.collect import check

        return check.main(given[1:])
    if given[:1] == ["prepare"]:
        from gad_jax.collect import prepare

        return prepare.main(given[1:])
    collect = options.parse(
        Collect,
        given,
        program="python -m gad_jax.collect",
        description="Asks a teacher for responses to prompts, and keeps every one that was paid. "
        "Before all flags, `check`: what is in such files (check --help); `prepare`: public sets.",
    )
    return exits.run_guarded(partial(_run, collect))


def _run(collect: Collect) -> int:
    from gad_jax.data import sources
    from gad_jax.teacher import questions

    if not collect.local:
        _endpoint(collect)
    teacher = questions.Teacher(collect.teacher_name, collect.system, collect.sampling)
    rows = sources.read(collect.prompts, skip_invalid=collect.skip_invalid, need_response=False)
    asked = questions.ask_all(rows, teacher, collect.samples)
    for reason, count in rows.skipped.items():
        print(f"{count} prompts skipped: {reason}")
    repeated = len(rows) - len(asked) // collect.samples
    print(f"{len(rows)} prompts ({repeated} repeated), {len(asked)} responses wanted")
    if collect.dry_run:
        return dry_run(collect, asked)
    with files.lock_file(collect.out, "--out"):
        return _collect(collect, teacher, asked)


def _collect(collect: Collect, teacher: "Teacher", asked: list["Question"]) -> int:
    from gad_jax.teacher import batching
    from gad_jax.teacher.store import Store

    open_batches = batching.open_batches(collect.out)
    on_their_way = batching.responses(open_batches)
    if on_their_way and not collect.batch:
        raise UserError(
            f"{on_their_way} responses are on their way in batches; add --batch to wait for them, "
            f"or delete {batching.directory(collect.out)} to give them up"
        )
    store = Store.open(Path(collect.out))
    try:
        missing = _missing(asked, store.contents)
        print(f"{len(asked) - len(missing)} of them are in {collect.out}; asking for the others")
        if on_their_way:
            print(f"{on_their_way} are on their way in batches already")
        started = time.time()
        about = (collect, teacher, store, missing)
        asking = asyncio.run(_answer_here(*about) if collect.local else ask(*about, open_batches))
    finally:
        store.close()
    _write_manifest(collect, teacher, store.contents, asking)
    report(collect, asking, len(missing), time.time() - started)
    return exits.Exit.OK


async def ask(
    collect: Collect,
    teacher: "Teacher",
    store: Any,
    missing: list["Question"],
    open_batches: Sequence["Batch"] = (),
) -> "Collection":
    """Asks for what is missing and keeps it in `store`; returns how that went. In batch mode,
    `open_batches` are on their way already."""
    from gad_jax.teacher import Client, Pace, Patience
    from gad_jax.teacher.batching import BatchAsking
    from gad_jax.teacher.requests import Asking

    patience = Patience(collect.attempts, collect.timeout, collect.max_wait)
    async with Client(_endpoint(collect), patience, Pace(collect.concurrency)) as client:
        about = (teacher, client, store, _budget(collect, store), collect.longest_answer)
        if collect.batch:
            asking = BatchAsking(
                *about,
                batch_requests=collect.batch_requests,
                poll_seconds=collect.poll_seconds,
                open=list(open_batches),
            )
        else:
            asking = Asking(*about)
        # Twice as many as may be on their way: some wait to be asked again.
        await _run_shown(collect, asking, missing, 2 * collect.concurrency)
    return asking


async def _answer_here(
    collect: Collect, teacher: "Teacher", store: Any, missing: list["Question"]
) -> "LocalAsking":
    """As `ask`, of a teacher that this program runs."""
    import jax

    from gad_jax.collect.local import LocalAsking
    from gad_jax.data.chat import Chat
    from gad_jax.distributed.mesh import make_mesh
    from gad_jax.rollout.answering import Responder
    from gad_jax.settings.decoding import Decoding
    from gad_jax.training import loading

    known = {"temperature": 1.0, "max_tokens": 0} | collect.sampling
    known["max_new_tokens"] = known.pop("max_tokens")
    mesh = make_mesh()
    try:
        decoding = Decoding(**known)
    except ValueError as error:
        raise UserError(f"--{error}") from None
    with jax.set_mesh(mesh):
        network = loading.load_student(collect.local, mesh)
        chat = Chat.load(network.tokenizer, network.template or "none")
        slots = collect.concurrency
        responder = Responder(network.config, network.params, chat, mesh, decoding, slots)
        budget = _budget(collect, store)
        asking = LocalAsking(teacher, responder, network.origin, store, budget)
        await _run_shown(collect, asking, missing, collect.concurrency)
    return asking


async def _run_shown(
    collect: Collect, asking: Any, missing: list["Question"], at_once: int
) -> None:
    """Asks with a display of how far it is, until done or told to stop."""
    from gad_jax.base.console import make_console
    from gad_jax.teacher.progress import LINE_SECONDS, Shown
    from gad_jax.teacher.requests import Failures

    failures = Failures(_beside(collect.out, "failed.jsonl"))
    waiting = "the batches go on" if collect.batch else "waiting for the responses on their way"
    words = (waiting, "stopped; what was stored is intact")
    with exits.StopRequest(*words) as stop:
        stop.ready = True
        seconds = max(LINE_SECONDS, 5 * collect.poll_seconds if collect.batch else 0)
        shown = Shown(make_console(), len(missing), seconds)

        def look(asking: Any) -> bool:
            shown.update(asking)
            return stop.requested

        try:
            await asking.run(missing, at_once, failures, look)
        finally:
            shown.close()


def _budget(collect: Collect, store: Any) -> "Budget":
    from gad_jax.teacher.budget import Budget

    return Budget(_caps(collect), _prices(collect), store.contents.used)


def _endpoint(collect: Collect) -> Any:
    from gad_jax.teacher import Endpoint

    try:
        return Endpoint(collect.base_url, collect.model, collect.key_variable)
    except ValueError as error:
        raise UserError(f"--{error}") from None


def _missing(asked: list["Question"], contents: "Contents") -> list["Question"]:
    return [question for question in asked if (question.key, question.sample) not in contents.have]


def _caps(collect: Collect) -> "Caps":
    from gad_jax.teacher.budget import Caps

    limits = (collect.max_requests, collect.max_total_tokens, collect.max_cost)
    return Caps(*(limit or math.inf for limit in limits))


def _prices(collect: Collect) -> "Prices":
    from gad_jax.teacher.budget import Prices

    return Prices(collect.prompt_price, collect.completion_price)


def dry_run(collect: Collect, asked: list["Question"]) -> int:
    """Says what asking would take; returns the exit code."""
    from gad_jax.teacher import batching, store

    contents = store.scan(Path(collect.out))
    missing = _missing(asked, contents)
    tokenizer = collect.tokenizer or collect.local
    counted = f"{tokenizer}'s" if tokenizer else "taken as 4 bytes each"
    prompt_tokens = _count_prompt_tokens(tokenizer, missing)
    if on_their_way := batching.responses(batching.open_batches(collect.out)):
        print(f"{on_their_way} responses are on their way in batches, and are counted again here")
    print(f"{len(missing)} to ask for; their prompts: {prompt_tokens:,} tokens ({counted})")
    used, longest = contents.used, collect.longest_answer
    if used.requests:
        mean = used.completion_tokens / used.requests
        text = f"responses like the {used.requests} in the file"
        _print_cost(collect, text, used, prompt_tokens, round(mean * len(missing)))
    if longest:
        _print_cost(collect, "the longest responses", used, prompt_tokens, longest * len(missing))
    else:
        print("without --max_new_tokens, nothing bounds the responses")
    return exits.Exit.OK


def _print_cost(
    collect: Collect, what: str, used: "Use", prompt_tokens: int, completion_tokens: int
) -> None:
    prices = _prices(collect)
    more = type(used)(0, prompt_tokens, completion_tokens)
    priced = bool(prices.prompt or prices.completion)
    cost = f", cost {prices.cost(more):.4g}" if priced else "; give prices to see the cost"
    print(f"with {what}: {completion_tokens:,} response tokens{cost}")


def _count_prompt_tokens(model: str, missing: list["Question"]) -> int:
    texts = [message["content"] for question in missing for message in question.sent]
    if not model:
        return -(-sum(len(text.encode()) for text in texts) // _BYTES_PER_TOKEN)
    from gad_jax.data.tokenizer import load_tokenizer
    from gad_jax.models import source

    tokenizer = load_tokenizer(source.resolve(model))
    parts = (texts[start : start + 1024] for start in range(0, len(texts), 1024))
    return sum(len(ids) for part in parts for ids in tokenizer(part)["input_ids"])


def _beside(out: str, ending: str) -> Path:
    """`answers.failed.jsonl` for `answers.jsonl`."""
    return Path(out).with_name(f"{Path(out).name.removesuffix('.jsonl')}.{ending}")


def _write_manifest(
    collect: Collect, teacher: "Teacher", contents: "Contents", asking: "Collection"
) -> None:
    spent = asking.budget.spent
    manifest = {
        "source": collect.prompts,
        "base_url": "" if collect.local else collect.base_url,
        "teacher": dataclasses.asdict(teacher),
        "samples": collect.samples,
        "ended": asking.ended,
        "responses": len(contents.have),
        "finish_reasons": dict(contents.reasons.most_common()),
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.completion_tokens,
        "cost": asking.budget.cost,
        "missing": {"refused": asking.refused, "unanswered": asking.unanswered},
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    files.write_atomic(_beside(collect.out, "manifest.json"), text)


def report(collect: Collect, asking: "Collection", wanted: int, seconds: float) -> None:
    """Says how asking went."""
    from gad_jax.teacher.progress import spend

    why = {
        "done": "done",
        "stopped": "stopped; the same command goes on",
        "budget": "stopped: the budget is used up; raise its cap to go on",
    }[asking.ended]
    print(
        f"{why}: {asking.answered} of {wanted} responses in {seconds:.0f} s; "
        f"{collect.out} has {asking.budget.spent.requests}, {spend(asking.budget)}"
    )
    if asking.refused or asking.unanswered:
        where = _beside(collect.out, "failed.jsonl")
        print(f"{asking.refused} refused, {asking.unanswered} unanswered: see {where}")
    faults = ", ".join(f"{count} × {reason}" for reason, count in asking.faults.items())
    if not collect.local:
        print(f"{asking.attempts} requests sent{f', faults: {faults}' if faults else ''}")


if __name__ == "__main__":
    sys.exit(main())
