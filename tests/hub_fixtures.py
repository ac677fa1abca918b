"""A fixture that several test files use: a hub to upload to, over HTTP."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.export import hub_server
from tests.export.hub_server import Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that the test, and commands that it starts, upload to, logged in."""
    with hub_server.running() as server:
        for name, value in {
            "HF_ENDPOINT": server.url,
            "HF_TOKEN": hub_server.TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",  # the hub's own store of chunks; LFS is the open way
            "HF_HOME": str(tmp_path / "hf"),
        }.items():
            monkeypatch.setenv(name, value)
        # What this process has read of the variables already.
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield server
