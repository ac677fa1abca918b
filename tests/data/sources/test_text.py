"""Prompts from a text file: one per line."""

from pathlib import Path

from gad_jax.data.sources import text
from gad_jax.data.sources.rows import Invalid


def test_lines_are_prompts_and_blank_ones_are_none(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("Why?\r\n\n  \n  two words \n最後".encode())
    found = list(text.records(path))
    assert found == [
        ("prompts.txt:1", {"prompt": "Why?"}),
        ("prompts.txt:4", {"prompt": "  two words "}),
        ("prompts.txt:5", {"prompt": "最後"}),
    ]


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"ok\nab\xff\n")
    where, found = list(text.records(path))[1]
    assert where == "prompts.txt:2"
    assert isinstance(found, Invalid)
    assert str(found) == "not UTF-8 at byte 3"
