"""Exports of every family in live transformers, this one and any other (`-m torch`).

TRANSFORMERS_PYTHONS names further interpreters, separated by colons: of environments that have
another transformers, torch, and nothing of gad_jax.
"""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gad_jax.export import __main__ as export
from tests.export import cases

pytest_plugins = ["tests.run_fixtures"]

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


@pytest.mark.torch
def test_the_code_of_a_card_runs(tiny_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    assert export.main([str(tiny_run), f"--out={tmp_path}"]) == 0
    for part in ("student", "discriminator"):
        text = (tmp_path / part / "README.md").read_text()
        code = text.split("```python\n")[1].split("```")[0].replace("PATH", str(tmp_path / part))
        for python in (sys.executable, *OTHERS):
            done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            if part == "discriminator":
                assert math.isfinite(float(re.sub(r"tensor\(([^,)]*).*", r"\1", done.stdout)))
