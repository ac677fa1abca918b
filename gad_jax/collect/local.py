"""A teacher of our own: the decode engine answers the questions, some at a time."""

import asyncio
from collections.abc import Callable, Sequence

from gad_jax.rollout.answering import Responder
from gad_jax.teacher import Completion, Reply, Usage
from gad_jax.teacher import store as storing
from gad_jax.teacher.budget import Budget
from gad_jax.teacher.questions import Question, Teacher
from gad_jax.teacher.requests import Collection, Failures
from gad_jax.teacher.store import Store

BATCH = 4
"""So many questions for each slot are answered by one call: slots that end early take the next."""


class LocalAsking(Collection):
    """A run that has a model of our own answer.

    `responder` draws one sample per prompt, and `origin` says where its network is from. What is
    drawn for a question depends on the seed and on the question alone, so a run that was stopped
    resumes with the answers that it would have given.
    """

    def __init__(
        self, teacher: Teacher, responder: Responder, origin: str, store: Store, budget: Budget
    ) -> None:
        super().__init__(teacher, store, budget)
        self.responder, self.origin = responder, origin

    async def run(
        self,
        questions: Sequence[Question],
        slots: int,
        failures: Failures,
        look: Callable[["LocalAsking"], bool],
    ) -> None:
        """Answers the questions, and has them on the disk a batch at a time. When `look` returns
        True no further batch is begun."""
        allowed = int(min(self.budget.caps.requests - self.budget.spent.requests, len(questions)))
        for start in range(0, allowed, BATCH * slots):
            if look(self):
                self.ended = "stopped"
                return
            await self._answer(questions[start : min(start + BATCH * slots, allowed)], failures)
        look(self)
        if allowed < len(questions):
            self.ended = "budget"

    async def _answer(self, questions: Sequence[Question], failures: Failures) -> None:
        self.store.check_room(len(questions))
        prompts = self.responder.encode([question.sent for question in questions])
        asked = []
        for question, prompt in zip(questions, prompts, strict=True):
            if len(prompt) <= self.responder.longest_prompt:
                asked.append((question, prompt))
            else:
                self.refused += 1
                fit = self.responder.longest_prompt
                reason = f"it has {len(prompt)} tokens, and {fit} fit beside the longest answer"
                failures.add(question, f"refused: {reason}")
        if not asked:
            return
        numbers = [int(question.idempotency_key[:7], 16) for question, _ in asked]
        groups = self.responder.answers([prompt for _, prompt in asked], numbers)
        lines = []
        for (question, prompt), (answer,) in zip(asked, groups, strict=True):
            completion = Completion(answer.text, "stop" if answer.finished else "length")
            usage = Usage(len(prompt), answer.tokens)
            reply = Reply("", self.origin, (completion,), usage)
            lines.append(storing.make_line(question, self.teacher, reply))
        await asyncio.gather(*(self.store.add(line) for line in lines))
        for line in lines:
            self.budget.settle(storing.used(line))
        self.answered += len(lines)
