"""What benchmarks/serve_load.py says of few rounds and few first tokens."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "serve_load.py"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("serve_load", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "serve_load", module)  # a dataclass needs it
    spec.loader.exec_module(module)
    return module


def test_few_first_tokens_have_no_percentiles(load: ModuleType) -> None:
    assert load.percentiles([]) == "no first token came"
    assert load.percentiles([2.0]) == "first token after 2.0 s"
    assert load.percentiles([2.0] * 9) == "first token after 2.0 s (p50), 2.0 s (p95)"


def test_one_round_has_no_median(load: ModuleType) -> None:
    assert load.medians([(9.0, [2.0], 0)]) == "9 tokens/s, first token after 2.00 s"
    several = [(9.0, [9.0], 0), (5.0, [2.0], 0), (7.0, [4.0], 0)]
    assert load.medians(several) == "6 tokens/s, first token after 3.00 s (medians)"
    assert load.medians([(0.0, [], 0)]) == "0 tokens/s, no first token came"
