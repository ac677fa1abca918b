"""The compiled loop samples from the network, and a sample depends on nothing but its own key."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gad_jax.distributed import devices
from gad_jax.distributed.mesh import data_shards, make_mesh
from gad_jax.models.builtin.tiny import write_tiny
from gad_jax.plan import decoding
from gad_jax.rollout import attention, engine, prefill
from gad_jax.rollout.engine import RolloutProgram
from gad_jax.rollout.sampling import Sampler, shape_logits
from gad_jax.types import Rollout, Segments
from tests.rollout.model import (
    GREEDY,
    LIMIT,
    NO_END,
    PAD,
    PROMPTS,
    SAME,
    SAMPLING,
    Model,
    assert_same,
    logits,
    prompts,
)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_logprobs_are_those_of_the_whole_row(models: Any, family: str) -> None:
    model = models(family)
    rollout = model.answer()
    assert rollout.tokens.shape == rollout.logprobs.shape == (4, 3, LIMIT)
    forced = model.forced(PROMPTS, rollout)
    flat = rollout.tokens.reshape(12, LIMIT)
    for row, tokens, logprobs in zip(
        forced, flat, rollout.logprobs.reshape(12, LIMIT), strict=True
    ):
        expected = jax.device_get(jax.nn.log_softmax(row / 0.8))
        np.testing.assert_allclose(logprobs, expected[np.arange(LIMIT), tokens], atol=SAME)
    assert len({tuple(tokens) for tokens in flat}) == 12


def test_thresholds_give_the_tokens_that_could_be_drawn(llama: Model) -> None:
    sampler = Sampler(temperature=0.8, top_k=200, top_p=0.7)
    rollout = llama.answer(dataclasses.replace(SAMPLING, sampler=sampler))
    assert rollout.thresholds is not None
    assert llama.answer().thresholds is None
    flat = (x.reshape(12, LIMIT) for x in (rollout.tokens, rollout.logprobs, rollout.thresholds))
    for row, tokens, logprobs, limits in zip(llama.forced(PROMPTS, rollout), *flat, strict=True):
        kept = row / 0.8 >= limits[:, None]
        np.testing.assert_array_equal(kept, np.isfinite(shape_logits(jnp.asarray(row), sampler)))
        expected = jax.device_get(jax.nn.log_softmax(np.where(kept, row / 0.8, -np.inf)))
        np.testing.assert_allclose(logprobs, expected[np.arange(LIMIT), tokens], atol=SAME)


def test_greedy_takes_the_likeliest_token(llama: Model) -> None:
    rollout = llama.answer(GREEDY)
    for row, tokens, logprobs in zip(
        llama.forced(PROMPTS, rollout), rollout.tokens[:, 0], rollout.logprobs[:, 0], strict=True
    ):
        assert tokens.tolist() == row.argmax(-1).tolist()
        expected = jax.device_get(jax.nn.log_softmax(row))[np.arange(LIMIT), tokens]
        np.testing.assert_allclose(logprobs, expected, atol=SAME)


def take(rollout: Rollout, rows: Any, samples: int = 3) -> Rollout:
    return jax.tree.map(lambda x: x[np.asarray(rows), :samples], rollout)


def test_a_sample_is_the_same_in_another_batch(llama: Model, sampled: Rollout) -> None:
    for rows in ([3, 1, 0, 2], [2]):  # in another order; alone
        chosen = [PROMPTS[row] for row in rows]
        assert_same(llama.answer(prompts=chosen, indices=rows), take(sampled, rows))


def test_the_first_samples_are_the_same_among_fewer(llama: Model, sampled: Rollout) -> None:
    fewer = RolloutProgram(2, LIMIT, NO_END, PAD, Sampler(temperature=0.8))
    assert_same(llama.answer(fewer), take(sampled, range(4), 2))


def test_a_longer_neighbour_changes_nothing(llama: Model, sampled: Rollout) -> None:
    # the longest prompt decides the padding of all: 64 instead of 32
    longer = llama.answer(prompts=[*PROMPTS[:3], *prompts(40)])
    assert_same(take(longer, [0, 1, 2]), take(sampled, [0, 1, 2]))


def test_eight_devices_sample_what_one_does(tmp_path: Any, sampled: Rollout) -> None:
    write_tiny(tmp_path, "llama")
    model = Model(tmp_path, make_mesh(1, 4, 2))
    assert_same(model.answer(), sampled)
    # three prompts do not split over four shards: a row is added, and taken away
    assert_same(model.answer(prompts=PROMPTS[:3]), take(sampled, [0, 1, 2]))


def test_the_number_of_slots_changes_nothing(llama: Model, sampled: Rollout) -> None:
    for slots in (1, 2, 5):
        assert_same(llama.answer(dataclasses.replace(SAMPLING, slots=slots)), sampled)


LONG = RolloutProgram(1, 150, NO_END, PAD, Sampler(temperature=0.8))
LIMITS = np.array([150, 1, 40, 9, 75, 2, 33, 120, 5, 64])
MANY = prompts(5, 9, 30, 1, 17, 61, 2, 3, 33, 8)


def trace(model: Model, settings: RolloutProgram, limits: np.ndarray = LIMITS) -> Any:
    """Returns what the loop sampled and how it went, which is as the plan expects it."""
    with jax.set_mesh(model.mesh):
        rollout, segments = engine.sample_responses(
            model.config,
            model.params,
            MANY,
            np.arange(len(MANY)),
            jax.random.key(5),
            settings,
            model.mesh,
            limits=limits,
        )
    asked = np.array([len(prompt) for prompt in MANY])
    shards = data_shards(model.mesh)
    expected = decoding.decode_calls(
        *(asked, rollout.lengths, shards, settings.slots, settings.longest, limits),
        *(settings.steps, settings.resizes),
    )
    assert segments == expected
    return rollout, segments


@pytest.fixture(scope="module")
def uneven(llama: Model) -> Rollout:
    """Responses of very different lengths, all in slots of their own."""
    return trace(llama, dataclasses.replace(LONG, slots=10))[0]


def test_caches_in_the_layout_of_a_tpu_give_the_same(
    llama: Model, uneven: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "ring_layout", lambda: attention.TPU_LAYOUT)
    jax.clear_caches()  # programs are kept by their arguments, and the layout is none of them
    rollout = trace(llama, dataclasses.replace(LONG, slots=4))[0]
    jax.clear_caches()
    assert_same(rollout, uneven)


def test_one_size_samples_the_same_in_one_call(llama: Model, uneven: Rollout) -> None:
    rollout, [call] = trace(llama, dataclasses.replace(LONG, slots=4, resizes=False))
    assert_same(rollout, uneven)
    assert (call.slots, call.capacity) == (4, 256)  # 5 tokens of a prompt and 150 of a response


def test_a_slot_that_is_free_takes_the_next_sample(llama: Model, uneven: Rollout) -> None:
    rollout, segments = trace(llama, dataclasses.replace(LONG, slots=4))
    assert_same(rollout, uneven)
    np.testing.assert_array_equal(rollout.lengths, LIMITS[:, None])
    # the cache grew with the long ones, and the last sample moved to a single slot
    assert {part.capacity for part in segments} >= {128, 256}
    assert segments[-1].slots == 1
    # a greedy schedule of the same lengths, the longest prompts first
    free = np.zeros(4, int)
    for prompt in np.argsort([-len(prompt) for prompt in MANY], kind="stable"):
        free[free.argmin()] += LIMITS[prompt]
    assert sum(part.steps for part in segments) == free.max()


def test_caches_have_room_for_all_steps_until_the_next_check(llama: Model, uneven: Rollout) -> None:
    rollout, segments = trace(llama, dataclasses.replace(LONG, slots=4, steps_per_check=8))
    assert_same(rollout, uneven)
    assert {part.capacity for part in segments} >= {128, 256}
    assert segments[-1].slots == 1


def test_the_largest_cache_needs_no_power_of_two(llama: Model, uneven: Rollout) -> None:
    rollout, segments = trace(llama, dataclasses.replace(LONG, slots=4, longest=155))
    assert_same(rollout, uneven)
    assert max(part.capacity for part in segments) == 155


def test_samples_before_a_longer_one_move_to_larger_caches(llama: Model) -> None:
    """What is in the ring, wrapped around, goes along."""
    alone = trace(llama, dataclasses.replace(LONG, slots=1))[0]
    together = trace(llama, dataclasses.replace(LONG, slots=8))[0]
    assert_same(alone, together)


def test_the_loop_agrees_with_whole_rows_at_every_length(llama: Model, uneven: Rollout) -> None:
    row = int(LIMITS.argmax())
    sequence = np.concatenate([MANY[row], uneven.tokens[row, 0]])[None]
    own = np.ones_like(sequence)
    positions = np.arange(sequence.size, dtype=np.int32)[None]
    with jax.set_mesh(llama.mesh):
        arrays = devices.put((sequence, positions, Segments(own, own)), llama.mesh, "batch")
        whole = devices.fetch(logits(llama.config, llama.params, *arrays))[0]
    whole = whole[len(MANY[row]) - 1 : -1]
    expected = np.asarray(jax.nn.log_softmax(whole / 0.8))
    picked = expected[np.arange(150), uneven.tokens[row, 0]]
    np.testing.assert_allclose(uneven.logprobs[row, 0], picked, atol=SAME)


def test_eight_devices_refill_as_one_does(tmp_path: Any, uneven: Rollout) -> None:
    write_tiny(tmp_path, "llama")
    model = Model(tmp_path, make_mesh(1, 4, 2))
    assert_same(trace(model, dataclasses.replace(LONG, slots=2))[0], uneven)


def test_the_plan_expects_what_the_loop_does_with_responses_that_end(llama: Model) -> None:
    often = tuple(range(0, 512, 40))
    settings = dataclasses.replace(LONG, samples=3, slots=8, end_tokens=often)
    rollout, segments = trace(llama, settings)  # compares them
    assert rollout.lengths.std(axis=1).max() > 1  # those of a prompt differ
    assert len(segments) > 2


def test_an_idle_device_waits_for_the_others(tmp_path: Any, sampled: Rollout) -> None:
    write_tiny(tmp_path, "llama")
    model = Model(tmp_path, make_mesh(2, 4, 1))
    assert_same(model.answer(prompts=PROMPTS[:1]), take(sampled, [0]))


def test_the_occupancy_is_the_share_of_steps_that_drew_a_token(llama: Model) -> None:
    rollout, segments = trace(llama, dataclasses.replace(LONG, slots=4))
    steps = sum(part.slots * part.steps for part in segments)
    assert engine.occupancy(rollout, segments, 1) == LIMITS.sum() / steps
    assert 0.5 < engine.occupancy(rollout, segments, 1) <= 1


def cut(sampled: Rollout, ends: tuple[int, ...], pad: int) -> Rollout:
    """Returns what a rollout must be if it stops at `ends`, from one that did not."""
    tokens, logprobs = sampled.tokens.copy(), sampled.logprobs.copy()
    found = np.isin(tokens, ends)
    finished = found.any(-1)
    lengths = np.where(finished, found.argmax(-1) + 1, LIMIT)
    after = np.arange(LIMIT) >= lengths[..., None]
    tokens[after], logprobs[after] = pad, 0
    return Rollout(tokens, logprobs, lengths, finished)


def test_a_response_stops_at_any_end_token(llama: Model, sampled: Rollout) -> None:
    places = ((0, 0, 0), (1, 1, 5), (2, 2, LIMIT - 1))  # a first token, one midway, a last one
    ends = tuple(int(sampled.tokens[place]) for place in places)
    expected = cut(sampled, ends, pad=ends[1])
    assert {1, 6, LIMIT} <= {*expected.lengths.flat}
    assert expected.finished[2, 2]
    assert not expected.finished.all()
    # the pad token may be an end token: lengths and masks do not come from it
    stopping = RolloutProgram(3, LIMIT, ends, ends[1], Sampler(temperature=0.8))
    assert_same(llama.answer(stopping), expected)


def test_an_unfinished_response_has_the_limit_s_length(sampled: Rollout) -> None:
    assert not sampled.finished.any()
    assert (sampled.lengths == LIMIT).all()
    assert (sampled.logprobs < 0).all()


def test_another_step_or_place_in_the_data_is_another_sample(
    llama: Model, sampled: Rollout
) -> None:
    assert not np.any(np.all(llama.answer(step=1).tokens == sampled.tokens, axis=-1))
    moved = llama.answer(indices=[4, 5, 6, 7])
    assert not np.any(np.all(moved.tokens == sampled.tokens, axis=-1))
    assert_same(llama.answer(), sampled)


def test_every_token_has_a_draw_of_its_own(llama: Model, sampled: Rollout) -> None:
    """A token says which uniform number drew it: one between two sums of probabilities."""
    probabilities = jax.nn.softmax(np.stack(llama.forced(PROMPTS, sampled)) / 0.8)
    above = np.cumsum(np.asarray(probabilities, np.float64), axis=-1)
    flat = sampled.tokens.reshape(12, LIMIT, 1)
    upper = np.take_along_axis(above, flat, axis=-1)[..., 0]
    lower = upper - np.take_along_axis(np.asarray(probabilities), flat, axis=-1)[..., 0]
    for responses in (lower, upper), (lower.T, upper.T):  # along a response, and across them
        low, high = responses
        assert (low.max(axis=1) > high.min(axis=1)).all(), "one number could have drawn them all"
    draws = (lower + upper) / 2
    # 144 uniform draws: their mean is known to 0.289 / 12 = 0.024, the share below 1/4 to 0.036
    np.testing.assert_allclose(draws.mean(), 0.5, atol=4 * 0.024)
    np.testing.assert_allclose((draws < 0.25).mean(), 0.25, atol=4 * 0.036)


def test_a_bucket_is_compiled_once(llama: Model, sampled: Rollout) -> None:
    del sampled  # which compiled what prompts like these need
    caches = prefill.prefill, engine.decode
    before = [function._cache_size() for function in caches]
    llama.answer(prompts=prompts(8, 31, 12, 11), step=2)
    assert [function._cache_size() for function in caches] == before
    llama.answer(prompts=prompts(70, 65, 68, 66))
    added = [function._cache_size() for function in caches]
    assert added == [size + 1 for size in before]
    llama.answer(prompts=prompts(96, 77, 70, 88), step=3)
    assert [function._cache_size() for function in caches] == added


def test_the_largest_cache_of_prompts_is_used_again(llama: Model) -> None:
    """So that `decode` has one program for prompts of all lengths, with the same samples."""
    sizes: set[int] = set()

    def sampled(prompts: list[np.ndarray]) -> Rollout:
        key = jax.random.fold_in(jax.random.key(1), 0)  # of `answer`
        given = np.arange(len(prompts)), key, SAMPLING, llama.mesh
        with jax.set_mesh(llama.mesh):
            return engine.sample_responses(
                llama.config, llama.params, prompts, *given, sizes=sizes
            )[0]

    long, short = prompts(70, 65, 68, 66), prompts(8, 31, 12, 11)
    sampled(long)
    before = engine.decode._cache_size()
    assert_same(sampled(short), llama.answer(prompts=short))
    assert len(sizes) == 2
    compiled = engine.decode._cache_size() - before
    assert sampled(short).tokens.shape == (4, 3, LIMIT)
    assert engine.decode._cache_size() - before == compiled
