"""Moments in 16 and 8 bits against those in float32."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gad_jax.core import moments
from gad_jax.core.optimizer import adamw
from tests.core.test_optimizer import RATE, SETTINGS, tree

SMALL = dataclasses.replace(SETTINGS, beta2=0.999, max_gradient_norm=float("inf"))
Kind = Literal["float32", "bfloat16", "float8"]


def learnt(kind: Kind, gradients: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the updates of all steps, without weight decay, and the last second moment; the
    gradients are [steps, rows, columns]."""
    rule = adamw(dataclasses.replace(SMALL, moments=kind, weight_decay=0.0), RATE)
    params = {"kernel": jnp.zeros(gradients.shape[1:])}

    def step(state: Any, gradient: jax.Array) -> tuple[Any, jax.Array]:
        update, state = rule.update({"kernel": gradient}, state, params, finite=jnp.bool_(True))
        return state, update["kernel"]

    state, updates = jax.lax.scan(step, rule.init(params), gradients)
    adam = state[1][0]
    dtypes = {"float32": ("float32",) * 2, "bfloat16": ("bfloat16",) * 2}
    wanted = dtypes.get(kind, ("int8", "uint8"))
    assert (adam.mu["kernel"].dtype, adam.nu["kernel"].dtype) == wanted
    second = moments.wide(adam).nu["kernel"]
    return np.asarray(updates, np.float64), np.asarray(second, np.float64)


def gradients() -> jax.Array:
    """They vanish after half of the steps: rounded to the nearest, a second moment would stay
    where it was. Those of a row are a hundred times as large as those of another."""
    scale = jnp.where(jnp.arange(1200) < 600, 0.01, 1e-4)[:, None, None]
    rows = jnp.logspace(-1, 1, 8)[:, None]
    return scale * rows * jax.random.normal(jax.random.key(3), (1200, 8, 64))


# The means are over 512 numbers that round independently. A bfloat16 has 128 steps per octave and
# a float8 8: their random walks differ by the root of that.
@pytest.mark.parametrize(
    ("kind", "mean", "most", "alike"),
    [("bfloat16", 0.01, 0.3, 0.999), ("float8", 0.05, 1.5, 0.98)],
)
def test_small_moments_follow_those_in_float32(
    kind: Kind, mean: float, most: float, alike: float
) -> None:
    (of_wide, wanted), (updates, found) = (learnt(each, gradients()) for each in ("float32", kind))
    ratio = found / wanted
    assert np.mean(ratio) == pytest.approx(1, rel=mean)
    assert np.max(np.abs(ratio - 1)) < most
    cosine = np.sum(of_wide * updates) / np.sqrt(np.sum(of_wide**2) * np.sum(updates**2))
    assert cosine > alike
    assert np.sum(updates**2) == pytest.approx(np.sum(of_wide**2), rel=0.05)
    assert jnp.bfloat16(0.999) * jnp.bfloat16(1.5) == 1.5  # to the nearest it would not decay


@pytest.mark.parametrize("name", ["mu", "nu"])
@pytest.mark.parametrize("scale", [3e-5, 1.0, 1e-34, 1e37])
def test_a_code_is_within_a_step_and_right_on_average(name: str, scale: float) -> None:
    shares = jnp.tile((jnp.arange(64) + 0.5)[:, None] / 64, (1, 97))
    numbers = jnp.tile(scale * jnp.exp2(-jnp.linspace(0, 12, 97))[None], (64, 1))
    scales = jnp.full((1, 97), scale)
    codes = moments._code(name, numbers, scales, shares)
    found = np.asarray(moments._read(name, codes, scales), np.float64)
    wanted = np.asarray(numbers, np.float64)
    lowest, _ = moments._octaves(name, scales)
    step = 2.0 ** np.maximum(np.floor(np.log2(wanted)), lowest) / moments.STEPS
    assert (np.abs(found - wanted) < 1.001 * step).all()
    assert (np.abs(found.mean(axis=0) - wanted[0]) < step[0] / 60).all()  # of 64 shares
    exact = moments._code(name, jnp.asarray(found, jnp.float32), scales, shares[::-1])
    np.testing.assert_array_equal(exact, codes)  # what a code means is kept as it is


def test_numbers_far_below_the_scale_are_not_cut_off() -> None:
    """Of a second moment, the smallest code stands for more than 0: the step stays short."""
    scales = jnp.ones((1, 1))
    tiny = jnp.full((1, 1), 2.0**-40)
    assert int(moments._code("nu", tiny, scales, jnp.zeros((1, 1)))[0, 0]) == 0
    rule = adamw(dataclasses.replace(SMALL, moments="float8", epsilon=1e-30), RATE)
    gradient = jnp.asarray([[1.0, 1e-7]])
    params = {"kernel": jnp.zeros((1, 2))}
    update, state = rule.update({"kernel": gradient}, rule.init(params), params)
    assert state[1][0].nu["kernel"].tolist()[0][1] == 1
    assert np.abs(update["kernel"]).max() < 1.2 * RATE


@pytest.mark.parametrize("kind", ["bfloat16", "float8"])
def test_small_moments_do_not_move_when_broken(kind: Kind) -> None:
    params = tree(0)
    rule = adamw(dataclasses.replace(SMALL, moments=kind), RATE)
    _, before = rule.update(tree(1), rule.init(params), params, finite=jnp.bool_(True))
    sizes = {"bfloat16": {2}, "float8": {1, 4}}  # codes, and one scale for all of them
    found = [leaf for leaf in jax.tree.leaves(before) if leaf.ndim]
    assert {leaf.dtype.itemsize for leaf in found} == sizes[kind]
    assert {leaf.size for leaf in found if leaf.dtype.itemsize == 4} <= {1}
    _, after = rule.update(tree(2), before, params, finite=jnp.bool_(False))
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_the_axis_that_shares_a_scale_is_the_longer_one() -> None:
    shapes = {"kernel": (2, 3, 7), "wide": (2, 7, 3), "norm": (2, 5), "bias": (4,)}
    state = optax.scale_by_adam().init({k: jnp.zeros(v) for k, v in shapes.items()})
    found = moments.stored("float8", state)
    assert {k: x.shape for k, x in found.nu_scale.items()} == {
        "kernel": (2, 3, 1),
        "wide": (2, 1, 3),
        "norm": (2, 1),
        "bias": (1,),
    }
    assert {k: x.shape for k, x in found.mu.items()} == shapes
