"""Run directories that do not fit the command; --debug."""

import shutil

import pytest

from gad_jax import train
from gad_jax.export import __main__ as export
from tests.bad_input.rows import line

pytest_plugins = ["tests.run_fixtures"]


@pytest.fixture
def own_run(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "own" / "run")
    return tmp_path / "own" / "run"


def run_flags(run):
    from tests.run_fixtures import FLAGS

    return ["--config=tiny", f"--run_dir={run}", *FLAGS]


def test_a_run_of_another_config_is_refused_with_the_difference(refuses, own_run):
    said = refuses(train, *run_flags(own_run), "--rollout.temperature=0.5", "--optimizer.beta1=0.5")
    changed = "rollout.temperature: 0.8 → 0.5; optimizer.beta1: 0.9 → 0.5"
    assert f"holds a run with other settings ({changed})" in said


def test_a_run_of_other_data_is_refused(refuses, own_run, tmp_path):
    other = tmp_path / "rows.jsonl"
    other.write_bytes(line() * 20)
    edited = (own_run / "config.yaml").read_text().replace("train: bundled", f"train: {other}")
    (own_run / "config.yaml").write_text(edited)
    said = refuses(train, *run_flags(own_run), f"--data.train={other}")
    assert "trained on other rows or another tokenizer (fingerprint" in said


def test_checkpoints_without_their_settings_are_not_resumed(refuses, own_run):
    (own_run / "config.yaml").unlink()
    said = refuses(train, *run_flags(own_run), "--optimizer.beta1=0.5")
    assert "holds the checkpoints of a run but not its config.yaml" in said


def test_a_damaged_config_of_a_run(refuses, own_run):
    (own_run / "config.yaml").write_text("batch: [")
    for refused in (refuses(train, *run_flags(own_run)), refuses(export, own_run)):
        assert "config.yaml:1: not valid YAML" in refused


def test_checkpoints_without_files_are_named_and_left_alone(ends, own_run):
    for step in (1, 2):
        shutil.rmtree(own_run / "checkpoints" / str(step) / "state")
    for command, arguments in ((export, [own_run]), (train, run_flags(own_run))):
        code, said = ends(command, *arguments)
        assert code == 12
        assert "no checkpoint in" in said
        assert "step 2: " in said
        assert "step 1: " in said
    assert sorted(path.name for path in (own_run / "checkpoints").iterdir()) == ["1", "2"]


def test_a_step_that_is_not_there(refuses, own_run):
    assert "no checkpoint of step 7; it has [1, 2]" in refuses(
        export, own_run / "checkpoints" / "7"
    )


# Showing where it comes from


def test_debug_shows_the_traceback_and_then_the_sentence(command, tmp_path):
    flags = ["--config=tiny", f"--run_dir={tmp_path / 'run'}", "--data.train=absent.jsonl"]
    for flag, environment in (([], {}), (["--debug"], {})):
        done = command("train", *flags, *flag, **environment)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("absent.jsonl: no such file; give a")
        assert ("Traceback" in done.stderr) == bool(flag)
    done = command("train", "--batch.prompts=x", "--debug")
    assert (done.returncode, "Traceback" in done.stderr) == (2, True)
