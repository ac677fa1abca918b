"""The command of the toy experiment: what it says, its figure, its mistakes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gad_jax.toy import __main__ as toy

pytest_plugins = ["tests.run_fixtures"]


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
    assert figure.read_text().startswith("<?xml")


def test_mistakes_are_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    for flag, needed in (
        ("--stddev=0", "greater than 0"),
        ("--samples=1", "2 or more"),
        ("--steps=0", "1 or more"),
        ("--figure=toy.gif", ".png, .svg or .pdf"),
        ("--maen=3", "did you mean 'mean'?"),
    ):
        with pytest.raises(SystemExit) as ended:
            toy.main([flag])
        assert ended.value.code == 2
        error = capfd.readouterr().err
        assert needed in error
        assert error.count("\n") == 1


def test_help_imports_no_jax(command: Callable[..., object]) -> None:
    done = command("toy", "--help")
    assert "--stddev" in done.stdout  # pyright: ignore
