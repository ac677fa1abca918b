"""Settings that a run directory accepts, and those that it refuses."""

import os

import pytest

from gad_jax.base.errors import UserError
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.training import setup
from tests.training.runs import settings


def test_settings_that_would_change_a_run_are_refused(tmp_path):
    setup.claim(settings(tmp_path))
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    setup.claim(settings(tmp_path, "--checkpoint.keep=5"))
    with pytest.raises(UserError, match=r"gad.steps: 2 → 3.*another --run_dir"):
        setup.claim(settings(tmp_path, "--gad.steps=3"))


def test_a_start_that_failed_does_not_bind_the_next_one(tmp_path):
    setup.claim(settings(tmp_path))
    (tmp_path / "evaluations").mkdir()
    setup.claim(settings(tmp_path, "--gad.steps=3"))
    assert not (tmp_path / "evaluations").exists()
    assert options.load(Config, tmp_path / "config.yaml").gad.steps == 3


def test_files_and_directories_in_each_others_places_are_named(tmp_path):
    for name in ("checkpoints", "evaluations", "samples", "tensorboard", "export"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(UserError, match=f"/{name} is a file, and a run has a directory of "):
            setup.claim(settings(tmp_path))
        (tmp_path / name).unlink()
    for name in ("config.yaml", "metrics.jsonl", "status.json", "heldout.jsonl", "origins.json"):
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=f"/{name} is a directory, and a run has a file of "):
            setup.claim(settings(tmp_path))
        (tmp_path / name).rmdir()
    (tmp_path / "samples").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="/samples is a broken link, and a run has a directory of"):
        setup.claim(settings(tmp_path))
    (tmp_path / "samples").unlink()
    os.mkfifo(tmp_path / "metrics.jsonl")  # opening it would wait for ever
    with pytest.raises(UserError, match=r"/metrics.jsonl is a device, and a run has a file of"):
        setup.claim(settings(tmp_path))
    (tmp_path / "metrics.jsonl").unlink()
    setup.claim(settings(tmp_path))
