"""The flags of `collect check`."""

from collections.abc import Callable
from pathlib import Path

from gad_jax.collect import __main__ as collect

pytest_plugins = ["tests.run_fixtures"]


def check(*arguments: object) -> int:
    return collect.main(["check", *map(str, arguments)])


def test_mistakes_are_named(file: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "teacher_response": "b"}\n{"prompt": 3}\n[]\n')
    assert "broken.jsonl:2: 'prompt' is not a text" in refused(collect.main, "check", str(broken))
    assert check(broken, "--skip_invalid=true", f"--out={tmp_path / 'o.jsonl'}") == 0
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 1
    assert "no such file" in refused(collect.main, "check", "nowhere.jsonl")
    assert "no file is given" in refused(collect.main, "check")
    assert "drop=bad" in refused(collect.main, "check", str(file), "--drop=bad")
