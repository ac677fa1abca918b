"""How many rows and micro-batches a batch takes, and how many shapes that makes."""

import numpy as np
import pytest

from gad_jax.core.layout import fewest_micro_batches, rectangle_padding_share
from gad_jax.core.packing import Given, pack, pack_together, padding_share
from tests.core.texts import Texts, array, draw


def test_micro_batches_carry_similar_loads() -> None:
    prompts, responses, _ = draw(np.random.default_rng(6), 16, 4, (20, 60))
    rows = pack(prompts, responses, row_tokens=160, micro_batches=4)
    loads = (rows.segments.own > 0).sum(axis=(1, 2))
    assert loads.max() <= 1.1 * loads.min()


def test_few_shapes_for_many_batches() -> None:
    shapes = set()
    for seed in range(60):
        prompts, responses, _ = draw(np.random.default_rng(seed), 16, 4, (20, 60))
        rows = pack(prompts, responses, row_tokens=96, shards=2, known=shapes)
        shapes.add(rows.tokens.shape)
    assert len(shapes) <= 5


def test_lengths_that_are_shuffled_need_no_other_shape() -> None:
    prompts, responses, _ = draw(np.random.default_rng(8), 16, 4, (20, 60))
    shapes = {pack(prompts, responses, row_tokens=96).tokens.shape}
    rng = np.random.default_rng(9)
    for _ in range(50):
        everything = [r for group in responses for r in group]
        order = rng.permutation(len(everything))
        shuffled = [[everything[i] for i in part] for part in np.split(order, len(responses))]
        asked = [prompts[i] for i in rng.permutation(len(prompts))]
        shapes.add(pack(asked, shuffled, row_tokens=96, known=shapes).tokens.shape)
    assert len(shapes) == 1


def lognormal(rng: np.random.Generator, mean: float, spread: float, count: int, cut: int) -> list:
    """Returns texts whose lengths are lognormal with this mean, cut at a limit."""
    lengths = rng.lognormal(np.log(mean) - spread**2 / 2, spread, count)
    return [np.ones(length, np.int32) for length in np.clip(lengths.astype(int), 1, cut)]


def paper_batch(seed: int, prompts: int, mean: float) -> tuple[list[np.ndarray], Texts]:
    """Returns prompts and 9 responses of each, with the lengths of the paper's data."""
    rng = np.random.default_rng(seed)
    asked = lognormal(rng, 150, 0.9, prompts, 2048)
    return asked, [lognormal(rng, mean, 0.8, 9, 1536) for _ in asked]


def test_rows_of_one_program_have_few_combinations_of_shapes() -> None:
    apart, joint, known = set(), set(), set()  # of rows packed by themselves, and together
    tokens = {"apart": 0, "joint": 0}
    for seed in range(40):
        prompts, pairs = paper_batch(seed, 8, 385)
        both = [pairs, [group[1:] for group in pairs]]
        shapes = []
        for responses in both:
            rows = pack(prompts, responses, row_tokens=3584, known=known)
            known.add(rows.tokens.shape)
            shapes.append(rows.tokens.shape)
            tokens["apart"] += rows.tokens.size
        apart.add(tuple(shapes))
        packed = pack_together(prompts, [Given(r) for r in both], row_tokens=3584, known=joint)
        joint.add(tuple(rows.tokens.shape for rows in packed))
        tokens["joint"] += sum(rows.tokens.size for rows in packed)
    assert len(joint) <= 0.75 * len(apart), (joint, apart)
    assert tokens["joint"] <= 1.05 * tokens["apart"]


@pytest.mark.parametrize(
    ("prompts", "micro_batches", "shards"), [(32, 1, 1), (256, 8, 8), (256, 8, 16)]
)
def test_padding_on_the_length_distribution_of_the_paper(prompts, micro_batches, shards) -> None:
    """Responses of 330 to 440 tokens on average, at most 1536: 50 steps as a run packs them."""
    known, new = set(), []
    packed, repeated, rectangle = [], [], []
    for seed in range(50 if prompts == 32 else 8):
        asked, answers = paper_batch(seed, prompts, (330, 385, 440)[seed % 3])
        shape = {"row_tokens": 3584, "micro_batches": micro_batches, "shards": shards}
        rows = pack(asked, answers, **shape, known=known)
        new += [seed] if rows.tokens.shape not in known else []
        known.add(rows.tokens.shape)
        packed.append(padding_share(rows))
        pairs = zip(asked, answers, strict=True)
        tokens = sum(len(p) - 1 + sum(len(r) + 1 for r in rs) for p, rs in pairs)
        repeated.append(1 - packed[-1] - tokens / rows.tokens.size)
        rectangle.append(rectangle_padding_share(asked, answers))
    print(
        f"{prompts} prompts, {micro_batches} micro-batches, {shards} shards: padding "
        f"{np.mean(packed):.1%} (at most {max(packed):.1%}), repeated prompts "
        f"{np.mean(repeated):.1%}; padded rectangle {np.mean(rectangle):.1%}; new shapes at {new}"
    )
    assert np.mean(packed) <= 0.10
    assert np.mean(rectangle) >= 0.75


def test_fewest_micro_batches_fill_what_there_is_room_for() -> None:
    prompts, responses = [array(1, 2)] * 8, [[array(3, 4, 5)]] * 8  # 5 positions each, 5.4 taken
    assert [fewest_micro_batches(prompts, responses, 8, n) for n in (6, 11, 22, 44)] == [8, 4, 2, 1]
    assert fewest_micro_batches(prompts, responses, 8, 1) == 8
