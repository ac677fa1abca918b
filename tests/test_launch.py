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

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
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


def test_the_image_has_locked_packages_a_digest_and_no_root() -> None:
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    (base,) = (line for line in lines if line.startswith("ARG BASE="))
    assert re.fullmatch(r"ARG BASE=python:3\.13-slim@sha256:[0-9a-f]{64}", base)
    assert "FROM ${BASE}" in lines
    installs = [line for line in lines if "pip install" in line]
    assert installs
    assert all("--require-hashes -r requirements.lock -r" in line for line in installs)
    users = [line for line in lines if line.startswith("USER ")]
    assert users == ["USER 10001"]
    after = lines[lines.index(users[0]) :]
    assert not any(line.startswith(("RUN", "COPY", "ADD")) for line in after)
    assert ".git" in (ROOT / ".dockerignore").read_text().split()


def test_the_locks_of_accelerators_have_hashes_and_the_versions_of_jax() -> None:
    locked = set(re.findall(r"^(\S+==\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    newest = max(entry.partition("==")[2] for entry in locked if entry.startswith("jax=="))
    for name in ("cuda13", "tpu"):
        text = (LAUNCH / f"{name}.lock").read_text().replace("\\\n", " ")
        entries = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert entries
        assert all("--hash=sha256:" in entry for entry in entries)
        assert not locked & {entry.split()[0] for entry in entries}
        plugins = [entry.split()[0] for entry in entries if entry.startswith("jax-")]
        assert all(plugin.endswith(f"=={newest}") for plugin in plugins)


def test_actions_are_pinned_to_commits_and_packages_to_hashes() -> None:
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        text = path.read_text()
        used = re.findall(r"uses:\s*(\S+)(.*)", text)
        assert used
        for action, comment in used:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action
            assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action
        assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
        assert "pip install --require-hashes -r requirements.lock" in text
        assert "LOCKED:" in text
    assert "--require-hashes -r requirements.lock" in (ROOT / ".ci" / "run").read_text()


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
