"""A fresh discriminator: can a classifier that no student was trained against tell who answered?

Logistic regression, fitted on one half of the prompts and scored on the other, both ways round.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""L2 penalties per row; the best one is found within the half that is fitted."""


def auc(
    teacher: Float[np.ndarray, "B M F"], student: Float[np.ndarray, "B N F"], seed: int = 0
) -> list[float]:
    """Returns for each prompt the share of pairs of the teacher's and the student's answers in
    which the teacher's has the higher score; a tie is half. 0.5 is chance.

    No score is of a prompt that its classifier was fitted on. Needs four prompts or more.
    """
    order = np.random.default_rng(seed).permutation(len(teacher))
    halves = order[::2], order[1::2]
    found = np.empty(len(teacher))
    for fitted, scored in (halves, halves[::-1]):
        strength = _strength(teacher[fitted], student[fitted])
        score = _fit(teacher[fitted], student[fitted], strength)
        better = np.sign(score(teacher[scored])[:, :, None] - score(student[scored])[:, None, :])
        found[scored] = 0.5 + better.mean(axis=(1, 2)) / 2
    return found.tolist()


def _strength(teacher: np.ndarray, student: np.ndarray) -> float:
    """Returns the penalty with the least loss on one half of these prompts, fitted on the other."""
    losses = [
        sum(
            _loss(
                _fit(teacher[fit::2], student[fit::2], strength),
                teacher[1 - fit :: 2],
                student[1 - fit :: 2],
            )
            for fit in (0, 1)
        )
        for strength in STRENGTHS
    ]
    return STRENGTHS[int(np.argmin(losses))]


def _loss(score: Any, teacher: np.ndarray, student: np.ndarray) -> float:
    """Returns the mean cross-entropy; both sides count the same, however many answers they have."""
    from scipy import special

    return float(
        -special.log_expit(score(teacher)).mean() - special.log_expit(-score(student)).mean()
    )


def _fit(teacher: np.ndarray, student: np.ndarray, strength: float) -> Any:
    """Returns a function: features [B N F] → scores [B N]."""
    # Here: a third of a second of every start, and only the end of a run needs it.
    from scipy import optimize, special

    rows = np.concatenate([x.reshape(-1, x.shape[-1]) for x in (teacher, student)])
    counts = [x.shape[0] * x.shape[1] for x in (teacher, student)]
    sign = np.repeat([1.0, -1.0], counts)
    weight = np.repeat([0.5 / count for count in counts], counts)
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    inputs = (rows - mean) / spread / np.sqrt(rows.shape[1])

    def value(w: np.ndarray) -> tuple[float, np.ndarray]:
        margins = sign * (inputs @ w[:-1] + w[-1])
        slope = -weight * sign * special.expit(-margins)
        gradient = np.append(inputs.T @ slope + strength * w[:-1] / len(rows), slope.sum())
        penalty = 0.5 * strength * w[:-1] @ w[:-1] / len(rows)
        return float(-weight @ special.log_expit(margins) + penalty), gradient

    w = optimize.minimize(value, np.zeros(rows.shape[1] + 1), jac=True, method="L-BFGS-B").x
    scale = spread * np.sqrt(rows.shape[1])
    return lambda x: ((x - mean) / scale) @ w[:-1] + w[-1]
