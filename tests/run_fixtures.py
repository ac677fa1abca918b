"""Fixtures that several test files use: a finished run, and commands as a user starts them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from gad_jax.base import exits
from tests import compiling

ROOT = Path(__file__).parents[1]

FLAGS = (
    "--stage=gad",
    "--gad.steps=2",
    "--gad.discriminator_only_steps=1",  # so that step 1 has the first student
    "--gad.generator_learning_rate=0.01",  # so that step 2 answers otherwise
    "--grpo.kl_coefficient=0",
    "--seed=3",  # whose step 2 answers different prompts differently
    "--checkpoint.every=1",
    "--data.heldout=",
)


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def command() -> Command:
    """Returns a function: a module and its arguments → what `python -m gad_jax.MODULE …` did.

    The command runs on one device; this process simulates eight.
    """
    # On a GPU, trying kernels takes most of the time that compiling takes. On a CPU the flag would
    # only keep these commands from what others have compiled.
    tries = " --xla_gpu_autotune_level=0" if "cuda" in os.environ["JAX_PLATFORMS"] else ""
    flags = {
        "XLA_FLAGS": compiling.XLA_FLAGS + tries,
        # Where torch is not installed, transformers says so on stderr.
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }

    def run(module: str, *arguments: object, typed: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", f"gad_jax.{module}", *map(str, arguments)],
            env=os.environ | flags,
            input=typed,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def tiny_run(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with the checkpoints 1 and 2; not to be changed.

    Step 1 trains the discriminator alone: the student is still random-tiny.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of all workers: the first makes the run, the others wait for it
    directory = shared / "tiny_run" / "run"
    with FileLock(shared / "tiny_run.lock"):
        if not (directory / "export" / "student").is_dir():
            done = command("train", "--config", "tiny", f"--run_dir={directory}", *FLAGS)
            assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Returns a function: a command's `main` and its arguments → the sentence of its refusal.

    Where the command would end the process, SystemExit is raised instead.
    """

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(exits, "_leave", leave)

    def run(main: Callable[[list[str]], int], *arguments: object) -> str:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert ended.value.code == 2
        error = capfd.readouterr().err
        assert error.endswith("\n")
        assert error.count("\n") == 1, error
        return error.strip()

    return run
