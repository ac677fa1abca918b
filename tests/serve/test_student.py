"""A student that is ready to serve: its sizes, and one program for prompts of all lengths."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from gad_jax.base.errors import UserError
from gad_jax.data.chat import Chat
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import weights
from gad_jax.models.builtin.tiny import write_tiny
from gad_jax.rollout import chunks
from gad_jax.serve.student import ServedStudent


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("tiny")
    write_tiny(directory)
    return directory


def served(directory: Path, slots: int, context: int) -> ServedStudent:
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        config, params = weights.load(directory, mesh)
    chat = Chat.load(directory, "none")
    return ServedStudent.make(config, params, chat, mesh, slots, context)


def test_sizes_follow_the_platform_and_the_model(tiny: Path) -> None:
    student = served(tiny, slots=0, context=10**6)
    assert student.slots == 8  # a CPU's
    assert student.context == student.config.max_positions


def test_a_cache_that_cannot_fit_is_refused(tiny: Path) -> None:
    with pytest.raises(UserError, match=r"lower --slots or --context, or raise --tensor"):
        served(tiny, slots=10**9, context=1024)


def test_prompts_of_all_lengths_share_one_program(tiny: Path) -> None:
    student = served(tiny, slots=2, context=256)
    before = chunks.run._cache_size()
    with jax.set_mesh(student.mesh):
        for length in (1, 5, 63, 64, 65, 100, 128):
            student.prefill(np.arange(length))
    assert chunks.run._cache_size() - before == 1


def test_threads_share_the_tokenizer(tiny: Path) -> None:
    student = served(tiny, slots=1, context=256)
    conversations = [[{"role": "user", "content": f"Question {n}"}] for n in range(32)]
    alone = [student.encode(one) for one in conversations]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(student.encode, conversations))
    for expected, found in zip(alone, together, strict=True):
        np.testing.assert_array_equal(found, expected)
