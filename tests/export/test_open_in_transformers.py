"""Exports of every family in live transformers, this one and any other (`-m torch`).

TRANSFORMERS_PYTHONS names further interpreters, separated by colons: of environments that have
another transformers, torch, and nothing of gad_jax.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.export import cases

SCRIPT = Path(__file__).with_name("open_in_transformers.py")
OTHERS = [python for python in os.environ.get("TRANSFORMERS_PYTHONS", "").split(":") if python]


@pytest.mark.torch
def test_every_family_opens_as_its_source_does(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    cases.main(tmp_path / "cases")
    for python in (sys.executable, *OTHERS):
        done = subprocess.run(
            [python, str(SCRIPT), str(tmp_path / "cases")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{python}: {done.stdout}{done.stderr}"
        assert ": 0 failed" in done.stdout
