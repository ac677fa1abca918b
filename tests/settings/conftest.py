"""A working directory for configuration files."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes c.yaml into an otherwise empty working directory."""
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes) -> None:
        data = text.encode() if isinstance(text, str) else text
        Path("c.yaml").write_bytes(data)

    return write
