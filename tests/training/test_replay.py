"""The pool of older answers: what it keeps, what it draws, and that it is one in all processes."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from gad_jax.settings.config import Config
from gad_jax.settings.discriminator import Discriminator
from gad_jax.training import replay
from gad_jax.training.replay import Pool


def answers(step: int, prompts: int = 3, samples: int = 4) -> replay.Answers:
    """Returns answers of other lengths whose every token tells step, prompt and sample."""
    return [
        [np.full(1 + (p + n + step) % 3, 100 * step + 10 * p + n, np.int32) for n in range(samples)]
        for p in range(prompts)
    ]


def filled(steps: int = 3, kept: int = 4, replayed: int = 2, vocabulary: int = 1000) -> Pool:
    pool = Pool(seed=7, replayed=replayed, kept=kept, vocabulary=vocabulary)
    for step in range(steps):
        pool.add([5, 9, 2], answers(step), step)
    return pool


def lists(found: replay.Answers) -> Any:
    return [[answer.tolist() for answer in group] for group in found]


def test_older_answers_of_the_same_prompt_are_drawn_and_none_twice() -> None:
    pool = filled()
    drawn = pool.draw([9, 404, 5], step=4)
    assert [len(group) for group in drawn.answers] == [2, 0, 2]  # row 404 has no older answers
    assert drawn.ages == [2] * 4  # the newest four are those of step 2
    known = lists(answers(2))
    for group, row in zip(lists(drawn.answers), (1, None, 0), strict=True):
        assert len({str(answer) for answer in group}) == len(group)
        assert all(answer in known[row] for answer in group)
    assert drawn.metrics(4) == {"replay/share": 4 / 12, "replay/age": 2.0}
    assert pool.draw([404], step=4).metrics(4) == {"replay/share": 0.0}


def test_they_take_the_last_places_of_their_group() -> None:
    drawn = filled().draw([5, 404, 2], step=3)
    fresh = answers(6)
    mixed = lists(drawn.mixed(fresh))
    replaced = [False, False, True, True]
    assert drawn.old(4).tolist() == [replaced, [False] * 4, replaced]
    assert mixed[1] == lists(fresh)[1]
    for place in (0, 2):
        assert mixed[place][:2] == lists(fresh)[place][:2]
        assert mixed[place][2:] == lists(drawn.answers)[place]


def test_draws_depend_on_seed_step_and_place_alone() -> None:
    """Not on other draws, on the order of the prompts' names, or on the process."""
    first = filled(6, kept=24).draw([5, 9, 2], step=6)
    pool = filled(6, kept=24)
    pool.draw([5, 9, 2], step=5)
    assert lists(pool.draw([5, 9, 2], step=6).answers) == lists(first.answers)
    assert lists(pool.draw([5], step=6).answers) == lists(first.answers)[:1]
    ages = [tuple(pool.draw([5, 9, 2], step).ages) for step in range(6, 30)]
    assert len({*ages}) > 12
    pool.seed = 8
    assert pool.draw([5, 9, 2], step=6).ages != first.ages


def test_every_kept_answer_is_as_likely() -> None:
    pool = filled(2, kept=8, replayed=1)
    drawn = [str(lists(pool.draw([5], step).answers)[0]) for step in range(4000)]
    counts = [drawn.count(name) for name in {*drawn}]
    assert len(counts) == 8
    assert max(counts) - min(counts) < 6 * np.sqrt(4000 / 8)  # three deviations either side


@pytest.mark.parametrize("kept", [1, 4, 6])
def test_the_newest_are_kept_and_memory_is_bounded(kept: int) -> None:
    pool = filled(20, kept=kept, replayed=1)
    assert len(pool) == 3 * kept
    assert pool.nbytes <= 3 * kept * (3 * 2 + 8)  # tokens of two bytes, a length and a step
    oldest = 19 - (kept - 1) // 4
    ages = [age for step in range(50) for age in pool.draw([5, 9, 2], step).ages]
    assert {step - age for step, age in zip(np.repeat(range(50), 3), ages, strict=True)} == set(
        range(oldest, 20)
    )


def test_a_row_that_stands_twice_in_a_batch_keeps_the_answers_of_both() -> None:
    pool = Pool(seed=0, replayed=2, kept=8, vocabulary=1000)
    pool.add([5, 5], answers(0, prompts=2), 0)
    assert len(pool) == 8
    assert len(lists(pool.draw([5, 5], 1).answers)[1]) == 2


@pytest.mark.parametrize("vocabulary", [1000, 150_000])
def test_a_pool_that_was_stored_draws_and_forgets_as_before(vocabulary: int) -> None:
    pool = filled(3, kept=6, vocabulary=vocabulary)
    pool.add([9, 1], [group[:1] for group in answers(3, prompts=2)], 3)
    arrays = pool.arrays()
    assert arrays["replay_tokens"].dtype == (np.uint16 if vocabulary < 2**16 else np.int32)
    again = Pool(seed=7, replayed=2, kept=6, vocabulary=vocabulary)
    again.restore(arrays)
    assert again.nbytes == pool.nbytes
    for both in (pool, again):
        both.add([2, 5, 9], answers(4), 4)
    rows = [1, 2, 5, 9]
    assert lists(again.draw(rows, 5).answers) == lists(pool.draw(rows, 5).answers)
    stored = again.arrays()
    assert stored.keys() == pool.arrays().keys()
    for name, array in pool.arrays().items():
        np.testing.assert_array_equal(stored[name], array)
    again.restore({})
    assert (len(again), again.arrays()) == (0, {})


def test_the_settings_make_a_pool_and_say_how_large_it_grows() -> None:
    config = Config()
    assert replay.make(config, 1000) is None
    assert replay.expected_bytes(config, 1000, 50, 10.0) == 0
    config = dataclasses.replace(config, discriminator=Discriminator(replay_share=0.3))
    pool = replay.make(config, 150_000)
    assert pool is not None
    assert (pool.replayed, pool.kept) == (2, 8)  # of 8 samples
    assert replay.expected_bytes(config, 150_000, 50, 10.0) == 50 * 8 * (4 * 10 + 8)
