"""Which metrics the line of a step shows."""

import math

from gad_jax.base.step_line import SHORT, fitting_parts, format_seconds, step_parts

STEP = {
    "generator/loss": 0.01234,
    "discriminator/loss": 0.6451,
    "discriminator/accuracy": 0.625,
    "discriminator/margin": 0.311,
    "reward/mean": -0.12,
    "reward/std": 0.8,
    "response/length": 213.6,
    "response/length_ratio": 0.951,
    "response/cut_share": 0.0625,
    "kl/reference": 0.0031,
    "generator/gradient_norm": 0.1834,
    "discriminator/gradient_norm": 12.5,
    "tokens_per_second/rollout": 3210.4,
    "seconds/step": 12.34,
}


def test_a_line_of_a_terminal_has_what_fits() -> None:
    for width in (20, 40, 60, 80, 100):
        line = "  ".join(fitting_parts(STEP, width))
        assert width - 14 < len(line) <= width or width > 80
        assert line.startswith("reward -0.12")
    assert fitting_parts(STEP, 300)[0] == "G loss 0.0123"
    assert fitting_parts({"generator/loss": 0.5}, 80) == ["G loss 0.5000"]
    assert fitting_parts(STEP, 5) == []


def test_a_step_of_gad_shows_how_the_game_goes_in_half_a_line() -> None:
    parts = fitting_parts(STEP, 48)
    assert parts == ["reward -0.12", "0.95× teacher", "D acc 0.62", "12.3 s"]
    assert len(fitting_parts(STEP, 90)) == len(SHORT) - 1  # all but DPO's


def test_a_duration_that_is_not_known_is_a_dash() -> None:
    assert format_seconds(3723.4) == "1:02:03"
    assert format_seconds(math.nan) == format_seconds(math.inf) == "–"


def test_a_mixed_reward_is_shown_by_its_terms() -> None:
    """Each is normalised within its group by default, so that the mix has the mean 0."""
    terms = {"reward/mean": 0.0, "reward/std": 1.0, "reward/my.{1}/mean": -7.562}
    for parts in (step_parts(terms), fitting_parts(STEP | terms, 60)):
        assert parts[0] == "my.{1} -7.56"
        assert not any(part.startswith("reward") for part in parts)
