"""The small world's command on two real methods, in small; and what it says to mistakes."""

import json
from pathlib import Path

import pytest

from gad_jax import world
from tests.run_fixtures import Command

pytest_plugins = ["tests.run_fixtures"]

SMALL = ("--seeds=1", "--rows=64", "--heldout=8", "--layers=1", "--width=24", "--workers=1")


def test_methods_are_trained_judged_and_compared(tmp_path: Path, command: Command) -> None:
    out = tmp_path / "world"
    flags = (f"--out={out}", *SMALL)
    done = command("world", *flags, "--methods=seqkd")
    assert done.returncode == 0, done.stderr
    assert "seed 0, warm:" in done.stdout
    kept = (out / "seed-0" / "seqkd.json").stat().st_mtime_ns

    # a further method is added to what is there
    done = command("world", *flags, "--methods=seqkd,gad")
    assert done.returncode == 0, done.stderr
    assert "seed 0, seqkd:" not in done.stdout
    assert (out / "seed-0" / "seqkd.json").stat().st_mtime_ns == kept
    results = json.loads((out / "results.json").read_text())
    assert [*results] == ["seeds", "warm start", "SeqKD", "GAD"]
    (gad,) = results["GAD"]
    # one step of warm-up and one of GAD, each with its evaluation
    assert [point["step"] for point in gad["curve"]] == [0, 1, 2]
    assert "reward" in gad["curve"][-1]
    assert set(gad["greedy"]) > {"valid", "coverage", "distinct", "tokens", "ngram_1", "rouge_l"}
    table = (out / "results.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == ["| warm start", "| SeqKD", "| GAD"]
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")

    done = command("world", *flags, "--heldout=9")
    assert done.returncode == 2
    assert "given twice" in done.stderr
    done = command("world", f"--out={out}", "--rows=65")
    assert done.returncode == 2
    assert "has results with rows=64, now 65" in done.stderr


def test_failed_training_names_its_log(tmp_path: Path, command: Command) -> None:
    training = tmp_path / "broken.yaml"
    training.write_text("batch: {prompts: 1000}\n")
    done = command("world", f"--out={tmp_path / 'out'}", f"--training={training}", *SMALL)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    log = tmp_path / "out" / "seed-0" / "warm.log"
    assert str(log) in done.stderr
    assert "1000" in log.read_text()


@pytest.mark.parametrize(
    ("flag", "needed"),
    [
        ("--seeds=0", "1 or more"),
        ("--width=50", "multiple of 24"),
        ("--methods=gad,ppo", "names 'ppo'"),
        ("--first_seed=-1", "0 or more"),
        ("--rwos=3", "did you mean 'rows'?"),
    ],
)
def test_mistakes_are_one_sentence(
    flag: str, needed: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        world.main([flag])
    assert ended.value.code == 2
    error = capfd.readouterr().err
    assert needed in error
    assert error.count("\n") == 1
