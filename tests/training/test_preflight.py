"""Parts of a run that do not fit each other."""

import pytest

from gad_jax.base.errors import UserError
from tests.training.runs import run, settings


def test_a_stage_that_never_trains_the_generator_is_said(tmp_path, capsys):
    flags = ("--data.heldout=", "--stage=warmup", "--warmup.steps=1")
    run(settings(tmp_path / "a", *flags, "--warmup.discriminator_only_steps=1"))
    printed = capsys.readouterr().out
    assert "steps: warmup 1; 8 prompts each" in printed
    assert "warning: warmup trains the discriminator alone in all of its steps (1; --war" in printed
    run(settings(tmp_path / "b", *flags, "--warmup.discriminator_only_steps=0"))
    assert "warning" not in capsys.readouterr().out


def test_sizes_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(UserError, match="positions of random-tiny; lower one of them"):
        run(settings(tmp_path, "--rollout.max_new_tokens=100000"))
    with pytest.raises(UserError, match=r"mesh replica=3 .* needs .* devices, but 8 are present"):
        run(settings(tmp_path, "--mesh.replica=3"))
