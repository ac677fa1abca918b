"""Many requests at once: when they end, and what is stored then."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

from gad_jax.collect import __main__ as collect
from tests.collect.harness import flags, read, start
from tests.fault_server import FaultServer

pytest_plugins = ["tests.run_fixtures"]


def test_a_dead_server_ends_the_run(
    tmp_path: Path, prompts: Path, refused: Callable[..., str]
) -> None:
    with FaultServer(lambda number, body: "500") as server:
        says = refused(
            collect.main, *flags(server, prompts, tmp_path / "out.jsonl", "--attempts=1")
        )
    assert "20 requests in a row got no answer (the last: status 500" in says


def test_ctrl_c_waits_for_what_is_paid(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with FaultServer() as server:
        server.held = True
        run = start(*flags(server, prompts, out, "--concurrency=4"))
        while len(server.requests) < 4:
            time.sleep(0.01)
        second = start(*flags(server, prompts, out))
        says = second.communicate()[1]
        assert (second.returncode, says.count("\n")) == (2, 1)
        assert f"in use by process {run.pid} on " in says
        run.send_signal(signal.SIGINT)
        assert run.stderr is not None
        assert any("waiting for the responses on their way" in line for line in run.stderr)
        server.held = False
        shown = run.communicate()[0]
        assert run.returncode == 0
        assert server.billed == len(server.requests) == len(read(out)) < 20
    assert "stopped; the same command resumes it" in shown


def test_ctrl_c_does_not_wait_for_a_server_that_says_later(prompts: Path, tmp_path: Path) -> None:
    with FaultServer(lambda number, body: "429 after 600") as server:
        run = start(*flags(server, prompts, tmp_path / "out.jsonl"))
        while len(server.requests) < 10:
            time.sleep(0.01)
        started = time.monotonic()
        run.send_signal(signal.SIGTERM)
        run.communicate()
    assert run.returncode == 0
    assert time.monotonic() - started < 100
