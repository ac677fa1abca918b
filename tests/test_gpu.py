"""What a GPU computes, against the CPU of the same machine.

JAX_PLATFORMS=cuda,cpu python -m pytest -m gpu -n 0 tests/test_gpu.py
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from gad_jax.distributed import devices
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import attention
from gad_jax.models.builtin.tiny import write_tiny
from gad_jax.rollout import attention as decoding
from gad_jax.rollout import engine
from gad_jax.rollout.sampling import Sampler
from gad_jax.types import Rollout, Segments
from tests.rollout.model import NO_END, PAD, Model

pytestmark = pytest.mark.gpu

pytest_plugins = ["tests.run_fixtures"]

PROMPTS = [np.arange(3, 3 + length, dtype=np.int32) for length in (5, 9, 30, 17)]


@pytest.fixture(scope="module", autouse=True)
def _exact() -> Any:
    with jax.default_matmul_precision("highest"):
        yield


def on(platform: str, function: Callable[[Mesh], Any]) -> Any:
    """Returns what the function computes on the first device of a platform, as numpy arrays."""
    mesh = make_mesh(devices=jax.devices(platform)[:1])
    with devices.compiling_for(platform), jax.set_mesh(mesh):
        return jax.device_get(function(mesh))


def distance(found: Any, expected: Any) -> float:
    """Returns ‖found − expected‖ / ‖expected‖."""
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    assert np.isfinite(found).all()
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "width"),
    [(64, 4, 2, 64), (200, 14, 2, 64), (512, 9, 3, 64), (1024, 12, 2, 128), (4096, 8, 8, 128)],
)
def test_flash_attention(length: int, heads: int, kv_heads: int, width: int) -> None:
    """cuDNN's kernel under the masks of packed rows, values and gradients."""
    random = np.random.default_rng(length)
    arrays = [
        random.normal(size=(2, length, n, width)).astype(np.float32)
        for n in (heads, kv_heads, kv_heads, heads)
    ]
    cuts = np.sort(random.choice(np.arange(1, length), 6, replace=False))
    own = np.searchsorted(cuts, np.arange(length), side="right") + 1
    own[cuts[-1] :] = 0  # padding
    prefix = np.where(own <= 3, 1, 4) * (own > 0)  # two prompts, of two and one responses
    segments = Segments(*(np.tile(x.astype(np.int32), (2, 1)) for x in (own, prefix)))

    def whole(q: Any, k: Any, v: Any, weight: Any, segments: Segments) -> Any:
        mask = attention.visible(segments, segments.own)
        real = segments.own[:, :, None, None] > 0

        def loss(q: Any, k: Any, v: Any) -> Any:
            mixed = jnp.where(real, attention.attend(q, k, v, mask), 0)
            return (mixed * weight).astype(jnp.float32).sum(), mixed

        (_, mixed), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
        return mixed, *gradients

    def compute(dtype: str, mesh: Mesh) -> Any:
        placed = devices.put(arrays, mesh, "batch", None, "heads", None)
        q, k, v, weight = (x.astype(dtype) for x in placed)
        return jax.jit(whole)(q, k, v, weight, devices.put(segments, mesh, "batch"))

    found = on("gpu", lambda mesh: compute("bfloat16", mesh))
    expected = on("cpu", lambda mesh: compute("float32", mesh))
    errors = [distance(a.astype(np.float32), b) for a, b in zip(found, expected, strict=True)]
    assert max(errors) < 1e-2, errors  # inputs and results of 8 bits


SAMPLING = engine.RolloutProgram(3, 24, NO_END, PAD, Sampler(temperature=0.8))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "positions"),
    [(14, 2, 64, 960), (28, 4, 128, 512), (8, 8, 64, 256), (12, 2, 128, 64)],
)
def test_flash_decoding(heads: int, kv_heads: int, width: int, positions: int) -> None:
    """cuDNN's kernel for one query per slot, on rings that are partly seen."""
    slots = 5
    keys = jax.random.split(jax.random.key(heads), 3)
    shapes = (slots, heads, width), *2 * [(slots, kv_heads, positions, width)]
    arrays = [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
    context = jnp.array([1, 2, positions // 3, positions - 1, positions])
    half = [x.astype(jnp.bfloat16) for x in arrays]

    def attend(_: Mesh) -> Any:
        seen = decoding.visible(jnp.int32(positions + 7), context, positions)
        if devices.platform() == "gpu":
            return jax.jit(decoding.attend)(*half, seen).astype(jnp.float32)
        wide = [x.astype(jnp.float32) for x in half]
        return decoding.matmuls(*wide, seen, decoding.GPU_LAYOUT)

    # bfloat16 weights and outputs have 8 bits
    assert distance(on("gpu", attend), on("cpu", attend)) < 0.01


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-tiny of each family."""
    path = tmp_path_factory.mktemp(request.param)
    write_tiny(path, request.param, tied=request.param != "qwen2")
    return path


def network(directory: Path, mesh: Mesh, dtype: str) -> Model:
    model = Model(directory, mesh)
    model.config = dataclasses.replace(model.config, compute_dtype=dtype)
    return model


def answer(directory: Path, platform: str, dtype: str) -> Rollout:
    return on(platform, lambda mesh: network(directory, mesh, dtype).answer(SAMPLING, PROMPTS))


def forced(directory: Path, platform: str, dtype: str, rollout: Rollout) -> np.ndarray:
    """Returns the log-probabilities of the rollout's tokens, from one pass over whole rows."""
    logits = on(platform, lambda mesh: network(directory, mesh, dtype).forced(PROMPTS, rollout))
    logprobs = jax.device_get(jax.nn.log_softmax(np.float32(logits) / 0.8))
    taken = np.take_along_axis(logprobs, rollout.tokens.reshape(*logprobs.shape[:2], 1), -1)
    return taken.reshape(rollout.logprobs.shape)


def test_samples_are_those_of_the_cpu(directory: Path) -> None:
    gpu, cpu = (answer(directory, platform, "float32") for platform in ("gpu", "cpu"))
    np.testing.assert_array_equal(gpu.tokens, cpu.tokens)
    np.testing.assert_allclose(gpu.logprobs, cpu.logprobs, atol=2e-5)


def test_logprobs_are_those_of_the_whole_row(directory: Path) -> None:
    rollout = answer(directory, "gpu", "float32")
    whole = forced(directory, "gpu", "float32", rollout)
    np.testing.assert_allclose(rollout.logprobs, whole, atol=2e-5)


def test_logprobs_in_half_precision(directory: Path) -> None:
    """The loop's bfloat16 against the update's (cuDNN) and against float32."""
    rollout = answer(directory, "gpu", "bfloat16")
    whole = forced(directory, "gpu", "bfloat16", rollout)
    exact = forced(directory, "cpu", "float32", rollout)
    errors = [np.abs(rollout.logprobs - other).mean() for other in (whole, exact)]
    assert max(errors) < 0.02, errors
    assert abs((rollout.logprobs - exact).mean()) < 0.005  # on average none


RUN = (
    *("--config=tiny", "--student.compute_dtype=float32"),
    *("--checkpoint.every=1", "--checkpoint.keep=4"),
    *("--warmup.generator_learning_rate=1e-3", "--gad.generator_learning_rate=1e-3"),
    *("--warmup.discriminator_learning_rate=1e-3", "--gad.discriminator_learning_rate=1e-3"),
)

LEVELS = {"discriminator/student_score", "discriminator/teacher_score", "reward/mean"}
"""Bradley-Terry's loss leaves the level of the scores free: its gradient there is rounding, and
Adam makes steps of it. Their differences (margin, standard deviation) are compared."""


def test_a_run_is_that_of_the_cpu(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Warm-up and GAD, and a run that resumes on the GPU from the CPU's checkpoint."""
    # Else a GPU multiplies float32 matrices with 10 bits of the mantissa (TF32).
    monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "highest")

    def train(name: str, platform: str) -> list[dict[str, Any]]:
        monkeypatch.setenv("JAX_PLATFORMS", platform)
        done = command("train", *RUN, f"--run_dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    cpu = train("cpu", "cpu")
    gpu = train("gpu", "cuda")
    shutil.copytree(tmp_path / "cpu", tmp_path / "both")
    for step in (3, 4):
        shutil.rmtree(tmp_path / f"both/checkpoints/{step}")
    both = train("both", "cuda")
    assert len(cpu) == len(gpu) == len(both) == 4
    assert "memory/peak_gib" in gpu[-1]
    compared = ("response/", "reward/", "discriminator/", "generator/", "kl/", "entropy")
    for found in (gpu, both):
        for mine, theirs in zip(found, cpu, strict=True):
            names = [name for name in theirs if name.startswith(compared) and name not in LEVELS]
            assert len(names) > 10
            assert {name: mine[name] for name in names} == pytest.approx(
                {name: theirs[name] for name in names}, rel=1e-3, abs=1e-4
            ), theirs["step"]
