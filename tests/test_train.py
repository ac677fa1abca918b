"""The train command as a process: Ctrl-C and going on, mistakes, --help."""

import json
import signal
import subprocess
import sys
import time

LONG = ["--config=tiny", "--gad.steps=500", "--data.heldout=", "--checkpoint.every=1000"]


def start(run_dir, *flags):
    command = [sys.executable, "-m", "gad_jax.train", f"--run_dir={run_dir}", *flags]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
    )


def steps(run_dir):
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def interrupt_after(process, run_dir, step):
    """Sends Ctrl-C once the step is logged; returns what the command printed."""
    deadline = time.monotonic() + 120
    while not (logged := steps(run_dir)) or logged[-1] < step:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "no step was logged in time"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    return printed


def test_a_run_that_is_interrupted_saves_and_goes_on(tmp_path):
    printed = interrupt_after(start(tmp_path, *LONG), tmp_path, 3)
    stopped = steps(tmp_path)[-1]
    assert f"stopped after step {stopped} of 502, which is saved" in printed
    assert (tmp_path / "checkpoints" / str(stopped)).is_dir()
    printed = interrupt_after(start(tmp_path, *LONG), tmp_path, stopped + 2)
    assert f"going on after step {stopped} of 502" in printed
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
        printed, _ = process.communicate(timeout=120)
        assert process.returncode == 2, printed
        assert sentence in printed.splitlines()[-1]
        assert "Traceback" not in printed
