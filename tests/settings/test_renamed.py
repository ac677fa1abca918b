"""Old names of settings: refused with the new name, and read in the config.yaml of an older run."""

from typing import Any

import pytest

from gad_jax.base.errors import UserError
from gad_jax.settings import fields, options, renamed
from gad_jax.settings.config import Config
from tests.settings.reading import refusal


@pytest.fixture
def renamings(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"old_seed": "seed", "sampler.heat": "rollout.temperature", "batch.size": "no.such"}
    monkeypatch.setattr(renamed, "RENAMED", table)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("old_seed: 3\n", "c.yaml:1: 'old_seed' is now called 'seed'"),
        (
            "seed: 1\nsampler:\n  heat: 2\n",
            "c.yaml:3: 'sampler.heat' is now called 'rollout.temperature'",
        ),
        (
            "batch:\n  size: 1\n",
            "c.yaml:2: Batch has no field 'size'; did you mean 'batch.prompts'?",
        ),
    ],
)
def test_an_old_name_in_a_file(renamings: None, write: Any, text: str, sentence: str) -> None:
    write(text)
    assert refusal("--config=c.yaml") == sentence


def test_an_old_name_in_a_flag(renamings: None) -> None:
    assert refusal("--old_seed=3") == "--old_seed: 'old_seed' is now called 'seed'"
    assert refusal("--sampler.heat", "2") == (
        "--sampler.heat: 'sampler.heat' is now called 'rollout.temperature'"
    )


def test_the_config_of_an_older_run_loads(renamings: None, write: Any) -> None:
    write("old_seed: 3\nsampler:\n  heat: 0.5\nbatch:\n  prompts: 8\n")
    config = options.load(Config, "c.yaml")
    assert (config.seed, config.rollout.temperature, config.batch.prompts) == (3, 0.5, 8)
    write("old_seed: 3\nseed: 4\n")
    with pytest.raises(UserError, match=r"^c.yaml:2: 'seed' is given twice, first in line 1"):
        options.load(Config, "c.yaml")


def test_every_new_name_exists_and_no_old_one_does() -> None:
    paths = {leaf.path for leaf in fields.leaves(Config)}
    assert set(renamed.RENAMED.values()) <= paths
    assert not set(renamed.RENAMED) & paths
