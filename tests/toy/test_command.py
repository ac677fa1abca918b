"""What the toy experiment prints and draws."""

from pathlib import Path

import pytest

from gad_jax.toy import __main__ as toy


def test_the_command_shows_outcome_theorem_and_caveat(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = tmp_path / "made" / "toy.svg"
    # in 300 steps the near mode is found, if not yet its deviation
    assert toy.main(["--steps=300", f"--figure={figure}"]) == 0
    out = capsys.readouterr().out
    assert "GAD from 2.5 ± 1" in out
    assert "log p/q + c" in out
    assert "Caveat" in out
    assert out.endswith("next: python -m gad_jax.world --methods=seqkd,gad\n")
    assert figure.read_text().startswith("<?xml")
