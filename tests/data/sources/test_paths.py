"""Names of several files."""

import json
from pathlib import Path

import pytest

from gad_jax.base.errors import UserError
from gad_jax.data import sources
from gad_jax.data.sources import paths


def write(path: Path, answer: str = "y") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"prompt": "x", "teacher_response": answer}) + "\n")
    return path


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        *[(f"a{one}", one) for one in paths.SUFFIXES],
        *[("a.jsonl.gz", ".jsonl"), ("a.csv.zst", ".csv"), ("a.json.xz", ".json")],
        *[("a.parquet.gz", None), ("a.gz", None), ("a.txt", None), ("a.yaml", None), ("a", None)],
    ],
)
def test_suffixes(name: str, suffix: str | None) -> None:
    assert paths.suffix(Path(name)) == suffix


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.jsonl", "a.jsonl", "deep/er/c.jsonl", "d.json"):
        write(tmp_path / name, name)
    monkeypatch.chdir(tmp_path)

    def answers(name: str) -> list[str]:
        return [row.responses[0] for row in sources.read(name)]

    assert answers("*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert answers("[bd].*") == ["b.jsonl", "d.json"]
    assert answers("**/*.jsonl") == ["a.jsonl", "b.jsonl", "deep/er/c.jsonl"]
    with pytest.raises(UserError, match=r"\*\.csv: no such file; give a \.jsonl, "):
        sources.read("*.csv")
    write(tmp_path / "e[1].jsonl", "a name like a pattern")
    assert answers("e[1].jsonl") == ["a name like a pattern"]


def test_a_directory_of_several_kinds(tmp_path: Path) -> None:
    for name in ("b.json", "a.jsonl", "a.manifest.json", "dataset_infos.json", ".hidden.jsonl"):
        write(tmp_path / name, name)
    (tmp_path / "c.csv").write_text("prompt,response\nx,c.csv\n")
    found = [row.responses[0] for row in sources.read(tmp_path)]
    assert found == ["a.jsonl", "b.json", "c.csv"]


def test_a_repository_that_was_cloned(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("#")
    write(tmp_path / "data" / "train-00000-of-00001.jsonl", "train")
    write(tmp_path / "data" / "test-00000-of-00001.jsonl", "test")
    assert sources.read(tmp_path)[0].responses == ("train",)
    assert sources.read(f"{tmp_path}:test")[0].responses == ("test",)


def test_a_directory_of_splits(tmp_path: Path) -> None:
    """As `DatasetDict.save_to_disk` and downloads write it."""
    for split in ("train", "test"):
        write(tmp_path / split / "data-00000-of-00001.jsonl", split)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert [row.responses for row in sources.read(tmp_path)] == [("train",)]
    assert [row.responses for row in sources.read(f"{tmp_path}:test")] == [("test",)]
    message = f"no split 'validation' .*; name one that it has: {tmp_path}:test, {tmp_path}:train"
    with pytest.raises(UserError, match=message):
        sources.read(f"{tmp_path}:validation")
