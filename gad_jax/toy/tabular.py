"""GAD and SeqKD over ten classes, where every distribution is a table.

The losses are those of training (`core.objectives`), with a class in place of a response.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float64

from gad_jax.core import objectives

CLASSES = 10
MODES = (2.0, 7.0)
WEIGHTS = (0.6, 0.4)
MODE_STDDEV = 0.7


class Experiment(NamedTuple):
    """Steps, batch sizes and learning rates of one training."""

    steps: int
    discriminator_only_steps: int
    prompts: int
    samples: int
    generator_learning_rate: float
    discriminator_learning_rate: float


class Outcome(NamedTuple):
    """A student after training; `path` has its mean and deviation at every step."""

    mean: float
    stddev: float
    probabilities: Float[np.ndarray, " K"]
    forward_kl: float
    reverse_kl: float
    path: Float[np.ndarray, "steps 2"]


Student = tuple[Float[Array, ""], Float[Array, ""]]
"""Mean and logarithm of the deviation."""


def teacher() -> Float64[np.ndarray, " K"]:
    """Returns p: the mixture's density at each class, normalised."""
    classes = np.arange(CLASSES)
    weight = sum(
        share * np.exp(-0.5 * ((classes - mode) / MODE_STDDEV) ** 2)
        for share, mode in zip(WEIGHTS, MODES, strict=True)
    )
    return weight / np.sum(weight)


def student_logprobs(student: Student) -> Float[Array, " K"]:
    """Returns log q: the Gaussian's log density at each class, normalised."""
    mean, log_stddev = student
    classes = jnp.arange(CLASSES)
    return jax.nn.log_softmax(-0.5 * ((classes - mean) * jnp.exp(-log_stddev)) ** 2)


def train_seqkd(experiment: Experiment, mean: float, stddev: float) -> Outcome:
    """Returns the student of SeqKD, which minimises the expected cross-entropy on the teacher."""
    p = jnp.asarray(teacher(), jnp.float32)
    optimizer = optax.adam(experiment.generator_learning_rate)

    def step(carry, _):
        student, moments = carry
        gradient = jax.grad(lambda s: -jnp.sum(p * student_logprobs(s)))(student)
        update, moments = optimizer.update(gradient, moments)
        student = jax.tree.map(jnp.add, student, update)
        return (student, moments), _shape(student)

    @jax.jit
    def run(student):
        return jax.lax.scan(step, (student, optimizer.init(student)), length=experiment.steps)

    (student, _), path = run(_start(mean, stddev))
    return _outcome(student, path)


def train_gad(experiment: Experiment, mean: float, stddev: float, seed: int) -> Outcome:
    """Returns the student of GAD: each step is a Bradley-Terry step of D and REINFORCE for G.

    As in training, rewards come from D before its update, centred and scaled per group. The first
    `discriminator_only_steps` are additional to `steps`.
    """
    run = jax.jit(partial(_adversarial, experiment))
    student, path = run(_start(mean, stddev), jax.random.key(seed))
    return _outcome(student, path)


def _adversarial(experiment: Experiment, student: Student, key: Array):
    log_p = jnp.log(jnp.asarray(teacher(), jnp.float32))
    optimizer = optax.adam(experiment.generator_learning_rate)

    def step(carry, number):
        student, moments, scores = carry
        of_teacher, of_student = jax.random.split(jax.random.fold_in(key, number))
        group = (experiment.prompts, experiment.samples)
        y_t = _draw(of_teacher, log_p, (experiment.prompts,))
        y_s = _draw(of_student, student_logprobs(student), group)
        advantages = objectives.group_advantages(scores[y_s])

        def generator_loss(s):
            return -jnp.mean(advantages * student_logprobs(s)[y_s])

        def discriminator_loss(d):
            return jnp.mean(objectives.bradley_terry_loss(d[y_t], d[y_s]))

        gradient = jax.grad(generator_loss)(student)
        update, after = optimizer.update(gradient, moments)
        changed = (jax.tree.map(jnp.add, student, update), after)
        learns = number >= experiment.discriminator_only_steps
        student, moments = jax.tree.map(partial(jnp.where, learns), changed, (student, moments))
        scores -= experiment.discriminator_learning_rate * jax.grad(discriminator_loss)(scores)
        return (student, moments, scores), _shape(student)

    carry = (student, optimizer.init(student), jnp.zeros(CLASSES))
    numbers = jnp.arange(experiment.discriminator_only_steps + experiment.steps)
    (student, _, _), path = jax.lax.scan(step, carry, numbers)
    return student, path


def _draw(key: Array, logprobs: Float[Array, " K"], shape: tuple[int, ...]) -> Array:
    """Returns sampled classes: each takes one uniform number, by the inverse CDF."""
    cumulative = jnp.cumsum(jnp.exp(logprobs))
    uniform = jax.random.uniform(key, shape) * cumulative[-1]
    return jnp.sum(uniform[..., None] >= cumulative[:-1], axis=-1)


def best_discriminator(mean: float, stddev: float) -> Float64[np.ndarray, " K"]:
    """Returns the table of scores, centred, that minimises the expected Bradley-Terry loss.

    Found by damped Newton steps on the loss alone, in float64. The theorem says that the minimum is
    log p/q + c, and `theorem_error` measures the distance. If the student gives a class almost no
    probability, the minimum lies too far out for float64.
    """
    with jax.enable_x64(True):
        p = jnp.asarray(teacher())
        q = jnp.exp(student_logprobs((jnp.asarray(mean), jnp.log(jnp.asarray(stddev)))))

        def loss(scores):  # as objectives.bradley_terry_loss, which is float32
            return jnp.sum(p[:, None] * q * jax.nn.softplus(scores - scores[:, None]))

        @jax.jit
        def newton(scores):
            # The loss ignores an offset, so its Hessian is singular in that direction: add 1/K.
            curvature = jax.hessian(loss)(scores) + 1 / CLASSES
            step = jnp.linalg.solve(curvature, jax.grad(loss)(scores))
            return scores - step / jnp.maximum(1.0, jnp.max(jnp.abs(step)))

        scores = jax.lax.fori_loop(0, 200, lambda _, d: newton(d), jnp.zeros(CLASSES))
        return np.asarray(scores - jnp.mean(scores))


def log_ratio(mean: float, stddev: float) -> Float64[np.ndarray, " K"]:
    """Returns log p/q of a student, centred."""
    with jax.enable_x64(True):
        start = (jnp.asarray(mean), jnp.log(jnp.asarray(stddev)))
        ratio = np.log(teacher()) - np.asarray(student_logprobs(start))
    return ratio - ratio.mean()


def theorem_error(mean: float, stddev: float) -> float:
    """Returns the largest difference between the best discriminator and log p/q + c."""
    return float(np.max(np.abs(best_discriminator(mean, stddev) - log_ratio(mean, stddev))))


def _start(mean: float, stddev: float) -> Student:
    return jnp.asarray(mean, jnp.float32), jnp.log(jnp.asarray(stddev, jnp.float32))


def _shape(student: Student) -> Float[Array, " 2"]:
    return jnp.stack([student[0], jnp.exp(student[1])])


def _outcome(student: Student, path: Float[Array, "steps 2"]) -> Outcome:
    log_p, log_q = np.log(teacher()), np.asarray(student_logprobs(student), np.float64)
    p, q = np.exp(log_p), np.exp(log_q)
    return Outcome(
        mean=float(student[0]),
        stddev=float(jnp.exp(student[1])),
        probabilities=q,
        forward_kl=float(np.sum(p * (log_p - log_q))),
        reverse_kl=float(np.sum(q * (log_q - log_p))),
        path=np.asarray(path),
    )
