"""An export says what it was made from, and one of other settings is not taken for the student."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from gad_jax import __version__
from gad_jax import train as command
from gad_jax.base import exits
from gad_jax.distributed import processes
from gad_jax.export import __main__ as export

pytest_plugins = ["tests.run_fixtures"]

STUDENT = Path("export", "student")


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture
def train(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Returns a function: flags → what the run printed about the student."""

    from tests.run_fixtures import FLAGS  # pytest loads it first, as a plugin

    # There are none, and in this process devices are in use already.
    monkeypatch.setattr(processes, "start", lambda *_: None)

    def start(*flags: str) -> list[str]:
        capfd.readouterr()
        try:
            assert command.main(["--config=tiny", f"--run_dir={run}", *FLAGS, *flags]) == 0
        finally:
            exits.watchdog(0.0)
        printed = capfd.readouterr().out
        return [line for line in printed.splitlines() if str(run / STUDENT) in line]

    return start


def announced(run: Path) -> str:
    where = run / STUDENT
    return f"the student is in {where}; python -m gad_jax.generate --model {where} asks it"


def replaced(run: Path) -> str:
    return f"{run / STUDENT} is not of these settings and checkpoints; it is replaced"


def test_the_same_student_is_not_written_again(run: Path, train: Any) -> None:
    before = (run / STUDENT / "model.safetensors").stat().st_mtime_ns
    assert train() == [announced(run)]
    # how a run is operated changes nothing in its student
    assert train("--checkpoint.keep=5", "--rollout.slots=3") == [announced(run)]
    assert (run / STUDENT / "model.safetensors").stat().st_mtime_ns == before


def test_an_export_of_other_settings_is_replaced(run: Path, train: Any) -> None:
    old = load_file(run / STUDENT / "model.safetensors")
    shutil.rmtree(run / "checkpoints")
    assert train("--optimizer.beta1=0.5") == [replaced(run), announced(run)]
    new = load_file(run / STUDENT / "model.safetensors")
    assert any((old[name] != new[name]).any() for name in old)
    assert "| optimizer.beta1 | `0.5` | `0.9` |" in (run / STUDENT / "README.md").read_text()
    assert train("--optimizer.beta1=0.5") == [announced(run)]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"made_from": "0"}', None])
def test_an_export_that_does_not_say_what_it_is_of(
    run: Path, train: Any, content: str | None
) -> None:
    record = run / STUDENT / "gad_jax.json"
    before = record.read_text()
    record.unlink()
    if content is not None:
        record.write_text(content)
    assert train() == [replaced(run), announced(run)]
    assert record.read_text() == before


def test_an_earlier_step_or_another_dtype(run: Path, train: Any) -> None:
    first = str(run / "checkpoints" / "1")
    assert export.main([first, f"--out={run}/export", "--part=student"]) == 0
    assert "| stage, step | gad, 1 |" in (run / STUDENT / "README.md").read_text()
    assert train() == [replaced(run), announced(run)]
    assert export.main([str(run), "--part=student", "--dtype=bfloat16"]) == 0
    assert train() == [announced(run)]  # the same student, as it was asked for
    assert json.loads((run / STUDENT / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_the_record_names_the_version_alone(tiny_run: Path) -> None:
    record = json.loads((tiny_run / STUDENT / "gad_jax.json").read_text())
    assert set(record) == {"gad_jax", "made_from"}
    assert record["gad_jax"] == __version__
    files = [path for path in (tiny_run / STUDENT).iterdir() if path.suffix != ".safetensors"]
    for path in files:
        assert str(tiny_run.parent) not in path.read_text(), path.name
