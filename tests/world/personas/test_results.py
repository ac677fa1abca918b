"""Table and figure, from results whose means are known."""

import json
from pathlib import Path

import pytest

from gad_jax.world.personas import compute, results
from gad_jax.world.personas.methods import entries
from gad_jax.world.personas.mixture import Persona

PERSONAS = (Persona("brief", 0.75, "Be brief."), Persona("grand", 0.25, "Be grand."))


def write(place: Path, name: str, kl: float | None, minutes: float) -> None:
    prompts: dict[str, object] = {
        "share": [[0.5, 0.5], [1.0, 0.0]] * 4,
        "decided": [0.5, 1.0] * 4,
        "teacher_loss": [2.0] * 8,
        "length": [3.0, 5.0] * 4,
        "cut": [0.0] * 8,
    }
    if name != "teacher":
        prompts["auc"] = [0.75] * 8
    if kl is not None:
        prompts |= {"reverse_kl": [kl, kl + 2] * 4, "forward_kl": [2 * kl] * 8}
        prompts["heldout_loss"] = [3.0] * 8
    cost = compute.NOTHING | {"minutes": minutes}
    place.mkdir(exist_ok=True)
    text = json.dumps({"prompts": prompts, "flags": [], "cost": cost})
    (place / f"{name}.json").write_text(text)


def test_rows_intervals_and_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (3, 4):
        place = tmp_path / f"seed-{seed}"
        write(place, "teacher", None, 0)
        write(place, "start", 30 + seed, 0)
        write(place, "seqkd_at_3e-4", 5 + seed, 2)
        write(place, "gad", 1 + seed, 10)
        write(place, "best_of_8", None, 0)
    results.report([3, 4], entries("start,seqkd@3e-4,gad,best_of_8"), PERSONAS, tmp_path)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (tmp_path / "results.md").read_text().splitlines()
    ]
    assert rows[0][1:] == ["teacher", "start", "SeqKD, 3e-4", "GAD", "best of 8 by D"]
    cells = {row[0]: row[1:] for row in rows[2:]}
    reverse = cells["KL(student ‖ teacher), nats"]
    assert [cell.partition(" ")[0] for cell in reverse] == ["", "34.50", "9.50", "5.50", ""]
    # two seeds, one nat apart: half of the interval is 12.7 · 0.5, and prompts add a little
    assert reverse[3].startswith("5.50 [-0.9")
    assert cells["AUC of a fresh classifier, %"][0] == ""
    assert cells["AUC of a fresh classifier, %"][1].startswith("75.0 [")
    assert cells["brief (75), %"][0].startswith("75.0 [")
    assert cells["effective personas"][0] == "1.75 [1.75, 1.75]"
    # what a method builds on is part of its cost
    minutes = [cell.partition(" ")[0] for cell in cells["minutes of training"]]
    assert minutes == ["0.0", "0.0", "2.0", "10.0", "12.0"]
    printed = capsys.readouterr().out
    assert "8 prompts, 2 seeds" in printed
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["personas"][1] == {"name": "grand", "share": 0.25, "system": "Be grand."}
