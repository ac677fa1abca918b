"""trackio with its local database, read back."""

import importlib.util
import json
import sqlite3
from pathlib import Path

import pytest

from tests.training.trackers import session


@pytest.mark.skipif(
    importlib.util.find_spec("trackio") is None, reason="needs requirements.txt of this folder"
)
def test_a_resumed_run_is_one_run_and_repeats_no_step(tmp_path: Path) -> None:
    run_dir, place = tmp_path / "mine", tmp_path / "trackio"
    said = session.run("trackio", run_dir, {"TRACKIO_DIR": str(place)})
    stored = json.loads((run_dir / "trackers.json").read_text())["trackio"]
    assert stored["id"].startswith("mine-")
    assert f"trackio: `trackio show --project gad-jax` shows {stored['id']}" in said
    with sqlite3.connect(next(place.glob("gad-jax*.db"))) as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id")
        found = [(name, step, json.loads(metrics)) for name, step, metrics in rows]
        (settings,) = database.execute("select config from configs").fetchone()
    assert {name for name, _, _ in found} == {stored["id"]}
    losses = [(step, row["generator/loss"]) for _, step, row in found if "generator/loss" in row]
    assert losses == [(step, step / 4) for step in range(1, 7)]
    samples = [(step, row["samples"]["_value"]) for _, step, row in found if "samples" in row]
    assert [step for step, _ in samples] == [4, 6]
    assert "<b>Because</b>" in samples[0][1]
    assert json.loads(settings)["batch.prompts"] == 256
    assert session.SECRET not in str(settings)
