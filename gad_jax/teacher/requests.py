"""Puts the questions that are open to the teacher and keeps every answer, until done or stopped."""

import asyncio
import contextlib
import datetime
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gad_jax.base.errors import UserError
from gad_jax.teacher import Client, PromptRefused, Unanswered
from gad_jax.teacher import store as storing
from gad_jax.teacher.budget import Budget, Use
from gad_jax.teacher.questions import Question, Teacher, most_prompt_tokens
from gad_jax.teacher.store import Store

UNANSWERED_IN_A_ROW = 20
"""So many requests without an answer, each asked many times, and the server is taken for dead."""

LOOK_SECONDS = 0.1


class Collection:
    """One run over the open questions: what came of it so far. `ended` says why it is over: done,
    stopped or budget."""

    def __init__(self, teacher: Teacher, store: Store, budget: Budget) -> None:
        self.teacher, self.store, self.budget = teacher, store, budget
        self.answered = self.refused = self.unanswered = 0
        self.ended = "done"

    @property
    def faults(self) -> Mapping[str, int]:
        """How often what went wrong with an attempt."""
        return {}

    @property
    def attempts(self) -> int:
        """The requests that were sent."""
        return 0

    @property
    def note(self) -> str:
        """What else is to be shown while it runs."""
        return ""


class ApiCollection(Collection):
    """A run that asks an API."""

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
        self._in_a_row = 0

    @property
    def faults(self) -> Mapping[str, int]:
        """How often what went wrong with an attempt."""
        return self.client.faults

    @property
    def attempts(self) -> int:
        """The requests that were sent."""
        return self.client.attempts

    def most(self, question: Question) -> Use:
        """Returns what the answer to a question may cost."""
        return Use(1, most_prompt_tokens(question.sent), self.most_completion_tokens)


class Asking(ApiCollection):
    """A run that asks one question per request, many at once."""

    _busy = 0
    _draining = False
    _error: Exception | None = None

    async def run(
        self,
        questions: Sequence[Question],
        workers: int,
        failures: "Failures",
        look: Callable[["Asking"], bool],
    ) -> None:
        """Asks the questions. `look` is called again and again; when it returns True no further
        question is asked, and those on the way are waited for. An error does the same, and is
        raised when their answers are kept."""
        queue = iter(questions)
        watching = asyncio.create_task(self._watch(look))
        try:
            await asyncio.gather(*(self._work(queue, failures) for _ in range(workers)))
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            look(self)
        if self._error is not None:
            raise self._error

    async def _watch(self, look: Callable[["Asking"], bool]) -> None:
        while True:
            if look(self) and not self._draining:
                self._drain("stopped")
            await asyncio.sleep(LOOK_SECONDS)

    def _drain(self, why: str, error: Exception | None = None) -> None:
        if not self._draining:
            self.ended, self._error = why, error
        self._draining = True
        if why != "budget":  # there, requests that wait were promised their share
            self.client.hurry()

    async def _work(self, queue: Iterator[Question], failures: "Failures") -> None:
        while not self._draining and (question := next(queue, None)) is not None:
            try:
                await self._ask_within_budget(question, failures)
            except Exception as error:
                self._drain("error", error)

    async def _ask_within_budget(self, question: Question, failures: "Failures") -> None:
        async with self.budget.promise(self.most(question)) as fits:
            if not fits:
                self._drain("budget")
            if self._draining:
                return
            try:
                with self._on_its_way():
                    await self._ask(question)
            except PromptRefused as error:
                self.refused += 1
                self._in_a_row = 0
                failures.add(question, f"refused: {error}")
            except Unanswered as error:
                if not self._draining:
                    failures.add(question, f"unanswered: {error}")
                    self._count_unanswered(error)

    @contextlib.contextmanager
    def _on_its_way(self) -> Iterator[None]:
        self._busy += 1
        try:
            self.store.check_room(self._busy)
            yield
        finally:
            self._busy -= 1

    async def _ask(self, question: Question) -> None:
        reply = await self.client.chat(
            question.sent, self.teacher.parameters, question.idempotency_key
        )
        line = storing.make_line(question, self.teacher, reply)
        self.budget.settle(storing.used(line))
        await self.store.add(line)
        self._in_a_row = 0
        self.answered += 1

    def _count_unanswered(self, error: Unanswered) -> None:
        self.unanswered += 1
        self._in_a_row += 1
        if self._in_a_row >= UNANSWERED_IN_A_ROW:
            where = self.client.endpoint.base_url
            dead = UserError(
                f"{where}: {self._in_a_row} requests in a row got no answer (the last: {error}); "
                "see whether the server runs and start again, which asks for what is missing"
            )
            self._drain("error", dead)


class Failures:
    """A file of the questions that this run got no answer to, and why; gone when there are none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)

    def add(self, question: Question, reason: str) -> None:
        """Adds a question. The next run asks it again."""
        record: dict[str, Any] = {
            "key": question.key,
            "sample": question.sample,
            "prompt_id": question.row,
            "reason": reason,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
