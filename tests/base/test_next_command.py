"""The command that a command names at its end."""

import shlex
import sys

import pytest

from gad_jax.base import next_command


def test_a_line_can_be_pasted(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/somewhere/gad_jax/train.py"])
    next_command.say("train", "--data.train=my rows/a'b.jsonl", "--run_dir=runs/mine")
    printed = capsys.readouterr().out
    assert shlex.split(printed) == [
        *("next:", "python", "-m", "gad_jax.train"),
        *("--data.train=my rows/a'b.jsonl", "--run_dir=runs/mine"),
    ]
    assert printed.count("\n") == 1


def test_it_is_called_as_this_command_was(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/gad-jax", "train"])
    assert next_command.line("evaluate", "runs/mine") == "gad-jax evaluate runs/mine"


def test_output_for_programs_stays_clean(capsys):
    next_command.say("serve", to_stderr=True)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("next: ")


@pytest.mark.parametrize(
    "given",
    [
        ["--dry_run", "--a=1", "x"],
        ["--a=1", "--dry_run=true", "x"],
        ["--a=1", "--dry_run", "true", "x"],
        ["--a=1", "x", "--dry_run"],
        ["--a=1", "--dry_run", "x"],
    ],
)
def test_a_flag_is_left_out(given):
    assert next_command.without(given, "--dry_run") == ["--a=1", "x"]
    assert next_command.without([], "--dry_run") == []
