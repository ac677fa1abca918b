"""Runs that become longer or shorter, or get another stage, when they resume."""

import json

import pytest

from gad_jax.base.errors import UserError
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.training import architectures, continuing, reading, setup, stages
from tests.training.runs import rows, run, settings, start

SHORT = ("--checkpoint.every=1",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two steps of warm-up and three of GAD, uninterrupted."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    return run(settings(directory, *SHORT, "--gad.steps=3")), rows(directory)


def without_evaluations(found):
    return [{k: v for k, v in row.items() if not k.startswith("evaluation/")} for row in found]


def test_a_run_that_was_made_longer_twice_equals_a_long_one(whole, tmp_path, capsys):
    """Warm-up alone, then one step of GAD, then three."""
    start(settings(tmp_path, *SHORT, "--stage=warmup"))
    start(settings(tmp_path, *SHORT, "--gad.steps=1"))
    capsys.readouterr()
    longer = start(settings(tmp_path, *SHORT, "--gad.steps=3"))
    assert "gad: 3 steps, 1 before\n" in capsys.readouterr().out
    trainer, logged = whole
    assert longer.step == trainer.step == 5
    found = rows(tmp_path)
    assert without_evaluations(found) == without_evaluations(logged)
    # The evaluation at what was the end is one of a step now.
    labels = {
        path.stem: json.loads(path.read_text())["step"]
        for path in (tmp_path / "evaluations").glob("*.json")
    }
    assert labels == {"before": 0, "after-warmup": 2, "step-3": 3, "after-gad": 5}
    assert options.load(Config, tmp_path / "config.yaml").gad.steps == 3
    latest = trainer.saver.checkpoints.directory / "5" / "meta" / "record.json"
    ours = tmp_path / "checkpoints" / "5" / "meta" / "record.json"
    assert json.loads(ours.read_text())["digests"] == json.loads(latest.read_text())["digests"]


def test_lengths_that_undo_steps_are_refused_and_change_nothing(tmp_path):
    start(settings(tmp_path, *SHORT, "--gad.steps=3"), stop_at=4)
    before = (tmp_path / "config.yaml").read_bytes()
    for flags, said in (
        (["--gad.steps=1"], r"--gad.steps=1 is fewer than the 2 steps of gad that this run has"),
        (["--gad.steps=3", "--warmup.steps=3"], r"--warmup.steps=3: the 2 steps of warmup are ov"),
    ):
        with pytest.raises(UserError, match=said):
            start(settings(tmp_path, *SHORT, *flags))
    for flags, said in (
        (["--gad.generator_learning_rate=1"], r"gad.generator_learning_rate: 1e-6 → 1"),
        (["--stage=gad"], r"stage: all → gad"),
    ):
        with pytest.raises(UserError, match=said):
            setup.claim(settings(tmp_path, *SHORT, "--gad.steps=3", *flags))
    assert (tmp_path / "config.yaml").read_bytes() == before
    shorter = start(settings(tmp_path, *SHORT, "--gad.steps=2"))  # as many as are done
    assert (shorter.finished, shorter.step) == (True, 4)
    assert json.loads((tmp_path / "evaluations" / "after-gad.json").read_text())["step"] == 4


def test_a_stage_whose_rates_fall_says_that_they_fall_to_its_new_end(tmp_path, capsys):
    falling = settings(tmp_path, *SHORT, "--gad.steps=2", "--gad.schedule=linear")
    start(falling, stop_at=3)
    capsys.readouterr()
    start(settings(tmp_path, *SHORT, "--gad.steps=4", "--gad.schedule=linear"))
    said = "gad: 4 steps, 2 before; its learning rates fall to 0 at the new end\n"
    assert said in capsys.readouterr().out
    factors = [row.get("learning_rate_factor") for row in rows(tmp_path)]
    assert factors == [None, None, 1.0, 0.75, 0.5, 0.25]


def test_what_only_later_stages_read_may_change():
    old = settings("unused", "--stage=warmup")
    new = settings(
        "unused", "--gad.generator_learning_rate=1", "--grpo.clip_low=0.1", "--rollout.ahead"
    )
    assert continuing.refused(old, new, "warmup") == []
    both = settings("unused")
    assert len(continuing.refused(both, new, "gad")) == 3
    assert continuing.refused(both, old, "gad") == ["stage: all → warmup"]
    other = settings("unused", "--stage=seqkd,gad")
    assert continuing.refused(old, other, "warmup") == ["stage: warmup → seqkd,gad"]
    flags = ("--stage=custom,gad", "--custom.step=mine.py:step")
    custom = settings("unused", *flags)
    clipped = settings("unused", *flags, "--grpo.clip_low=0.1", "--reward.extra=length")
    assert continuing.refused(custom, clipped, "custom") == [
        "grpo.clip_low: 0.2 → 0.1",
        "reward.extra: empty → length",
    ]
    slower = settings("unused", "--warmup.generator_learning_rate=1")
    assert len(continuing.refused(both, slower, "warmup")) == 1


@pytest.fixture(scope="module")
def spans(tmp_path_factory):
    """Returns a function: flags → the spans of that run."""
    bundled = ("--data.train=bundled", "--data.heldout=")
    data = reading.read(settings(tmp_path_factory.mktemp("data"), *bundled)).rows

    def make(*flags):
        config = settings("unused", *bundled, *flags)
        return stages.spans(config, data, architectures.configs(config))

    return make


def test_a_stage_that_is_at_its_end_may_become_longer_before_the_next(spans):
    old = spans()
    assert continuing.check(old, spans("--warmup.steps=4"), "warmup", 2) == [
        "warmup: 4 steps, 2 before"
    ]
    assert continuing.check(old, spans(), "gad", 3) == []
    assert continuing.check(old[:1], old, "warmup", 2) == ["gad: 2 steps, a new stage"]
    with pytest.raises(UserError, match="are over in this run, which is in gad"):
        continuing.check(old, spans("--warmup.steps=1"), "gad", 3)
    epochs = spans("--warmup.steps=0", "--warmup.epochs=0.04")  # 352 rows, 8 each: 2 steps
    assert continuing.check(old, epochs, "gad", 3) == []
