"""`export --push`: what a hub has afterwards, and each mistake as one sentence."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gad_jax import __version__
from gad_jax.export import __main__ as export
from tests.export.hub_server import READ_ONLY, TOKEN, Hub

pytest_plugins = ["tests.run_fixtures", "tests.hub_fixtures"]

Run = Callable[..., subprocess.CompletedProcess[str]]


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_both_networks_are_uploaded(tiny_run: Path, tmp_path: Path, hub: Hub, command: Run) -> None:
    out = tmp_path / "out"
    done = command("export", tiny_run, f"--out={out}", "--push=org/student")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1::2] == [f"{hub.url}/org/student", f"{hub.url}/org/student-discriminator"]
    for part, name in {"student": "student", "discriminator": "student-discriminator"}.items():
        found = dict(hub.repositories[f"org/{name}"])
        assert found.pop(".gitattributes")
        assert found == files(out / part)
    assert hub.private == {"org/student": True, "org/student-discriminator": True}
    assert hub.messages[0] == f"student of step 2, gad-jax {__version__}"
    assert TOKEN not in done.stdout + done.stderr


def test_an_upload_replaces_the_weights_of_an_earlier_one(
    tiny_run: Path, tmp_path: Path, hub: Hub, command: Run
) -> None:
    old = {"model-00001-of-00002.safetensors": b"", "model.safetensors.index.json": b"{}"}
    old |= {"picture.png": b"kept", "README.md": b"# old", "chat_template.jinja": b"old"}
    hub.repositories["org/name"] = dict(old)
    hub.private["org/name"] = True
    out = tmp_path / "out"
    flags = (f"--out={out}", "--part=student", "--push=org/name", "--public")
    done = command("export", tiny_run, *flags)
    assert done.returncode == 0, done.stderr
    assert hub.repositories["org/name"] == files(out / "student") | {"picture.png": b"kept"}
    assert hub.private["org/name"], "it was made private, and stays so"


def test_a_new_repository_is_public_on_request(
    tiny_run: Path, tmp_path: Path, hub: Hub, command: Run
) -> None:
    flags = (f"--out={tmp_path}", "--part=discriminator", "--push=org/judge", "--public")
    assert command("export", tiny_run, *flags).returncode == 0
    assert hub.private == {"org/judge": False}


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"HF_TOKEN": ""}, "run `hf auth login`, or set HF_TOKEN"),
        ({"HF_TOKEN": "hf_" + "c" * 30}, "run `hf auth login`, or set HF_TOKEN"),
        ({"HF_TOKEN": READ_ONLY}, "the token may not write there"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "check the connection, HF_ENDPOINT and"),
        ({"HF_HUB_OFFLINE": "1"}, "check the connection, HF_ENDPOINT and HF_HUB_OFFLINE"),
        ({}, "the hub refused (500: Internal Error); try again later"),
    ],
)
def test_what_a_hub_refuses_is_one_sentence(
    tiny_run: Path,
    tmp_path: Path,
    hub: Hub,
    command: Run,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    said: str,
) -> None:
    hub.broken = not variables
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = command("export", tiny_run, f"--out={tmp_path}/out", "--push=org/name")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("--push=org/name: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr
    assert not hub.repositories
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*")), "it worked in vain"


def test_mistakes_in_the_flags(tiny_run: Path, refused: Callable[..., str], hub: Any) -> None:
    for name in ("name", "a/b/c", "org/na me", "https://hub/org/name", "/name", "org/"):
        assert refused(export.main, tiny_run, f"--push={name}").startswith(
            f"--push={name}: give ORG/NAME"
        )
    said = refused(export.main, tiny_run, "--public")
    assert said == "--public is about --push: give --push=ORG/NAME too"
    assert not hub.repositories
