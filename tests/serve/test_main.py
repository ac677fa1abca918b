"""The settings of the server, and its mistakes."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

from gad_jax.serve import __main__ as serve
from tests.serve.servers import serving

pytest_plugins = ["tests.run_fixtures"]


def test_settings_that_cannot_be(tiny_run: Path, refused: Callable[..., str]) -> None:
    model = f"--model={tiny_run}"
    assert "A_KEY is not set" in refused(serve.main, model, "--key_variable=A_KEY")
    assert "context=0 must be 1 or more" in refused(serve.main, model, "--context=0")
    assert "chunk=-1 must be 0 or more" in refused(serve.main, model, "--chunk=-1")
    assert "lower --slots or --context" in refused(serve.main, model, "--slots=100000000")
    assert "needs so many devices" in refused(serve.main, model, "--tensor=64")
    assert "is no origin" in refused(serve.main, "--allow_origin=https://example.org/page")
    assert "allow_origin is for" in refused(serve.main, "--protocol=jetstream", "--allow_origin=*")
    assert "no keys" in refused(serve.main, "--protocol=jetstream", "--key_variable=A_KEY")


def test_the_server_says_how_to_ask_it(tiny_run: Path) -> None:
    flags = ("--name=it's", "--slots=1", "--context=300")
    with serving(f"--model={tiny_run}", *flags, warm=True) as running:
        printed = running.process.stdout.readline()
    compiling = [line for line in running.before if line.startswith("compiling")]
    assert compiling == [f"compiling {n} of 4 programs\n" for n in range(1, 5)]
    said, program, address, flag, body = shlex.split(printed)
    assert (said, program, flag) == ("next:", "curl", "-d")
    assert address == f"{running.address}/chat/completions"
    assert json.loads(body)["model"] == "it's"
