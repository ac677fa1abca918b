"""The flags of `collect prepare`."""

from collections.abc import Callable
from pathlib import Path

from gad_jax.collect import __main__ as collect
from tests.collect.rows import lmsys, write_parquet

pytest_plugins = ["tests.run_fixtures"]


def prepare(*arguments: object) -> int:
    return collect.main(["prepare", *map(str, arguments)])


def test_mistakes_are_named(tmp_path: Path, refused: Callable[..., str]) -> None:
    source = write_parquet(tmp_path / "train.parquet", lmsys(20))
    flags = ("prepare", "lmsys-gpt5", f"--source={source}", f"--out={tmp_path / 'out'}")
    assert "leaves none to train on" in refused(collect.main, *flags)
    assert not list((tmp_path / "out").iterdir())
    assert collect.main([*flags, "--heldout=2"]) == 0
    assert "is there" in refused(collect.main, *flags, "--heldout=2")
    assert "is none of lmsys-gpt5" in refused(collect.main, "prepare", "dolly", "--out=x")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"content": "x"}\n')
    strict = (*flags[:2], f"--source={bad}", f"--out={tmp_path / 'o'}", "--skip_invalid=false")
    assert "bad.jsonl:1:" in refused(collect.main, *strict)
