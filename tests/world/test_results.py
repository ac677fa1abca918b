"""The small world's table and figure, from results whose means are known."""

import json
from pathlib import Path
from typing import Any

import pytest

from gad_jax.world import language, oracle, results


def result(right: int, scored: bool) -> dict[str, Any]:
    """Ten instructions, of which so many are answered right, and the others in no style."""
    texts = [["first 1 plus 1 is 2"]] * right + [["so"]] * (10 - right)
    found = oracle.measure(["1 plus 1"] * 10, texts) | {"tokens": 4.0}
    greedy = found | oracle.mean_overlap(["a b c d"], ["a b c d"])
    curve = [{"step": 0, "valid": 0.0}, {"step": 5, "valid": 1.0}, {"step": 8, "valid": right / 10}]
    if scored:
        curve[1]["lead"] = curve[2]["lead"] = 1.5
    return {"greedy": greedy, "sampled": found, "curve": curve}


def test_means_and_intervals_over_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, right in ((3, 5), (4, 10)):
        place = tmp_path / f"seed-{seed}"
        place.mkdir()
        for name, less in (("warm", 4), ("gad", 0)):
            text = json.dumps(result(right - less, scored=name == "gad"))
            (place / f"{name}.json").write_text(text)
            chosen = {"majority": 0.5, "agrees": 0.75} | ({"discriminator": 0.25} if less else {})
            given = dict.fromkeys(language.STYLES, right / 10)
            knowledge = {"last_result": 1.0, "given": given, "chosen": chosen}
            (place / f"{name}-knowledge.json").write_text(json.dumps(knowledge))
    results.report([3, 4], {"gad": "GAD"}, tmp_path)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (tmp_path / "results.md").read_text().splitlines()
    ]
    assert rows[0] == ["", "warm start", "GAD"]
    cells = {row[0]: row[1:] for row in rows[2:]}
    # 50 and 100: a standard error of 25, and Student's t with one degree of freedom 12.706
    assert cells["right, greedy %"] == ["35.0 [-282.7, 352.7]", "75.0 [-242.7, 392.7]"]
    assert cells["fall from the peak, greedy %"][1] == "25.0 [-292.7, 342.7]"
    assert cells[results.STABLE] == ["0 of 2", "1 of 2"]
    assert cells["styles covered"] == ["1.0 [1.0, 1.0]", "1.0 [1.0, 1.0]"]
    assert cells["4-gram F1 %"] == ["100.0 [100.0, 100.0]"] * 2
    assert cells["right, given steps %"] == ["75.0 [-242.7, 392.7]"] * 2
    assert cells["best of 8 by majority %"] == ["50.0 [50.0, 50.0]"] * 2
    assert cells["best of 8 by GAD's D %"] == ["25.0 [25.0, 25.0]", ""]  # none without scores
    printed = capsys.readouterr().out
    assert "mean over 2 seeds" in printed
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
