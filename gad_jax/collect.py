"""`python -m gad_jax.collect`: a teacher's responses to prompts, from an OpenAI-compatible API."""

import asyncio
import dataclasses
import json
import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gad_jax import guard, options
from gad_jax.config import option
from gad_jax.errors import UserError

if TYPE_CHECKING:
    from gad_jax.collecting.asking import Asking
    from gad_jax.collecting.budget import Caps, Prices, Use
    from gad_jax.collecting.questions import Question, Teacher
    from gad_jax.collecting.store import Contents

_OURS = ("model", "messages", "n", "stream")
_LONGEST = ("max_completion_tokens", "max_tokens")  # the API's names, new and old
_BYTES_PER_TOKEN = 4  # of English, roughly


@dataclasses.dataclass(frozen=True)
class Collect:
    """What is asked, whom, and what it may cost."""

    prompts: str = option(
        dataclasses.MISSING, "JSONL, Parquet, .txt (a prompt per line), directory or hub dataset"
    )
    out: str = option(
        dataclasses.MISSING, "JSONL file of responses; what it holds already is not asked again"
    )
    model: str = option(dataclasses.MISSING, "the teacher, by the API's name")
    base_url: str = option("https://api.openai.com/v1", "where the API is")
    key_variable: str = option(
        "OPENAI_API_KEY", "NAME of the environment variable that holds the key; empty: no key"
    )
    system: str = option("", "system prompt for the teacher; the student never sees it")
    samples: int = option(1, "responses per prompt", "responses")
    temperature: float | None = option(None, "sampling temperature; none: the API's default")
    top_p: float | None = option(None, "likeliest tokens to sample from; none: the API's default")
    max_new_tokens: int = option(
        0, "a longer response is cut (max_tokens of the API); 0: the API's limit", "tokens"
    )
    parameters: str = option("", "more parameters of the API, as a JSON object")
    concurrency: int = option(16, "requests on their way at once, at most", "requests")
    timeout: float = option(600.0, "of one attempt", "seconds")
    attempts: int = option(8, "of one request", "attempts")
    max_wait: float = option(900.0, "of one request, between its attempts", "seconds")
    max_requests: int = option(0, "cap on what the file holds; 0: none", "responses")
    max_total_tokens: int = option(0, "cap on what the file cost; 0: none", "tokens")
    max_cost: float = option(0.0, "cap on what the file cost, at the prices below; 0: none")
    prompt_price: float = option(0.0, "currency per million prompt tokens")
    completion_price: float = option(0.0, "currency per million response tokens")
    dry_run: bool = option(False, "count prompts, tokens and cost; ask and write nothing")
    tokenizer: str = option(
        "", "model whose tokenizer counts in a dry run; empty: 4 bytes are taken for a token"
    )
    skip_invalid: bool = option(False, "skip and count malformed prompts instead of stopping")

    def __post_init__(self) -> None:
        for name in ("prompts", "out", "model"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} must not be empty")
        for name in ("samples", "concurrency", "attempts", "timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be greater than 0")
        for name in ("max_new_tokens", "max_wait", "max_requests", "max_total_tokens", "max_cost"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or more")
        for name in ("prompt_price", "completion_price"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or more")
        if self.max_cost and not (self.prompt_price or self.completion_price):
            raise ValueError("max_cost needs prices; give prompt_price and completion_price")
        longest = self.longest_answer  # which reads `parameters`
        if (self.max_total_tokens or self.max_cost) and not longest:
            raise ValueError(
                "max_new_tokens is needed for a cap on tokens or cost: without it one response "
                "may take any number"
            )
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples={self.samples} at temperature=0 would all be the same")

    @property
    def sampling(self) -> dict[str, Any]:
        """The API's parameters. Raises ValueError for `parameters` that are none."""
        given = _read_parameters(self.parameters)
        named = {"temperature": self.temperature, "top_p": self.top_p}
        named["max_tokens"] = self.max_new_tokens or None
        return {name: value for name, value in named.items() if value is not None} | given

    @property
    def longest_answer(self) -> int:
        """The most tokens that a response can have; 0 where that is not known."""
        sampling = self.sampling
        return next((sampling[name] for name in _LONGEST if name in sampling), 0)


def _read_parameters(text: str) -> dict[str, Any]:
    try:
        given = json.loads(text) if text.strip() else {}
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise ValueError('parameters must be a JSON object, such as {"presence_penalty": 0.5}')
    for name in _OURS:
        if name in given:
            raise ValueError(f"parameters: {name} has a flag of its own or is not for you to set")
    for name in _LONGEST:
        if name in given and not (type(given[name]) is int and given[name] > 0):
            raise ValueError(f"parameters: {name} must be an integer greater than 0")
    return given


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    collect = options.parse(
        Collect,
        sys.argv[1:] if argv is None else argv,
        program="python -m gad_jax.collect",
        description="Asks a teacher for responses to prompts, and keeps every one that was paid.",
    )
    return guard.run_guarded(partial(_run, collect))


def _run(collect: Collect) -> int:
    from gad_jax.collecting import questions
    from gad_jax.data import sources

    _endpoint(collect)
    teacher = questions.Teacher(collect.model, collect.system, collect.sampling)
    rows = sources.read(collect.prompts, skip_invalid=collect.skip_invalid, need_response=False)
    asked = questions.ask_all(rows, teacher, collect.samples)
    for reason, count in rows.skipped.items():
        print(f"{count} prompts skipped: {reason}")
    repeated = len(rows) - len(asked) // collect.samples
    print(f"{len(rows)} prompts ({repeated} repeated), {len(asked)} responses wanted")
    if collect.dry_run:
        return dry_run(collect, asked)
    with guard.lock_file(collect.out, "--out"):
        return _collect(collect, teacher, asked)


def _collect(collect: Collect, teacher: "Teacher", asked: list["Question"]) -> int:
    from gad_jax.collecting.store import Store

    store = Store.open(Path(collect.out))
    try:
        missing = _missing(asked, store.contents)
        print(f"{len(asked) - len(missing)} of them are in {collect.out}; asking for the others")
        started = time.time()
        asking = asyncio.run(ask(collect, teacher, store, missing))
    finally:
        store.close()
    _write_manifest(collect, teacher, store.contents, asking)
    report(collect, asking, len(missing), time.time() - started)
    return guard.Exit.OK


async def ask(
    collect: Collect, teacher: "Teacher", store: Any, missing: list["Question"]
) -> "Asking":
    """Asks for what is missing and keeps it in `store`; returns how that went."""
    from gad_jax.collecting.asking import Asking, Failures
    from gad_jax.collecting.budget import Budget
    from gad_jax.collecting.progress import Shown
    from gad_jax.console import make_console
    from gad_jax.teacher import Client, Pace, Patience

    failures = Failures(_beside(collect.out, "failed.jsonl"))
    patience = Patience(collect.attempts, collect.timeout, collect.max_wait)
    budget = Budget(_caps(collect), _prices(collect), store.contents.used)
    words = ("waiting for the responses on their way", "stopped; what was stored is intact")
    with guard.StopRequest(*words) as stop:
        stop.ready = True
        async with Client(_endpoint(collect), patience, Pace(collect.concurrency)) as client:
            asking = Asking(teacher, client, store, budget, collect.longest_answer)
            shown = Shown(make_console(), len(missing))

            def look(asking: "Asking") -> bool:
                shown.update(asking)
                return stop.requested

            try:
                # Twice as many as may be on their way: some wait to be asked again.
                await asking.run(missing, 2 * collect.concurrency, failures, look)
            finally:
                shown.close()
    return asking


def _endpoint(collect: Collect) -> Any:
    from gad_jax.teacher import Endpoint

    try:
        return Endpoint(collect.base_url, collect.model, collect.key_variable)
    except ValueError as error:
        raise UserError(f"--{error}") from None


def _missing(asked: list["Question"], contents: "Contents") -> list["Question"]:
    return [question for question in asked if (question.key, question.sample) not in contents.have]


def _caps(collect: Collect) -> "Caps":
    from gad_jax.collecting.budget import Caps

    limits = (collect.max_requests, collect.max_total_tokens, collect.max_cost)
    return Caps(*(limit or math.inf for limit in limits))


def _prices(collect: Collect) -> "Prices":
    from gad_jax.collecting.budget import Prices

    return Prices(collect.prompt_price, collect.completion_price)


def dry_run(collect: Collect, asked: list["Question"]) -> int:
    """Says what asking would take; returns the exit code."""
    from gad_jax.collecting import store

    contents = store.scan(Path(collect.out))
    missing = _missing(asked, contents)
    prompt_tokens = _count_prompt_tokens(collect, missing)
    counted = f"{collect.tokenizer}'s" if collect.tokenizer else "taken as 4 bytes each"
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
    return guard.Exit.OK


def _print_cost(
    collect: Collect, what: str, used: "Use", prompt_tokens: int, completion_tokens: int
) -> None:
    prices = _prices(collect)
    more = type(used)(0, prompt_tokens, completion_tokens)
    priced = bool(prices.prompt or prices.completion)
    cost = f", cost {prices.cost(more):.4g}" if priced else "; give prices to see the cost"
    print(f"with {what}: {completion_tokens:,} response tokens{cost}")


def _count_prompt_tokens(collect: Collect, missing: list["Question"]) -> int:
    texts = [message["content"] for question in missing for message in question.sent]
    if not collect.tokenizer:
        return -(-sum(len(text.encode()) for text in texts) // _BYTES_PER_TOKEN)
    from gad_jax.data.tokenizer import load_tokenizer
    from gad_jax.models import source

    tokenizer = load_tokenizer(source.resolve(collect.tokenizer))
    parts = (texts[start : start + 1024] for start in range(0, len(texts), 1024))
    return sum(len(ids) for part in parts for ids in tokenizer(part)["input_ids"])


def _beside(out: str, ending: str) -> Path:
    """`answers.failed.jsonl` for `answers.jsonl`."""
    return Path(out).with_name(f"{Path(out).name.removesuffix('.jsonl')}.{ending}")


def _write_manifest(
    collect: Collect, teacher: "Teacher", contents: "Contents", asking: "Asking"
) -> None:
    spent = asking.budget.spent
    manifest = {
        "source": collect.prompts,
        "base_url": collect.base_url,
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
    guard.write_atomic(_beside(collect.out, "manifest.json"), text)


def report(collect: Collect, asking: "Asking", wanted: int, seconds: float) -> None:
    """Says how asking went."""
    from gad_jax.collecting.progress import spend

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
    faults = ", ".join(f"{count} × {reason}" for reason, count in asking.client.faults.items())
    print(f"{asking.client.attempts} requests sent{f', faults: {faults}' if faults else ''}")


if __name__ == "__main__":
    sys.exit(main())
