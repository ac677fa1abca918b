"""Every measure, on rows made by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from gad_jax.collect import __main__ as collect
from tests.collect.rows import STORY

pytest_plugins = ["tests.run_fixtures"]


def check(*arguments: object) -> int:
    return collect.main(["check", *map(str, arguments)])


def test_every_measure(file: Path, held_out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert check(file, f"--against={held_out}", "--json=true") == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["lines"], found["responses"]) == (11, 11)
    assert found["faults"] == {
        "cut": 1,
        "refused": 2,
        "empty": 1,
        "duplicate": 1,
        "near_duplicate": 1,
        "overlap": 1,
        "secret": 1,
    }
    assert found["e-mail addresses"] == 1
    assert found["scripts"] == {"LATIN": 10, "CJK": 1}
    assert found["teachers"] == {"m": 1}
    assert found["finish_reasons"]["not said"] == 3
    assert sum(found["response_tokens"]["up_to"].values()) == 11
    assert found["response_tokens"]["longest"] == -(-len(STORY + " ends") // 4)


@pytest.mark.parametrize(
    "more",
    [
        {"api_key": "sk-abcdefghijklmnop0123456789"},
        {"parameters": {"extra": [{"Authorization": "Bearer sk-abcdefghijklmnop0123456789"}]}},
        {"reasoning": "the key is\nsk-abcdefghijklmnop0123456789"},
    ],
)
def test_a_key_in_any_column_is_found(
    more: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "a question", "teacher_response": "an answer", "mail": "a@example.org"}
    path.write_text(json.dumps(row | more) + "\n")
    assert check(path, "--json=true") == 0
    found = json.loads(capfd.readouterr().out)
    assert found["faults"]["secret"] == 1
    assert found["e-mail addresses"] == 1
