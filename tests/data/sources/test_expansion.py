"""The bound on what a compressed file may hold."""

from pathlib import Path

import pytest

from gad_jax.base.errors import UserError
from gad_jax.data.sources import expansion
from gad_jax.data.sources.expansion import Expansion


def test_a_small_file_may_hold_some_and_a_large_one_two_hundred_times_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expansion, "FREE_BYTES", 1000)
    for size, limit in ((1, 1000), (100, 20_000)):
        path = tmp_path / f"{size}.gz"
        path.write_bytes(b"x" * size)
        held = Expansion(path)
        held.add(limit)
        with pytest.raises(UserError, match=f"holds more than 200 times its {size} bytes"):
            held.add(1)
