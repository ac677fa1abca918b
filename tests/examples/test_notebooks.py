"""The notebooks of examples/, as a reader runs them: in a kernel, from first cell to last."""

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests import compiling

ROOT = Path(__file__).parents[2]
TINY = "STUDENT, WARMUP, GAD, LONGEST = 'random-tiny', 2, 1, 96"


def execute(name: str, place: Path, parameters: str = "") -> list[Any]:
    """Runs a notebook in a directory, with other parameters; returns its cells."""
    notebook = nbformat.read(ROOT / "examples" / name, as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs"), "committed without outputs: they would grow stale"
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source += f"\n{parameters}"
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(place)}}
    )
    client.create_kernel_manager()
    client.km.transport = "ipc"  # over TCP it warns
    client.km.ip = str(place / "kernel")
    client.execute()
    return notebook.cells


def said(cells: list[Any]) -> str:
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return "".join(output.get("text", "") for output in outputs)


def kinds(cells: list[Any]) -> list[str]:
    """The kinds of what the cells show other than text."""
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    found = [kind for output in outputs for kind in output.get("data", ())]
    return [kind for kind in found if kind != "text/plain"]


def shown_html(cells: list[Any]) -> str:
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return " ".join(output.get("data", {}).get("text/html", "") for output in outputs)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", compiling.XLA_FLAGS)  # on one device, as at home
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", path)


@pytest.mark.filterwarnings("default")
def test_from_data_to_report(tmp_path: Path) -> None:
    cells = execute("from_data_to_report.ipynb", tmp_path, TINY)
    text = said(cells)
    assert "48 rows, such as {'prompt': 'Tell me something about honey.'" in text
    assert text.count("Ahoy! They all end in the sea.") == 1
    assert kinds(cells).count("image/png") == 1
    assert "<th>before</th><th>after</th>" in shown_html(cells)
    assert 'src="runs/sailor/report.html"' in shown_html(cells)
    assert "runs/sailor/report.html" in text
    assert (tmp_path / "runs/sailor/report.html").stat().st_size > 10_000
    assert (tmp_path / "runs/sailor/export/student/model.safetensors").is_file()


@pytest.mark.filterwarnings("default")
def test_a_gad_step(tmp_path: Path) -> None:
    cells = execute("a_gad_step.ipynb", tmp_path)  # it compares the loss with one by hand
    text = said(cells)
    assert "tokens  [B, N, R] (4, 3, 16)" in text
    assert "scores [B, 1 + N], the teacher's first" in text
    assert "largest change of a weight of the student:" in text
    assert kinds(cells).count("image/png") == 1
