"""Limits that come from the data, and what is said and refused about those that cost much."""

from dataclasses import replace

import numpy as np
import pytest

from gad_jax.base.errors import UserError
from gad_jax.data import limits
from gad_jax.data.limits import Limits, Stops
from gad_jax.data.pipeline import Encoded
from gad_jax.data.ragged import Ragged
from gad_jax.data.sources.rows import Rows

NEVER = Stops(1.0, 1.0)


def encoded(prompts, responses):
    """A file whose prompts and responses have these lengths; only lengths matter here."""
    sequences = [[[0] * length for length in lengths] for lengths in (prompts, responses)]
    return Encoded(Rows("mine.jsonl", (), {}), (), 0, *map(Ragged.of, sequences), "")


def chosen(files, prompt=0, response=0, positions=100_000):
    found = limits.choose(files, Limits(prompt, response), 2048, positions)
    return found.prompt, found.response


def test_a_limit_holds_99_percent_of_the_responses():
    assert limits.holding(np.arange(1, 101)) == 112  # 99, rounded up to a multiple of 16
    assert limits.holding(np.array([16])) == 16
    assert limits.holding(np.array([5] * 99 + [900])) == 16
    assert limits.holding(np.array([5] * 98 + [900] * 2)) == 912


def test_limits_come_from_all_files_unless_they_are_given():
    files = [encoded([30, 50], [10]), encoded([40], [200])]
    assert chosen(files) == (64, 208)
    assert chosen(files, prompt=8) == (8, 208)
    assert chosen(files, response=48) == (64, 48)
    assert chosen(files, prompt=8, response=48) == (8, 48)


def test_a_prompt_may_be_as_long_as_the_papers():
    assert chosen([encoded([5000], [10])]) == (2048, 16)


def test_both_limits_fit_the_positions():
    assert chosen([encoded([400], [300])], positions=512) == (256, 256)
    assert chosen([encoded([400], [50])], positions=512) == (400, 64)
    assert chosen([encoded([100], [5000])], positions=512) == (112, 400)
    assert chosen([encoded([400], [300])], prompt=400, positions=512) == (400, 112)
    assert chosen([encoded([400], [300])], response=500, positions=512) == (12, 500)


def test_a_tenth_is_said_and_less_is_not():
    files = encoded([5] * 10, [10] * 9 + [100])
    (said,) = limits.check(files, Limits(16, 48), NEVER, 1000)
    assert said == (
        "mine.jsonl: 1 of 10 teacher responses (10%) are longer than --rollout.max_new_tokens=48 "
        "and are cut; --rollout.max_new_tokens=112 holds 99% of them"
    )
    assert limits.check(encoded([5] * 11, [10] * 10 + [100]), Limits(16, 48), NEVER, 1000) == []


def test_half_stops():
    files = encoded([5, 5], [10, 100])
    with pytest.raises(UserError) as caught:
        limits.check(files, Limits(16, 48), Stops(0.5, 0.5), 1000)
    assert str(caught.value) == (
        "mine.jsonl: 1 of 2 teacher responses (50%) are longer than --rollout.max_new_tokens=48 "
        "and would be cut; --rollout.max_new_tokens=112 holds 99% of them, or "
        "--data.stop_at_cut_share=1 trains all the same"
    )
    assert len(limits.check(files, Limits(16, 48), Stops(0.5, 0.51), 1000)) == 1


def test_all_may_be_cut_on_purpose():
    files = encoded([5, 5], [100, 100])
    (said,) = limits.check(files, Limits(16, 48), NEVER, 1000)
    assert "2 of 2 teacher responses (100%)" in said


def test_long_prompts_are_said_and_stop():
    files = encoded([10, 30, 30, 30], [5])
    (said,) = limits.check(files, Limits(16, 48), NEVER, 1000)
    assert said == (
        "mine.jsonl: 3 of 4 prompts (75%) are longer than --data.max_prompt_tokens=16 and are "
        "dropped; --data.max_prompt_tokens=32 holds 99% of them"
    )
    with pytest.raises(UserError, match=r"would be dropped; .* --data.stop_at_dropped_share=1 tr"):
        limits.check(files, Limits(16, 48), Stops(0.5, 0.5), 1000)


def test_what_the_student_cannot_hold_is_said():
    (said,) = limits.check(encoded([5], [900]), Limits(16, 48), NEVER, 512)
    assert said.endswith(
        "--rollout.max_new_tokens=912 holds 99% of them, which needs a student with more than 512 "
        "positions or shorter rows"
    )


def test_rejected_responses_are_cut_and_said_to_be_as_the_teachers_are():
    file = replace(encoded([5] * 10, [10] * 10), rejected=Ragged.of([[0] * 60] * 10))
    assert chosen([file]) == (16, 64)
    (said,) = limits.check(file, Limits(16, 16), NEVER, 1000)
    assert said.startswith("mine.jsonl: 10 of 10 rejected responses (100%) are longer than --roll")
    with pytest.raises(UserError, match=r"rejected responses .* would be cut"):
        limits.check(file, Limits(16, 16), Stops(1.0, 0.9), 1000)
