"""A reward model: its scores, where it may come from, and what is refused."""

import re
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from gad_jax.base.errors import UserError
from gad_jax.data.chat import Chat
from gad_jax.distributed import devices
from gad_jax.distributed.mesh import make_mesh
from gad_jax.export.__main__ import main
from gad_jax.models import checksums, source
from gad_jax.settings.config import Config, with_limits
from gad_jax.settings.reward import Reward
from gad_jax.training.rewards import models
from gad_jax.training.rewards.models import Model
from tests.core import builders

pytest_plugins = ["tests.run_fixtures"]


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    """The directory of the discriminator of a run."""
    out = tmp_path_factory.mktemp("export")
    assert main([str(tiny_run), "--part=discriminator", f"--out={out}"]) == 0
    return out / "discriminator"


SHORT = with_limits(Config(), 64, 32)


def scores(name, micro_batches=1, config=SHORT):
    mesh = make_mesh(1, 4, 2)
    with jax.set_mesh(mesh):
        chat = Chat.load(source.resolve("random-tiny"), "none")
        model = Model(name, config, "float32", chat, mesh)
        settings = replace(config, reward=Reward(extra=(name,)))
        (network,) = models.networks(settings, "float32").values()
        assert network == model.config
        expected = models.abstract(network, mesh)
        assert jax.tree.structure(expected) == jax.tree.structure(model.params)
        assert devices.device_bytes(expected) == devices.device_bytes(model.params)
        rows = builders.rows(builders.texts(), "samples", micro_batches, mesh)
        return model(rows), model.identity


def test_a_run_and_its_export_score_alike_in_the_order_of_the_prompts(tiny_run, exported):
    of_run, origin = scores(f"model:{tiny_run}")
    assert origin == f"{tiny_run}, step 2 (gad)"
    assert of_run.shape == (builders.PROMPTS, builders.SAMPLES)
    assert np.std(of_run) > 0
    exported, identity = scores(f"model:{exported}", 2)
    assert len(identity) == 32
    # Float32: the same sums, in micro-batches of another order.
    np.testing.assert_allclose(exported, of_run, rtol=1e-4, atol=1e-5)


def test_what_is_no_reward_model_for_the_student_is_refused(tiny_run, exported, tmp_path):
    def says(name, config=SHORT, early=False):
        with pytest.raises(UserError) as refused:
            scores(f"model:{name}", config=config)
        said = str(refused.value)
        assert said.startswith(f"--reward.extra=model:{name}: ")
        settings = replace(config, reward=Reward(extra=(f"model:{name}",)))
        if early:  # what the name alone tells is said before anything is read
            with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
                models.networks(settings, "float32")
        return said

    assert "random-tiny is a causal language model; name a sequence class" in says(
        "random-tiny", early=True
    )
    assert "missing is not a run directory: it has no config.yaml" in says("missing@3", early=True)
    assert "nowhere" in says("nowhere", early=True)
    assert "has no checkpoint" in says(f"{tiny_run}@7")
    assert "3584 is more than its 2048 positions" in says(exported, Config())
    other = tmp_path / "other"
    shutil.copytree(exported, other)
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace("<|im_end|>", "<|stop|>"))
    (other / checksums.NAME).unlink(missing_ok=True)
    assert "it has another tokenizer than the student: token 258 is '<|stop|>' th" in says(other)
