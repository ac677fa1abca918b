"""What is measured of a student, one number per held-out prompt, from exact log-probabilities.

Intervals over prompts and seeds, and the tables, are in `results.py`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from gad_jax.metrics import classifier
from gad_jax.world.personas import mixture
from gad_jax.world.personas.policy import Responses


class Answers(NamedTuple):
    """Responses to each prompt, N of each.

    `joint` are log(π_k p(y | system_k, x)), and `features` what a classifier sees.
    """

    lengths: Int[np.ndarray, "B N"]
    finished: Bool[np.ndarray, "B N"]
    joint: Float[np.ndarray, "B N K"]
    features: Float[np.ndarray, "B N F"]

    @property
    def log_p(self) -> Float[np.ndarray, "B N"]:
        """The teacher's log-probabilities, in nats."""
        return mixture.log_mixture(self.joint)


def lengths(responses: Responses) -> Int[np.ndarray, "B N"]:
    """Returns the tokens of each response, with its end token."""
    return np.asarray([[len(response) for response in group] for group in responses])


def of_answers(answers: Answers) -> dict[str, Any]:
    """Returns what any answers have, as lists of one value per prompt.

    `share`: posterior share of each persona; `decided`: that of the most probable one of an answer;
    `teacher_loss`: -log p(y|x) in nats per token; `length` in tokens; `cut`: share without an end.
    """
    posterior = mixture.posterior(answers.joint)
    return {
        "share": posterior.mean(axis=1).tolist(),
        "decided": posterior.max(axis=-1).mean(axis=1).tolist(),
        "teacher_loss": _per_token(answers.log_p, answers.lengths),
        "length": answers.lengths.mean(axis=1).tolist(),
        "cut": (~answers.finished).mean(axis=1).tolist(),
    }


def of_student(
    student: Answers,
    teacher: Answers,
    log_q: Float[np.ndarray, "B N"] | None = None,
    log_q_of_teacher: Float[np.ndarray, "B M"] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns `of_answers` of a student's, and what sets it apart from the teacher.

    `reverse_kl`: KL(q‖p) as the mean of log q - log p over the student's samples, in nats;
    `forward_kl`: KL(p‖q) over the teacher's; `heldout_loss`: -log q of the teacher's answers, in
    nats per token; `auc`: the share of pairs that a fresh classifier orders rightly.

    Both means are of exact log-ratios, so without bias; noise may take one below 0. A student whose
    log-probabilities are not known has neither.
    """
    found = of_answers(student)
    found["auc"] = classifier.auc(teacher.features, student.features, seed)
    if log_q is not None:
        found["reverse_kl"] = (log_q - student.log_p).mean(axis=1).tolist()
    if log_q_of_teacher is not None:
        found["forward_kl"] = (teacher.log_p - log_q_of_teacher).mean(axis=1).tolist()
        found["heldout_loss"] = _per_token(log_q_of_teacher, teacher.lengths)
    return found


def _per_token(
    logprobs: Float[np.ndarray, "B N"], lengths: Int[np.ndarray, "B N"]
) -> Sequence[float]:
    return (-logprobs.sum(axis=1) / lengths.sum(axis=1)).tolist()
