"""Whole runs of the tiny model in this process: metrics, resuming, stops, other devices."""

import dataclasses
import json
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gad_jax.base import exits
from gad_jax.base.errors import NumericsError, UserError
from gad_jax.distributed import devices
from gad_jax.distributed.mesh import make_mesh
from gad_jax.training import digest, setup, stops
from tests.training.runs import REPLAY, StopAt, rows, run, scores, settings


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that replays older answers: what is resumed has a pool too."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, run(settings(directory, *REPLAY))


def test_a_run_writes_every_metric_that_is_promised(whole):
    directory, trainer = whole
    assert trainer.finished
    by_stage = {row["stage"]: row for row in rows(directory)}
    assert list(by_stage) == ["warmup", "gad"]
    shared = {
        "discriminator/loss",
        "discriminator/accuracy",
        "discriminator/margin",
        "generator/loss",
        "generator/gradient_norm",
        "discriminator/gradient_norm",
        "entropy",
        "response/length",
        "response/length_p95",
        "response/cut_share",
        "response/length_ratio",
        "skips/total",
    }
    paid = {"reward/mean", "reward/std", "advantage/dead_groups", "advantage/norm"}
    assert shared <= set(by_stage["warmup"])
    assert shared | paid | {"kl/reference", "logprobs/gap"} <= set(by_stage["gad"])
    timed = json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("seconds/rollout", "seconds/update", "seconds/step", "compiles"):
        assert timed[name] >= 0
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert ("host_share" in row) == (row["compiles"] == 0)
        assert 0 < row.get("host_share", 0.5) < 1
    # The trainer sees the log-probs that the sampler drew from, to float32 rounding.
    assert by_stage["gad"]["logprobs/gap"] < 1e-5
    # Of two samples of a prompt, one is older: of the step before, the pool's newest.
    assert [row["replay/share"] for row in rows(directory)] == [0, 0.5, 0.5, 0.5]
    assert [row.get("replay/age") for row in rows(directory)] == [None, 1, 1, 1]
    assert "discriminator/accuracy_replayed" in by_stage["gad"]
    # At the first GAD step the policy is the reference.
    first = next(row for row in rows(directory) if row["stage"] == "gad")
    assert first["kl/reference"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(whole, tmp_path, stop_at):
    """Step 2 is the end of warm-up: its evaluation is made, and the next stage begins, later."""
    directory, uninterrupted = whole
    config = settings(tmp_path, *REPLAY)
    assert not run(config, stop_at).finished
    resumed = run(config)
    assert resumed.finished
    assert resumed.step == uninterrupted.step
    with jax.set_mesh(resumed.mesh):
        assert digest.digests(resumed.state) == digest.digests(uninterrupted.state)
    pools = (trainer.iteration.pool.arrays() for trainer in (resumed, uninterrupted))
    assert len({str(digest.of_host(arrays)) for arrays in pools}) == 1
    assert rows(tmp_path) == rows(directory)
    # A stop saves where nothing else would, and of more checkpoints others are kept.
    kept = scores(tmp_path)
    assert {step: kept[step] for step in kept if step % 2 == 0}.items() <= scores(directory).items()
    for file in (directory / "evaluations").iterdir():
        assert (tmp_path / "evaluations" / file.name).read_text() == file.read_text()


def test_a_stop_at_the_last_step_leaves_evaluation_and_export_for_later(whole, tmp_path):
    directory, uninterrupted = whole
    config = settings(tmp_path, *REPLAY)
    assert not run(config, uninterrupted.step).finished
    assert not (tmp_path / "evaluations" / "after-gad.json").exists()
    assert run(config).finished
    assert rows(tmp_path) == rows(directory)
    assert scores(tmp_path) == scores(directory)
    assert scores(tmp_path)[4] is not None


class StopInEvaluation(StopAt):
    """A stop request that comes between two batches of the evaluation after a step."""

    calls = 0

    @property
    def requested(self):
        self.calls += self.trainer.step == self.step
        return self.calls > 2


def test_a_stop_cuts_an_evaluation_short_and_it_is_made_later(tmp_path):
    config = settings(tmp_path, *REPLAY, "--evaluation.batch_prompts=1")
    assert not run(config, 2, StopInEvaluation).finished
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    assert not (tmp_path / "evaluations" / "after-warmup.json").exists()
    assert scores(tmp_path) == {2: None}
    assert run(config).finished
    for step in (2, 4):
        assert "evaluation/rouge_l" in rows(tmp_path)[step - 1]
        assert scores(tmp_path)[step] is not None


def test_a_run_stops_by_itself_before_its_time_is_up(tmp_path, monkeypatch):
    config = settings(tmp_path, *REPLAY, "--data.heldout=", "--checkpoint.margin_minutes=10")
    end = int(time.time()) + 60 * 60
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(end))
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        trainer = setup.build(config, mesh)
        assert trainer.deadline.stop_by == end - 10 * 60
        trainer.deadline.stop_by = time.time() + 1e-3
        assert not trainer.run(exits.StopRequest())
        trainer.close()
    assert trainer.saver.checkpoints.steps() == [1]
    assert run(config).finished


def test_a_save_is_due_after_some_time_too(tmp_path):
    config = settings(
        tmp_path,
        *REPLAY,
        *("--data.heldout=", "--checkpoint.every=99", "--checkpoint.every_minutes=1e-6"),
    )
    run(config)
    assert scores(tmp_path).keys() == {3, 4}


def test_a_finished_run_does_nothing_when_started_again(whole):
    directory, trainer = whole
    before = (directory / "metrics.jsonl").read_bytes()
    again = run(settings(directory, *REPLAY))
    assert again.finished
    assert again.step == trainer.step
    assert (directory / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow  # always run: core/test_steps.py, and two processes as one device
def test_the_device_count_does_not_matter(whole, tmp_path):
    """Eight devices against four data shards with tensor parallelism of two."""
    directory, _ = whole
    run(settings(tmp_path, *REPLAY, "--mesh.tensor=2", "--data.heldout="))
    for one, other in zip(rows(directory), rows(tmp_path), strict=True):
        for name in ("discriminator/loss", "generator/loss", "response/length", "entropy"):
            if name in one:
                # float32 sums in another order, through two optimizer steps
                assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), name


def test_other_data_is_refused_for_a_run_that_goes_on(whole, tmp_path):
    directory, _ = whole
    other = tmp_path / "other.jsonl"
    line = {"prompt": "Hi there", "teacher_response": "Hello."}
    other.write_text("".join(json.dumps(line | {"id": i}) + "\n" for i in range(20)))
    with pytest.raises(UserError, match="trained on other rows"):
        run(settings(directory, REPLAY[1], f"--data.train={other}"))


@pytest.mark.parametrize(
    ("rate", "last", "sentence"),
    [
        # The first update is finite, and its weights then break every step.
        (
            "1e16",
            3,
            "because .*generator/loss.*the weights of step 1 are saved, but it is they that",
        ),
        # No update is finite: the weights are those from the start.
        ("1e38", 2, "because the generator's update of .* the weights from before the first of"),
    ],
)
def test_a_run_whose_gradients_stay_broken_stops_and_is_saved(tmp_path, rate, last, sentence):
    """A learning rate that overflows the weights in one step breaks every step after it."""
    config = settings(
        tmp_path,
        "--stage=seqkd",
        "--seqkd.steps=9",
        f"--seqkd.generator_learning_rate={rate}",
        "--optimizer.max_skips=2",
        "--data.heldout=",
    )
    with pytest.raises(NumericsError, match=f"2 consecutive steps were skipped {sentence}"):
        run(config)
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == last
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        trainer = setup.build(config, mesh)
    trainer.close()
    assert trainer.step == last
    assert not stops.broken_state(trainer.state)
    if last == 3:
        return
    # Fewer steps than it takes to stop: the run does not end as if it had learned.
    short = dataclasses.replace(config, run_dir=str(tmp_path / "short"))
    short = dataclasses.replace(short, seqkd=dataclasses.replace(config.seqkd, steps=1))
    for _ in range(2):  # nor does it where the same command is given again
        with pytest.raises(NumericsError, match="step 1: all 1 steps of the stage seqkd were"):
            run(short)
    assert not (tmp_path / "short" / "export").exists()


def test_moments_on_the_host_train_as_on_the_device_and_a_run_may_change_their_place(tmp_path):
    flags = ("--stage=seqkd", "--seqkd.steps=3", "--data.heldout=", "--checkpoint.every=2")
    here = run(settings(tmp_path / "device", *flags))
    there = "--optimizer.placement=host"
    whole = run(settings(tmp_path / "host", *flags, there))
    losses = [
        [row["generator/loss"] for row in rows(tmp_path / name)] for name in ("device", "host")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    kinds = [leaf.sharding.memory_kind for leaf in jax.tree.leaves(whole.state.generator_optimizer)]
    assert devices.HOST in kinds
    config = settings(tmp_path / "resumed", *flags, there)
    assert not run(config, 2).finished
    shutil.copytree(tmp_path / "resumed", tmp_path / "moved")
    with jax.set_mesh(here.mesh):
        assert digest.digests(run(config).state) == digest.digests(whole.state)
        moved = run(settings(tmp_path / "moved", *flags))
        assert not any(map(devices.is_hosted, jax.tree.leaves(moved.state.generator_optimizer)))
        pairs = zip(jax.tree.leaves(moved.state), jax.tree.leaves(whole.state), strict=True)
        for found, expected in pairs:
            if jnp.issubdtype(found.dtype, jnp.floating):
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
