"""A reward model: its scores, where it may come from, and what is refused."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from gad_jax.base.errors import UserError
from gad_jax.data.chat import Chat
from gad_jax.distributed.mesh import make_mesh
from gad_jax.export.__main__ import main
from gad_jax.models import checksums, source
from gad_jax.training import setup
from gad_jax.training.rewards.models import Model
from tests.core import builders
from tests.training.runs import run, settings


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """The settings of a run with a discriminator, which is exported next to it."""
    directory = tmp_path_factory.mktemp("judged") / "run"
    config = settings(directory, "--stage=offpolicy", "--offpolicy.steps=1", "--data.heldout=")
    directory.mkdir()
    setup.claim(config)
    run(config)
    assert main([str(directory), f"--out={directory.parent}/export"]) == 0
    return config


def scores(config, name, micro_batches=1, **changes):
    config = dataclasses.replace(config, **changes)
    mesh = make_mesh(1, 4, 2)
    with jax.set_mesh(mesh):
        chat = Chat.load(source.resolve("random-tiny"), "none")
        model = Model(name, config, "float32", chat, mesh)
        rows = builders.rows(builders.texts(), "samples", micro_batches, mesh)
        return model(rows), model.identity


def test_a_run_and_its_export_score_alike_in_the_order_of_the_prompts(judged):
    of_run, origin = scores(judged, f"model:{judged.run_dir}")
    assert origin == f"{judged.run_dir}, step 1 (offpolicy)"
    assert of_run.shape == (builders.PROMPTS, builders.SAMPLES)
    assert np.std(of_run) > 0
    exported, identity = scores(judged, f"model:{judged.run_dir}/../export/discriminator", 2)
    assert len(identity) == 32
    # Float32: the same sums, in micro-batches of another order.
    np.testing.assert_allclose(exported, of_run, rtol=1e-4, atol=1e-5)


def test_what_is_no_reward_model_for_the_student_is_refused(judged, tmp_path):
    def says(name, **changes):
        with pytest.raises(UserError) as refused:
            scores(judged, f"model:{name}", **changes)
        assert str(refused.value).startswith(f"--reward.extra=model:{name}: ")
        return str(refused.value)

    assert "random-tiny is a causal language model; name a sequence class" in says("random-tiny")
    assert "nowhere" in says("nowhere")
    assert "has no checkpoint" in says(f"{judged.run_dir}@7")
    longer = dataclasses.replace(judged.data, max_prompt_tokens=100_000)
    export = f"{judged.run_dir}/../export/discriminator"
    assert "is more than its 2048 positions" in says(export, data=longer)
    other = tmp_path / "other"
    shutil.copytree(export, other)
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace("<|im_end|>", "<|stop|>"))
    (other / checksums.NAME).unlink(missing_ok=True)
    assert "it has another tokenizer than the student: token 258 is '<|stop|>' th" in says(other)
