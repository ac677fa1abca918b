"""Runs that sample the responses of a step before the update of the step before."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from gad_jax.base.errors import UserError
from gad_jax.distributed.mesh import make_mesh
from gad_jax.training import ahead, digest, iteration, sampling, setup
from gad_jax.training.rewards import paying
from gad_jax.training.trainer import Trainer
from gad_jax.types import Rollout
from tests.training import runs
from tests.training.runs import REPLAY, StopAt, rows, run, settings

FLAGS = (
    *("--stage=gad", "--data.heldout=", "--export=false"),
    *("--gad.generator_learning_rate=0.03", "--gad.discriminator_learning_rate=0.01"),
)
AHEAD = (*FLAGS, "--rollout.ahead")


def reward(directory):
    """A function of a user's own: the pay needs what the host knows alone."""
    file = directory / "own.py"
    file.write_text("def brevity(response): return -len(response)\n")
    return f"--reward.extra={file}:brevity"


# Resuming


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Six steps: D alone in the first; an alarm pauses G in the fourth and D in the fifth."""
    patch = pytest.MonkeyPatch()
    sides = {3: "generator", 4: "discriminator"}
    patch.setattr(Trainer, "_paused", lambda trainer, span: sides.get(trainer.step))
    directory = tmp_path_factory.mktemp("whole")
    flags = (
        *(*AHEAD, *REPLAY, reward(directory), "--gad.steps=6", "--gad.discriminator_only_steps=1"),
        *("--checkpoint.every=2", "--checkpoint.keep=9"),
    )
    yield flags, directory / "run", run(settings(directory / "run", *flags))
    patch.undo()


def same(one, other):
    with jax.set_mesh(one.mesh):
        assert digest.digests(one.state) == digest.digests(other.state)
    assert one.iteration.packer.shapes == other.iteration.packer.shapes
    pools = (trainer.iteration.pool.arrays() for trainer in (one, other))
    assert len({str(digest.of_host(arrays)) for arrays in pools}) == 1


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 5])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(whole, tmp_path, stop_at):
    """Also where an alarm pauses another network than it did when the step was prepared."""
    flags, directory, uninterrupted = whole
    config = settings(tmp_path / "run", *flags)
    stopped = run(config, stop_at)
    assert not stopped.finished
    assert stopped.iteration.pending is not None
    resumed = run(config)
    assert resumed.finished
    same(resumed, uninterrupted)
    assert rows(tmp_path / "run") == rows(directory)
    assert resumed.iteration.pending is None


def test_a_run_that_was_killed_after_its_last_save_repeats_the_same_steps(whole, tmp_path):
    flags, directory, uninterrupted = whole
    shutil.copytree(directory, tmp_path / "run")
    for step in (4, 6):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    resumed = run(settings(tmp_path / "run", *flags))
    same(resumed, uninterrupted)
    assert rows(tmp_path / "run") == rows(directory)


def test_every_step_says_what_it_took_and_how_far_its_samples_are(whole):
    _, directory, _ = whole
    logged = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in logged if "generator/loss" in row]
    assert [row["step"] for row in trained] == [2, 3, 5, 6]
    # Before the samples of steps 2 and 5, the last update was of D alone: G had not moved since.
    fresh, older = trained[::2], trained[1::2]
    for row in fresh:
        assert row["logprobs/ratio_mean"] == pytest.approx(1, abs=1e-5)
        assert row["logprobs/ratio_clipped"] == 0
        assert row["logprobs/gap"] < 1e-5
    for row in older:
        assert abs(row["logprobs/ratio_mean"] - 1) > 1e-3
        assert 0 < row["logprobs/ratio_clipped"] < 1
    for row in logged:
        assert ("seconds/rollout" in row) == (row["step"] < 6)  # the last has nothing to sample
        assert row["seconds/update"] > 0
        assert "response/length" in row
        assert 0 <= row.get("host_share", 0) <= 1


# What is sampled, and when


def test_the_second_steps_samples_are_those_of_the_first_weights(tmp_path):
    config = settings(tmp_path, *AHEAD, "--gad.steps=3")
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        trainer = setup.build(config, mesh)
        before = jax.device_get(trainer.state.generator)
        assert not trainer.run(StopAt(trainer, 1))
        pending, span = trainer.iteration.pending, trainer.spans[0]

        def sampled(params):
            made = trainer.iteration
            given = made.generator, made.rollout, mesh, span.batches[1], 1
            state = trainer.state._replace(generator=params)
            return sampling.sample(*given, state, trainer.frozen, set()).rollout

        placed = jax.tree.map(
            lambda x, y: jax.device_put(x, y.sharding), before, trainer.state.generator
        )
        first, second = sampled(placed), sampled(trainer.state.generator)
        trainer.close()
    for name in ("tokens", "lengths", "finished", "logprobs"):
        np.testing.assert_array_equal(getattr(pending.rollout, name), getattr(first, name))
    assert not np.array_equal(second.logprobs, first.logprobs)


def test_the_next_step_is_paid_before_this_one_is_waited_for(tmp_path, monkeypatch):
    """And the first step is that of a run that samples on time."""
    events = []

    def note(event, module, name, is_it=lambda *_: True):
        real = getattr(module, name)

        def noted(*arguments, **named):
            if is_it(*arguments):
                events.append(event)
            return real(*arguments, **named)

        monkeypatch.setattr(module, name, noted)

    is_step = lambda found: isinstance(found, dict) and "generator/loss" in found  # noqa: E731
    note("sample", sampling, "sample")
    note("pay", paying.Rewards, "pay")
    note("update", iteration.steps, "gad_step")
    note("fetch", jax, "device_get", is_step)
    flags = (reward(tmp_path), "--gad.steps=3")
    run(settings(tmp_path / "ahead", *AHEAD, *flags))
    assert events == [
        *("sample", "sample", "pay", "update", "pay", "fetch"),
        *("sample", "update", "pay", "fetch"),
        *("update", "fetch"),
    ]
    events.clear()
    run(settings(tmp_path / "on_time", *FLAGS, *flags))
    assert events == ["sample", "pay", "update", "fetch"] * 3
    one, other = rows(tmp_path / "ahead")[0], rows(tmp_path / "on_time")[0]
    assert one.keys() - other.keys() == {"logprobs/ratio_mean", "logprobs/ratio_clipped"}
    for name, value in other.items():
        if name.startswith("response/") or name == "reward/brevity/mean":
            assert one[name] == value, name
        elif not isinstance(value, str) and name != "rollout/occupancy":
            # the ratio is 1 but for rounding
            assert one[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_one_device_trains_as_four(tmp_path):
    for count, axes in ((1, (1, 1, 1)), (4, (1, 4, 1))):
        config = settings(tmp_path / str(count), *AHEAD[:3], "--rollout.ahead", "--gad.steps=3")
        mesh = make_mesh(*axes, jax.devices()[:count])
        with jax.set_mesh(mesh):
            trainer = setup.build(config, mesh)
            assert trainer.run(StopAt(trainer, None))
            trainer.close()
    for one, other in zip(rows(tmp_path / "1"), rows(tmp_path / "4"), strict=True):
        assert one["response/length"] == other["response/length"]
        for name in ("discriminator/loss", "generator/loss", "entropy", "logprobs/ratio_mean"):
            # float32 sums in another order, through two optimizer steps
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), name


def test_a_run_under_way_keeps_its_order(tmp_path):
    runs.start(settings(tmp_path, *FLAGS, "--gad.steps=1"))
    with pytest.raises(UserError, match=r"other settings \(rollout.ahead: false → true\)"):
        setup.claim(settings(tmp_path, *AHEAD, "--gad.steps=1"))


def test_no_response_is_paid_twice_where_a_pause_ends(whole, monkeypatch):
    """D is paused while the host prepares the last step, and is not when the step is taken."""
    trainer, paid = whole[2], []
    made, config = trainer.iteration, trainer.iteration.rollout
    own = dataclasses.replace(made.packer, shapes=set(made.packer.shapes))
    monkeypatch.setattr(made, "packer", own)
    pay = made.rewards.pay
    monkeypatch.setattr(made.rewards, "pay", lambda *given: paid.append(given) or pay(*given))
    prompts, span = len(trainer.spans[0].batches[5].prompts), trainer.spans[0]
    lengths = np.full((prompts, config.samples), 2, np.int32)
    tokens = np.full((*lengths.shape, 3), 7, np.int32)
    rollout = Rollout(tokens, np.zeros(tokens.shape, np.float32), lengths, lengths > 2)
    ready = ahead.Pending(rollout, "discriminator")
    with jax.set_mesh(trainer.mesh):
        work = made._work(span, 5, None, ready)
    assert len(paid) == 1
    assert (ready.work.rows.drawn, work.rows.drawn is None) == (None, False)
    assert work.inputs.paid == ready.work.inputs.paid != {}
    assert work.inputs.extra is ready.work.inputs.extra


# Parts


def test_what_waits_is_stored_whole_and_of_the_size_that_is_expected():
    tokens = np.arange(12, dtype=np.int32).reshape(2, 2, 3)
    rollout = Rollout(tokens, -tokens.astype(np.float32), tokens[..., 0], tokens[..., 0] > 2)
    shapes = {((1, 8, 16), (1, 8, 32))}
    flags = ("--batch.prompts=2", "--rollout.max_new_tokens=3", "--rollout.ahead")
    expected = [ahead.expected_bytes(settings("unused", *flags[:count])) for count in (2, 3)]
    assert expected[0] == 0
    for side in (None, "generator", "discriminator"):
        arrays = ahead.Pending(rollout, side).arrays()
        assert sum(array.nbytes for array in arrays.values()) == expected[1]
        found = ahead.restored(arrays, shapes)
        assert (found.paused, found.work, found.shapes) == (side, None, shapes)
        for name in ("tokens", "logprobs", "lengths", "finished"):
            np.testing.assert_array_equal(getattr(found.rollout, name), getattr(rollout, name))
    assert ahead.restored({"replay_rows": tokens}, shapes) is None


def test_a_watch_outlives_a_computation_that_fails():
    class Broken:
        def block_until_ready(self):
            raise RuntimeError("out of memory")

    assert ahead.Watch({"loss": Broken()}).seconds() > 0
