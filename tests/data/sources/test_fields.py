"""Columns by name, and values by path."""

from typing import Any

import pytest

from gad_jax.data.sources import fields
from gad_jax.data.sources.fields import Columns
from gad_jax.data.sources.rows import Invalid


def test_columns_go_by_folded_names_and_null_ones_are_not_there() -> None:
    columns = Columns({"Teacher Response": "a", " PROMPT ": "b", "prompt": "c", "x": None})
    assert columns.values == {"teacher_response": "a", "prompt": "c"}
    assert columns.take("prompt") == "c"
    assert columns.take("x") is None
    assert list(columns.used) == ["prompt"]
    assert columns.filled(["prompt", "x", "teacher_response"]) == ["prompt", "teacher_response"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("a", {"b": [{"c": "x"}, {"c": "y"}]}),
        ("a.b.0.c", "x"),
        ("a.b.c", ["x", "y"]),
        ("d.e", "dotted"),
        ("f.g", "within a dotted name"),
        ("h.i", "in JSON"),
        ("k", 0),
    ],
)
def test_paths(path: str, value: Any) -> None:
    record = {
        "a": {"b": [{"c": "x"}, {"c": "y"}]},
        "d.e": "dotted",
        "f": {"g": "within a dotted name"},
        "h": '{"i": "in JSON"}',
        "k": 0,
    }
    assert fields.find(record, path, "--x") == value


@pytest.mark.parametrize("path", ["z", "a.z", "a.b.7", "a.b.z", "a.b.0.c.d", "n"])
def test_paths_to_nothing(path: str) -> None:
    record = {"a": {"b": [{"c": "x"}]}, "n": None}
    with pytest.raises(Invalid, match=f"no '{path}', which --x names"):
        fields.find(record, path, "--x")


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ('[{"a": null}]', [{"a": None}]),
        ("[{'a': None}]", [{"a": None}]),
        ('{"a": 1}', {"a": 1}),
        ("[see below]", "[see below]"),
        ("[1, 2]", "[1, 2]"),
        ('["a', '["a'),
        ("{'a': f()}", "{'a': f()}"),
        (3, 3),
    ],
)
def test_lists_and_objects_in_a_cell(value: Any, read: Any) -> None:
    assert fields.from_json(value) == read


def test_the_names_of_many_columns_are_cut_short() -> None:
    shown = fields.shown({f"column {n}": n for n in range(50)} | {"x" * 99: 1})
    assert shown.startswith("column 0, column 1, ")
    assert shown.endswith(", column 15 and 35 more")
    assert len(fields.shown({"x" * 99: 1})) < 45
