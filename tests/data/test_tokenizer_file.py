"""Files of tokenizers that would end the process, and those that are as they should be."""

import json
from pathlib import Path
from typing import Any

import pytest

from gad_jax.base.errors import UserError
from gad_jax.data import tokenizer_file
from gad_jax.data.tokenizer import load_tokenizer
from gad_jax.models.builtin import tiny

PADDING = {
    "direction": "Right",
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "x",
    "strategy": "BatchLongest",
    "pad_to_multiple_of": None,
}
LONGER = {"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 100}
MANY = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "[C]", "type_id": 0}}] * 100,
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
    "special_tokens": {"[C]": {"id": "[C]", "ids": [1] * 100, "tokens": ["x"] * 100}},
}


def nested(depth: int) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "NFC"}
    for _ in range(depth):
        part = {"type": "Sequence", "normalizers": [part]}
    return part


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"padding": PADDING | {"strategy": {"Fixed": 10**13}}}, "its padding adds up to 10000000"),
        ({"padding": PADDING | {"pad_to_multiple_of": 10**13}}, "its padding adds up to 10000000"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [LONGER] * 6}},
            "its normalizer makes a text more than 1000 times longer",
        ),
        ({"normalizer": {"type": "Prepend", "prepend": "x" * 10**6}}, "its normalizer makes a"),
        ({"normalizer": nested(200)}, "it is nested too deeply"),
        ({"post_processor": MANY}, "its post_processor adds 10001 tokens to each text"),
        (
            {"post_processor": {"type": "Sequence", "processors": [MANY]}},
            "its post_processor adds 10001 tokens to each text",
        ),
    ],
)
def test_bombs(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    """Without the check the library ends the process by SIGABRT at most of them."""
    tiny.write_tiny(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value).startswith(f"{path}: {said}")
    assert str(caught.value).endswith("which no real tokenizer does; fetch the model again")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"padding": PADDING | {"strategy": {"Fixed": 512}, "pad_to_multiple_of": 8}},
        {
            "normalizer": {
                "type": "Sequence",
                "normalizers": [
                    {"type": "Prepend", "prepend": "▁"},
                    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
                ],
            }
        },
        {"post_processor": MANY | {"single": MANY["single"][:1]}},
    ],
)
def test_real_ones_pass(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(changes))
    tokenizer_file.check(path)
    tokenizer_file.check(tmp_path / "missing.json")


def test_other_damage_is_left_to_the_library(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    for text in ("{", "[]", '{"padding": 3, "normalizer": "x", "post_processor": [[1]]}'):
        path.write_text(text)
        tokenizer_file.check(path)
    path.write_text('{"a":' * 100_000)
    with pytest.raises(UserError, match="nested too deeply"):
        tokenizer_file.check(path)
