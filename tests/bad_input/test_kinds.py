"""A pipe, a socket, a device or a directory where a file is wanted: refused at once, by its kind.

Reading a pipe waits for ever, and a device such as /dev/zero never ends.
"""

import importlib
import json
import os
import signal
import socket
from pathlib import Path

import pytest

from gad_jax.models.builtin import tiny

EXAMPLE = {
    "prompt": "x",
    "teacher": "y",
    "student": "z",
    "length": 1,
    "teacher_length": 1,
    "finished": True,
    "rouge_l": 0.5,
}
EVALUATION = json.dumps({"label": "before", "step": 0, "metrics": {}, "examples": [EXAMPLE]})
ROW = '{"messages": [{"role": "user", "content": "x"}], "teacher_response": "y"}\n'


def make(path, kind):
    """Makes something of a kind at a path, which may be a file now."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with a model, rows and a run's evaluations; a hang ends after 60 s."""
    monkeypatch.chdir(tmp_path)
    tiny.write_tiny(tmp_path / "model")
    Path("rows.jsonl").write_text(ROW)
    Path("answers/set").mkdir(parents=True)
    Path("run/o.batches").mkdir(parents=True)
    Path("answers/set/gad.json").write_text('{"label": "gad", "prompts": "set"}')
    Path("answers/set/old.jsonl").write_text("")
    Path("done/evaluations").mkdir(parents=True)
    Path("done/config.yaml").write_text("")
    Path("done/evaluations/1.json").write_text(EVALUATION)
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits for ever"))
    signal.alarm(60)
    yield tmp_path
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


RUN = ("--config=tiny", "--run_dir=run")
# The argument that names `x`, or a file that `x` is in the place of, by command.
GIVEN = {
    "train --config": ("train", ["--config=x"], "x"),
    "train --data.train": ("train", [*RUN, "--data.train=x"], "x"),
    "train a pattern": (
        "train",
        [*RUN, "--data.train=./x*"],
        "x.jsonl",
    ),
    "train a directory": (
        "train",
        [*RUN, "--data.train=answers"],
        "answers/x.jsonl",
    ),
    "train --student.path": ("train", [*RUN, "--student.path=x"], "x"),
    "train a weights file": (
        "train",
        [*RUN, "--student.path=model"],
        "model/model.safetensors",
    ),
    "train a template": (
        "train",
        [*RUN, "--student.path=model"],
        "model/chat_template.jinja",
    ),
    "plan --config": ("plan.__main__", ["--config=x", "--target=h100"], "x"),
    "generate --file": ("generate.__main__", ["--model=random-tiny", "--file=x"], "x"),
    "generate --model": ("generate.__main__", ["--model=./x", "--prompt=x"], "x"),
    "serve --model": ("serve.__main__", ["--model=answers/x"], "answers/x"),
    "export": ("export.__main__", ["x"], "x"),
    "collect --prompts": ("collect.__main__", ["--prompts=x", "--model=m", "--out=o.jsonl"], "x"),
    "collect --out": ("collect.__main__", ["--prompts=rows.jsonl", "--model=m", "--out=x"], "x"),
    "collect --dry_run": (
        "collect.__main__",
        ["--prompts=rows.jsonl", "--model=m", "--out=x", "--dry_run"],
        "x",
    ),
    "collect, a batch": (
        "collect.__main__",
        ["--prompts=rows.jsonl", "--model=m", "--out=run/o.jsonl", "--batch"],
        "run/o.batches/x.json",
    ),
    "collect check": ("collect.__main__", ["check", "x"], "x"),
    "collect check --against": ("collect.__main__", ["check", "rows.jsonl", "--against=x"], "x"),
    "collect prepare": (
        "collect.__main__",
        ["prepare", "lmsys-gpt5", "--source=x", "--out=o"],
        "x",
    ),
    "evaluate --prompts": ("evaluate.__main__", ["--model=random-tiny", "--prompts=a=x"], "x"),
    "evaluate a run": ("evaluate.__main__", ["done"], "done/evaluations/0.json"),
    "evaluate human": ("evaluate.__main__", ["human", "answers"], "answers/set/gad.jsonl"),
    "evaluate human, about": ("evaluate.__main__", ["human", "answers"], "answers/set/old.json"),
    "evaluate human --votes": ("evaluate.__main__", ["human", "done", "--votes=x"], "x"),
}


READERS = (
    *("train --config", "train --data.train", "train --student.path", "train a weights file"),
    *("collect --out", "evaluate a run", "evaluate human", "generate --file"),
)
CASES = [("pipe", given) for given in GIVEN]
CASES += [(kind, given) for kind in ("device", "socket", "directory") for given in READERS]


@pytest.mark.parametrize(("kind", "given"), CASES)
def test_kinds(refuses, place, kind, given):
    module, arguments, path = GIVEN[given]
    make(place / path, kind)
    said = refuses(importlib.import_module(f"gad_jax.{module}"), *arguments)
    named = (
        kind,
        "a pipe or a device",
        "a directory or a device",
        "not a run directory",
        "no config.json",
    )
    assert any(word in said for word in named), said
    assert Path(path).name in said or Path(path).parent.name in said
