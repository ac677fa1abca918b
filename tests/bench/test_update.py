"""The update benchmark on a tiny model."""

import re

import pytest

from gad_jax.bench.__main__ import main


def test_update_on_the_tiny_model(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model=random-tiny", "--rows=8", "--row_tokens=32", "--steps=3", "--torch=false"]
    assert main(["update", *flags]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("8 × 32 tokens, float32, compiled in ")
    form = r"gad_jax: median of 3 steps .+ = (\d+)% of a large matmul.+ \((\d+)% to (\d+)%\)"
    match = re.fullmatch(form, last)
    assert match, last
    middle, least, greatest = map(int, match.groups())
    assert 0 <= least <= middle <= greatest < 100
