"""`--help` of every command answers at once: it imports neither jax nor what comes with it."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
COMMANDS = (
    *("train", "generate", "export", "collect", "evaluate", "serve", "plan", "toy", "world"),
    *("world.personas", "bench", "bench update", "bench rollout", "bench scaling"),
)
CODE = """
import runpy, sys
try:
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
finally:
    heavy = {"jax", "flax", "optax", "numpy", "transformers", "torch", "matplotlib", "starlette"}
    print(sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_no_jax(command: str) -> None:
    module, *rest = command.split()
    done = subprocess.run(
        [sys.executable, "-c", CODE, f"gad_jax.{module}", *rest, "--help"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    assert done.stdout.endswith("[]\n")
