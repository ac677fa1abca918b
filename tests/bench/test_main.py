"""The benchmarks by their names."""

import pytest

from gad_jax.bench.__main__ import main


def test_help_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "update" in capsys.readouterr().out


def test_others_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["updat"])
    assert capsys.readouterr().err == "'updat' is no benchmark; did you mean 'update'?\n"
