"""From settings to trackers: what is refused before a run, and what a tracker is told."""

import importlib.util
from pathlib import Path

import pytest

from gad_jax.base.errors import UserError
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.training import setup
from gad_jax.training.trackers import opening


def config(*flags: str) -> Config:
    return options.read(Config, flags, program="", description="")


def test_a_missing_package_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as refused:
        setup.claim(config("--tracking.to=mlflow", f"--run_dir={tmp_path}"))
    assert str(refused.value) == (
        "--tracking.to=mlflow needs the package mlflow, which is not installed; run `pip install "
        "mlflow`, or leave mlflow out"
    )
    assert not list(tmp_path.iterdir())
    setup.claim(config(f"--run_dir={tmp_path}"))


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        (
            "--tracking.to=wandbb",
            "to=wandbb is no tracker; use wandb, mlflow, trackio; did you mean",
        ),
        ("--tracking.to=wandb,wandb", "to=wandb,wandb names one twice"),
        ("--tracking.project=", "project must not be empty"),
        ("--tracking.tags=a,,b", "has one that is empty"),
        ("--tracking.name=a\tb", "remove what is unprintable"),
    ],
)
def test_settings_that_make_no_sense_are_named(flag: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        config(flag)


def test_trackers_are_off_by_default_and_may_be_added_to_a_run(tmp_path: Path) -> None:
    assert opening.trackers(config()) is None
    setup.claim(config(f"--run_dir={tmp_path}"))
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    assert not setup.refuse_other_settings(
        config(f"--run_dir={tmp_path}", "--tracking.to=wandb", "--tracking.tags=new")
    )


def test_settings_are_told_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "open-sesame-9")
    found = opening.settings(
        config("--data.train=https://me:open-sesame-9@host/rows.jsonl", "--gad.steps=3")
    )
    assert found["data.train"] == "https://me:[redacted]@host/rows.jsonl"
    assert (found["gad.steps"], found["export"], found["tracking.to"]) == (3, True, "empty")


def test_another_run_in_the_same_directory_is_another_run_for_trackers(tmp_path: Path) -> None:
    setup.claim(config(f"--run_dir={tmp_path}"))
    (tmp_path / "trackers.json").write_text("{}")
    setup.claim(config(f"--run_dir={tmp_path}"))
    assert (tmp_path / "trackers.json").exists()
    setup.claim(config(f"--run_dir={tmp_path}", "--seed=3"))
    assert not (tmp_path / "trackers.json").exists()
