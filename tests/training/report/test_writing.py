"""The report of a run, written from its directory."""

import json
from pathlib import Path

from gad_jax.training.report import writing


def test_a_run_with_steps_alone_has_a_report(tmp_path: Path) -> None:
    assert writing.write(tmp_path) is None
    row = {"step": 1, "stage": "gad", "response/length": 9.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    path = writing.write(tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text().count("<img") == 1
