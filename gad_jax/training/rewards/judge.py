"""A judge model as a term of the reward: each verdict is paid once, and kept in the run directory.

The judge sees the teacher's response first and the student's second. Its liking for a place is then
the same for all responses to a prompt, and advantages compare only those.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gad_jax.base.errors import UserError
from gad_jax.data.sources.rows import conversation_text
from gad_jax.metrics.judging import protocol
from gad_jax.settings.reward_judge import FILE, RewardJudge
from gad_jax.teacher import store as storing
from gad_jax.teacher.client import Client
from gad_jax.teacher.collection import Service, sibling
from gad_jax.teacher.failed_file import Failures
from gad_jax.teacher.pace import Pace
from gad_jax.teacher.questions import Question, Teacher, request_key
from gad_jax.teacher.requests import ChatRequests
from gad_jax.teacher.store import Line, Store
from gad_jax.teacher.wire import Completion, Reply, Usage
from gad_jax.training.rewards.rules import Row

NO_ANSWER = "no answer"
"""The finish reason in the line of a request that the judge did not answer."""

DROPPED = "dropped"
"""The finish reason in the line that takes back the verdict before it, of a step that stopped."""

Read = Callable[[str, str], float]
"""Reads a verdict from its text and finish reason; NaN if it cannot be read."""


class _Unread(Exception):
    """Too many consecutive verdicts could not be read."""


class _Verdicts(Store):
    """A store that reads each verdict that comes; `in_a_row` counts those that cannot be read."""

    in_a_row = 0
    last = ("", "")

    def watch(self, readers: Mapping[str, Read]) -> None:
        """Sets how the verdicts that are asked for now are read, by key."""
        self.readers, self.found = readers, dict[str, float]()

    async def add(self, line: Line) -> None:
        """Adds a verdict. Raises `_Unread`, after it is kept, if it is one too many."""
        await super().add(line)
        if line["finish_reason"] == DROPPED:
            return
        said = line["teacher_response"], line["finish_reason"]
        value = self.found[line["key"]] = self.readers[line["key"]](*said)
        if not math.isnan(value):
            self.in_a_row = 0
        elif line["finish_reason"] != NO_ANSWER:
            self.in_a_row, self.last = self.in_a_row + 1, said
            if self.in_a_row >= protocol.MOST_UNREAD:
                raise _Unread


class Judge:
    """The judge of a run. Only the first process asks it; `close` ends what it keeps open."""

    def __init__(self, settings: RewardJudge, directory: Path) -> None:
        try:
            self.service = Service.of(settings)
        except ValueError as error:
            raise UserError(f"--reward.judge.{error}") from None
        self.protocol: protocol.Protocol = settings.protocol
        self.teacher = Teacher(settings.model, "", settings.sampling)
        self.path = directory / FILE
        self._verdicts: _Verdicts | None = None
        self._values: dict[str, float] = {}
        self._stored: dict[str, tuple[str, str]] = {}
        self._step: dict[str, Question] = {}
        self._dropped = Counter[str]()
        self.refusal = ""
        """Why a question of the last call has no verdict, in the words of service or judge."""

    def __call__(self, rows: Sequence[Row]) -> list[float]:
        """Returns the judge's share of each response against the teacher's, in [0, 1]; NaN where no
        verdict can be read.

        Raises UserError where the service fails, the budget is used up, or `protocol.MOST_UNREAD`
        verdicts in a row cannot be read. What came until then is kept if it can be read.
        """
        if self._verdicts is None:
            self._open()
        keys = []
        self._step, self.refusal = {}, ""
        asked: dict[str, tuple[Question, Read]] = {}
        for row in rows:
            texts = (conversation_text(row.messages), row.teacher_answer, row.answer)
            sent = protocol.question(self.protocol, *texts)
            key = request_key(self.teacher, sent)
            keys.append(key)
            # By another number, or a server may send what was dropped instead of a new verdict.
            self._step[key] = Question(key, self._dropped[key], row.place, sent, sent)
            if key not in self._values:
                read = self._reader(texts)
                if key in self._stored:
                    self._values[key] = read(*self._stored.pop(key))
                else:
                    asked[key] = self._step[key], read
        if asked:
            self._values |= self._runner.run(self._ask(asked))
        return [self._values[key] for key in keys]

    def drop_unread(self) -> None:
        """Drops what could not be read in the last call, for a step that no one trains on: a run
        that resumes requests it once more."""
        self._runner.run(self._drop(self._values))

    def close(self) -> None:
        """Closes the file and the loop of the requests."""
        if self._verdicts is not None:
            self._verdicts.close()
            self._runner.close()
            self._verdicts = None

    def _open(self) -> None:
        for line in storing.read_lines(self.path):
            said = str(line.get("teacher_response", "")), line["finish_reason"]
            if line["finish_reason"] == DROPPED:
                self._stored.pop(line["key"], None)
                self._dropped[line["key"]] += 1
            else:
                self._stored.setdefault(line["key"], said)
        # One loop for the run: the store's lock belongs to it.
        self._runner = asyncio.Runner()
        self._verdicts = _Verdicts.open(self.path)
        self._spent = self._verdicts.contents.used

    def _reader(self, shown: tuple[str, str, str]) -> Read:
        def read(text: str, finish_reason: str) -> float:
            teacher = protocol.share(self.protocol, text, shown, finish_reason)
            return math.nan if teacher is None else 1 - teacher

        return read

    async def _ask(self, asked: Mapping[str, tuple[Question, Read]]) -> dict[str, float]:
        """Returns what the judge says to the questions, by key, once all of it is kept."""
        verdicts, service = self._verdicts, self.service
        assert verdicts is not None
        verdicts.watch({key: read for key, (_, read) in asked.items()})
        questions = [question for question, _ in asked.values()]
        budget = service.terms.budget(verdicts.contents._replace(used=self._spent))
        failures = Failures(sibling(self.path, "failed.jsonl"), questions)
        async with Client(service.endpoint, service.patience, Pace(service.concurrency)) as client:
            longest = service.terms.longest_response
            requests = ChatRequests(self.teacher, client, verdicts, budget, longest)
            try:
                await requests.run(questions, 2 * service.concurrency, failures, lambda _: False)
            except _Unread:
                said = self._unread(verdicts)
                await self._drop(self._values | verdicts.found)
                raise UserError(said) from None
            finally:
                self._spent = budget.spent
                self.refusal = failures.last or self._last_unread(verdicts)
        if requests.ended == "budget":
            raise UserError(
                f"the budget of the judge is used up: of it, {budget.spent.tokens} tokens are "
                "spent, and the next verdict may take more than the rest; raise "
                "--reward.judge.max_total_tokens or max_cost, and the same command resumes"
            )
        # A resumed run then trains on the same rewards.
        await self._keep([one for one in questions if one.key not in verdicts.found], NO_ANSWER)
        return verdicts.found

    async def _drop(self, values: Mapping[str, float]) -> None:
        unread = [one for key, one in self._step.items() if math.isnan(values.get(key, 0.0))]
        await self._keep(unread, DROPPED)
        for question in unread:
            self._values.pop(question.key, None)
            self._dropped[question.key] += 1
        assert self._verdicts is not None
        self._verdicts.in_a_row = 0

    async def _keep(self, questions: Sequence[Question], reason: str) -> None:
        """Keeps that a question has no answer, or none that counts."""
        assert self._verdicts is not None
        reply = Reply("", self.teacher.model, (Completion("", reason),), Usage(0, 0))
        lines = [storing.make_line(question, self.teacher, reply) for question in questions]
        await asyncio.gather(*map(self._verdicts.add, lines))

    def _last_unread(self, verdicts: _Verdicts) -> str:
        if not verdicts.in_a_row:
            return ""
        return f"it said {protocol.excerpt(*verdicts.last)}"

    def _unread(self, verdicts: _Verdicts) -> str:
        return (
            f"{self.teacher.model}: {protocol.MOST_UNREAD} verdicts in a row could not be read, "
            f"the last one {protocol.excerpt(*verdicts.last)}; correct the judge, and the same "
            "command resumes; for another --reward.judge.model, or max_new_tokens if it was cut, "
            "begin another --run_dir"
        )
