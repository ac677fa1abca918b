"""Kernels that are tried before they are relied on."""

import logging
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from gad_jax.distributed import devices, trial
from gad_jax.distributed.mesh import make_mesh
from gad_jax.rollout import attention

SHAPE = ((4, 8), "float32")


def double(x: Any) -> Any:
    return 2 * x


def refused(x: Any) -> Any:
    raise NotImplementedError("no kernel for this shape\nand more")


def test_what_fails_is_said_once_and_what_runs_is_not(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    @jax.jit
    def traced(x: Any) -> Any:  # as a network asks: under a mesh, while a program is traced
        calls.append([trial.runs(double, SHAPE), trial.runs(refused, SHAPE)])
        return x

    with caplog.at_level(logging.WARNING), jax.set_mesh(make_mesh()):
        traced(jnp.zeros(8))
        assert trial.runs(refused, SHAPE) is False
    assert calls == [[True, False]]
    assert [record.getMessage() for record in caplog.records] == [
        "warning: refused does not run here on (4, 8) (no kernel for this shape); a slower form "
        "takes its place"
    ]
    assert caplog.records[0].name == "gad_jax.distributed.trial"


def test_another_machine_is_not_tried() -> None:
    with devices.compiling_for("gpu"):
        assert trial.runs(refused, ((5, 8), "float32"))


def test_cudnn_is_refused_where_there_is_none() -> None:
    query, keys = jnp.zeros((3, 4, 8), jnp.bfloat16), jnp.zeros((3, 2, 16, 8), jnp.bfloat16)
    assert attention._takes(query, keys) is False
    with devices.compiling_for("gpu"):
        wide = jnp.zeros((3, 2, 24, 8), jnp.bfloat16)
        assert attention._takes(query, wide) is True
        assert attention._takes(query, jnp.zeros((3, 2, 12, 8), jnp.bfloat16)) is False
        assert attention._takes(jnp.zeros((3, 4, 8)), jnp.zeros((3, 2, 24, 8))) is False
