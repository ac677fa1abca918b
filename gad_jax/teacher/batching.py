"""Sends the open questions through the provider's batch mode, and keeps the responses.

Every batch has a file in `OUT.batches/`. It is written before the batch is created, and deleted
once the responses are on the disk. So the next run finds every open batch, whatever happened: none
is paid twice and none is forgotten. The batch carries the name of its file. If a run was killed
while it created a batch, the next run finds the batch by that name.
"""

import asyncio
import contextlib
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gad_jax.base import files
from gad_jax.base.errors import UserError
from gad_jax.teacher import batches
from gad_jax.teacher import store as storing
from gad_jax.teacher.batch_format import BatchResponse, BatchStatus
from gad_jax.teacher.batches import BatchRequest
from gad_jax.teacher.budget import Budget
from gad_jax.teacher.client import Client, PromptRefused, Rejected, Unanswered
from gad_jax.teacher.failed_file import Failures
from gad_jax.teacher.questions import Question, Teacher
from gad_jax.teacher.requests import (
    CONSECUTIVE_UNANSWERED,
    LOOK_SECONDS,
    ApiRequests,
    Requests,
)
from gad_jax.teacher.store import Store

MOST_BYTES = 100 * 2**20
"""Size limit of the requests of one batch; providers accept 200 MB."""

WRITTEN_TOGETHER = 500
"""Lines per write and fsync: a killed run keeps most of a large batch."""


@dataclass
class Batch:
    """An open batch. `id` is the provider's name for it, empty until known. `tried` says whether
    the provider may have it."""

    path: Path
    teacher: Teacher
    questions: list[Question]
    id: str = ""
    tried: bool = False
    done: int = 0

    @classmethod
    def load(cls, path: Path) -> "Batch":
        """Returns the batch in a file. Raises UserError for any other file."""
        files.need_regular(path)
        try:
            record = json.loads(path.read_bytes())
            questions = [
                Question(**fields | {n: tuple(fields[n]) for n in ("messages", "sent")})
                for fields in record["questions"]
            ]
            return cls(path, Teacher(**record["teacher"]), questions, record["id"], tried=True)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is not a batch that collect wrote; delete it to give up what it asked for"
            ) from error

    def save(self) -> None:
        """Writes the file."""
        record = {
            "id": self.id,
            "teacher": asdict(self.teacher),
            "questions": [asdict(question) for question in self.questions],
        }
        files.write_atomic(self.path, json.dumps(record, ensure_ascii=False))

    def requests(self) -> Iterator[BatchRequest]:
        """Yields the requests of the batch."""
        for question in self.questions:
            yield _request(self.teacher, question)


def directory(out: str | Path) -> Path:
    """Returns the directory for a file's batches: `answers.batches/` for `answers.jsonl`."""
    return Path(out).with_name(f"{Path(out).name.removesuffix('.jsonl')}.batches")


def open_batches(out: str | Path) -> list[Batch]:
    """Returns the batches that earlier runs submitted and whose responses are not stored yet."""
    return [Batch.load(path) for path in sorted(directory(out).glob("*.json"))]


def responses(batches: Sequence[Batch]) -> int:
    """Returns how many responses these batches request."""
    return sum(len(batch.questions) for batch in batches)


class BatchedRequests(ApiRequests):
    """A run in batch mode; `open` are the open batches."""

    def __init__(
        self,
        teacher: Teacher,
        client: Client,
        store: Store,
        budget: Budget,
        most_completion_tokens: int,
        *,
        batch_requests: int,
        poll_seconds: float,
        open: list[Batch],
    ) -> None:
        super().__init__(teacher, client, store, budget, most_completion_tokens)
        self.batch_requests, self.poll_seconds = batch_requests, poll_seconds
        self.open = open
        self._failed: Counter[str] = Counter()
        self._stopping = asyncio.Event()

    @property
    def faults(self) -> Mapping[str, int]:
        """The faults of attempts and of batches, and how often each came."""
        return {**self.client.faults, **self._failed}

    @property
    def note(self) -> str:
        """The state of the open batches."""
        asked = responses(self.open)
        done = sum(batch.done for batch in self.open)
        return f"{len(self.open)} batches open, {done} of {asked} requests answered"

    async def run(
        self,
        questions: Sequence[Question],
        at_once: int,
        failures: Failures,
        look: Callable[[Requests], bool],
    ) -> None:
        """Creates batches for the questions that are in none, and waits for all batches. When
        `look` returns True it returns. The batches stay with the provider, and the next run
        fetches them."""
        self._write_batches(questions)
        watching = asyncio.create_task(self._watch(look))
        try:
            while self.open and not self._stopping.is_set():
                for batch in list(self.open):
                    if not self._stopping.is_set():
                        await self._advance(batch, failures)
                with contextlib.suppress(TimeoutError):
                    if self.open:
                        await asyncio.wait_for(self._stopping.wait(), self.poll_seconds)
        finally:
            watching.cancel()
            look(self)
        if self.open:
            self.ended = "stopped"

    async def _watch(self, look: Callable[[Requests], bool]) -> None:
        while not look(self):
            await asyncio.sleep(LOOK_SECONDS)
        self._stopping.set()
        self.client.hurry()

    def _write_batches(self, questions: Sequence[Question]) -> None:
        """Writes the files of the batches to create, as far as the budget allows."""
        asked = {
            (question.key, question.sample) for batch in self.open for question in batch.questions
        }
        promised = self.budget.spent
        for batch in self.open:
            for question in batch.questions:
                promised = promised.plus(self.most(question))
        group: list[Question] = []
        size = 0
        for question in questions:
            if (question.key, question.sample) in asked:
                continue
            promised = promised.plus(self.most(question))
            if not self.budget.allows(promised):
                self.ended = "budget"
                break
            length = len(_request(self.teacher, question).line())
            if group and (len(group) == self.batch_requests or size + length > MOST_BYTES):
                self._add(group)
                group, size = [], 0
            group.append(question)
            size += length
        if group:
            self._add(group)

    def _add(self, questions: list[Question]) -> None:
        self.store.check_room(len(questions))
        place = directory(self.store.path)
        place.mkdir(exist_ok=True)
        batch = Batch(place / f"{uuid.uuid4().hex}.json", self.teacher, questions)
        batch.save()
        self.open.append(batch)

    async def _advance(self, batch: Batch, failures: Failures) -> None:
        """Creates the batch if the provider does not have it; keeps its responses if it ended."""
        try:
            if not batch.id:
                await self._submit(batch)
            status = await batches.status(self.client, batch.id)
            batch.done = status.done
            if status.ended:
                await self._keep(batch, status, failures)
            self._consecutive_unanswered = 0
        except Unanswered as error:
            self._consecutive_unanswered += 1
            count = self._consecutive_unanswered
            if count >= CONSECUTIVE_UNANSWERED:
                raise UserError(
                    f"{self.client.endpoint.base_url}: {count} requests in a row got no answer "
                    f"(the last: {error}); start again later, the batches continue at the provider"
                ) from None

    async def _submit(self, batch: Batch) -> None:
        name = batch.path.stem
        if batch.tried:
            batch.id = await batches.find(self.client, name)
        if not batch.id:
            batch.tried = True
            batch.id = await batches.create(self.client, name, batch.requests())
        batch.save()

    async def _keep(self, batch: Batch, status: BatchStatus, failures: Failures) -> None:
        """Stores the responses of a batch that has ended, then deletes the batch's file."""
        responses = {
            response.custom_id: response
            for response in await batches.responses(self.client, status)
        }
        if status.status != "completed":
            said = f" ({status.problem})" if status.problem else ""
            self._failed[f"batch {status.status}{said}"] += 1
        lines = []
        doubts: list[tuple[Question, Rejected]] = []
        for question in batch.questions:
            if (question.key, question.sample) in self.store.contents.have:
                continue  # an earlier run was killed while it stored this batch
            response = responses.get(question.idempotency_key)
            try:
                line = self._line(batch, question, response, status, failures)
            except Rejected as error:
                doubts.append((question, error))
                continue
            if line is not None:
                lines.append(line)
        self._proven = self._proven or bool(lines)
        for question, error in doubts:
            self._count_rejected(question, error, failures)
        for start in range(0, len(lines), WRITTEN_TOGETHER):
            together = lines[start : start + WRITTEN_TOGETHER]
            await asyncio.gather(*(self.store.add(line) for line in together))
            for line in together:
                self.budget.settle(storing.used(line))
            self.answered += len(together)
        batch.path.unlink()
        self.open.remove(batch)
        with contextlib.suppress(OSError):  # it holds other batches
            batch.path.parent.rmdir()

    def _line(
        self,
        batch: Batch,
        question: Question,
        response: BatchResponse | None,
        status: BatchStatus,
        failures: Failures,
    ) -> storing.Line | None:
        try:
            if response is None:
                raise Unanswered(f"the batch is {status.status} and has no answer to it")
            reply = batches.read(response)
            self.replaced += reply.replaced
            return storing.make_line(question, batch.teacher, reply)
        except PromptRefused as error:
            self.refuse(question, failures, str(error))
        except Unanswered as error:
            self.unanswered += 1
            failures.add(question, f"unanswered: {error}")
        return None

    def _count_rejected(self, question: Question, error: Rejected, failures: Failures) -> None:
        """Counts a rejection against its prompt if others were answered; else it may be about
        all, and the next run asks again."""
        if self._proven:
            self.refuse(question, failures, error.reason)
        else:
            self.unanswered += 1
            failures.add(question, f"unanswered: {error.reason}")


def _request(teacher: Teacher, question: Question) -> BatchRequest:
    body = {**teacher.parameters, "model": teacher.model, "messages": list(question.sent)}
    return BatchRequest(question.idempotency_key, body)
