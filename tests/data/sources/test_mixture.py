"""A list of files and their weights in one setting."""

import pytest

from gad_jax.base.errors import UserError
from gad_jax.data.sources import mixture


def test_names_and_weights() -> None:
    assert mixture.split("a.jsonl", "--x") == (["a.jsonl"], [])
    assert mixture.split("a=b.jsonl", "--x") == (["a=b.jsonl"], [])
    assert mixture.split("a.jsonl=0.7, o/b:test=3", "--x") == (["a.jsonl", "o/b:test"], [0.7, 3.0])
    assert mixture.split("a.jsonl,bundled", "--x") == (["a.jsonl", "bundled"], [])


def test_a_file_with_a_comma_in_its_name(tmp_path) -> None:
    path = tmp_path / "a,b=2.jsonl"
    path.write_text("")
    assert mixture.split(str(path), "--x") == ([str(path)], [])


@pytest.mark.parametrize("text", ["a=1,b", "a,,b", "a=1,b=0", "a=1,b=x", "a=1,b=inf", "a=1,=2"])
def test_mistakes_are_named(text: str) -> None:
    with pytest.raises(UserError, match=r"^--data\.train"):
        mixture.split(text, "--data.train")
