"""Parts of a run that do not fit each other."""

import re

import jax
import pytest

from gad_jax.base import host_memory
from gad_jax.base.errors import UserError
from gad_jax.distributed import devices
from gad_jax.distributed.mesh import make_mesh
from gad_jax.training import footprint, preflight, setup
from tests.training.runs import run, settings


def test_a_stage_that_never_trains_the_generator_is_said(tmp_path, capsys):
    bundled = ("--data.train=bundled", "--data.heldout=")  # others warn of cut responses
    flags = (*bundled, "--stage=warmup", "--warmup.steps=1")
    run(settings(tmp_path / "a", *flags, "--warmup.discriminator_only_steps=1"))
    printed = capsys.readouterr().out
    assert "steps: warmup 1; 8 prompts each" in printed
    assert "warning: warmup trains the discriminator alone in all of its steps (1; --war" in printed
    run(settings(tmp_path / "b", *flags, "--warmup.discriminator_only_steps=0"))
    assert "warning" not in capsys.readouterr().out


def test_sizes_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(UserError, match="positions of random-tiny; lower one of them"):
        run(settings(tmp_path, "--rollout.max_new_tokens=100000"))
    held_out = ("--data.heldout=bundled:heldout", "--evaluation.max_new_tokens=100000")
    with pytest.raises(
        UserError, match=r"more than the \d+ positions .* lower --evaluation\.max_new"
    ):
        run(settings(tmp_path, *held_out))
    with pytest.raises(UserError, match=r"mesh replica=3 .* needs .* devices, but 8 are present"):
        run(settings(tmp_path, "--mesh.replica=3"))


def test_a_run_that_needs_more_memory_than_there_is_is_refused_or_warned_of(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(host_memory, "used", lambda: 0)
    monkeypatch.setattr(devices, "device_memory", lambda: 600_000)
    with pytest.raises(UserError) as refused:
        run(settings(tmp_path, "--stage=gad", "--gad.steps=1", "--rollout.slots=1"))
    said = str(refused.value)
    assert re.match(r"gad: update needs about [\d.]+ GB a device by estimate, and .* gives a", said)
    assert "GB too little; " in said
    assert said.endswith("--limits.memory=warn tries all the same")
    flags = ("--stage=gad", "--gad.steps=1", "--rollout.slots=1", "--data.heldout=")
    run(settings(tmp_path, *flags, "--limits.memory=warn"))
    assert "warning: gad: update needs about" in capsys.readouterr().out


def test_moments_on_a_host_that_cannot_have_them_are_refused(tmp_path, monkeypatch):
    def check(*flags):
        preflight._check_placement(settings(tmp_path, "--optimizer.placement=host", *flags))

    def refused(*flags):
        with pytest.raises(UserError) as said:
            check(*flags)
        return str(said.value)

    check()
    with devices.compiling_for("gpu"):
        assert refused("--checkpoint.background=on").endswith("--checkpoint.background=on")
        monkeypatch.setattr(host_memory, "available", lambda: 10**9)
        with pytest.raises(UserError, match=r"takes 1.1 GB of host memory, and 1 GB are free"):
            preflight._hosted(11 * 10**8)
    monkeypatch.setattr(devices, "HOST", "elsewhere")
    assert "needs devices that read memory of the host (pinned_host), and these, cpu" in refused()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert "is for runs of one process, and this one has 2" in refused()


@pytest.mark.parametrize(
    ("platform", "free", "wanted", "expected"),
    [
        ("cpu", 1400, "auto", 80),  # 0.95 of it hold the program, 50 of answers, and the state
        ("cpu", 1100, "auto", 0),
        ("cpu", 1400, "off", 0),
        ("cpu", 0, "on", 80),
        ("gpu", 300, "auto", 120),  # the state of all devices, twice
        ("gpu", 150, "auto", 0),
    ],
)
def test_a_save_runs_alongside_the_steps_where_its_memory_fits(
    tmp_path, monkeypatch, platform, free, wanted, expected
):
    monkeypatch.setattr(host_memory, "available", lambda: free)
    config = settings(tmp_path, f"--checkpoint.background={wanted}")
    need = footprint.Need("update", {"temporary": 150})  # of each of eight devices
    with devices.compiling_for(platform):
        sizes = [
            footprint.Sizes(
                total=60, device=10, generator=0, discriminator=0, host=0, host_update=0
            )
        ]
        assert preflight._copy_bytes(config, need, sizes, 50) == expected


def test_memory_that_runs_out_is_followed_by_settings_that_need_less(tmp_path, capsys):
    flags = ("--stage=gad", "--batch.micro_batch_prompts=8", "--data.heldout=")
    config = settings(tmp_path, *flags)
    with jax.set_mesh(mesh := make_mesh(devices=jax.devices()[:1])):
        trainer = setup.build(config, mesh)
    trainer.close()
    assert trainer.saver.checkpoints.background
    assert "the next steps run during a save, which takes " in capsys.readouterr().out
    parts = (trainer.networks, trainer.spans, trainer.iteration.rollout, mesh)
    said = preflight.advice(config, *parts)
    assert said.startswith("set --batch.micro_batch_prompts=")


def test_a_gpu_without_matmuls_of_8_bit_floats_is_refused(tmp_path):
    config = settings(tmp_path, "--student.matmul=float8", "--stage=seqkd")
    with (
        devices.compiling_for("gpu"),
        pytest.raises(UserError, match=r"matmul=float8 needs an NVIDIA GPU .* the device is cpu"),
    ):
        run(config)
