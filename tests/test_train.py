"""The train command as a process: Ctrl-C and resuming, mistakes, --help."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from gad_jax import train
from gad_jax.base import exits
from gad_jax.base.errors import CollapseError
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.training import setup
from tests import compiling
from tests.faults.job import Job
from tests.training.runs import EIGHT_ROWS

LONG = [  # of the stage that compiles least, and rows of one shape: others stop alike
    *("--config=tiny", "--stage=seqkd", "--seqkd.steps=2000", f"--data.train={EIGHT_ROWS}"),
    *("--data.heldout=", "--checkpoint.every=1000"),
]

CALLED = """
import os, pathlib

def called(response):
    with open(pathlib.Path(__file__).with_name("calls"), "a") as file:
        first = file.tell() == 0
        print(os.getpid(), file=file)
    return float("nan") if first else len(response)
"""


def start(run_dir, *flags):
    command = [sys.executable, "-m", "gad_jax.train", f"--run_dir={run_dir}", *flags]
    return subprocess.Popen(
        command,
        env=os.environ | {"XLA_FLAGS": compiling.XLA_FLAGS},  # one device
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )


def steps(run_dir):
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def interrupt_after(process, run_dir, step):
    """Sends Ctrl-C once the step is logged; returns what the command printed."""
    deadline = time.monotonic() + 600
    while not (logged := steps(run_dir)) or logged[-1] < step:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "no step was logged in time"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    return printed


def test_a_run_that_is_interrupted_saves_and_goes_on(tmp_path):
    printed = interrupt_after(start(tmp_path, *LONG), tmp_path, 3)
    stopped = steps(tmp_path)[-1]
    assert f"stopped after step {stopped} of 2000, which is saved" in printed
    assert f"the report is {tmp_path}/report.html" in printed
    assert f"seqkd {stopped}" in (tmp_path / "report.html").read_text()
    again = f"next: python -m gad_jax.train --run_dir={tmp_path} {' '.join(LONG)}"
    assert printed.splitlines()[-1] == again
    assert (tmp_path / "checkpoints" / str(stopped)).is_dir()
    printed = interrupt_after(start(tmp_path, *LONG), tmp_path, stopped + 2)
    assert f"resuming after step {stopped} of 2000" in printed
    logged = steps(tmp_path)
    assert logged == list(range(1, logged[-1] + 1))
    assert logged[-1] >= stopped + 2


def test_mistakes_are_one_sentence_and_exit_with_2(tmp_path):
    cases = {
        "--student.path=./nowhere": "nowhere",
        "--data.train=nowhere.jsonl": "nowhere.jsonl: no such file",
        "--rollout.sampels=2": "did you mean 'samples'?",
    }
    for flag, sentence in cases.items():
        process = start(tmp_path / "run", "--config=tiny", flag)
        printed, _ = process.communicate(timeout=600)
        assert process.returncode == 2, printed
        assert sentence in printed.splitlines()[-1]
        assert "Traceback" not in printed


def test_a_dry_run_of_two_processes_leaves_nothing_behind(tmp_path):
    """Its reward is a function that one of the processes calls for all."""
    run_dir = tmp_path / "run"
    (tmp_path / "own.py").write_text(CALLED)
    flags = (
        f"--reward.extra={tmp_path}/own.py:called",
        "--mesh.tensor=2",
        "--batch.prompts=256",
        "--stage=gad",
        "--gad.steps=500",
        "--dry_run",
    )
    job = Job(run_dir, "--config=tiny", *flags, processes=2, devices=4)
    assert job.wait() == [0, 0], job.printed()
    printed = job.printed()
    assert "8 devices (replica 1 × fsdp 4 × tensor 2); the run has gad to step 500" in printed
    assert "batch:\n  prompts: 256" in printed
    assert "bundled: 352 rows with 352 responses" in printed
    assert printed.count("step 1/1  gad") == 1
    assert "\nwarning: the reward called is nan for response 1 to " in printed  # a line as others
    calls = (tmp_path / "calls").read_text().split()
    assert len(calls) == 2 * 4 * 2  # two prompts on each data shard, two samples
    assert len(set(calls)) == 1
    for name in ("calls", "own.py"):
        (tmp_path / name).unlink()
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.0.log", "run.1.log"]


def test_a_dry_run_finds_what_a_run_would(tmp_path):
    def says(*flags):
        process = start(tmp_path / "run", "--config=tiny", "--dry_run", *flags)
        printed, _ = process.communicate(timeout=600)
        assert process.returncode == 2, printed
        return printed.splitlines()[-1]

    assert "nowhere.jsonl: no such file" in says("--data.train=nowhere.jsonl")
    (tmp_path / "run" / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("gad: {steps: 3}\n")
    assert "holds a run with other settings" in says()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_dry_run_says_what_the_limits_cost(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"prompt": f"q{n}", "teacher_response": "word " * 9} for n in range(20)]
    path.write_text("\n".join(map(json.dumps, rows)))

    def tried(*flags):
        flags = (f"--data.train={path}", "--student.path=random-tiny", "--dry_run", *flags)
        process = start(tmp_path / "run", *flags)
        printed, _ = process.communicate(timeout=600)
        return process.returncode, printed

    code, printed = tried()  # without --config: not the quickstart's 76 steps and 48 tokens
    assert code == 0, printed
    assert "the dry run went well: " in printed
    flags = f"--run_dir={tmp_path}/run --data.train={path} --student.path=random-tiny"
    assert printed.splitlines()[-1] == f"next: python -m gad_jax.train {flags}"
    assert "held out: 1 prompt of " in printed
    assert "the run has warmup to step 2, gad to step 6" in printed
    assert "warning:" not in printed
    code, printed = tried("--rollout.max_new_tokens=8")
    assert code == 2
    assert (
        "20 of 20 teacher responses (100%) are longer than --rollout.max_new_tokens=8 and"
        in (printed.splitlines()[-1])
    )
    code, printed = tried("--rollout.max_new_tokens=8", "--data.stop_at_cut_share=1", "--stage=gad")
    assert code == 0, printed
    assert "warning: " in printed
    assert "went well" not in printed
    assert "the run would start, but see the warnings" in printed.splitlines()[-1]
    assert [file.name for file in tmp_path.iterdir()] == ["mine.jsonl"]


def test_a_run_that_an_alarm_stops_leaves_a_report(tmp_path, monkeypatch, capsys):
    def stopped(_):
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "stage": "gad", "entropy": 0.1}\n')
        trainer.step = 1
        raise CollapseError("entropy is gone")

    trainer = SimpleNamespace(step=0, run=stopped)
    monkeypatch.setattr(setup, "build", lambda config, mesh: trainer)
    config = options.read(Config, [f"--run_dir={tmp_path}"], program="", description="")
    with pytest.raises(CollapseError):
        train._train(config, exits.StopRequest(), report=False)
    assert not (tmp_path / "report.html").exists()  # of a dry run
    trainer.step = 0
    with pytest.raises(CollapseError):
        train._train(config, exits.StopRequest())
    assert (tmp_path / "report.html").exists()
    assert capsys.readouterr().out == f"the report is {tmp_path}/report.html\n"
