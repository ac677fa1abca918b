"""`--help`: the short one, all of it, one section; without jax."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gad_jax.settings import fields, options
from gad_jax.settings.config import Config
from tests.settings.reading import Small, read, refusal

REPOSITORY = Path(__file__).parents[2]


def help_text(
    capsys: pytest.CaptureFixture[str], kind: Any, default: str | None = None
) -> dict[str, str]:
    """What `--help` says of each option, by name, on one line."""
    with pytest.raises(SystemExit) as stop:
        read("--help", kind=kind, default=default)
    assert stop.value.code == 0
    text = capsys.readouterr().out
    entries = re.split(r"\n  (?=--|[A-Z]+\s)", text)
    return {entry.split()[0]: " ".join(entry.split()) for entry in entries}


def test_help_has_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    entries = help_text(capsys, Config, "quickstart")
    for leaf in fields.leaves(Config):
        entry = entries[f"--{leaf.path}"]
        assert leaf.metadata["help"] in entry
        unit = leaf.metadata["unit"]
        assert f"({unit + '; ' if unit else ''}default: {fields.show(leaf.value)}" in entry
    assert "(prompts; default: 256; quickstart: 8)" in entries["--batch.prompts"]
    assert "without --config, quickstart is loaded" in entries["--config"]


def test_help_of_flat_settings(capsys: pytest.CaptureFixture[str]) -> None:
    entries = help_text(capsys, Small)
    assert entries["RUN"].startswith("RUN run directory (required)")
    assert entries["--out"] == "--out TEXT where to write (required)"
    assert entries["--sizes"] == "--sizes INT,… sizes (tokens; default: 1,2)"
    assert entries["--limit"] == "--limit INT|none at most this many (default: none)"
    assert entries["--folder"] == "--folder PATH a path (default: a)"
    assert entries["--verbose"] == "--verbose [true|false] say more, 100% (default: false)"


def shown(capsys: pytest.CaptureFixture[str], flag: str, kind: Any = Config) -> str:
    """What the short form of `--help`, or `--help=…`, shows."""
    words = {"program": "x", "description": "Does x.", "config_default": "quickstart"}
    with pytest.raises(SystemExit) as stop:
        options.read(kind, ["--sede=1", flag], short_help=True, **words)
    assert stop.value.code == 0
    return capsys.readouterr().out


def flags_in(text: str) -> list[str]:
    """The settings that have a line in a help."""
    flags = re.findall(r"^  --(\S+)", text, flags=re.MULTILINE)
    return [flag for flag in flags if flag not in ("help", "config", "debug")]


def test_short_help_shows_what_people_set_and_where_the_rest_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = shown(capsys, "--help")
    assert len(text.splitlines()) < 150
    assert flags_in(text) == [leaf.path for leaf in fields.leaves(Config) if leaf.common]
    assert {"stage", "data.train", "batch.prompts", "gad.steps", "mesh.fsdp"} < set(flags_in(text))
    assert not [flag for flag in flags_in(text) if flag.startswith(("health.", "offpolicy."))]
    sections = [leaf.path.partition(".")[0] for leaf in fields.leaves(Config) if "." in leaf.path]
    last = " ".join(text.split())
    assert last.endswith(
        "--help=all shows all of them, --help=SECTION one section: "
        f"{', '.join(dict.fromkeys(sections))}."
    )
    assert shown(capsys, "-h") == text


def test_help_of_all_and_of_one_section(capsys: pytest.CaptureFixture[str]) -> None:
    every = sorted((leaf.path for leaf in fields.leaves(Config)), key=lambda path: path.count("."))
    assert flags_in(shown(capsys, "--help=all")) == every
    for section in ("grpo", "health", "health.length", "rollout.samples"):
        expected = [path for path in every if f"{path}.".startswith(f"{section}.")]
        assert flags_in(shown(capsys, f"--help={section}")) == expected
    assert "grpo (the generator's loss in the GAD stage):" in shown(capsys, "--help=grpo")


def test_other_commands_show_all_with_help_and_with_help_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    entries = help_text(capsys, Small)
    assert {"RUN", "--out", "--verbose"} < set(entries)
    with pytest.raises(SystemExit):
        read("--help=all", kind=Small)
    assert "\n  RUN\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "kind", "sentence"),
    [
        ("--help=helth", Config, "there is no such section; did you mean 'health'?"),
        ("--help=al", Config, "there is no such section; did you mean 'all'?"),
        ("--help=xyz", Config, "there is no such section; the sections are student, discriminator"),
        ("--help=xyz", Small, "there is no such section; use --help=all"),
    ],
)
def test_help_of_an_unknown_section(flag: str, kind: Any, sentence: str) -> None:
    assert refusal(flag, kind=kind).startswith(f"{flag}: {sentence}")


def test_help_and_mistakes_need_no_jax() -> None:
    code = (
        "import sys\n"
        "from gad_jax.settings import options\n"
        "from gad_jax.settings.config import Config\n"
        "try:\n"
        "    words = {'program': 'x', 'description': 'x', 'config_default': 'tiny'}\n"
        "    options.parse(Config, sys.argv[1:], **words)\n"
        "finally:\n"
        "    heavy = {'jax', 'flax', 'transformers', 'numpy', 'torch', 'grain'}\n"
        "    print(sorted(heavy & set(sys.modules)))\n"
    )
    cases = ((["--help"], 0), (["--help=all"], 0), (["--sede=1"], 2), (["--seed=1"], 0))
    for argv, code_expected in cases:
        done = subprocess.run(
            [sys.executable, "-c", code, *argv], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert done.returncode == code_expected, done.stderr
        assert done.stdout.endswith("[]\n")
        assert "Traceback" not in done.stderr


def test_help_of_a_command_that_shows_progress(capsys: pytest.CaptureFixture[str]) -> None:
    for shows_progress in (True, False):
        words = {"program": "x", "description": "", "shows_progress": shows_progress}
        with pytest.raises(SystemExit):
            options.read(Config, ["--help"], **words)
        text = capsys.readouterr().out
        assert ("--quiet" in text) == ("--verbose" in text) == shows_progress
