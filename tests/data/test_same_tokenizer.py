"""Models that read the same token ids, and such that only have as many."""

import json
import shutil
from pathlib import Path

import pytest

from gad_jax.data import same_tokenizer
from gad_jax.data.chat import Chat
from gad_jax.models.builtin import tiny


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load(tiny.fetch(), "none")


def changed(directory: Path, **names: str) -> Path:
    """Returns a copy of the tiny model in whose tokenizer tokens are exchanged or renamed."""
    shutil.copytree(tiny.fetch(), directory)
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for old, new in names.items():
        vocabulary[old], vocabulary[new] = vocabulary[new], vocabulary[old]
    path.write_text(json.dumps(tokenizer))
    return directory


def test_a_copy_is_the_same(chat: Chat, tmp_path: Path) -> None:
    assert same_tokenizer.difference(chat, changed(tmp_path / "copy")) == ""


def test_other_ids_of_the_same_tokens_are_named(chat: Chat, tmp_path: Path) -> None:
    found = same_tokenizer.difference(chat, changed(tmp_path / "other", a="b"))
    assert found == "token 97 is 'b' there, and 'a' in the student's"


def test_added_tokens_may_differ_but_not_the_end_of_a_response(chat: Chat, tmp_path: Path) -> None:
    for token, same in (("<|im_start|>", True), ("<|im_end|>", False)):
        directory = changed(tmp_path / token.strip("<|>"))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            path = directory / name
            path.write_text(path.read_text().replace(token, "<|other|>"))
        found = same_tokenizer.difference(chat, directory)
        assert found == ("" if same else "token 258 is '<|other|>' there, and '<|im_end|>' in the "
                         "student's")  # fmt: skip


def test_fewer_tokens_are_counted_and_no_tokenizer_is_no_difference(
    chat: Chat, tmp_path: Path
) -> None:
    directory = changed(tmp_path / "fewer")
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    del tokenizer["model"]["vocab"]["!"]
    path.write_text(json.dumps(tokenizer))
    found = same_tokenizer.difference(chat, directory)
    assert found.endswith("tokens, and the student's 256")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()
    assert same_tokenizer.difference(chat, directory) == ""
