"""What the command line accepts, and what it never shows."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gad_jax.collect import __main__ as collect
from tests.collect.harness import KEY, flags, start
from tests.fault_server import FaultServer

pytest_plugins = ["tests.run_fixtures"]


def test_mistakes_are_one_sentence(
    prompts: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    def ask(*more: str) -> str:
        given = ("--base_url=http://localhost:9/v1", "--model=m")
        return refused(
            collect.main, f"--prompts={prompts}", f"--out={tmp_path / 'o.jsonl'}", *given, *more
        )

    assert "max_cost needs prices" in ask("--max_cost=5")
    assert "max_new_tokens is needed" in ask("--max_total_tokens=5")
    assert "would all be the same" in ask("--samples=2", "--temperature=0")
    assert "parameters must be a JSON object" in ask("--parameters=[1]")
    assert "n has a flag of its own" in ask('--parameters={"n": 2}')
    assert "concurrency=0 must be greater than 0" in ask("--concurrency=0")
    assert "never the key itself" in ask("--key_variable=not a name")
    assert "must be like https://host/v1" in refused(
        collect.main, f"--prompts={prompts}", "--out=o", "--model=m", "--base_url=localhost"
    )
    prompts.write_bytes(b"fine\n\xff\n")
    assert "prompts.txt:2: not UTF-8" in ask()
    directory = tmp_path / "directory"
    directory.mkdir()
    prompts.write_text("fine\n")
    assert "cannot be read" in refused(
        collect.main, f"--prompts={prompts}", f"--out={directory}", "--model=m"
    )


@pytest.mark.parametrize("fault", ["", "echo", "401"])
@pytest.mark.parametrize("debug", [(), ("--debug",)])
def test_the_key_is_nowhere(
    fault: str, debug: tuple[str, ...], prompts: Path, tmp_path: Path
) -> None:
    with FaultServer(lambda number, body: fault) as server:
        run = start(*flags(server, prompts, tmp_path / "out.jsonl", *debug))
        shown = "".join(run.communicate())
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert run.returncode == (2 if fault else 0)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert KEY.encode() not in b"".join(written)
    assert KEY not in shown
