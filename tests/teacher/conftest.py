"""The prompts that the tests of this folder send."""

from pathlib import Path

import pytest

from tests.collect.harness import write_prompts


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_prompts(tmp_path / "prompts.txt")
