"""Names of runs and of their checkpoints."""

import json
from pathlib import Path

import pytest

from gad_jax.base.errors import UserError
from gad_jax.training import digest, records, selection


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A directory with the records of three checkpoints, and one that is damaged."""
    directory = tmp_path / "run"
    for step, score in ((1, None), (2, 0.5), (3, 0.25), (4, 0.75)):
        meta = directory / "checkpoints" / str(step) / "meta"
        meta.mkdir(parents=True)
        record = {"format": records.FORMAT, "step": step, "score": score}
        text = json.dumps(digest.sealed(record | {"meta": {"stage": "gad"}}))
        (meta / "record.json").write_text(text.replace("0.75", "0.95"))
    (directory / "config.yaml").touch()
    return directory


def test_each_way_to_name_a_checkpoint(run: Path) -> None:
    ways: dict[str, int | None] = {"": None, "@last": None, "@best": 2, "@3": 3, "@03": 3}
    ways |= {"/": None, "/@best": 2, "/checkpoints/1": 1}
    for way, step in ways.items():
        named = selection.parse(f"{run}{way}")
        assert named.run == run, way
        assert selection.step(named) == step, way
        assert selection.names_run(f"{run}{way}")
    assert list(selection.read_records(run / "checkpoints")) == [1, 2, 3]


def test_a_run_in_the_home_directory(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(run.parent))
    assert selection.parse("~/run@3") == (run, "3")
    assert selection.names_run("~/run")
    (run.parent / "model").mkdir()
    meant = {"~/run": True, "~/none@3": True, "~/model": False, "org/name": False}
    assert {name: selection.means_run(name) for name in meant} == meant


def test_a_directory_may_have_an_at_in_its_name(run: Path) -> None:
    other = run.rename(run.with_name("run@best"))
    assert selection.parse(other) == (other, "last")
    assert selection.step(selection.parse(f"{other}@best")) == 2
    assert not selection.names_run("org/name")
    assert selection.parse("org/name@v2") == (Path("org/name@v2"), "last")


def test_what_names_nothing_is_said(run: Path) -> None:
    with pytest.raises(UserError, match="'newest' names no checkpoint; write RUN, RUN@best, RUN@"):
        selection.parse(f"{run}@newest")
    for step in (2, 3):
        (run / "checkpoints" / str(step) / "meta" / "record.json").unlink()
    with pytest.raises(UserError, match=r"no checkpoint of this run has an evaluation .* \[1\]"):
        selection.step(selection.parse(f"{run}@best"))
