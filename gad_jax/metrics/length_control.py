"""The preference that answers of equal length would get: the regression of AlpacaEval 2.

arXiv:2404.04475 fits preference ~ σ(θ + φ tanh(Δ / std Δ) + ψ γ), with Δ the difference in length
and γ the difficulty of the instruction, and predicts it at Δ = 0. There γ comes from a joint fit
over a leaderboard, and the answers of the baseline made concise and verbose regularise φ. Here
neither exists, so three constants stand for them. `benchmarks/length_control.py` chooses them and
compares the result with the published one.
"""

from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Float, Shaped

from gad_jax.metrics.intervals import LEVEL, NOTHING, Interval, Numbers, Values

ONE_SIDED = 0.05
"""With a smaller share of answers that are the longer (or shorter) one, `one_sided` is True."""

_LEVEL_PENALTY = 1e-3
"""On θ, which is infinite where all preferences are 0 or all 1."""

_FARTHEST = 30.0
_TIE_EVIDENCE = 0.5
"""What a sample without any spread counts as, in prompts, when the dispersion is estimated."""


class Prior(NamedTuple):
    """What is assumed where equal length lies outside the data.

    `slope` is the expected φ, `weight` its precision per prompt. `difficulty` is the change in the
    logit for a standard deviation of the logarithm of the other answer's length.
    """

    slope: float = 1.75
    weight: float = 0.03
    difficulty: float = -0.5


_LOOSE = 0.25
"""The largest precision of the slope for the interval, which must hold for other judges than
AlpacaEval's: a standard deviation of 2."""


class _Data(NamedTuple):
    """Preferences, length terms, the known part of the logits, and what is expected of φ."""

    y: Values
    x: Values
    difficulty: Values
    mean: float
    precision: float

    def also(self, preference: float) -> "_Data":
        """Returns the data with one more prompt of average difficulty and equal lengths."""
        y, x, difficulty = (
            np.append(old, new)
            for old, new in ((self.y, preference), (self.x, 0.0), (self.difficulty, 0.0))
        )
        return self._replace(y=y, x=x, difficulty=difficulty)


def length_controlled(
    preferences: Numbers,
    lengths: Numbers,
    other_lengths: Numbers,
) -> Interval:
    """Returns the mean preference that equally long answers would get, in [0, 1].

    A preference is the share won: 1, ½, 0, or the student's part of two ratings. The interval is
    that of the profile likelihood, with one more loss for the lower bound and one more win for the
    upper one, as in Clopper and Pearson's. It spans the results with the expected difficulty and
    without any, and was simulated for φ from 0 to 3.

    Where nearly all answers of one side are longer (`one_sided`), the value rests on `Prior`. NaN
    for no prompts.
    """
    from scipy import special  # here, as in intervals.py

    if not len(preferences):
        return NOTHING
    data = _data(preferences, lengths, other_lengths, Prior())
    value = _at_equal_length(data, _fit(data)[0])
    dispersion = _dispersion(data)
    limit = dispersion * float(special.stdtrit(max(data.y.size - 1, 1), (1 + LEVEL) / 2)) ** 2
    loose = data._replace(precision=min(data.precision, _LOOSE) * dispersion)
    plain = loose._replace(difficulty=np.zeros_like(data.difficulty))
    low = min(_end(one, 0.0, limit) for one in (loose, plain))
    high = max(_end(one, 1.0, limit) for one in (loose, plain))
    return Interval(value, min(low, value), max(high, value))


def predict(
    preferences: Numbers,
    lengths: Numbers,
    other_lengths: Numbers,
    prior: Prior,
) -> float:
    """Returns the value of `length_controlled` under another prior, without an interval."""
    data = _data(preferences, lengths, other_lengths, prior)
    return _at_equal_length(data, _fit(data)[0])


def one_sided(lengths: Numbers, other_lengths: Numbers) -> bool:
    """Returns whether one side's answers are nearly always the longer ones."""
    difference = np.asarray(lengths, np.float64) - np.asarray(other_lengths, np.float64)
    decided = difference[difference != 0]
    share = float(np.mean(decided > 0)) if decided.size else 0.5
    return not ONE_SIDED <= share <= 1 - ONE_SIDED


def _data(
    preferences: Numbers,
    lengths: Numbers,
    other_lengths: Numbers,
    prior: Prior,
) -> _Data:
    """Returns the data of the regression.

    The prior counts fully where the mean length term is at least one standard deviation from 0,
    and hardly where both sides have the longer answer equally often.
    """
    y, others = np.asarray(preferences, np.float64), np.asarray(other_lengths, np.float64)
    terms = _length_terms(np.asarray(lengths, np.float64) - others)
    need = min(1.0, 2 * _outside(terms))
    difficulty = prior.difficulty * need * _standard(others)
    return _Data(y, terms, difficulty, prior.slope, prior.weight * y.size * need)


def _length_terms(difference: Values) -> Values:
    spread = difference.std(ddof=1) if difference.size > 1 else 0.0
    return np.tanh(difference / spread) if spread > 0 else np.zeros_like(difference)


def _outside(x: Values) -> float:
    """Returns the part of the mean square of x that is the square of its mean: 0 where x is
    balanced around 0, ½ where its mean is one standard deviation away, 1 where it is constant."""
    square = float(np.mean(x * x))
    return float(np.mean(x)) ** 2 / square if square > 0 else 0.0


def _standard(lengths: Values) -> Values:
    """Returns the logarithms of the lengths with mean 0 and deviation 1, the stand-in for γ."""
    logs = np.log(np.maximum(lengths, 1.0))
    deviation = float(logs.std())
    return (logs - logs.mean()) / deviation if deviation > 1e-9 else np.zeros_like(logs)


def _at_equal_length(data: _Data, level: float) -> float:
    return float(np.mean(_sigmoid(level + data.difficulty)))


def _fit(data: _Data) -> tuple[float, float]:
    """Returns θ and φ of the least loss, by Newton's method."""
    features = np.stack([np.ones_like(data.x), data.x])
    penalty, center = np.asarray([_LEVEL_PENALTY, data.precision]), np.asarray([0.0, data.mean])
    found = center.copy()
    for _ in range(100):
        fitted = _sigmoid(found @ features + data.difficulty)
        gradient = features @ (fitted - data.y) + penalty * (found - center)
        hessian = (features * (fitted * (1 - fitted))) @ features.T + np.diag(penalty + 1e-9)
        step = np.clip(np.linalg.solve(hessian, gradient), -2.0, 2.0)  # whole steps overshoot
        found -= step
        if np.abs(step).max() < 1e-8:
            break
    return float(found[0]), float(found[1])


def _loss(data: _Data, level: float) -> float:
    """Returns the penalised negative log likelihood of θ at its best φ, by Newton's method."""
    slope, squares = data.mean, data.x**2
    for _ in range(100):
        fitted = _sigmoid(level + slope * data.x + data.difficulty)
        gradient = data.x @ (fitted - data.y) + data.precision * (slope - data.mean)
        curvature = squares @ (fitted * (1 - fitted)) + data.precision + 1e-9
        step = min(max(float(gradient / curvature), -2.0), 2.0)
        slope -= step
        if abs(step) < 1e-7:
            break
    logits = level + slope * data.x + data.difficulty
    likelihood = data.y @ logits - np.logaddexp(0.0, logits).sum()
    penalty = data.precision * (slope - data.mean) ** 2 + _LEVEL_PENALTY * level**2
    return float(0.5 * penalty - likelihood)


def _end(data: _Data, outcome: float, limit: float) -> float:
    """Returns the lower (outcome 0) or upper (1) end of the interval.

    That is the preference at the θ at which twice the loss has grown by `limit` from the least.
    """
    from scipy import optimize  # here: a third of a second, and only a judge needs it

    more = data.also(outcome)
    best, _ = _fit(more)
    least = _loss(more, best)
    end = best + (_FARTHEST if outcome else -_FARTHEST)
    if _loss(more, end) - least > limit / 2:
        end = optimize.brentq(lambda x: _loss(more, x) - least - limit / 2, best, end, xtol=1e-4)
    return _at_equal_length(data, cast(float, end))


def _dispersion(data: _Data) -> float:
    """Returns the variance of the preferences over that of wins and losses of the same chances.

    It is 1 for preferences of 0 and 1, and small for ratings, which differ less. Never above 1.
    """
    if np.isin(data.y, (0.0, 1.0)).all():
        return 1.0
    level, slope = _fit(data)
    fitted = _sigmoid(level + slope * data.x + data.difficulty)
    found = np.sum((data.y - fitted) ** 2) * data.y.size / max(data.y.size - 2, 1)
    binary = np.sum(fitted * (1 - fitted))
    return float(min(1.0, (found + _TIE_EVIDENCE) / (binary + _TIE_EVIDENCE)))


def _sigmoid(x: Shaped[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    return 0.5 * (1 + np.tanh(0.5 * x))
