"""The theorem and the outcomes of the toy experiment, exactly and from several starts."""

import jax.numpy as jnp
import numpy as np
import pytest

from gad_jax.toy import tabular

EXPERIMENT = tabular.Experiment(3000, 200, 256, 8, 0.01, 10.0)


def test_teacher_by_hand() -> None:
    p = tabular.teacher()
    assert p.sum() == pytest.approx(1)
    # 0.6 to 0.4 at the modes: the other mode is seven deviations away
    assert p[2] / p[7] == pytest.approx(1.5, rel=1e-9)
    assert p[1] / p[2] == pytest.approx(np.exp(-0.5 / 0.49), rel=1e-9)


def test_student_by_hand() -> None:
    logprobs = tabular.student_logprobs((jnp.float32(3.0), jnp.log(jnp.float32(2.0))))
    assert float(jnp.sum(jnp.exp(logprobs))) == pytest.approx(1, abs=1e-6)
    assert float(logprobs[3] - logprobs[5]) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("start", [(4.5, 2.0), (2.5, 1.0), (3.0, 4.0), (9.0, 1.5)])
def test_the_best_discriminator_is_the_log_ratio(start: tuple[float, float]) -> None:
    # 3e-9: the last class of (2.5, 1) is drawn once in 1e9 times, and weighs as little
    assert tabular.theorem_error(*start) < 1e-7


@pytest.mark.parametrize(
    ("start", "mode"), [((2.5, 1.0), 2.0), ((6.5, 1.0), 7.0), ((1.0, 0.8), 2.0), ((8.0, 0.6), 7.0)]
)
def test_gad_finds_the_near_mode(start: tuple[float, float], mode: float) -> None:
    outcome = tabular.train_gad(EXPERIMENT, *start, seed=3)
    assert outcome.mean == pytest.approx(mode, abs=0.1)
    assert outcome.stddev == pytest.approx(0.7, abs=0.1)
    assert outcome.path.shape == (3200, 2)
    np.testing.assert_allclose(outcome.path[199], start, rtol=1e-6)  # D alone has learnt


def test_gad_keeps_both_modes_from_a_wide_start() -> None:
    assert tabular.train_gad(EXPERIMENT, 4.5, 2.0, seed=3).stddev > 3


def test_seqkd_covers_both_modes_and_nothing_does_better() -> None:
    outcome = tabular.train_seqkd(EXPERIMENT, 2.5, 1.0)
    assert outcome.stddev > 3
    p = tabular.teacher()

    def cross_entropy(mean: float, stddev: float) -> float:
        start = (jnp.float32(mean), jnp.log(jnp.float32(stddev)))
        return -float(np.sum(p * np.asarray(tabular.student_logprobs(start), np.float64)))

    best = cross_entropy(outcome.mean, outcome.stddev)
    for mean in (2.0, 3.0, 3.6, 7.0):
        for stddev in (0.7, 3.0, 4.5):
            assert cross_entropy(mean, stddev) > best
