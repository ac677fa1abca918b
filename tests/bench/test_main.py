"""The benchmarks by their names, and flags that none can mean."""

import pytest

from gad_jax.bench.__main__ import main


def test_help_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "update" in capsys.readouterr().out


def test_others_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["updat"])
    assert capsys.readouterr().err == "'updat' is no benchmark; did you mean 'update'?\n"


@pytest.mark.parametrize(
    ("name", "flag", "said"),
    [
        ("scaling", "--devices=", "names no number; give some with commas, as 1,2"),
        ("scaling", "--devices=4096", "must be 2048 or less"),
        ("update", "--row_tokens=1", "must be 2 or more: a prompt and a target"),
        ("rollout", "--responses=-1", "must be 0 or more"),
        ("rollout", "--spread=-1", "must be 0 or more"),
        ("rollout", "--mean=0", "must be greater than 0"),
        ("rollout", "--uniform=²", "must be numbers with commas, as 8,32"),
    ],
)
def test_nonsense_is_one_sentence(capsys, name: str, flag: str, said: str) -> None:
    with pytest.raises(SystemExit):
        main([name, flag])
    error = capsys.readouterr().err
    assert error.startswith(flag.partition("=")[0])
    assert error.endswith(f"{said}\n")


def test_a_rollout_of_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["rollout", "--uniform=", "--responses=0"])
    assert "so nothing is measured; set one of them" in capsys.readouterr().err
