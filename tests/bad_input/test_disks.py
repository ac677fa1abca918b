"""Directories and disks that cannot be used."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gad_jax import train
from gad_jax.distributed import devices
from gad_jax.export import __main__ as export
from gad_jax.generate import __main__ as generate
from gad_jax.training.tracker import Tracker
from tests import compiling
from tests.bad_input.rows import line
from tests.training.runs import EIGHT_ROWS


def test_run_directories(refuses, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for place in (file, file / "below", "/proc/run"):
        assert "cannot be used" in refuses(train, "--config=tiny", f"--run_dir={place}")
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line())
    flags = ["--model=random-tiny", f"--file={path}"]
    assert refuses(generate, *flags, f"--out={file}/x").startswith("--out: ")
    assert refuses(generate, *flags, f"--out={tmp_path}").endswith(
        "is a directory; name a file in it"
    )
    assert "is not a run directory" in refuses(export, tmp_path)
    assert "is not a run directory" in refuses(export, tmp_path / "absent")


@contextlib.contextmanager
def mounted(directory, options):
    directory.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def test_a_read_only_disk(refuses, tmp_path):
    with mounted(tmp_path / "disk", "ro,size=1m"):
        said = refuses(train, "--config=tiny", f"--run_dir={tmp_path / 'disk' / 'run'}")
    assert "cannot be used (Read-only file system); choose another --run_dir" in said


def test_a_device_that_is_too_small_is_noticed_before_weights_are_read(
    refuses, tmp_path, monkeypatch
):
    monkeypatch.setattr(devices, "device_memory", lambda: 50_000)
    said = refuses(train, "--config=tiny", f"--run_dir={tmp_path / 'run'}")
    assert re.search(r"weights and moments alone take [\d.]+ GB of a device with 0.00 GB", said)
    assert "python -m gad_jax.plan" in said


def test_a_disk_that_is_too_small_is_noticed_before_the_first_step(refuses, tmp_path):
    with mounted(tmp_path / "disk", "size=2m"):
        run = tmp_path / "disk" / "run"
        said = refuses(train, "--config=tiny", f"--run_dir={run}", code=12)
        assert not (run / "evaluations").exists()
    assert "GB free and this run needs" in said
    assert "lower --checkpoint.keep" in said


def fill(disk):
    """Takes all that is free."""
    with contextlib.suppress(OSError), open(disk / "filler", "ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_disk_that_fills_while_the_run_is_on(ends, tmp_path, monkeypatch):
    """After the checks of the start: in the middle of step 2, before its row is written."""
    disk, log, full = tmp_path / "disk", Tracker.log, []

    def log_when_full(self, step, stage, metrics):
        if step == 2 and not full:
            full.append(self)
            fill(disk)
        # Enough to outgrow what the files' last blocks have left.
        log(self, step, stage, metrics | {f"more/{number}": 0.1 for number in range(300)})

    monkeypatch.setattr(Tracker, "log", log_when_full)
    flags = ["--config=tiny", f"--run_dir={disk / 'run'}", "--stage=gad", "--data.heldout="]
    flags += ["--gad.steps=2", "--checkpoint.every=1", "--export=false"]
    flags += [f"--data.train={EIGHT_ROWS}"]
    with mounted(disk, "size=24m"):
        code, said = ends(train, *flags)
        assert (code, sorted(os.listdir(disk / "run" / "checkpoints"))) == (12, ["1"]), said
        assert "No space left on device" in said
        assert str(disk / "run") in said
        (disk / "filler").unlink()
        full[0].close()  # which the end of a process does
        assert ends(train, *flags)[0] == 0
        assert sorted(os.listdir(disk / "run" / "checkpoints")) == ["1", "2"]


def test_a_file_size_limit_is_a_full_disk(tmp_path):
    """As `ulimit -f` sets it."""
    code = (
        "import resource, sys; from gad_jax import train\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
        "sys.exit(train.main(sys.argv[1:]))"
    )
    flags = ["--config=tiny", f"--run_dir={tmp_path / 'run'}", "--stage=gad", "--data.heldout="]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    environment["XLA_FLAGS"] = compiling.XLA_FLAGS
    done = subprocess.run(
        [sys.executable, "-c", code, *flags, "--gad.steps=1", f"--data.train={EIGHT_ROWS}"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 12, done.stderr
    assert "could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("run/checkpoints/[0-9]"))
