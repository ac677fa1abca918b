"""Which files a name stands for: a file, a directory, a pattern, and the kind of each of them."""

import glob
import re
from pathlib import Path

from gad_jax.base.errors import UserError
from gad_jax.data.sources import opening

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
KINDS = f"{', '.join(SUFFIXES)} (text also as {', '.join(opening.COMPRESSED)})"
_PACKED = (".parquet", ".arrow")
_METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_SPLIT = re.compile(r"(train|test|validation|valid|dev|eval|heldout)(?![^\W_])")


def suffix(path: Path) -> str | None:
    """Returns the ending that says what a file is, without that of its compression; else None."""
    name = path.name
    plain = path.stem if path.suffix in opening.COMPRESSED else name
    found = next((one for one in SUFFIXES if plain.endswith(one)), None)
    return None if found in _PACKED and plain != name else found


def matching(pattern: str) -> list[Path]:
    """Returns the files that a pattern such as `data/*.jsonl` matches, in the order of names."""
    if not re.search(r"[*?\[]", pattern):
        return []
    return sorted(
        path for path in map(Path, glob.glob(pattern, recursive=True)) if not path.is_dir()
    )


def in_directory(directory: Path, split: str) -> list[Path]:
    """Returns the directory's data files in the order of their names.

    Where names begin with a split (train-00000-of-00002.parquet), only those of `split`. Without
    data files, those of its folder `split` or `data`, as downloaded data sets have them.
    """
    paths = sorted(path for path in directory.iterdir() if _is_data(path))
    if not paths:
        for folder in (directory / split, directory / "data"):
            if folder.is_dir():
                return in_directory(folder, split)
        splits = sorted({path.parent.name for path in directory.glob("*/*") if _is_data(path)})
        if splits:
            raise UserError(
                f"{directory}: no split {split!r} in this directory; name one that it has: "
                f"{', '.join(f'{directory}:{one}' for one in splits)}"
            )
        raise UserError(f"{directory}: no {', '.join(SUFFIXES)} file in this directory; add one")
    splits = [match and match[1] for match in (_SPLIT.match(path.name) for path in paths)]
    if not any(splits):
        return paths
    chosen = [path for path, of in zip(paths, splits, strict=True) if of == split]
    if not chosen:
        raise UserError(
            f"{directory}: no file name begins with {split!r} (first file: {paths[0].name}); "
            "name one file"
        )
    return chosen


def _is_data(path: Path) -> bool:
    """Returns whether a file of a directory holds rows: not what describes or caches them."""
    described = path.name in _METADATA or path.name.endswith("manifest.json")
    cached = path.name.startswith(("cache-", "."))
    return suffix(path) is not None and not path.is_dir() and not (described or cached)
