"""No two uses of the seed share random numbers."""

import jax
import numpy as np

from gad_jax.settings.config import STAGES
from gad_jax.training import randomness

LAST_STEP = 2**31 - 1


def words(key: jax.Array) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_the_streams_of_a_seed_and_of_its_neighbours_are_distinct() -> None:
    keys, seeds = [], []
    for seed in (0, 1, 2, 42, 2**32 - 1):
        root = jax.random.key(seed)
        steps = (0, 1, 2, 3, 10, 1000, LAST_STEP)
        keys += [words(root), words(randomness.head_key(seed))]
        keys += [words(randomness.adapters_key(seed, head)) for head in randomness.ADAPTERS]
        keys += [words(randomness.sampling_key(root, step)) for step in steps]
        seeds += [randomness.order_seed(seed, stage) for stage in STAGES]
    assert len({*keys}) == len(keys)
    assert len({*seeds}) == len(seeds)


def test_the_head_is_drawn_from_no_step() -> None:
    assert min(randomness.HEAD, *randomness.ADAPTERS.values()) > LAST_STEP
    # The first samples of the second step came from the head's numbers before.
    second = randomness.sampling_key(jax.random.key(0), 1)
    assert words(randomness.head_key(0)) != words(second)


def test_the_order_of_the_rows_is_that_of_earlier_versions() -> None:
    found = [randomness.order_seed(0, stage) for stage in STAGES]
    wanted = [int(np.random.SeedSequence([0, n]).generate_state(1)[0]) for n in range(7)]
    assert found == wanted
