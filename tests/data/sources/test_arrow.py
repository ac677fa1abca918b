"""Arrow files: those that `datasets` saves, and Feather."""

from pathlib import Path

import pyarrow
import pytest

from gad_jax.base.errors import UserError
from gad_jax.data import sources

SPOKEN = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]


def write(path: Path, how: str, count: int = 200) -> Path:
    table = pyarrow.table({"messages": [SPOKEN] * count, "score": [1.0] * count})
    new = pyarrow.ipc.new_stream if how == "stream" else pyarrow.ipc.new_file
    with pyarrow.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=90)
    return path


@pytest.mark.parametrize("how", ["stream", "file"])
def test_arrow(tmp_path: Path, how: str) -> None:
    rows = sources.read(write(tmp_path / "a.arrow", how))
    assert [row.id for row in rows] == [f"a.arrow:{n}" for n in range(1, 201)]
    assert rows[199].responses == ("y",)


def test_a_dataset_that_was_saved(tmp_path: Path) -> None:
    """`save_to_disk` writes a folder for each split, with descriptions next to the rows."""
    for split, count in (("train", 3), ("test", 2)):
        folder = tmp_path / split
        folder.mkdir()
        write(folder / "data-00000-of-00001.arrow", "stream", count)
        write(folder / "cache-abc.arrow", "stream", 9)
        for name in ("dataset_info.json", "state.json"):
            (folder / name).write_text("{}")
    (tmp_path / "dataset_dict.json").write_text("{}")
    assert len(sources.read(tmp_path)) == 3
    assert len(sources.read(tmp_path, split="test")) == 2


@pytest.mark.parametrize("content", [b"", b"hello", b"ARROW1" + b"x" * 40])
def test_arrow_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.arrow"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.arrow: not a whole Arrow file \("):
        sources.read(path)


def test_a_file_that_ends_early(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", "stream")
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(UserError, match=r"a\.arrow: not a whole Arrow file \("):
        sources.read(path)
