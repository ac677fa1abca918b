"""AdamW against optax's, and what a compiled update needs next to its arguments."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gad_jax.core.optimizer import Schedule, adamw
from gad_jax.settings.optimizer import Optimizer

SETTINGS = Optimizer(beta1=0.8, beta2=0.95, epsilon=1e-6, weight_decay=0.1, max_gradient_norm=2.0)
RATE = 0.03


def tree(seed: int, scale: float = 1.0, size: int = 6) -> dict[str, jax.Array]:
    kernel, bias = jax.random.normal(jax.random.key(seed), (2, size))
    return {"kernel": scale * kernel, "bias": scale * bias}


def test_it_is_adamw_after_a_clip() -> None:
    ours = adamw(SETTINGS, RATE)
    theirs = optax.chain(
        optax.clip_by_global_norm(SETTINGS.max_gradient_norm),
        optax.adamw(RATE, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.1),
    )
    found: Any = tree(0)
    wanted: Any = tree(0)
    moments, theirs_moments = ours.init(found), theirs.init(wanted)
    for step, scale in enumerate((0.1, 10.0, 1.0, 0.0)):  # clipped is the second
        gradients = tree(step + 1, scale)
        updates, moments = ours.update(gradients, moments, found, finite=jnp.bool_(True))
        found = optax.apply_updates(found, updates)
        updates, theirs_moments = theirs.update(gradients, theirs_moments, wanted)
        wanted = optax.apply_updates(wanted, updates)
        for one, other in zip(
            jax.tree.leaves((found, moments)),
            jax.tree.leaves((wanted, theirs_moments)),
            strict=True,
        ):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("shape", "theirs"),
    [
        ("linear", optax.linear_schedule(RATE, 0.0, 5)),
        ("cosine", optax.cosine_decay_schedule(RATE, 5)),
    ],
)
def test_a_rate_that_falls_is_that_of_optax(
    shape: Literal["linear", "cosine"], theirs: optax.Schedule
) -> None:
    schedule = Schedule(start=3, end=8, shape=shape)
    ours = adamw(SETTINGS, RATE)
    wanted = optax.chain(
        optax.clip_by_global_norm(SETTINGS.max_gradient_norm),
        optax.adamw(theirs, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.1),
    )
    params: Any = tree(0)
    moments, others = ours.init(params), wanted.init(params)
    sizes = []
    for step in range(3, 8):
        gradients = tree(step)
        factor = schedule.factor(jnp.int32(step))
        updates, moments = ours.update(gradients, moments, params, factor=factor)
        expected, others = wanted.update(gradients, others, params)
        for name in params:
            np.testing.assert_allclose(updates[name], expected[name], rtol=1e-5)
        sizes.append(float(factor))
    assert sizes[0] == 1
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] > 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_moments_of_a_broken_gradient_are_those_before(value: float) -> None:
    rule, params = adamw(SETTINGS, RATE), tree(0)
    _, before = rule.update(tree(1), rule.init(params), params, finite=jnp.bool_(True))
    broken = {"kernel": tree(2)["kernel"].at[3].set(value), "bias": tree(2)["bias"]}
    _, after = rule.update(broken, before, params, finite=jnp.bool_(False))
    jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.parametrize(
    ("moments_dtype", "width"), [("float32", 4), ("bfloat16", 2), ("float8", 1)]
)
def test_nothing_as_large_as_a_moment_is_stored_beside_them(
    moments_dtype: Literal["float32", "bfloat16", "float8"], width: int
) -> None:
    rule = adamw(dataclasses.replace(SETTINGS, moments=moments_dtype), RATE)

    def update(params: Any, moments: Any, gradients: Any, finite: jax.Array) -> Any:
        updates, moments = rule.update(gradients, moments, params, finite=finite)
        new = optax.apply_updates(params, updates)
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, params), moments

    params = jax.eval_shape(lambda: tree(0, size=2**20))
    moments = jax.eval_shape(rule.init, params)
    finite = jax.ShapeDtypeStruct((), jnp.bool_)
    compiled = jax.jit(update, donate_argnums=(0, 1)).lower(params, moments, params, finite)
    memory = compiled.compile().memory_analysis()
    size = params["kernel"].size
    assert memory.alias_size_in_bytes >= 2 * size * (4 + 2 * width)  # both leaves, both moments
    assert memory.temp_size_in_bytes < size / 2
