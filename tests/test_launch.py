"""The launchers: shellcheck, and that what they run is understood."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gad_jax.settings import options
from gad_jax.settings.config import Config

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


def test_shellcheck_finds_nothing() -> None:
    beside = Path(sys.executable).with_name("shellcheck")
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert program, "pip install -r requirements-dev.txt brings shellcheck"
    done = subprocess.run(
        [program, "-x", *map(str, SCRIPTS)],
        cwd=LAUNCH.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def commands() -> list[str]:
    """Flags of every training command that a launcher or its first lines name."""
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    found = [" ".join(pod["containers"][0]["args"])]
    for path in LAUNCH.iterdir():
        text = path.read_text().replace("\\\n", " ").replace("#         ", "")
        found += re.findall(r"(--config qwen\S+[^\n]*)", text) if path.name != "jobset.yaml" else []
    return found


@pytest.mark.parametrize("flags", commands())
def test_the_flags_in_the_launchers_are_understood(flags: str) -> None:
    config = options.read(Config, flags.split(), program="train", description="")
    assert config.run_dir


def test_one_node_runs_the_command_with_what_it_is_given() -> None:
    done = subprocess.run(
        [LAUNCH / "node.sh", "--help=all"],
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": "/tmp"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--profile.steps" in done.stdout
