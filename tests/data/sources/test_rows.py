import json

import pytest

from gad_jax.base.errors import UserError
from gad_jax.data import sources
from gad_jax.data.sources import jsonl

GOOD = {"prompt": "Name a fruit.", "teacher_response": "An apple."}
FIX = "; drop the row"


def line(value):
    return json.dumps(value).encode()


def with_response(response):
    return line({"prompt": "x", "teacher_response": response})


def with_messages(messages, key="messages"):
    return line({key: messages, "teacher_response": "y"})


def write(path, *lines):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(one + b"\n" for one in lines))
    return path


MALFORMED = {
    "cut": (b'{"prompt": "x"', "not JSON", " (Expecting ',' delimiter, column 15)"),
    "text": (b"hello", "not JSON", " (Expecting value, column 1)"),
    "nan": (b'{"prompt": NaN}', "not JSON", " (NaN is not a JSON value)"),
    "infinity": (b'{"prompt": -Infinity}', "not JSON", " (-Infinity is not a JSON value)"),
    "digits": (
        b'{"n": ' + b"1" * 5000 + b"}",
        "not JSON",
        " (a number has too many digits)",
    ),
    "nesting": (b"[" * 200_000, "not JSON", " (nested too deeply)"),
    "utf-8": (b'{"prompt": "\xff"}', "not UTF-8", " at byte 13"),
    "utf-16": ("{}".encode("utf-16"), "not UTF-8", " at byte 1"),
    "second BOM": (b"\xef\xbb\xbf{}", "not JSON", " (Unexpected UTF-8 BOM (decode using"),
    "array": (b"[1]", "not a JSON object", " but a list"),
    "null": (b"null", "not a JSON object", " but nothing"),
    "no prompt": (line({"teacher_response": "y"}), "no 'messages', 'content' or 'prompt'", ""),
    "null prompt": (
        line({"prompt": None, "teacher_response": "y"}),
        "no 'messages', 'content' or 'prompt'",
        "",
    ),
    "empty prompt": (line({"prompt": " \n", "teacher_response": "y"}), "'prompt' is empty", ""),
    "list prompt": (
        line({"prompt": ["x"], "teacher_response": "y"}),
        "'prompt' is not a text",
        " but a list",
    ),
    "number prompt": (
        line({"prompt": 3, "teacher_response": "y"}),
        "'prompt' is not a text",
        " but a number",
    ),
    "surrogate prompt": (
        b'{"prompt": "a\\ud800", "teacher_response": "y"}',
        "'prompt' has a lone surrogate",
        " (U+D800)",
    ),
    "text messages": (
        with_messages("x", "content"),
        "'content' is not a list of messages",
        " but a text",
    ),
    "no messages": (with_messages([]), "'messages' is empty", ""),
    "text message": (
        with_messages(["x"]),
        "'messages' holds something else than messages",
        ": a text",
    ),
    "last role": (
        with_messages([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]),
        "'messages' does not end with a user message",
        "",
    ),
    "unknown role": (
        with_messages([{"role": "tool", "content": "x"}]),
        "'messages' has an unknown role",
        ": 'tool' is not one of system, user, assistant",
    ),
    "long role": (
        with_messages([{"role": "x" * 99, "content": "x"}]),
        "'messages' has an unknown role",
        f": '{'x' * 38}… is not one of system, user, assistant",
    ),
    "list role": (
        with_messages([{"role": ["user"], "content": "x"}]),
        "'messages' has an unknown role",
        ": ['user'] is not one of system, user, assistant",
    ),
    "no role": (
        with_messages([{"content": "x"}], "content"),
        "'content' has an unknown role",
        ": None is not one of system, user, assistant",
    ),
    "empty content": (
        with_messages([{"role": "user", "content": ""}]),
        "the content of a message in 'messages' is empty",
        "",
    ),
    "parts content": (
        with_messages([{"role": "user", "content": [3]}]),
        "the content of a message in 'messages' is not a text",
        " but a list",
    ),
    "image content": (
        with_messages([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        "the content of a message in 'messages' has a part that is not text",
        " but 'image_url'",
    ),
    "a call of a tool": (
        with_messages([{"role": "assistant", "content": None, "tool_calls": [{}]}]),
        "'messages' has tool calls",
        ", and only text is read",
    ),
    "no response": (line({"prompt": "x"}), "no 'teacher_response'", ""),
    "null response": (with_response(None), "no 'teacher_response'", ""),
    "empty response": (with_response(""), "'teacher_response' is empty", ""),
    "blank response": (with_response(" \n\t"), "'teacher_response' is empty", ""),
    "no responses": (with_response([]), "'teacher_response' is empty", ""),
    "one empty of two": (with_response(["a", ""]), "'teacher_response' is empty", ""),
    "object response": (
        with_response({"text": "y"}),
        "'teacher_response' is not a text or a list of texts",
        " but an object",
    ),
    "boolean in responses": (
        with_response(["a", True]),
        "'teacher_response' is not a text or a list of texts",
        " but true or false",
    ),
    "surrogate response": (
        b'{"prompt": "x", "teacher_response": "\\udfff"}',
        "'teacher_response' has a lone surrogate",
        " (U+DFFF)",
    ),
    "NUL in a prompt": (
        b'{"prompt": "a\\u0000b", "teacher_response": "y"}',
        "'prompt' has a NUL character",
        "",
    ),
    "surrogate id": (
        b'{"prompt": "x", "teacher_response": "y", "id": "\\udfff"}',
        "'id' has a lone surrogate",
        " (U+DFFF)",
    ),
}


@pytest.mark.parametrize(("bad", "reason", "detail"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_rows_stop_or_are_counted(tmp_path, bad, reason, detail):
    path = write(tmp_path / "train.jsonl", line(GOOD), bad, line(GOOD), bad)
    with pytest.raises(UserError) as caught:
        sources.read(path)
    message = str(caught.value)
    assert message.startswith(f"train.jsonl:2: {reason}{detail}")
    assert message.endswith(FIX)
    assert "\n" not in message
    rows = sources.read(path, skip_invalid=True)
    assert [row.id for row in rows] == ["train.jsonl:1", "train.jsonl:3"]
    assert rows.skipped == {reason: 2}


def test_the_message_that_the_style_guide_shows(tmp_path):
    path = write(tmp_path / "train.jsonl", *[line(GOOD)] * 16, with_response(""))
    with pytest.raises(UserError) as caught:
        sources.read(path)
    assert str(caught.value) == ("train.jsonl:17: 'teacher_response' is empty; drop the row")


def test_a_line_beyond_the_limit_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 2**20)
    reads = []

    def lines(readline):
        def spied(limit):
            reads.append(readline(limit))
            return reads[-1]

        return whole_lines(spied)

    whole_lines = jsonl.lines
    monkeypatch.setattr(jsonl, "lines", lines)
    exactly = line(GOOD | {"pad": "z" * (2**20 - 1 - len(line(GOOD | {"pad": ""})))})
    path = write(tmp_path / "a.jsonl", exactly, line(GOOD | {"pad": "z" * 2**22}), line(GOOD))
    rows = sources.read(path, skip_invalid=True)
    assert [row.id for row in rows] == ["a.jsonl:1", "a.jsonl:3"]
    assert rows.skipped == {"the line is longer than 1 MiB": 1}
    assert max(map(len, reads)) <= 2**20 + 1


def test_nothing_left_after_skipping(tmp_path):
    path = write(tmp_path / "a.jsonl", b"x", with_response(""), with_response(""))
    with pytest.raises(UserError) as caught:
        sources.read(path, skip_invalid=True)
    assert str(caught.value) == (
        f"{path}: all rows are invalid (2: 'teacher_response' is empty, 1: not JSON); give a file "
        "with at least one valid row"
    )


def test_prompts_without_responses(tmp_path):
    path = write(tmp_path / "a.jsonl", line({"prompt": "x"}), with_response("y"))
    rows = sources.read(path, need_response=False)
    assert [row.responses for row in rows] == [(), ("y",)]


def test_an_id_is_given_once_in_a_file(tmp_path):
    rows = [line(GOOD | {"id": name}) for name in ("a", "b", "a", "c", "a")]
    path = write(tmp_path / "train.jsonl", *rows)
    with pytest.raises(UserError, match=r"^train.jsonl:3: .* twice: 'a' is that of train.jsonl:1"):
        sources.read(path)
    kept = sources.read(path, skip_invalid=True)
    assert [row.id for row in kept] == ["a", "b", "c"]
    assert kept.skipped == {"the id is given twice": 2}
    # Files that go together may use the same ids.
    write(tmp_path / "both" / "train-0.jsonl", line(GOOD | {"id": "a"}))
    write(tmp_path / "both" / "train-1.jsonl", line(GOOD | {"id": "a"}))
    assert len(sources.read(tmp_path / "both")) == 2
