"""The sizes of Arrow messages, and files that are small on the disk only."""

import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pytest

from gad_jax.base.errors import UserError
from gad_jax.data import sources
from gad_jax.data.sources import expansion, ipc


def write(path: Path, table: Any, compression: str | None, how: str = "stream") -> Path:
    new = pyarrow.ipc.new_stream if how == "stream" else pyarrow.ipc.new_file
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    with (
        pyarrow.OSFile(str(path), "wb") as file,
        new(file, table.schema, options=options) as writer,
    ):
        writer.write_table(table)
    return path


def sizes(path: Path) -> dict[str, int]:
    with pyarrow.memory_map(str(path)) as file:
        reader = pyarrow.ipc.MessageReader.open_stream(file)
        return {message.type: ipc.expanded_bytes(message) for message in reader}


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_sizes_are_those_after_decompression(tmp_path: Path, compression: str) -> None:
    table = pyarrow.table({"a": ["x" * 1000] * 50, "b": [1.5] * 50})
    found = sizes(write(tmp_path / "a.arrow", table, compression))
    assert found["schema"] == 0
    assert 50 * (1000 + 4 + 8) <= found["record batch"] <= 50 * (1000 + 4 + 8) + 64
    folded = pyarrow.table({"a": pyarrow.array(["x" * 1000] * 50).dictionary_encode()})
    found = sizes(write(tmp_path / "b.arrow", folded, compression))
    assert 1000 <= found["dictionary"] <= 1100
    assert found["record batch"] == 50 * 4
    assert sizes(write(tmp_path / "c.arrow", table, None))["record batch"] == 0


def test_a_damaged_header_is_no_crash(tmp_path: Path) -> None:
    table = pyarrow.table({"a": ["x" * 1000] * 50})
    with pyarrow.memory_map(str(write(tmp_path / "a.arrow", table, "zstd"))) as file:
        (message,) = (
            one for one in pyarrow.ipc.MessageReader.open_stream(file) if one.type == "record batch"
        )
        header, body = message.metadata.to_pybytes(), message.body.to_pybytes()
    for place in range(len(header) - 4):
        broken = header[:place] + struct.pack("<I", 0xFFFFFFF0) + header[place + 4 :]
        given = SimpleNamespace(type="record batch", metadata=broken, body=body)
        try:
            assert ipc.expanded_bytes(given) >= 0
        except ipc.Damaged:
            continue


@pytest.mark.parametrize("how", ["stream", "file"])
@pytest.mark.parametrize("kind", ["compressed", "dictionary", "nested dictionary"])
def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, kind: str) -> None:
    monkeypatch.setattr(expansion, "FREE_BYTES", 2**22)
    prompts = pyarrow.array(["a" * 2**17] * 2**6)
    if kind != "compressed":
        prompts = prompts.dictionary_encode()
    if kind == "nested dictionary":
        prompts = pyarrow.StructArray.from_arrays([prompts], ["text"])
    table = pyarrow.table({"prompt": prompts, "teacher_response": ["b"] * 2**6})
    path = write(tmp_path / "a.arrow", table, "zstd", how)
    assert path.stat().st_size < 8000
    with pytest.raises(UserError, match=r"a\.arrow: holds more than 200 times its \d+ bytes"):
        sources.read(path, prompt_field="prompt.text" if "nested" in kind else "prompt")


def test_folded_texts_are_read(tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "prompt": pyarrow.array(["one", "two", "one"]).dictionary_encode(),
            "teacher_response": pyarrow.array(["a", "b", "c"], pyarrow.string_view()),
        }
    )
    rows = sources.read(write(tmp_path / "a.arrow", table, "lz4", "file"))
    assert [row.messages[-1]["content"] for row in rows] == ["one", "two", "one"]
    assert [row.responses for row in rows] == [("a",), ("b",), ("c",)]
