"""A teacher that this program runs: the decode engine answers the questions, some at a time."""

import asyncio
from collections.abc import Callable, Sequence

import jax

from gad_jax.base.errors import UserError
from gad_jax.collect.settings import Collect
from gad_jax.distributed.mesh import make_mesh
from gad_jax.rollout.answering import Responder
from gad_jax.settings import template_arguments
from gad_jax.settings.decoding import Decoding
from gad_jax.teacher import collection
from gad_jax.teacher import store as storing
from gad_jax.teacher.budget import Budget
from gad_jax.teacher.collection import Terms
from gad_jax.teacher.questions import Question, Teacher
from gad_jax.teacher.requests import Failures, Requests
from gad_jax.teacher.store import Store
from gad_jax.teacher.wire import Completion, Reply, Usage
from gad_jax.training import loading

QUESTIONS_PER_SLOT = 4
"""In one call of the decode engine: slots whose response ends early take the next question."""


async def collect(
    settings: Collect, teacher: Teacher, store: Store, questions: Sequence[Question]
) -> "LocalRequests":
    """Loads the teacher, answers the questions and keeps the responses in `store`; returns the
    counts of the run."""
    known = {"temperature": 1.0, "max_tokens": 0} | settings.sampling
    known["max_new_tokens"] = known.pop("max_tokens")
    arguments = template_arguments.show(known.pop("chat_template_kwargs", {}))
    mesh = make_mesh()
    try:
        decoding = Decoding(**known)
    except ValueError as error:
        raise UserError(f"--{error}") from None
    with jax.set_mesh(mesh):
        network = loading.load_student(settings.local, mesh)
        chat = network.load_chat(arguments=arguments)
        slots = settings.concurrency
        responder = Responder(network.config, network.params, chat, mesh, decoding, slots)
        budget = Terms.of(settings, settings.max_requests).budget(store.contents)
        requests = LocalRequests(teacher, responder, network.origin, store, budget)
        await collection.run_with_progress(requests, questions, slots)
    return requests


class LocalRequests(Requests):
    """A run whose teacher is a model in this process.

    `responder` draws one sample per prompt; `origin` says where its weights come from. The random
    numbers of a response depend on the seed and the question alone. So a run that was stopped
    resumes with the responses that it would have given.
    """

    def __init__(
        self, teacher: Teacher, responder: Responder, origin: str, store: Store, budget: Budget
    ) -> None:
        super().__init__(teacher, store, budget)
        self.responder, self.origin = responder, origin

    async def run(
        self,
        questions: Sequence[Question],
        at_once: int,
        failures: Failures,
        look: Callable[[Requests], bool],
    ) -> None:
        """Answers the questions in groups; each group is on the disk before the next begins. When
        `look` returns True, no further group begins."""
        allowed = int(min(self.budget.caps.requests - self.budget.spent.requests, len(questions)))
        group = QUESTIONS_PER_SLOT * at_once
        for start in range(0, allowed, group):
            if look(self):
                self.ended = "stopped"
                return
            await self._answer(questions[start : min(start + group, allowed)], failures)
        look(self)
        if allowed < len(questions):
            self.ended = "budget"

    async def _answer(self, questions: Sequence[Question], failures: Failures) -> None:
        self.store.check_room(len(questions))
        prompts = self.responder.encode([question.sent for question in questions])
        fitting = []
        for question, prompt in zip(questions, prompts, strict=True):
            if len(prompt) <= self.responder.longest_prompt:
                fitting.append((question, prompt))
            else:
                self.refused += 1
                fit = self.responder.longest_prompt
                reason = f"it has {len(prompt)} tokens, and {fit} fit with the longest response"
                failures.add(question, f"refused: {reason}")
        if not fitting:
            return
        # 28 bits, because the engine folds int32 numbers into its key.
        numbers = [int(question.idempotency_key[:7], 16) for question, _ in fitting]
        groups = self.responder.answers([prompt for _, prompt in fitting], numbers)
        lines = []
        for (question, prompt), (answer,) in zip(fitting, groups, strict=True):
            completion = Completion(answer.text, "stop" if answer.finished else "length")
            usage = Usage(len(prompt), answer.tokens + answer.thought_tokens)
            reply = Reply("", self.origin, (completion,), usage)
            lines.append(storing.make_line(question, self.teacher, reply))
        await asyncio.gather(*(self.store.add(line) for line in lines))
        for line in lines:
            self.budget.settle(storing.used(line))
        self.answered += len(lines)
