"""The networks of the experiment, and what is drawn from them and measured with them."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh

from gad_jax.base import files, jsonl
from gad_jax.base.errors import UserError
from gad_jax.data.chat import Chat
from gad_jax.data.sources import Row
from gad_jax.distributed.mesh import make_mesh
from gad_jax.metrics.scoring import Scorer
from gad_jax.rollout.answering import Answer
from gad_jax.settings import template_arguments
from gad_jax.settings.config import Config
from gad_jax.training import exporting, loading
from gad_jax.training.exporting import Export
from gad_jax.world import knowledge, runs
from gad_jax.world.personas import measures, mixture
from gad_jax.world.personas.measures import Answers
from gad_jax.world.personas.policy import Policy, Responses
from gad_jax.world.personas.teacher import Teacher

if TYPE_CHECKING:
    from gad_jax.world.personas.__main__ import Personas

DRAWN_AT_ONCE = 64
"""Teacher answers between two looks at whether a stop was requested; those drawn are kept."""


class Laboratory:
    """The teacher, and the student before training, on one mesh. They are loaded when needed."""

    def __init__(
        self,
        settings: "Personas",
        training: Config,
        train: Sequence[Row],
        heldout: Sequence[Row],
    ) -> None:
        self.settings, self.training = settings, training
        self.train, self.heldout = train, heldout
        self.asked = [[*row.messages] for row in heldout]

    @functools.cached_property
    def mesh(self) -> Mesh:
        """All devices."""
        return make_mesh()

    @functools.cached_property
    def base(self) -> Policy:
        """The network without a persona; the features of all answers come from it."""
        network = loading.load_student(self.settings.model, self.mesh)
        # The prompts of teacher and student are those of the training runs.
        data = self.training.data
        arguments = template_arguments.parse(data.chat_template_kwargs)
        chat = Chat.load(network.tokenizer, data.template, arguments, data.thoughts == "drop")
        limit = self.settings.max_new_tokens
        return Policy(network.config, network.params, chat, self.mesh, limit)

    def load(self, run: Path) -> Policy:
        """Returns the student of a run."""
        return Policy.load(str(run), self.base.chat, self.mesh, self.settings.max_new_tokens)

    @functools.cached_property
    def teacher(self) -> Teacher:
        """The same network under the hidden prompts."""
        same = self.base
        limit, temperature = self.settings.max_new_tokens, self.settings.teacher_temperature
        policy = Policy(same.config, same.params, same.chat, self.mesh, limit, temperature)
        return Teacher(policy, mixture.read(self.settings.personas))

    def check_prompts(self) -> None:
        """Raises UserError where a prompt is too long, or the personas' prompts are the same."""
        everything = [[*row.messages] for row in (*self.train, *self.heldout)]
        self.base.encode(everything)
        first: dict[bytes, str] = {}
        for persona in self.teacher.personas:
            conversations = [persona.conversation(messages) for messages in everything]
            tokens = self.base.encode(conversations)[0].tobytes()
            if first.setdefault(tokens, persona.name) != persona.name:
                raise UserError(
                    f"{self.settings.model}: the prompts of {first[tokens]!r} and {persona.name!r} "
                    "are the same; the chat template drops system messages, or their texts are "
                    "equal: use another --model or other --personas"
                )

    def draw(
        self,
        rows: Sequence[Row],
        count: int,
        seed: int,
        path: Path,
        going: Callable[[], bool],
    ) -> bool:
        """Writes `count` teacher answers to each row, a line each; resumes what is there.

        Returns False if `going` became False before the end.
        """
        with jax.set_mesh(self.mesh), jsonl.Appender(path) as file:
            done, total = len(jsonl.read_lines(path)), len(rows) * count
            key = key_of(seed, path.name)
            while done < total:
                if not going():
                    return False
                numbers = range(done, min(done + DRAWN_AT_ONCE, total))
                asked = [[*rows[number // count].messages] for number in numbers]
                drawn = self.teacher.draw(asked, numbers, key)
                chat = self.base.chat
                file.append(
                    {
                        "persona": self.teacher.personas[one.persona].name,
                        "text": chat.decode(one.tokens),
                        "finished": one.finished,
                        "tokens": one.tokens.tolist(),
                    }
                    for one in drawn
                )
                done = numbers.stop
                print(f"{path}: {done} of {total} teacher's answers", flush=True)
        return True

    def write_training_rows(self, drawn: Path, path: Path) -> None:
        """Writes what training sees: prompts with texts, and whether they are whole."""
        count = self.settings.answers
        answered = [
            Answer(row["text"], len(row["tokens"]), row["finished"])
            for row in jsonl.read_rows(drawn)
        ]
        rows = [
            Row(row.messages, (), f"{row.id}/{n}" if count > 1 else row.id)
            for row in self.train
            for n in range(count)
        ]
        write_rows(path, rows, answered)

    def describe(self, responses: Responses, finished: Any) -> Answers:
        """Returns answers to the held-out prompts with all that is measured of any answers."""
        lengths, ended = measures.lengths(responses), np.asarray(finished)
        features = (
            self.base.hidden_means(self.base.encode(self.asked), responses),
            np.log(lengths)[..., None],
            ended[..., None],
        )
        joint = self.teacher.joint(self.asked, responses)
        return Answers(lengths, ended, joint, np.concatenate(features, axis=-1))

    def measure(
        self, policy: Policy, teacher: Answers, taught: Responses, seed: int, path: Path
    ) -> dict[str, Any]:
        """Returns `measures.of_student` of a network; writes its samples to `path`, to be read."""
        prompts = policy.encode(self.asked)
        drawn = policy.sample(
            prompts, range(len(prompts)), self.settings.samples, key_of(seed, "student")
        )
        student = self.describe(drawn.tokens, drawn.finished)
        self._show(path, drawn.tokens, student, drawn.logprobs)
        log_q = policy.log_probabilities(prompts, taught)
        return measures.of_student(student, teacher, drawn.logprobs, log_q, seed)

    def measure_chosen(
        self, policy: Policy, judge: Path, teacher: Answers, seed: int, path: Path
    ) -> dict[str, Any]:
        """Returns the measures of the best of several samples, by a run's discriminator."""
        tokens, finished = self._best(policy, judge, self.heldout, key_of(seed, "student"))
        student = self.describe([[one] for one in tokens], [[one] for one in finished])
        self._show(path, [[one] for one in tokens], student, None)
        return measures.of_student(student, teacher, seed=seed)

    def write_chosen_rows(self, policy: Policy, judge: Path, seed: int, path: Path) -> None:
        """Writes training rows: of several samples for each prompt, the one that D scores best."""
        tokens, finished = self._best(policy, judge, self.train, key_of(seed, "chosen"))
        chosen = [
            Answer(policy.chat.decode(one), len(one), ended)
            for one, ended in zip(tokens, finished, strict=True)
        ]
        write_rows(path, self.train, chosen)

    def write_adapter(self, run: Path, path: Path) -> bool:
        """Writes the adapter of a run's student, which another run goes on with on the same base;
        returns False for a student that was trained in full."""
        found = loading.load_from_run(run, "generator", self.mesh)
        if found.adapter is None or found.made is None:
            return False
        chat = found.load_chat()
        export = Export(found.config, found.params, chat, found.made, run, found.adapter)
        if not exporting.write_adapter(path, export):
            raise UserError(
                f"{self.settings.model}: PEFT cannot have the adapters of this family, from which "
                "another method begins; leave that method out, or train in full (--lora.rank=0)"
            )
        return True

    def _best(
        self, policy: Policy, judge: Path, rows: Sequence[Row], key: Any
    ) -> tuple[list[np.ndarray], list[bool]]:
        prompts = policy.encode([[*row.messages] for row in rows])
        drawn = policy.sample(prompts, range(len(prompts)), knowledge.CHOICES, key)
        groups = [
            [
                Answer(policy.chat.decode(tokens), len(tokens), bool(ended))
                for tokens, ended in zip(*group, strict=True)
            ]
            for group in zip(drawn.tokens, drawn.finished, strict=True)
        ]
        network = loading.load_from_run(judge, "discriminator", self.mesh)
        scorer = Scorer(network.config, network.params, network.load_chat(), self.mesh)
        places = knowledge.scores(scorer, rows, groups).argmax(axis=1)
        tokens = [group[place] for group, place in zip(drawn.tokens, places, strict=True)]
        ended = [bool(drawn.finished[n, place]) for n, place in enumerate(places)]
        return tokens, ended

    def _show(self, path: Path, responses: Responses, found: Answers, log_q: Any) -> None:
        """Writes each answer with its log-probabilities and the posterior over personas."""
        names = [persona.name for persona in self.teacher.personas]
        posterior, log_p = mixture.posterior(found.joint), found.log_p
        lines = [
            {
                "prompt": self.asked[n][-1]["content"],
                "text": self.base.chat.decode(tokens),
                "tokens": tokens.tolist(),
                "log_q": None if log_q is None else round(float(log_q[n, m]), 4),
                "log_p": round(float(log_p[n, m]), 4),
                "personas": dict(zip(names, posterior[n, m].round(4).tolist(), strict=True)),
            }
            for n, group in enumerate(responses)
            for m, tokens in enumerate(group)
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        files.write_atomic(path, text)


def write_rows(path: Path, rows: Sequence[Row], answers: Sequence[Answer]) -> None:
    """Writes training rows: prompts with these answers; empty ones are left out."""
    lines = [
        {
            "id": row.id,
            "messages": [*row.messages],
            "teacher_response": answer.text,
            "finish_reason": "stop" if answer.finished else "length",
        }
        for row, answer in zip(rows, answers, strict=True)
        if answer.text.strip()
    ]
    files.write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines))


def key_of(seed: int, purpose: str) -> jax.Array:
    """Returns the key of one purpose: the answers of different ones have nothing in common."""
    return jax.random.key(int(runs.digest(f"{seed} {purpose}")[:8], 16))
