"""Configuration files: which file a name means, and mistakes in it, as a user reads them."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.settings.reading import refusal


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("batch:\n  promts: 3\n", "c.yaml:2: Batch has no field 'promts'; did you mean 'prompts'?"),
        (
            "seed: 1\ngadd:\n  steps: 3\n",
            "c.yaml:2: Config has no field 'gadd'; did you mean 'gad'?",
        ),
        ("batch: 3\n", "c.yaml:1: 'batch' is a section and needs lines of the form `name: value`"),
        ("hello\n", "c.yaml:1: the file needs lines of the form `name: value`"),
        ("? [a]\n: 3\n", "c.yaml:1: a name is needed before the colon"),
        (
            "seed: 1\nstage: gad\nseed: 2\n",
            "c.yaml:3: 'seed' is given twice, first in line 1; keep one",
        ),
        (
            "batch:\n  prompts: 8\nbatch:\n  row_tokens: 9\n",
            "c.yaml:3: 'batch' is given twice, first in line 1; keep one",
        ),
        ("batch:\n  prompts: abc\n", "c.yaml:2: batch.prompts: an integer is needed; got 'abc'"),
        ("batch:\n  prompts: true\n", "c.yaml:2: batch.prompts: an integer is needed; got true"),
        ("run_dir: 5\n", "c.yaml:1: run_dir: text is needed; got 5"),
        ("seed: [1, 2]\n", "c.yaml:1: seed: an integer is needed; got [1, 2]"),
        (
            "run_dir: 2024-99-99\n",
            "c.yaml:1: run_dir: not a plain value: month must be in 1..12; write text, "
            "a number, true, false or a list",
        ),
        (
            "rollout:\n  samples: 1\n",
            "c.yaml:2: rollout.samples: samples=1 must be 2 or more: an advantage compares samples "
            "of one group",
        ),
        (
            "batch: {\nprompts: 3\n",
            "c.yaml:3: not valid YAML: while parsing a flow mapping expected ',' or '}', but got "
            "'<stream end>'; correct that line",
        ),
        (b"run_dir: \xe9\n", "c.yaml: not UTF-8 text; save it as UTF-8"),
    ],
)
def test_mistaken_file(write: Any, text: str | bytes, sentence: str) -> None:
    write(text)
    assert refusal("--config=c.yaml") == sentence


def test_control_characters_in_a_file(write: Any) -> None:
    write("seed: \x01\n")
    assert refusal("--config=c.yaml").startswith("c.yaml: not valid YAML: unacceptable character")


def test_python_objects_in_yaml_are_not_built(write: Any) -> None:
    write("run_dir: !!python/object/apply:os.mkdir [made]\n")
    assert "not a plain value" in refusal("--config=c.yaml")
    assert not Path("made").exists()


def test_missing_configuration_lists_what_there_is(write: Any) -> None:
    Path("configs").mkdir()
    Path("configs/mine.yaml").write_text("")
    sentence = refusal("--config=qickstart")
    assert sentence.startswith(
        "--config=qickstart: no such file or configuration; did you mean 'quickstart'? "
    )
    assert re.search(r"configurations here: .*, mine, .*quickstart.*, tiny, world$", sentence)
    assert "did you mean 'tiny'?" in refusal("--config=somewhere/tiny.yaml")
