"""A user's function: how it is found and called, and one sentence for whatever is wrong with it."""

import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from gad_jax.base.errors import UserError
from gad_jax.training.rewards.functions import Function
from gad_jax.training.rewards.rules import Row

ROWS = [
    Row("p", "abc", "t", 4, 2, True, [], "rows.jsonl:3", 0, "abc", "t"),
    Row("p", "a", "t", 2, 2, False, [], "rows.jsonl:3", 1, "a", "t"),
]


@pytest.fixture
def load(tmp_path):
    """Returns a function: the text of a file → the function f of it."""

    def make(text, name="f"):
        path = tmp_path / "own.py"
        path.write_text(text)
        return Function(f"{path}:{name}")

    return make


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("def f(response): return len(response)", [3, 1]),
        ("def f(response, /, tokens): return tokens - len(response)", [1, 1]),
        ("def f(*, finished, scale=2.0): return scale * finished", [2, 0]),
        ("def f(prompt, **more): return more['sample'] + len(more)", [10, 11]),
        ("def f(rows): return [-row.tokens for row in rows]", [-4, -2]),
        ("def f(*, rows): return [-row.tokens for row in rows]", [-4, -2]),
        ("def f(rows, /): return [-row.tokens for row in rows]", [-4, -2]),
        ("import numpy\ndef f(rows): return numpy.arange(len(rows))", [0, 1]),
        ("import numpy\ndef f(sample): return numpy.float32(sample)", [0, 1]),
        ("def f(sample): return float('nan') if sample else float('-inf')", [-math.inf, math.nan]),
        ("class F:\n  def __call__(self, tokens): return tokens\nf = F()", [4, 2]),
        ("import dataclasses\n@dataclasses.dataclass\nclass A: x: int\ndef f(tokens): "
         "return A(tokens).x", [4, 2]),
        ("import helper_of_own\nf = helper_of_own.f", [7, 7]),
    ],
)  # fmt: skip
def test_parameters_say_what_a_function_sees(load, tmp_path, monkeypatch, text, values) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "helper_of_own.py").write_text("def f(id): return 7")
    monkeypatch.delitem(sys.modules, "helper_of_own", raising=False)
    np.testing.assert_array_equal(load(text)(ROWS, 60.0), values)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def g(response): return 1", "there is no function f; it has g"),
        ("def ff(response): return 1", "there is no function f; did you mean 'ff'?"),
        ("x = 1", "there is no function f; it has no function"),
        ("f = 3", "f is 3 and no function; name a function"),
        ("def f(completion): return 1", "has a parameter 'completion'; name some of prompt, resp"),
        ("def f(respons): return 1", "has a parameter 'respons'; did you mean 'response'?"),
        ("def f(rows, response): return 1", "has a parameter 'rows'"),
        ("def f(): return 1", "takes nothing of a response; name some of prompt"),
        ("async def f(response): return 1", "is async or a generator; give a plain function"),
        ("f = min", "does not say its parameters; wrap it in a function of some of prompt"),
        ("def f(response:\n  pass", "own.py:1: '(' was never closed; correct that line"),
        ("import no_such_module_here", "ModuleNotFoundError: No module named 'no_such_module_her"),
        ("x = 1\nraise SystemExit(3)", "could not be loaded: SystemExit: 3 in line 2; correct it"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused_when_it_is_loaded(load, text, said) -> None:
    with pytest.raises(UserError) as refused:
        load(text)
    assert said in str(refused.value)
    assert str(refused.value).startswith("--reward.extra=")
    assert "\n" not in str(refused.value)


def test_a_file_or_module_that_is_not_there_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*none.py; name one"):
        Function(f"{tmp_path}/none.py:f")
    (tmp_path / "text").write_text("def f(response): return 1")
    with pytest.raises(UserError, match=r"text is no Python file; name one that ends in .py"):
        Function(f"{tmp_path}/text:f")
    with pytest.raises(UserError, match="could not be loaded: ModuleNotFoundError"):
        Function("no_such_module_here:f")
    with pytest.raises(UserError, match="has a parameter 'data'; name some of prompt"):
        Function("statistics:fmean")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f(sample):\n  return 1 / (1 - sample)",
         "raised ZeroDivisionError: division by zero in line 2, for response 2 to rows.jsonl:3"),
        ("def f(sample): exit(3)", "raised SystemExit: 3 in line 1, for response 1 to "),
        ("def f(sample): return None", "returned None for response 1 to rows.jsonl:3; return a"),
        ("def f(sample): return '1'", "returned '1' for response 1 to rows.jsonl:3"),
        ("def f(sample): return [1]", "returned [1] for response 1"),
        ("def f(sample): return 1j * sample + 1j", "returned 1j for response 1"),
        ("def f(rows): return [1]", "returned 1 values for 2 rows; return a list with a number"),
        ("def f(rows): return 1", "returned int for 2 rows"),
        ("import numpy\ndef f(rows): return numpy.array(1.0)", "returned ndarray for 2 rows"),
        ("import jax.numpy as n\ndef f(rows): return n.float32(1)", "returned ArrayImpl for"),
        ("def f(rows): return {1.0, 2.0}", "returned set for 2 rows; return a list with a number"),
        ("def f(rows): return frozenset({1.0, 2.0})", "returned frozenset for 2 rows"),
        ("def f(rows): return {1: 2, 3: 4}.keys()", "returned dict_keys for 2 rows"),
        ("def f(rows): return {1: 2, 3: 4}.values()", "returned dict_values for 2 rows"),
        ("def f(rows): return 'ab'", "returned 2 values for 2 rows"),
        ("def f(rows): return [1, 'b']", "returned 'b' for response 2 to rows.jsonl:3"),
        ("import time\ndef f(sample):\n  time.sleep(60 * sample)\n  return 0.0",
         "has not returned after 1.0 s for response 2 to rows.jsonl:3; make it faster, or raise"),
        ("import time\ndef f(rows): time.sleep(60)", "has not returned after 1.0 s for 2 rows"),
    ],
)  # fmt: skip
def test_a_call_that_fails_is_one_sentence_with_its_response(load, text, said) -> None:
    with pytest.raises(UserError) as refused:
        load(text)(ROWS, 1.0)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_slow_calls_are_timed_one_by_one(load) -> None:
    """Together they take longer than the limit, each of them less."""
    function = load("import time\ndef f(sample):\n  time.sleep(0.5)\n  return sample")
    assert function([*ROWS, *ROWS], 1.9) == [0, 1, 0, 1]


def test_the_identity_is_that_of_the_text(load) -> None:
    text = "def f(response): return 1"
    assert load(text).identity == load(text).identity != load(text + "\n").identity
    assert load(text + "\ng = f", "g").identity == load(text + "\ng = f").identity


def test_a_function_of_the_script_that_trains_is_taken_as_it_is(tmp_path, monkeypatch) -> None:
    script = types.ModuleType("__main__")
    script.__file__ = str(tmp_path / "script.py")
    script.f = lambda tokens: 2 * tokens
    Path(script.__file__).write_text("raise SystemExit")
    monkeypatch.setitem(sys.modules, "__main__", script)
    assert Function("__main__:f")(ROWS, 60.0) == [8, 4]


def test_a_module_that_has_changed_runs_as_it_is_hashed(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_module", raising=False)
    file = tmp_path / "own_module.py"
    file.write_text("def f(tokens): return tokens")
    first = Function("own_module:f")
    assert first(ROWS, 60.0) == [4, 2]
    assert Function("own_module:f").function is first.function  # nothing has changed
    file.write_text("def f(tokens): return -10 * tokens")
    changed = Function("own_module:f")
    assert changed(ROWS, 60.0) == [-40, -20]
    assert changed.identity != first.identity
