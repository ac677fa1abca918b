"""Which settings make a run fit: those of the program that is too large, as few as it takes."""

import dataclasses

import jax
import numpy as np
import pytest

from gad_jax.distributed import devices
from gad_jax.distributed.mesh import make_mesh
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.settings.operation import Evaluation
from gad_jax.training import architectures, footprint, levers, state
from gad_jax.training.footprint import Lengths

LENGTHS = Lengths(np.full(8, 30), np.full((8, 3), 20))


@pytest.fixture(scope="module")
def run() -> tuple:
    """The settings of the tiny run, with much to lower; its networks, a mesh, and lengths."""
    flags = ("--config=tiny", "--stage=gad", "--student.remat=none", "--rollout.slots=64")
    config = options.read(Config, flags, program="train", description="")
    return config, architectures.configs(config), make_mesh(devices=jax.devices()[:1]), LENGTHS


def test_what_fits_is_left_alone(run) -> None:
    need = footprint.largest(*run)
    found = levers.fit(*run, need.total)
    assert (found.config, found.need, found.flags) == (run[0], need, "")
    assert levers.advice(*run, need.total).endswith("fits: free memory")


def test_an_evaluation_reads_fewer_prompts_and_then_has_fewer_slots(run) -> None:
    config = dataclasses.replace(
        run[0], evaluation=Evaluation(batch_prompts=512, max_new_tokens=400)
    )
    large = (config, *run[1:])
    need = footprint.largest(*large)
    assert need.program.startswith("evaluation: ")
    found = levers.fit(*large, need.total - 1)
    assert found.changes == ("--evaluation.batch_prompts=256",)
    evaluates = levers.fit(*large, 1).need.program.startswith("evaluation: ")
    shorter = "--evaluation.max_new_tokens" if evaluates else "--rollout.max_new_tokens"
    assert f"lower {shorter} or --data.max_prompt_tokens" in levers.advice(*large, 1)


def test_fewer_prompts_at_once_come_first_and_no_more_than_is_needed(run) -> None:
    need = footprint.largest(*run).total
    found = levers.fit(*run, need - 1)
    assert found.changes == ("--batch.micro_batch_prompts=4",)
    assert found.need.total < need
    said = levers.advice(*run, need - 1)
    assert said.startswith("set --batch.micro_batch_prompts=4, which by estimate needs ")


def test_the_settings_found_are_those_of_a_run(run) -> None:
    config, _, *others = run
    room = levers.fit(*run, 0).need.total
    found = levers.fit(*run, room)
    again = options.read(
        Config,
        [*("--config=tiny", "--stage=gad", "--rollout.slots=64"), *found.changes],
        program="train",
        description="",
    )
    both = architectures.configs(again)
    assert footprint.largest(again, both, *others).total == found.need.total <= room
    assert config.batch.prompts == again.batch.prompts


def test_where_nothing_helps_it_is_said(run) -> None:
    said = levers.advice(*run, 1000)
    assert said.startswith("even with --")
    assert "use a smaller --student.path" in said
    assert "python -m gad_jax.plan says what fits" in said


def test_chunks_of_the_vocabulary_are_larger_where_a_trained_head_gains_by_it() -> None:
    def chunk(*flags: str, backend: str = "gpu") -> int:
        given = ("--config=tiny", *flags)
        config = options.read(Config, given, program="train", description="")
        with devices.compiling_for(backend):
            return state.vocabulary_chunk(config)

    assert chunk() == 4096
    assert chunk(backend="tpu") == 2048
    assert chunk(backend="cpu") == 512
    assert chunk("--lora.rank=4") == 512
    assert chunk("--lora.rank=4", "--batch.vocabulary_chunk=100") == 100
