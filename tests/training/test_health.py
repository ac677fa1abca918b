"""Alarms on synthetic series of metrics, and on real runs that are made sick on purpose."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gad_jax.base.errors import CollapseError
from gad_jax.core import forward
from gad_jax.distributed import sharding
from gad_jax.distributed.mesh import make_mesh
from gad_jax.settings import options
from gad_jax.settings.alarms import Alarm, Health
from gad_jax.settings.config import Config
from gad_jax.training import health, setup
from tests.training.runs import StopAt, rows, settings

HEALTHY = {
    "response/length_ratio": 1.1,
    "response/cut_share": 0.1,
    "response/teacher_cut_share": 0.05,
    "response/empty_share": 0.01,
    "response/repetition": 0.08,
    "response/teacher_repetition": 0.05,
    "response/script_drift": 0.02,
    "discriminator/accuracy": 0.8,
    "reward/std": 0.5,
    "advantage/dead_groups": 0.05,
    "entropy": 1.2,
    "kl/reference": 0.05,
    "generator/gradient_norm": 0.3,
    "discriminator/gradient_norm": 3.0,
    "skips/consecutive": 0.0,
}


def watch(series, options=None, stage="gad"):
    """Feeds steps' metrics to the monitors; returns (step, monitor, action) of what they say."""
    state, found = {}, []
    for step, metrics in enumerate(series, start=1):
        state = json.loads(json.dumps(state))  # as a checkpoint would keep it
        state, events = health.observe(options or Health(), state, stage, metrics)
        found += [(step, event.monitor, event.action) for event in events]
    return found


def drift(steps=600, **targets):
    """Healthy steps, then the named metrics on their way to a target in 300 steps, with noise."""
    noise = np.random.default_rng(0)
    for step in range(steps):
        share = np.clip((step - 100) / 300, 0, 1)
        row = HEALTHY | {
            name: HEALTHY[name] + share * (target - HEALTHY[name])
            for name, target in targets.items()
        }
        yield {name: value * float(noise.normal(1, 0.05)) for name, value in row.items()}


def test_every_monitor_has_settings_and_the_other_way_round():
    alarms = [name for name, hint in Health.__annotations__.items() if hint is Alarm]
    assert alarms == list(health.MONITORS)
    assert {m.metric for m in health.MONITORS.values()} <= set(HEALTHY)


def test_flat_noisy_series_raise_nothing_in_ten_thousand_steps():
    noise = np.random.default_rng(0)

    def flat(level):
        for factors in noise.normal(1, 0.1, (10_000, len(level))).tolist():
            row = {name: level[name] * factor for name, factor in zip(level, factors, strict=True)}
            row["discriminator/accuracy"] = min(row["discriminator/accuracy"], 1.0)
            yield row

    assert watch(flat(HEALTHY | {"response/length_ratio": 1.33})) == []  # the paper's lengths


SICK = {
    "length": {"response/length_ratio": 2.0},
    "empty": {"response/empty_share": 0.5},
    "repetition": {"response/repetition": 0.7},
    "script": {"response/script_drift": 0.6},
    "saturated": {"discriminator/accuracy": 1.05},  # the noise could take it below 1 otherwise
    "fooled": {"discriminator/accuracy": 0.05},
    "reward_spread": {"reward/std": 0.0},
    "dead_groups": {"advantage/dead_groups": 0.9},
    "entropy_low": {"entropy": 0.05},
    "entropy_high": {"entropy": 6.0},
    "kl": {"kl/reference": 4.0},
    "generator_gradient": {"generator/gradient_norm": 30.0},
    "discriminator_gradient": {"discriminator/gradient_norm": 300.0},
    "skips": {"skips/consecutive": 3.0},
}


@pytest.mark.parametrize("name", SICK)
def test_each_alarm_is_raised_once_and_alone(name):
    found = watch(drift(**SICK[name]))
    assert [event[1:] for event in found] == [(name, "warn")]
    assert found[0][0] > 100


def test_a_length_explosion_warns_then_stops():
    """From 300 to 1300 tokens in 300 steps, with a teacher of 300: the paper's failure."""
    found = watch(length_explosion())
    assert [event[1:] for event in found] == [("length", "warn"), ("runaway", "stop")]
    warned, stopped = (event[0] for event in found)
    assert 145 < warned < 175  # 1.5 times at step 145
    assert 280 < stopped < 310  # 3 times at step 280


def length_explosion():
    noise = np.random.default_rng(0)
    for step in range(500):
        length = 300 + 1000 * np.clip((step - 100) / 300, 0, 1)
        yield HEALTHY | {"response/length_ratio": float(length * noise.normal(1, 0.1) / 300)}


def test_answers_that_no_longer_end_stop_the_run():
    assert [event[1:] for event in watch(drift(**{"response/cut_share": 0.9}))] == [("cut", "stop")]


def test_what_was_so_from_the_start_stops_nothing():
    """A student that has not been warmed up rambles: that is no runaway."""
    rambling = HEALTHY | {"response/length_ratio": 4.0, "response/cut_share": 0.95}
    assert watch([rambling] * 300) == [(10, "length", "warn")]


def test_an_alarm_has_hysteresis():
    """Around the limit it is raised once; it ends a tenth inside of it."""
    noise = np.random.default_rng(0)
    hovering = [HEALTHY | {"kl/reference": float(noise.normal(1.03, 0.1))} for _ in range(1000)]
    over = [HEALTHY | {"kl/reference": 0.5}] * 30
    found = watch(hovering + over)
    assert [event[1:] for event in found] == [("kl", "warn"), ("kl", None)]
    assert found[1][0] > 1000


def test_what_is_missing_or_not_finite_says_nothing():
    missing = [{}, {"entropy": float("nan")}, {"kl/reference": float("inf")}] * 100
    assert watch(missing) == []
    bad = [HEALTHY | {"kl/reference": 2.0}] * 30
    gaps = [row for known in bad for row in (known, {})]
    assert [event[1] for event in watch(gaps)] == ["kl"]


def test_the_generators_monitors_are_for_gad_and_a_stage_starts_afresh():
    long = HEALTHY | {"response/length_ratio": 9.0, "discriminator/accuracy": 1.0}
    assert watch([long] * 50, stage="warmup") == [(25, "saturated", "warn")]
    state: health.State = {}
    for _ in range(50):
        state, _ = health.observe(Health(), state, "warmup", long)
    assert health.alarms(state) == ["saturated"]
    state, _ = health.observe(Health(), state, "gad", long)
    assert health.alarms(state) == []


def test_an_alarm_that_is_off_watches_nothing():
    options = Health(kl=Alarm("off", 1.0))
    assert watch([HEALTHY | {"kl/reference": 9.0}] * 50, options) == []


def pausing(**actions):
    return Health(
        longest_pause=15, **{name: Alarm("pause", limit, 5) for name, limit in actions.items()}
    )


def test_a_side_is_paused_until_the_alarm_is_over_or_the_pause_is_too_long():
    options = pausing(saturated=0.95)
    state, paused = {}, []
    accuracy = 1.0
    for step in range(1, 80):
        side = health.paused_side(options, state, "gad")
        paused += [step] if side else []
        # At first a pause helps; after step 40 nothing does.
        accuracy = accuracy - 0.03 if side and step < 40 else min(1.0, accuracy + 0.02)
        state, _ = health.observe(options, state, "gad", {"discriminator/accuracy": accuracy})
        assert side in (None, "discriminator")
    runs = np.split(paused, np.flatnonzero(np.diff(paused) > 1) + 1)
    assert len(runs[0]) < 15  # it was over
    assert [len(run) for run in runs[1:-1]] == [15] * len(runs[1:-1])
    assert len(runs) >= 3


def test_the_discriminator_learns_when_both_should_sit_out():
    options = pausing(saturated=0.95, kl=1.0)
    bad = {"discriminator/accuracy": 1.0, "kl/reference": 3.0}
    state: health.State = {}
    for _ in range(10):
        state, _ = health.observe(options, state, "gad", bad)
    assert set(health.alarms(state)) == {"saturated", "kl"}
    assert health.paused_side(options, state, "gad") == "generator"


def test_a_pause_ends_with_its_stage():
    options = pausing(saturated=0.95)
    state: health.State = {}
    for _ in range(10):
        state, _ = health.observe(options, state, "warmup", {"discriminator/accuracy": 1.0})
    assert health.paused_side(options, state, "warmup") == "discriminator"
    assert health.paused_side(options, state, "gad") is None
    assert health.paused_side(options, {}, "gad") is None


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--health.kl.limit=0", "limit=0.0 must be a number greater than 0"),
        ("--health.kl.steps=0", "steps=0 must be 1 or more"),
        ("--health.longest_pause=0", "longest_pause=0 must be 1 or more"),
        ("--health.skips.action=pause", "no side is at fault; use warn or stop"),
        ("--health.kl.action=halt", "one of off, warn, pause, stop is needed"),
    ],
)
def test_settings_that_make_no_sense_are_refused(flag, message):
    with pytest.raises(ValueError, match=message):
        options.read(Config, [flag], program="test", description="")


# Real runs: on one device, and with answers of few lengths, so that few shapes are compiled


@pytest.fixture
def play(tmp_path):
    """Returns a function that plays a run of the tiny model, by its name, and returns its rows.

    The teacher always answers "yes": what makes it different is easily learnt, and imitated.
    """
    teacher = tmp_path / "teacher.jsonl"
    line = {"prompt": "Say yes.", "teacher_response": "yes"}
    teacher.write_text("".join(json.dumps(line) + "\n" for _ in range(8)))

    def run(name, *flags, stop_at=None):
        flags = ["--data.heldout=", "--checkpoint.every=1000", "--checkpoint.keep=9", *flags]
        given = {flag.partition("=")[0]: flag for flag in [f"--data.train={teacher}", *flags]}
        config = settings(tmp_path / name, *given.values())
        mesh = make_mesh(devices=jax.devices()[:1])
        with jax.set_mesh(mesh):
            trainer = setup.build(config, mesh)
            try:
                trainer.run(StopAt(trainer, stop_at))
            finally:
                trainer.close()
        return trainer

    return run


STRONG = [
    "--stage=gad",
    "--gad.steps=20",
    "--gad.discriminator_learning_rate=0.01",  # 100 × one with which the game goes well
    "--health.saturated.steps=2",
    "--health.smoothing_steps=2",
    "--health.length.action=off",  # the random student never ends
]


@pytest.mark.slow
def test_a_discriminator_that_learns_too_fast_raises_the_alarm(tmp_path, play, capsys):
    flags = ["--gad.steps=100", "--health.saturated.steps=25", "--health.smoothing_steps=10"]
    play("run", *STRONG, *flags)
    first = next(row["step"] for row in rows(tmp_path / "run") if row["health/alarms"])
    assert 25 <= first < 100
    said = capsys.readouterr().out
    assert f"step {first}: alarm saturated: D accuracy is 9" in said


def test_a_paused_discriminator_stands_still_and_the_run_resumes_with_its_alarms(tmp_path, play):
    flags = [*STRONG, "--health.saturated.action=pause", "--health.longest_pause=3"]
    whole = play("whole", *flags)
    logged = rows(tmp_path / "whole")
    paused = [row["step"] for row in logged if row.get("health/discriminator_paused")]
    pauses = np.split(paused, np.flatnonzero(np.diff(paused) > 1) + 1)
    assert len(pauses) > 1
    assert max(map(len, pauses)) == 3
    assert all("discriminator/gradient_norm" not in logged[step - 1] for step in paused)
    assert all("generator/gradient_norm" in row for row in logged)
    cut = play("cut", *flags, stop_at=int(pauses[-2][0]))
    side = health.paused_side(cut.health_settings, cut.health_state, "gad")
    assert side or len(pauses[-2]) == 1
    assert play("cut", *flags).health_state == whole.health_state
    assert rows(tmp_path / "cut") == logged


def test_a_paused_generator_stands_still(tmp_path, play):
    alarm = ["--health.kl.action=pause", "--health.kl.steps=1", "--health.kl.limit=1e-9"]
    flags = ["--stage=gad", "--gad.steps=8", "--gad.generator_learning_rate=1e-3"]
    play("run", *flags, *alarm)
    logged = rows(tmp_path / "run")
    paused = [row["step"] for row in logged if row.get("health/generator_paused")]
    assert len(paused) > 3
    assert all("generator/loss" not in logged[step - 1] for step in paused)
    assert all("discriminator/gradient_norm" in row for row in logged)


def test_an_alarm_that_stops_saves_first_and_binds_the_next_start(tmp_path, play):
    flags = [*STRONG, "--checkpoint.every=5"]
    stopping = [*flags, "--health.saturated.action=stop"]
    with pytest.raises(CollapseError, match=r"alarm saturated.*last good checkpoint is \d+;"):
        play("run", *stopping)
    last = rows(tmp_path / "run")[-1]
    assert last["health/alarms"] == 1
    assert (tmp_path / "run" / "checkpoints" / str(last["step"])).is_dir()
    with pytest.raises(CollapseError, match="ends where the alarm 'saturated' stopped the run"):
        play("run", *stopping)
    assert play("run", *flags).step == 20


@pytest.mark.slow
def test_a_reward_that_likes_length_raises_the_length_alarms(tmp_path, play, monkeypatch):
    """Warm-up teaches a three-letter answer; then every token is paid."""

    def length(config, params, rows):
        """Where a response ends: the prompt's length is the same for all of a group."""
        positions = sharding.reshard(rows.positions, None, None)
        out = sharding.spec(None, None)
        ends = positions.at[rows.ends[..., 0], rows.ends[..., 1]].get(out_sharding=out)
        return ends.astype(jnp.float32) + 0 * jnp.sum(params["score"]["bias"])

    monkeypatch.setattr(forward, "response_scores", length)
    flags = [
        "--warmup.steps=20",
        "--warmup.discriminator_only_steps=0",
        "--warmup.generator_learning_rate=0.01",
        "--gad.steps=100",
        "--gad.generator_learning_rate=0.003",
        "--rollout.samples=8",
        "--health.smoothing_steps=2",
        "--health.runaway.steps=2",
    ]
    with pytest.raises(CollapseError, match="alarm runaway: responses have grown to"):
        play("run", *flags)
    game = [row for row in rows(tmp_path / "run") if row["stage"] == "gad"]
    assert game[0]["response/length_ratio"] < 1.5
    assert game[-1]["response/length_ratio"] > 3
