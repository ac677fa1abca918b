"""`gad-jax` and `python -m gad_jax`: the list of commands, and running one."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gad_jax
from gad_jax import __main__ as door

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "gad_jax"


def project() -> dict:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_list_has_every_command_of_the_package() -> None:
    files = {path.stem for path in PACKAGE.glob("*.py") if "def main(" in path.read_text("utf-8")}
    folders = {path.parent.name for path in PACKAGE.glob("*/__main__.py")}
    assert set(door.COMMANDS) == (files | folders) - {"__main__"}
    assert len(set(door.COMMANDS)) == len(door.COMMANDS)


def test_without_arguments_each_command_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"], ["-h"]):
        assert door.main(argv) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("usage: gad-jax COMMAND")
        listed = [line.split()[0] for line in lines if line.startswith("  ")]
        assert listed == list(door.COMMANDS)


@pytest.mark.parametrize("command", door.COMMANDS)
def test_the_line_is_the_first_one_of_the_docstring(command: str) -> None:
    path = PACKAGE / f"{command}.py"
    path = path if path.exists() else PACKAGE / command / "__main__.py"
    line = door.summary(command)
    assert 20 < len(line) < 90
    begin = rf'"""`python -m gad_jax\.{command}( [A-Z]+)?`: {re.escape(line)}'
    assert re.match(begin, path.read_text("utf-8"))


def test_a_command_gets_the_rest_of_the_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        door.main(["train", "--help=grpo"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m gad_jax.train ")
    assert "--grpo.kl_max NUMBER" in text
    with pytest.raises(SystemExit) as stop:
        door.main(["toy", "--stesp=3"])
    assert stop.value.code == 2
    assert "did you mean 'steps'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("trian", "'trian' is not a command; did you mean 'train'?\n"),
        ("xyz", f"'xyz' is not a command; the commands are {', '.join(door.COMMANDS)}\n"),
    ],
)
def test_a_word_that_is_no_command(
    capsys: pytest.CaptureFixture[str], word: str, sentence: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        door.main([word])
    assert stop.value.code == 2
    assert capsys.readouterr().err == sentence


def test_the_list_and_the_version_need_no_jax() -> None:
    code = (
        "import sys\n"
        "from gad_jax.__main__ import main\n"
        "code = main(sys.argv[1:])\n"
        "print(code, sorted({'jax', 'numpy', 'pydantic', 'gad_jax.train'} & set(sys.modules)))\n"
    )
    for argv in ([], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *argv],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines()[-1] == "0 []"
    assert done.stdout.splitlines()[0] == f"gad-jax {gad_jax.__version__}"


def test_the_package_has_the_configurations_and_the_console_command() -> None:
    """`pip wheel .` follows the link; the files lie in the package then."""
    assert (PACKAGE / "configs").samefile(REPOSITORY / "configs")
    pyproject = project()
    assert "configs/*.yaml" in pyproject["tool"]["setuptools"]["package-data"]["gad_jax"]
    assert pyproject["project"]["scripts"] == {"gad-jax": "gad_jax.__main__:main"}


def test_a_configuration_is_found_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gad_jax.settings import yaml_files

    monkeypatch.chdir(tmp_path)
    assert yaml_files.find("tiny").samefile(PACKAGE / "configs" / "tiny.yaml")
