"""W&B in its offline mode: what its files hold, read back as `wandb sync` does."""

import importlib.util
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gad_jax.base.errors import UserError
from gad_jax.training.trackers import wandb
from tests.training.trackers import session

needs_wandb = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None,
    reason="needs tests/training/trackers/requirements.txt",
)


def records(path: Path) -> Iterator[Any]:
    """Yields the records of a .wandb file: chunks as in a log of LevelDB, after 7 bytes."""
    from wandb.proto import wandb_internal_pb2  # type: ignore[import-not-found]

    content, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found = wandb_internal_pb2.Record()
            found.ParseFromString(record)
            yield found
            record = b""


@needs_wandb
def test_a_resumed_run_is_one_run_and_repeats_no_step(tmp_path: Path) -> None:
    run_dir = tmp_path / "mine"
    said = session.run("wandb", run_dir, {"WANDB_MODE": "offline"})
    assert "wandb: offline; `wandb sync " in said
    files = sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    found = [record for path in files for record in records(path)]
    runs = [record.run for record in found if record.HasField("run")]
    stored = json.loads((run_dir / "trackers.json").read_text())["wandb"]
    assert {run.run_id for run in runs} == {stored["id"]}
    assert (runs[0].project, runs[0].display_name) == ("gad-jax", "mine")
    assert set(runs[0].tags) == {"first", "size=7B"}
    settings = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert settings["batch.prompts"] == 256
    assert settings["data.train"] == "https://me:[redacted]@127.0.0.1/teacher.jsonl"
    rows = [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in row}
        for row in (record.history.item for record in found if record.HasField("history"))
    ]
    losses = [(row["step"], row["generator/loss"]) for row in rows if "generator/loss" in row]
    assert losses == [(step, step / 4) for step in range(1, 7)]
    texts = [row for row in rows if any(name.startswith("samples") for name in row)]
    assert [row["step"] for row in texts] == [4, 6]
    pages = [
        path.read_text() for path in run_dir.glob("wandb/offline-run-*/files/media/html/*.html")
    ]
    assert len(pages) == 2
    assert all("&lt;b&gt;Because" in page for page in pages)
    assert [record.exit.exit_code for record in found if record.HasField("exit")] == [0, 0]
    everything = b"".join(path.read_bytes() for path in run_dir.rglob("*") if path.is_file())
    assert session.SECRET.encode() not in everything
    assert not list(run_dir.rglob("wandb-metadata.json")), "it would have the command line"


@needs_wandb
def test_a_missing_key_is_asked_for_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AssertionError, match="nobody is logged in; run `wandb login`, set WANDB_"):
        session.run("wandb", tmp_path / "mine", {"WANDB_MODE": "online", "WANDB_API_KEY": ""})
    assert not (tmp_path / "mine").exists()
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    wandb.require_login()


def test_a_login_is_required_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Package:
        mode = "online"
        asked: tuple[Any, ...] = ()

        def setup(self) -> Any:
            return type("Setup", (), {"settings": self})()

        def login(self, **how: bool) -> bool:
            assert how == {"prompt": False, "verify": False}
            return False

    package = Package()
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(wandb.importlib, "import_module", lambda name: package)
    with pytest.raises(UserError, match="nobody is logged in"):
        wandb.require_login()
    package.mode = "offline"
    wandb.require_login()
