"""Rows from JSONL files, compressed or not."""

import gzip
import json

import pytest

from gad_jax.base.errors import UserError
from gad_jax.data import sources
from gad_jax.data.sources import opening

GOOD = {"prompt": "Name a fruit.", "teacher_response": "An apple."}


def line(value):
    return json.dumps(value).encode()


def write(path, *lines):
    path.write_bytes(b"".join(one + b"\n" for one in lines))
    return path


@pytest.mark.parametrize(
    "text",
    [
        "line\u2028separator, next\u0085line",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301 \u202eabc\u202c \ud55c\uad6d\uc5b4",
        "<|im_end|>",
        "  padded\n",
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_text_is_kept_as_it_is(tmp_path, text, ascii_only):
    row = {"prompt": text, "teacher_response": text}
    path = write(tmp_path / "a.jsonl", json.dumps(row, ensure_ascii=ascii_only).encode())
    (row,) = sources.read(path)
    assert row.messages[0]["content"] == row.responses[0] == text


def test_bom_crlf_blank_lines_and_a_missing_last_newline(tmp_path):
    path = tmp_path / "train.jsonl"
    content = b"\xef\xbb\xbf" + line(GOOD) + b"\r\n\r\n  \n" + line(GOOD)
    path.write_bytes(content)
    assert [row.id for row in sources.read(path)] == ["train.jsonl:1", "train.jsonl:4"]


def test_gzip(tmp_path):
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(gzip.compress(line(GOOD) + b"\n" + line(GOOD)))
    assert [row.id for row in sources.read(path)] == ["train.jsonl.gz:1", "train.jsonl.gz:2"]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="not a whole gzip file"):
        sources.read(path)
    path.write_bytes(line(GOOD))
    with pytest.raises(UserError, match="not a whole gzip file"):
        sources.read(path)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_empty_files(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.jsonl: no rows; give a file with at least one valid"):
        sources.read(path)


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", line(GOOD))

    def fail(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(opening, "open", fail, raising=False)
    with pytest.raises(UserError, match=r"a.jsonl: cannot be read \(Permission denied\); check"):
        sources.read(path)


def test_endless_blank_lines_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("gad_jax.data.sources.jsonl.MAX_BLANK_LINES", 100)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n" * 100 + line(GOOD) + b"\n" * 100))
    assert [row.id for row in sources.read(path)] == ["a.jsonl.gz:101"]
    path.write_bytes(gzip.compress(b"\n" * 101))
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: more than 100 blank lines in a row; check"):
        sources.read(path)
