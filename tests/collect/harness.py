"""Runs the command against a server that fails on purpose, in this process or in one to kill."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.fault_server import FaultServer

ROOT = Path(__file__).parents[2]
KEY = "sk-SENTINEL0123456789abcdef"
VARIABLE = "A_TEACHERS_WORD"  # whose name does not say that it is a secret


def flags(server: FaultServer, prompts: Path, out: Path, *more: str) -> list[str]:
    where = (f"--base_url={server.url}", "--model=m", f"--key_variable={VARIABLE}")
    return [f"--prompts={prompts}", f"--out={out}", *where, *more]


def start(*arguments: str, before: Sequence[str] = ()) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*before, sys.executable, "-m", "gad_jax.collect", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), VARIABLE: KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_through(*arguments: str) -> tuple[int, str, str]:
    run = start(*arguments)
    shown, errors = run.communicate()
    return run.returncode, shown, errors


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def names(lines: list[dict[str, Any]]) -> set[tuple[str, int]]:
    return {(line["key"], line["sample"]) for line in lines}


def write_prompts(path: Path, count: int = 20) -> Path:
    path.write_text("".join(f"prompt {n}\n" for n in range(count)))
    return path
