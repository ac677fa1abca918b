"""The settings of the toy experiment, and its mistakes."""

from collections.abc import Callable

import pytest

from gad_jax.toy import __main__ as toy

pytest_plugins = ["tests.run_fixtures"]


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
