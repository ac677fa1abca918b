"""`collect check --push`: what a dataset of the hub has afterwards, and each mistake."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard, HfApi

from gad_jax import __version__
from gad_jax.base.errors import UserError
from gad_jax.collect import __main__ as collect
from gad_jax.data import sources
from gad_jax.training import pushing
from tests.collect.test_card import line
from tests.export.hub_server import READ_ONLY, TOKEN, Hub

pytest_plugins = ["tests.run_fixtures", "tests.hub_fixtures"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "teacher.jsonl"
    content = ["word " * 20, "key sk-abcdefghijklmnop0123456789"]
    lines = [line(n, teacher_response=f"{content[n]} {n}") for n in range(2)]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


def test_lines_and_card_are_uploaded(
    rows: Path, tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories["org/rows"] = {"picture.png": b"kept", "README.md": b"old"}
    hub.private["org/rows"] = True
    out = tmp_path / "good.jsonl"
    assert collect.main(["check", str(rows), f"--out={out}", "--push=org/rows", "--public"]) == 0
    printed = capsys.readouterr().out
    assert f"{hub.url}/datasets/org/rows\n" in printed
    assert "the card states no licence; --license does, such as --license=cc-by-4.0" in printed
    assert TOKEN not in printed
    found = hub.repositories["org/rows"]
    assert set(found) == {"train.jsonl", "README.md", "picture.png"}
    assert found["train.jsonl"] == out.read_bytes()
    about = DatasetCard(found["README.md"].decode())
    assert about.data["configs"][0]["data_files"] == "train.jsonl"
    assert 'load_dataset("org/rows", split="train")' in about.text
    assert "| lines left out | secret 1 |" in about.text
    assert hub.messages == [f"1 rows, gad-jax {__version__}"]
    assert len(sources.read(out)) == 1


def test_a_new_dataset_is_private_unless_it_is_to_be_public(
    rows: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, more in enumerate(([], ["--public"])):
        flags = [f"--out={tmp_path}/{number}.jsonl", f"--push=org/rows{number}", *more]
        assert collect.main(["check", str(rows), *flags]) == 0
    assert hub.private == {"org/rows0": True, "org/rows1": False}
    assert set(hub.kinds.values()) == {"dataset"}

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("error while uploading 'train.jsonl'") from ConnectionError("gone")

    monkeypatch.setattr(HfApi, "create_commit", fail)
    reason = r"RuntimeError: error while uploading 'train.jsonl': ConnectionError: gone\); check"
    with pytest.raises(UserError, match=rf"{reason} .*; the rows are written"):
        pushing.upload_rows("org/rows0", {}, "message")


def test_mistakes_are_named(
    rows: Path,
    tmp_path: Path,
    hub: Hub,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = f"--out={tmp_path}/good.jsonl"

    def said(*flags: Any) -> str:
        return refused(collect.main, "check", str(rows), *flags)

    assert "push is about the lines of --out" in said("--push=org/rows")
    assert "card is about the lines of --out" in said("--card=README.md")
    assert "public is about --push" in said(out, "--public")
    assert "--push=rows: give ORG/NAME" in said(out, "--push=rows")
    assert f"--card: {rows} is there" in said(out, f"--card={rows}")
    for name in ("good.jsonl", "good.manifest.json"):
        card = f"--card={tmp_path}/{name}"
        assert f"{name} is what --out writes; choose another name" in said(out, card)
    folder = f"--card={rows}/README.md"
    assert "--card" in said(out, folder)
    assert not hub.repositories
    sentence = said(out, "--push=org/rows", "--drop=cut")
    assert sentence.startswith("--push=org/rows: 1 line has something in the form of an API key")
    assert "no line is left of 2" in said(out, "--push=org/rows", f"--against={rows}")
    monkeypatch.setenv("HF_TOKEN", READ_ONLY)
    assert "the token may not write there" in said(out, "--push=org/other")
    assert not (tmp_path / "good.jsonl").exists()
