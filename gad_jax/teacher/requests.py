"""Sends the open questions to the teacher and keeps every response, until done or stopped."""

import abc
import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gad_jax.base.errors import UserError
from gad_jax.teacher import store as storing
from gad_jax.teacher.budget import Budget, Use
from gad_jax.teacher.client import Client, PromptRefused, Rejected, Unanswered
from gad_jax.teacher.failed_file import Failures
from gad_jax.teacher.questions import Question, Teacher, most_prompt_tokens
from gad_jax.teacher.store import Store

CONSECUTIVE_UNANSWERED = 20
"""After so many consecutive requests without an answer, each retried, the server counts as dead."""

CONSECUTIVE_REJECTED = 50
"""After so many consecutive rejections in the same words, which do not say that they are about the
prompt, the server counts as one that rejects all: a key may have been revoked."""

LOOK_SECONDS = 0.1


class Requests(abc.ABC):
    """One run over the open questions, and its counts so far.

    `ended` says why the run is over: done, stopped or budget.
    """

    def __init__(self, teacher: Teacher, store: Store, budget: Budget) -> None:
        self.teacher, self.store, self.budget = teacher, store, budget
        self.answered = self.refused = self.unanswered = self.replaced = 0
        self.ended = "done"
        self.refused_prompts: list[str] = []

    @property
    def faults(self) -> Mapping[str, int]:
        """The faults of attempts, and how often each came."""
        return {}

    @property
    def note(self) -> str:
        """What the progress display adds."""
        return ""

    @abc.abstractmethod
    async def run(
        self,
        questions: Sequence[Question],
        at_once: int,
        failures: Failures,
        look: Callable[["Requests"], bool],
    ) -> None:
        """Sends the questions, `at_once` at a time, until `look` returns True."""


class ApiRequests(Requests):
    """A run whose teacher is behind an API."""

    def __init__(
        self,
        teacher: Teacher,
        client: Client,
        store: Store,
        budget: Budget,
        most_completion_tokens: int,
    ) -> None:
        super().__init__(teacher, store, budget)
        self.client, self.most_completion_tokens = client, most_completion_tokens
        self._consecutive_unanswered = 0
        # Whether this teacher has answered such requests, so that a rejection is about its prompt.
        name = storing.teacher_name(teacher.model, dict(teacher.parameters))
        self._proven = name in store.contents.teachers

    @property
    def faults(self) -> Mapping[str, int]:
        """The faults of attempts, and how often each came."""
        return self.client.faults

    @property
    def attempts(self) -> int:
        """How many requests were sent, retries included."""
        return self.client.attempts

    def refuse(self, question: Question, failures: Failures, reason: str) -> None:
        """Counts a prompt that the server will not answer."""
        self.refused += 1
        self.refused_prompts.append(question.row)
        failures.add(question, f"refused: {reason}", final=True)

    def most(self, question: Question) -> Use:
        """Returns the most that the response to a question may use."""
        return Use(1, most_prompt_tokens(question.sent), self.most_completion_tokens)


class ChatRequests(ApiRequests):
    """A run that sends one question per request, many at once."""

    _busy = _in_a_row = 0
    _asking = _doubting = 0  # workers with a question, and those of them that wait in `_decide`
    _draining = False
    _error: Exception | None = None
    _alike = ""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._rejected: dict[str, list[Question]] = {}  # by the words of the rejection

    async def run(
        self,
        questions: Sequence[Question],
        at_once: int,
        failures: Failures,
        look: Callable[[Requests], bool],
    ) -> None:
        """Sends the questions. `look` is called every `LOOK_SECONDS` and before each question. When
        it returns True, no further one is sent, and those in flight are waited for. An error has
        the same effect, and is raised once their responses are kept."""
        queue = iter(questions)
        watching = asyncio.create_task(self._watch(look))
        try:
            await asyncio.gather(*(self._work(queue, failures, look) for _ in range(at_once)))
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            look(self)
        if self._error is not None:
            raise self._error

    async def _watch(self, look: Callable[[Requests], bool]) -> None:
        while True:
            self._must_end(look)
            await asyncio.sleep(LOOK_SECONDS)

    def _must_end(self, look: Callable[[Requests], bool]) -> bool:
        """Calls `look`, and returns whether no further question is sent."""
        if look(self) and not self._draining:
            self._drain("stopped")
        return self._draining

    def _drain(self, why: str, error: Exception | None = None) -> None:
        if not self._draining or (why == "error" and self.ended == "budget"):
            self.ended, self._error = why, error
        self._draining = True
        if why != "budget":  # there, the waiting requests hold a promise of their share
            self.client.hurry()

    async def _work(
        self, queue: Iterator[Question], failures: Failures, look: Callable[[Requests], bool]
    ) -> None:
        while not self._must_end(look) and (question := next(queue, None)) is not None:
            self._asking += 1
            try:
                try:
                    await self._send_within_budget(question, failures)
                except Rejected as error:  # outside of the budget's promise, which others wait for
                    await self._decide(question, failures, error)
            except Exception as error:
                self._drain("error", error)
            finally:
                self._asking -= 1

    async def _send_within_budget(self, question: Question, failures: Failures) -> None:
        async with self.budget.promise(self.most(question)) as fits:
            if not fits:
                self._drain("budget")
            if self._draining:
                return
            try:
                with self._in_flight():
                    await self._send(question)
            except PromptRefused as error:
                self._consecutive_unanswered = 0
                self.refuse(question, failures, str(error))
            except Unanswered as error:
                if not self._draining:
                    failures.add(question, f"unanswered: {error}")
                    self._count_unanswered(error)

    async def _decide(self, question: Question, failures: Failures, error: Rejected) -> None:
        """Counts a rejection against its prompt if any other request is answered. If each worker's
        request is rejected, all would be."""
        self._doubting += 1
        while not self._proven and self._doubting < self._asking:
            if self._draining and self.ended != "budget":
                break
            await asyncio.sleep(LOOK_SECONDS)
        self._doubting -= 1
        if not self._proven or self._error is not None:
            failures.add(question, f"rejected: {error.reason}")
            self._drain("error", error)
            return
        self._consecutive_unanswered = 0
        self.refuse(question, failures, error.reason)
        alike = re.sub(r"[0-9]+", "0", error.reason)
        self._in_a_row = self._in_a_row + 1 if alike == self._alike else 1
        self._alike = alike
        self._rejected.setdefault(alike, []).append(question)
        if self._in_a_row >= CONSECUTIVE_REJECTED:
            failures.reopen(self._rejected[alike])
            self._drain("error", UserError(f"{error}; {self._in_a_row} in a row got this"))

    @contextlib.contextmanager
    def _in_flight(self) -> Iterator[None]:
        self._busy += 1
        try:
            self.store.check_room(self._busy)
            yield
        finally:
            self._busy -= 1

    async def _send(self, question: Question) -> None:
        reply = await self.client.chat(
            question.sent, self.teacher.parameters, question.idempotency_key
        )
        line = storing.make_line(question, self.teacher, reply)
        self.budget.settle(storing.used(line))
        await self.store.add(line)
        self._consecutive_unanswered = 0
        self._proven = True
        self._in_a_row = 0
        self.answered += 1
        self.replaced += reply.replaced

    def _count_unanswered(self, error: Unanswered) -> None:
        self.unanswered += 1
        self._consecutive_unanswered += 1
        count = self._consecutive_unanswered
        if count >= CONSECUTIVE_UNANSWERED:
            dead = UserError(
                f"{self.client.endpoint.base_url}: {count} requests in a row got no answer (the "
                f"last: {error}); see whether the server runs and start again, which asks for what "
                "is missing"
            )
            self._drain("error", dead)
