"""Rows of teacher text that are wrong."""

import gzip
import json
import subprocess
import sys

import pytest

from gad_jax import train
from gad_jax.generate import __main__ as generate
from tests.bad_input.rows import ROW, line

ROWS = {
    "no rows": (b"", "no rows"),
    "blank lines": (b"\n\n \n", "no rows"),
    "a cut line": (line() + b'{"prompt": "x"', "rows.jsonl:2: not JSON (Expecting"),
    "no JSON": (line() + b"hello\n", "rows.jsonl:2: not JSON"),
    "an array": (line() + b"[1]\n", "rows.jsonl:2: not a JSON object"),
    "NUL bytes": (line() + b"\0" * 4096 + b"\n", "rows.jsonl:2: not JSON"),
    "a NUL in a text": (line() + line(prompt="a\0b"), "rows.jsonl:2: 'prompt' has a NUL character"),
    "a lone surrogate": (line(prompt="\ud800"), "rows.jsonl:1: 'prompt' has a lone surrogate"),
    "Latin-1": (line() + b'{"prompt": "caf\xe9"}\n', "rows.jsonl:2: not UTF-8 at byte 16"),
    "UTF-16": (line().decode().encode("utf-16"), "rows.jsonl:1: not UTF-8 at byte 1"),
    "UTF-16 without a mark": (line().decode().encode("utf-16-le"), "rows.jsonl:1: not JSON"),
    "NaN": (b'{"prompt": NaN}\n', "rows.jsonl:1: not JSON (NaN is not a JSON value)"),
    "deep nesting": (b'{"prompt":' + b"[" * 200_000, "rows.jsonl:1: not JSON (nested too deeply)"),
    "a huge number": (
        b'{"prompt": ' + b"9" * 5000 + b"}\n",
        "rows.jsonl:1: not JSON (a number has",
    ),
    "a long line": (
        b'{"prompt": "' + b"a" * 2**26 + b'"}\n',
        "rows.jsonl:1: the line is longer th",
    ),
    "no prompt": (b'{"teacher_response": "x"}\n', "rows.jsonl:1: no 'messages'"),
    "an empty prompt": (line(prompt=" \t\u3000"), "rows.jsonl:1: 'prompt' is empty"),
    "no response": (b'{"prompt": "x"}\n', "rows.jsonl:1: no 'teacher_response'"),
    "an empty response": (line(teacher_response=""), "rows.jsonl:1: 'teacher_response' is empty"),
    "a number as response": (line(teacher_response=3), "rows.jsonl:1: 'teacher_response' is not a"),
    "an id twice": (line(id=7) + line(id="7"), "rows.jsonl:2: the id is given twice: '7' is that"),
    "an unknown role": (
        json.dumps(ROW | {"messages": [{"role": "robot", "content": "x"}]}).encode(),
        "rows.jsonl:1: 'messages' has an unknown role",
    ),
}


@pytest.mark.parametrize(("content", "said"), ROWS.values(), ids=ROWS)
def test_rows(refuses, tmp_path, content, said):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    flags = ["--config=tiny", f"--run_dir={tmp_path / 'run'}", f"--data.train={path}"]
    assert said in refuses(train, *flags, "--data.heldout=")
    if "response" not in said:
        assert said in refuses(generate, "--model=random-tiny", f"--file={path}")


def test_a_byte_order_mark_and_windows_lines_are_read(ends, tmp_path):
    """They are marks of a text editor, not of damage."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line().replace(b"\n", b"\r\n") * 2)
    out = tmp_path / "answers.jsonl"
    flags = ["--model=random-tiny", f"--file={path}", f"--out={out}", "--max_new_tokens=2"]
    assert ends(generate, *flags)[0] == 0
    assert len(out.read_text().splitlines()) == 2


def test_control_tokens_and_padding_in_a_prompt_are_text(ends, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        line(prompt="<|endoftext|>" * 8) + line(prompt="<|im_end|>\n<|im_start|>system")
    )
    flags = [
        "--model=random-tiny",
        f"--file={path}",
        f"--out={tmp_path / 'a'}",
        "--max_new_tokens=2",
    ]
    assert ends(generate, *flags)[0] == 0


def test_skipping_has_a_limit(refuses, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line() * 40 + b"x\n" + line(prompt="") + b"y\n")
    flags = ["--config=tiny", f"--run_dir={tmp_path / 'run'}", f"--data.train={path}"]
    said = refuses(train, *flags, "--data.skip_invalid", "--data.heldout=")
    reasons = "3 of 43 rows are malformed (2: not JSON; 1: 'prompt' is empty)"
    assert f"{reasons}, more than --data.max_invalid_share=0.01" in said


def test_a_damaged_gzip_file(refuses, tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(line() * 99)[:-9])
    flags = ["--config=tiny", f"--run_dir={tmp_path / 'run'}", f"--data.train={path}"]
    assert "not a whole gzip file" in refuses(train, *flags)


def test_parquet(refuses, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    flags = ["--config=tiny", f"--run_dir={tmp_path / 'run'}", f"--data.train={path}"]
    parquet.write_table(pa.table({"words": ["a"], "teacher_response": ["b"]}), path)
    assert "no 'messages', 'content' or 'prompt' (its columns: words, te" in refuses(train, *flags)
    parquet.write_table(pa.table({"prompt": ["a"], "words": ["b"]}), path)
    assert "no 'teacher_response' (its columns: prompt, words); name" in refuses(train, *flags)
    parquet.write_table(pa.table({"prompt": [1], "teacher_response": ["b"]}), path)
    assert "rows.parquet:1: 'prompt' is not a text but a number" in refuses(train, *flags)
    parquet.write_table(pa.table({"prompt": ["a"] * 99, "teacher_response": ["b"] * 99}), path)
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a whole Parquet file" in refuses(train, *flags)


def test_a_line_of_64_mib_is_refused_in_bounded_memory(tmp_path):
    path = tmp_path / "rows.jsonl"
    with open(path, "wb") as file:
        for _ in range(4):
            file.write(b'{"prompt": "' + b"a" * 2**26 + b'"}\n')
    code = (
        "import resource, sys; from gad_jax.data import sources\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: sources.read(sys.argv[1], skip_invalid=True)\n"
        "except ValueError as error: print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    said, grown = done.stdout.splitlines()
    assert "all rows are invalid (4: the line is longer than 16 MiB)" in said
    assert int(grown) < 64  # MiB
