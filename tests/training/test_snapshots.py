"""The student's answers at a stage's start: sampled once, kept, and the same after any stop."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from gad_jax.base import exits
from gad_jax.base.errors import StorageError, UserError
from gad_jax.data.pipeline import prepare
from gad_jax.data.sources.rows import Row, Rows
from gad_jax.distributed.mesh import make_mesh
from gad_jax.settings import baselines
from gad_jax.training import origins, rehearsal, snapshots
from tests.training.runs import rows, run, settings

FLAGS = (
    "--stage=offpolicy,dpo,rejection",
    "--offpolicy.steps=1",
    "--dpo.steps=2",
    "--dpo.answers=2",  # as many as --rollout.samples, so that one program samples for all stages
    "--rejection.steps=2",
    "--dpo.generator_learning_rate=0.01",
    "--rejection.generator_learning_rate=0.01",
    "--checkpoint.every=1",
    "--data.train=bundled",  # a stage has several parts of answers
    "--data.heldout=",
)


class StopInSnapshot(exits.StopRequest):
    """A stop request that comes once the first part of a snapshot is written."""

    def __init__(self, trainer, step):
        self.part = trainer.saver.checkpoints.directory.parent / "snapshots/dpo/00000.npz"
        self.ready = False

    @property
    def requested(self):
        return self.part.exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A step of D, two of DPO on a snapshot and two of rejection sampling, uninterrupted."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    return run(settings(directory, *FLAGS)), directory


def test_each_stage_learns_from_answers_of_its_start(whole):
    trainer, directory = whole
    logged = rows(directory)
    assert [row["stage"] for row in logged] == ["offpolicy", *["dpo"] * 2, *["rejection"] * 2]
    dpo, rejection = logged[1:3], logged[3:]
    np.testing.assert_allclose(dpo[0]["generator/loss"], np.log(2), atol=1e-5)
    assert dpo[1]["dpo/chosen_reward"] != 0  # the policy has left its reference
    assert all(row["rejection/best_score"] > row["rejection/mean_score"] for row in rejection)
    assert "dpo/margin" not in rejection[0]
    assert trainer.state.reference is None
    for stage, kept in (("dpo", 2), ("rejection", 1)):
        paths = sorted((directory / "snapshots" / stage).iterdir())
        assert [path.name for path in paths] == ["00000.npz", "00001.npz"]
        with np.load(paths[0]) as part:
            assert part["sampled"].shape == (8, 2)
            assert len(part["lengths"]) == 8 * kept  # rejection keeps the chosen one
            assert part["scores"].shape == (8, 2 if stage == "rejection" else 0)
        (span,) = (span for span in trainer.spans if span.stage == stage)
        length = sum(np.load(path)["tokens"].size for path in paths) / (16 * kept)
        expected = snapshots.expected_bytes(settings(directory, *FLAGS), span, length)
        assert expected == pytest.approx(sum(path.stat().st_size for path in paths), rel=0.1)


def test_a_run_that_stops_anywhere_ends_as_if_it_had_not(whole, tmp_path):
    _, directory = whole
    assert not run(settings(tmp_path, *FLAGS), stop=StopInSnapshot).finished
    parts = tmp_path / "snapshots/dpo"
    assert [path.name for path in parts.iterdir()] == ["00000.npz"]
    kept = (parts / "00000.npz").stat().st_mtime_ns
    assert run(settings(tmp_path, *FLAGS), stop_at=2).step == 2
    assert (parts / "00000.npz").stat().st_mtime_ns == kept
    # In the middle of DPO a lost part is sampled again, from the reference.
    content = (parts / "00001.npz").read_bytes()
    (parts / "00001.npz").write_bytes(content[:-200])
    assert run(settings(tmp_path, *FLAGS), stop_at=4).step == 4
    with np.load(parts / "00001.npz") as ours, np.load(directory / "snapshots/dpo/00001.npz") as t:
        assert all(np.array_equal(ours[name], t[name]) for name in t.files)
    # Rejection sampling keeps no reference.
    chosen = tmp_path / "snapshots/rejection/00000.npz"
    content = chosen.read_bytes()
    chosen.unlink()
    with pytest.raises(StorageError, match="lacks the answers to some prompts of rejection"):
        run(settings(tmp_path, *FLAGS))
    chosen.write_bytes(content)
    assert run(settings(tmp_path, *FLAGS)).finished
    assert rows(tmp_path) == rows(directory)
    ours, theirs = (
        json.loads((place / "checkpoints/5/meta/record.json").read_text())["digests"]
        for place in (tmp_path, directory)
    )
    assert ours == theirs


def test_a_step_draws_one_of_a_rows_rejected_answers(whole):
    chat, answers = whole[0].iteration.chat, ("no", "well, I do not know")
    kept = tuple(
        Row(
            ({"role": "user", "content": "Why?"},),
            ("because",),
            f"r:{n}",
            rejected=(*answers, str(n)),
        )
        for n in range(6)
    )
    prepared = prepare(Rows("r", kept, {}), chat, max_prompt_tokens=64, max_response_tokens=3)
    given, numbers = snapshots.Given(prepared, seed=3), np.array([5, 0, 3])

    def drawn(step):
        return [answer.tolist() for (answer,) in given.of(numbers, step)]

    assert drawn(4) == drawn(4)
    seen = {tuple(tokens) for step in range(30) for tokens in drawn(step)}
    # cut where a teacher's answer would be
    assert seen == {
        tuple(chat.encode_response(text)[:3]) for text in (*answers, *map(str, numbers))
    }
    assert given.metrics(numbers) == {}


def test_a_stage_that_becomes_longer_adds_parts_at_the_end(whole):
    span = whole[0].spans[1]
    longer = snapshots._parts(dataclasses.replace(span, end=span.start + 5))
    np.testing.assert_array_equal(longer[:2], snapshots._parts(span))
    assert len(np.unique(np.concatenate(longer))) == 40


def test_parts_of_something_else_are_not_taken(whole):
    path = whole[1] / "snapshots/dpo/00000.npz"
    with np.load(path) as part:
        identity, numbers = part["identity"].tobytes().decode(), part["rows"]
    found = snapshots.read(path, identity, numbers)
    assert found is not None
    answers = snapshots.Answers([found])
    first, again = answers.of(numbers[[3, 3]], 0)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert [len(tokens) for tokens in first] == found.sampled[3].tolist()
    assert answers.metrics(numbers[:2]) == {}
    assert snapshots.read(path, identity + " ", numbers) is None
    assert snapshots.read(path, identity, numbers[::-1]) is None
    assert snapshots.read(path.with_name("none.npz"), identity, numbers) is None


def test_a_discriminator_that_nobody_trained_is_refused(tmp_path):
    config = settings(tmp_path, "--stage=rejection", "--discriminator.path=random-tiny")
    with pytest.raises(UserError, match="random-tiny has no score head"):
        snapshots.refuse_untrained(config, {})
    with pytest.raises(UserError, match="--stage=warmup,rejection, or name a run"):
        settings(tmp_path, "--stage=rejection,warmup")
    # GAD on other rewards alone trains none.
    flags = ("--stage=gad,rejection", "--reward.discriminator=0", "--reward.extra=length")
    with pytest.raises(UserError, match="no stage before it trains one"):
        settings(tmp_path, *flags)
    config = settings(tmp_path, *flags, "--discriminator.path=random-tiny")
    with pytest.raises(UserError, match="random-tiny has no score head"):
        snapshots.refuse_untrained(config, {})
    config = settings(tmp_path, "--stage=rejection", "--discriminator.path=random-tiny")
    # So is a GAD whose discriminator stays as it is.
    path = "--discriminator.path=random-tiny"
    frozen = ("--stage=gad", "--gad.train_discriminator=false")
    with pytest.raises(UserError, match="but is paid by, a trained discriminator"):
        settings(tmp_path, *frozen)
    with pytest.raises(UserError, match="cannot judge samples for --stage=gad; name a run"):
        snapshots.refuse_untrained(settings(tmp_path, *frozen, path), {})
    # The run of --dry_run has no other run's: it trains one.
    tiny = rehearsal._tiny_run(settings(tmp_path, *frozen, path), str(tmp_path), make_mesh())
    assert tiny.stages == ("offpolicy", "gad")
    judge = origins.Origin("run", "run", 1, "warmup", "discriminator", "random-tiny", "none")
    snapshots.refuse_untrained(config, {"discriminator": judge})
    assert baselines.most_samples(config) == 2
