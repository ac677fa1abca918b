"""Collecting responses in a file: requests for what is missing, progress, report, cost estimate."""

import dataclasses
import math
from collections.abc import Container, Sequence
from pathlib import Path

from gad_jax.base import exits
from gad_jax.base.console import Display
from gad_jax.base.redaction import printable, redact
from gad_jax.data.sources.rows import FINISHED, UNFINISHED, fold_reason
from gad_jax.data.tokenizer import load_tokenizer
from gad_jax.models import source
from gad_jax.settings import requests as settings
from gad_jax.settings.requests import RequestSettings
from gad_jax.teacher import batching, failed_file, store
from gad_jax.teacher.batching import Batch, BatchedRequests
from gad_jax.teacher.budget import Budget, Caps, Prices, Use
from gad_jax.teacher.client import Client, Endpoint
from gad_jax.teacher.failed_file import Failures, Name
from gad_jax.teacher.pace import Pace
from gad_jax.teacher.progress import LINE_SECONDS, Progress, cost
from gad_jax.teacher.questions import Question, Teacher
from gad_jax.teacher.requests import ApiRequests, ChatRequests, Requests
from gad_jax.teacher.retrying import Patience
from gad_jax.teacher.store import Contents, Store

_BYTES_PER_TOKEN = 4  # of English, roughly
_TOKENIZED_AT_ONCE = 1024
_NAMED = 10
_ASSUMED_LONGEST = 1024
"""Tokens of a response in an estimate where nothing bounds them."""


@dataclasses.dataclass(frozen=True)
class Terms:
    """What a file of responses may cost. `longest_response` is 0 where nothing bounds it."""

    caps: Caps
    prices: Prices
    longest_response: int

    @classmethod
    def of(cls, given: RequestSettings, max_requests: int = 0) -> "Terms":
        """Returns the terms in the settings of a command, where 0 is no cap."""
        caps = (max_requests, given.max_total_tokens, given.max_cost)
        return cls(
            Caps(*(cap or math.inf for cap in caps)),
            Prices(given.prompt_price, given.completion_price),
            settings.longest_response(given.sampling),
        )

    def budget(self, contents: Contents) -> Budget:
        """Returns the budget of a file with these contents."""
        return Budget(self.caps, self.prices, contents.used)


@dataclasses.dataclass(frozen=True)
class Service:
    """A model behind an API, and how requests to it are sent and paid."""

    endpoint: Endpoint
    patience: Patience
    concurrency: int
    terms: Terms

    @classmethod
    def of(cls, given: RequestSettings, max_requests: int = 0) -> "Service":
        """Returns the service in the settings of a command. Raises ValueError, which begins with a
        field's name, for an endpoint that cannot be one."""
        return cls(
            Endpoint(given.base_url, given.model, given.key_variable),
            Patience(given.attempts, given.timeout, given.max_wait),
            given.concurrency,
            Terms.of(given, max_requests),
        )


@dataclasses.dataclass(frozen=True)
class BatchMode:
    """How a provider's batch mode is used; `open` are the batches that earlier runs submitted."""

    batch_requests: int
    poll_seconds: float
    open: Sequence[Batch] = ()


def missing(
    questions: Sequence[Question], contents: Contents, refused: Container[Name] = ()
) -> list[Question]:
    """Returns the questions whose responses are not in a file yet, without those that are known to
    be refused."""
    names = [(one.key, one.sample) for one in questions]
    return [
        one
        for one, name in zip(questions, names, strict=True)
        if name not in contents.have and name not in refused
    ]


def refused_before(path: Path) -> set[Name]:
    """Returns the questions that earlier runs of a file of responses found refused."""
    return failed_file.refused(sibling(path, "failed.jsonl"))


async def collect(
    service: Service,
    teacher: Teacher,
    store: Store,
    questions: Sequence[Question],
    batch_mode: BatchMode | None = None,
) -> ApiRequests:
    """Sends the questions and keeps the responses in `store`; returns the counts of the run."""
    async with Client(service.endpoint, service.patience, Pace(service.concurrency)) as client:
        budget = service.terms.budget(store.contents)
        parts = (teacher, client, store, budget, service.terms.longest_response)
        # Twice as many as may be in flight: some wait to be retried.
        workers = 2 * service.concurrency
        if batch_mode is None:
            requests = ChatRequests(*parts)
            await run_with_progress(requests, questions, workers)
        else:
            requests = BatchedRequests(
                *parts,
                batch_requests=batch_mode.batch_requests,
                poll_seconds=batch_mode.poll_seconds,
                open=list(batch_mode.open),
            )
            seconds = max(LINE_SECONDS, 5 * batch_mode.poll_seconds)
            waiting = "the batches continue at the provider"
            await run_with_progress(requests, questions, workers, seconds, waiting)
    return requests


async def run_with_progress(
    requests: Requests,
    questions: Sequence[Question],
    at_once: int,
    line_seconds: float = LINE_SECONDS,
    waiting: str = "waiting for the responses on their way",
) -> None:
    """Runs the requests with a progress display, until done or told to stop. The first Ctrl-C says
    `waiting`."""
    failures = Failures(sibling(requests.store.path, "failed.jsonl"), questions)
    display = Display(line_seconds=line_seconds)
    progress = Progress(display, len(questions))
    with exits.StopRequest(waiting, "stopped; what was stored is intact") as stop:
        stop.ready = True

        def look(requests: Requests) -> bool:
            progress.update(requests)
            return stop.requested

        try:
            await requests.run(questions, at_once, failures, look)
        finally:
            display.close()


def report(requests: Requests, wanted: int, seconds: float) -> None:
    """Prints how a run went."""
    path = requests.store.path
    why = {
        "done": "done",
        "stopped": "stopped; the same command resumes it",
        "budget": "stopped: the budget is used up; raise its cap to resume",
    }[requests.ended]
    print(
        f"{why}: {requests.answered} of {wanted} responses in {seconds:.0f} s; "
        f"{path} has {requests.budget.spent.requests}, {cost(requests.budget)}"
    )
    if requests.refused or requests.unanswered:
        where = sibling(path, "failed.jsonl")
        print(f"{requests.refused} refused, {requests.unanswered} unanswered: see {where}")
    if requests.refused_prompts:
        names = ", ".join(requests.refused_prompts[:_NAMED])
        more = len(requests.refused_prompts) - _NAMED
        print(f"refused prompts: {printable(names)}{f' and {more} more' if more > 0 else ''}")
    if isinstance(requests, ApiRequests):
        faults = ", ".join(f"{count} × {reason}" for reason, count in requests.faults.items())
        faults = f", faults: {printable(redact(faults))}" if faults else ""
        print(f"{requests.attempts} requests sent{faults}")
    _report_oddities(requests)


def _report_oddities(requests: Requests) -> None:
    """Says what is odd about responses that are kept all the same."""
    if requests.replaced:
        print(
            f"{requests.replaced} responses had characters that no text can hold (lone surrogates, "
            "NUL or no UTF-8); they were replaced by U+FFFD"
        )
    known = {*FINISHED, *UNFINISHED}
    reasons = requests.store.contents.reasons.items()
    unknown = {name: count for name, count in reasons if fold_reason(name) not in known}
    if unknown:
        names = [f"{name[:40]!r} ({count})" for name, count in list(unknown.items())[:_NAMED]]
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        print(
            f"unknown finish reasons: {printable(', '.join(names))}{more}; training takes these "
            "responses as whole"
        )


def dry_run(
    path: Path,
    questions: Sequence[Question],
    terms: Terms,
    tokenizer: str,
    refused: Container[Name] = (),
) -> None:
    """Prints what the missing responses of a file would cost; sends and writes nothing."""
    contents = store.scan(path)
    open_questions = missing(questions, contents, refused)
    counted = f"{tokenizer}'s" if tokenizer else "taken as 4 bytes each"
    prompt_tokens = _count_prompt_tokens(tokenizer, open_questions)
    if on_their_way := batching.responses(batching.open_batches(path)):
        print(f"{on_their_way} responses are on their way in batches, and are counted again here")
    print(f"{len(open_questions)} to ask for; their prompts: {prompt_tokens:,} tokens ({counted})")
    used, longest = contents.used, terms.longest_response
    if used.requests:
        mean = used.completion_tokens / used.requests
        text = f"responses like the {used.requests} in the file"
        _print_cost(terms.prices, text, prompt_tokens, round(mean * len(open_questions)))
    if longest:
        tokens = longest * len(open_questions)
        _print_cost(terms.prices, "the longest responses", prompt_tokens, tokens)
    else:
        tokens = _ASSUMED_LONGEST * len(open_questions)
        text = f"responses of {_ASSUMED_LONGEST:,} tokens, which is a guess"
        _print_cost(terms.prices, text, prompt_tokens, tokens)
        print("without --max_new_tokens, nothing bounds the responses; give it to bound the cost")


def _print_cost(prices: Prices, what: str, prompt_tokens: int, completion_tokens: int) -> None:
    more = Use(0, prompt_tokens, completion_tokens)
    priced = bool(prices.prompt or prices.completion)
    text = f", cost {prices.cost(more):.4g}" if priced else "; give prices to see the cost"
    print(f"with {what}: {completion_tokens:,} response tokens{text}")


def _count_prompt_tokens(model: str, questions: Sequence[Question]) -> int:
    texts = [message["content"] for question in questions for message in question.sent]
    if not model:
        return -(-sum(len(text.encode()) for text in texts) // _BYTES_PER_TOKEN)
    tokenizer = load_tokenizer(source.resolve(model))
    starts = range(0, len(texts), _TOKENIZED_AT_ONCE)
    parts = (texts[start : start + _TOKENIZED_AT_ONCE] for start in starts)
    return sum(len(ids) for part in parts for ids in tokenizer(part)["input_ids"])


def sibling(path: Path, ending: str) -> Path:
    """Returns `answers.failed.jsonl` for `answers.jsonl` and the ending `failed.jsonl`."""
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.{ending}")
