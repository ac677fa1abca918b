"""The extra terms of a run's reward: loaded when it starts, computed for the samples of a step.

The first process computes the values of rules, functions and the judge, and the others get them
from it. So a function with side effects or random numbers is called once for each response, no
verdict is paid twice, and all processes train on the same reward.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Float32

from gad_jax.base import verbosity
from gad_jax.base.errors import UserError
from gad_jax.data.chat import Chat
from gad_jax.data.epochs import PromptBatch
from gad_jax.data.sources.rows import Row as Source
from gad_jax.distributed import processes
from gad_jax.settings.config import Config
from gad_jax.settings.reward import Reward, Term
from gad_jax.training.rewards import functions, rules
from gad_jax.training.rewards.functions import Function
from gad_jax.training.rewards.models import Model
from gad_jax.training.rewards.rules import Row
from gad_jax.types import PackedRows, Rollout

logger = logging.getLogger(__name__)

Values = Float32[np.ndarray, "K B N"]

LARGEST = 1e15
"""What is larger counts as non-finite: float32 has to hold the sum of a step's squares."""


class Rewards:
    """The terms of a run, ready to be computed once `load_models` was called.

    `identities` tell their code and weights from any other: a run resumes with the same. The
    verdicts of a judge are kept in `directory`. Raises UserError for a term that cannot be loaded,
    in all processes.
    """

    def __init__(self, settings: Reward, directory: Path) -> None:
        self.settings, self.terms = settings, settings.terms
        self.models: dict[str, Model] = {}
        self.judge = None
        if any(term.kind == "judge" for term in self.terms):
            from gad_jax.training.rewards import judge  # here: few runs need its HTTP and TLS

            self.judge = judge.Judge(settings.judge, directory)
        self._warned: set[str] = set()

        def load() -> dict[str, Function]:
            sources = [term.source for term in self.terms if term.kind == "function"]
            return {source: Function(source) for source in sources}

        self.functions = processes.together(load)
        self.identities = {name: found.identity for name, found in self.functions.items()}
        processes.require_same("reward functions", str(sorted(self.identities.items())))

    def load_models(self, config: Config, dtype: str, chat: Chat, mesh: Mesh) -> None:
        """Loads the reward models of a run, to be computed in `dtype`; `chat` is the student's."""
        for term in self.terms:
            if term.kind == "model":
                self.models[term.source] = Model(term.source, config, dtype, chat, mesh)
        self.identities |= {name: found.identity for name, found in self.models.items()}

    def close(self) -> None:
        """Closes what the terms keep open."""
        if self.judge is not None:
            self.judge.close()

    def pay(
        self,
        batch: PromptBatch,
        rollout: Rollout,
        sources: Sequence[Source],
        chat: Chat,
        packed: Callable[[int], PackedRows],
        settle: Callable[[], object] = lambda: None,
    ) -> tuple[Values, dict[str, float]]:
        """Returns the values of all terms for the samples of a step, and their metrics.

        `sources` are the training rows that the batch numbers, and `packed` returns the samples for
        a reward model of a vocabulary. `settle` is that of `processes.from_first`. Raises
        UserError where a function fails, or where none of its values is finite.
        """
        shape = np.asarray(rollout.lengths).shape

        def compute() -> list[list[float]]:
            rows = rows_of(batch, rollout, sources, chat)
            return [self._values(term, rows) for term in self.terms if term.kind != "model"]

        computed = iter(processes.from_first(compute, settle))
        values = np.zeros((len(self.terms), *shape), np.float32)
        for place, term in enumerate(self.terms):
            if term.kind == "model":
                model = self.models[term.source]
                values[place] = model(packed(model.config.vocabulary))
            else:
                with np.errstate(over="ignore"):  # what float32 cannot hold counts as non-finite
                    values[place] = np.asarray(next(computed), np.float32).reshape(shape)
        too_large = np.abs(values) > LARGEST
        values[too_large] = np.copysign(np.inf, values[too_large])
        metrics: dict[str, float] = {}
        for place, term in enumerate(self.terms):
            of_term: np.ndarray = values[place]
            self._look(term, of_term, batch, sources)
            metrics |= {f"reward/{term.name}/{key}": x for key, x in summary(of_term).items()}
        return values, metrics

    def _values(self, term: Term, rows: Sequence[Row]) -> list[float]:
        if term.kind == "rule":
            return rules.values(rules.rule(term.source, self.settings), rows)
        if term.kind == "judge":
            assert self.judge is not None
            return self.judge(rows)
        return self.functions[term.source](rows, self.settings.timeout)

    def _look(
        self,
        term: Term,
        values: Float32[np.ndarray, "B N"],
        batch: PromptBatch,
        sources: Sequence[Source],
    ) -> None:
        """Warns of the first non-finite value of a term; raises UserError where all are."""
        broken = np.argwhere(~np.isfinite(values))
        if not broken.size:
            return
        prompt, sample = map(int, broken[0])
        name = sources[batch.indices[prompt]].id
        first = f"{values[prompt, sample]:g} for response {sample + 1} to {name}"
        if len(broken) == values.size:
            why = ""
            if term.kind == "judge" and self.judge is not None and processes.is_first():
                self.judge.drop_unread()
                why = f" ({self.judge.refusal})" if self.judge.refusal else ""
            resumes = functions.RESUMES if term.kind == "function" else "the same command resumes"
            raise UserError(
                f"--reward.extra={term.source} has no finite value for any of the step's "
                f"{values.size} responses, as {first}{why}; correct it, and {resumes}"
            )
        if term.name not in self._warned and processes.is_first():
            self._warned.add(term.name)
            logger.warning(
                "warning: the reward %s is %s; such a response does not count, and "
                "reward/%s/nonfinite has their number from here on",
                *(term.name, first, term.name),
            )


def rows_of(
    batch: PromptBatch, rollout: Rollout, sources: Sequence[Source], chat: Chat
) -> list[Row]:
    """Returns what the terms see of each sample, prompt by prompt."""
    found: list[Row] = []
    for place, index in enumerate(batch.indices):
        source, teacher = sources[index], batch.responses[place]
        text = chat.decode(teacher)
        teacher_answer = chat.parts(text).answer
        for sample, length in enumerate(np.asarray(rollout.lengths[place])):
            response = chat.decode(np.asarray(rollout.tokens[place, sample, :length]))
            found.append(
                Row(
                    prompt=source.messages[-1]["content"],
                    response=response,
                    teacher=text,
                    tokens=int(length),
                    teacher_tokens=len(teacher),
                    finished=bool(rollout.finished[place, sample]),
                    messages=[dict(message) for message in source.messages],
                    id=source.id,
                    sample=sample,
                    answer=chat.parts(response).answer,
                    teacher_answer=teacher_answer,
                )
            )
    return found


def summary(values: Float[np.ndarray, "B N"]) -> dict[str, float]:
    """Returns mean, standard deviation within groups (as `reward/std`), and the number of
    non-finite values of a term; statistics are of the finite ones."""
    finite = np.isfinite(values)
    wide = np.where(finite, values, 0.0).astype(np.float64)
    count = finite.sum(axis=1)
    centred = np.where(finite, wide - (wide.sum(1) / np.maximum(count, 1))[:, None], 0.0)
    spread = np.sqrt(np.square(centred).sum(1) / np.maximum(count - 1, 1))
    return {
        "mean": float(wide.sum() / max(count.sum(), 1)),
        "std": float(spread.mean()),
        "nonfinite": float(values.size - count.sum()),
    }


def load(config: Config) -> Rewards | None:
    """Returns the extra terms of a run, and says what it is paid; None where it has none."""
    if not config.reward.terms:
        return None
    rewards = Rewards(config.reward, Path(config.run_dir))
    if processes.is_first():
        verbosity.say(sentences(config))
    return rewards


def identities(
    rewards: Rewards | None, config: Config, dtype: str, chat: Chat, mesh: Mesh
) -> dict[str, str]:
    """Returns what tells the terms of a run from any other's, once its models are loaded too."""
    if rewards is None:
        return {}
    rewards.load_models(config, dtype, chat, mesh)
    return rewards.identities


def sentences(config: Config) -> list[str]:
    """Returns what a run says of its reward, with warnings of what has no effect."""
    reward = config.reward
    if not reward.terms:
        return []
    parts = [f"discriminator {reward.discriminator:g}"] if reward.discriminator else []
    parts += [
        f"{term.name} {term.weight:g}" + (f" ({term.source})" if term.source != term.name else "")
        for term in reward.terms
    ]
    how = {"group": "the samples of a prompt", "batch": "those of a step", "none": ""}
    z = how[reward.normalise]
    judge = reward.judge
    lines = []
    if any(term.kind == "judge" for term in reward.terms):
        verdicts = config.batch.prompts * config.rollout.samples
        lines.append(f"judge: {judge.model} at {judge.base_url}, {verdicts} verdicts a step")
        if judge.key_variable and not os.environ.get(judge.key_variable):
            lines.append(
                f"warning: no key is sent: the environment variable {judge.key_variable} "
                "(--reward.judge.key_variable) is not set"
            )
    lines += [f"reward: {', '.join(parts)}" + (f"; each normalised over {z}" if z else "")]
    if "gad" not in config.stages:
        lines.append("warning: --reward.extra is paid in the stage gad, which this run lacks")
    return lines


def changed(stored: Mapping[str, Any], found: Mapping[str, str]) -> list[str]:
    """Returns a clause for each function or model that is not what steps were paid by.

    Both are `Rewards.identities`.
    """
    return [
        f"that --reward.extra={source} paid for {functions.as_before(stored[source], identity)}"
        for source, identity in found.items()
        if stored.get(source, identity) != identity
    ]
