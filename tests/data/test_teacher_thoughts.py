"""Thoughts in rows of teacher text."""

import pytest

from gad_jax.base.errors import UserError
from gad_jax.data import teacher_thoughts
from gad_jax.data.sources.rows import Row, Rows

USER = ({"role": "user", "content": "2 + 2?"},)


def rows(*several):
    made = tuple(Row(USER, texts, str(n)) for n, texts in enumerate(several))
    return Rows("file", made, {}, unfinished=1)


MIXED = rows(
    ("4",),
    ("<think>\nsum\n</think>\n\n4", "sum\n</think>\n\nIt is 4."),
    ("<think>cut", "four"),
    ("<think>cut",),
    ("<think>all of it</think>",),
)


def test_dropped_and_counted():
    left, found = teacher_thoughts.part(MIXED, drop=True, prompts_closed=True)
    assert [row.responses for row in left] == [("4",), ("4", "It is 4."), ("four",)]
    assert [row.id for row in left] == ["0", "1", "2"]
    assert found == 5
    assert left.unfinished == 4


def test_kept_but_not_without_an_answer():
    left, found = teacher_thoughts.part(MIXED, drop=False, prompts_closed=False)
    assert [row.responses for row in left] == [("4",), MIXED[1].responses, ("four",)]
    assert (found, left.unfinished) == (5, 4)


def test_rows_without_thoughts_stay_as_they_are():
    plain = rows(("4", " 4 "), ("Use `</think>`.",), ())
    assert teacher_thoughts.part(plain, drop=True, prompts_closed=False) == (plain, 0)


def test_what_is_refused():
    with pytest.raises(UserError, match="file: 5 responses have thoughts, and the student's prom"):
        teacher_thoughts.part(MIXED, drop=False, prompts_closed=True)
    with pytest.raises(UserError, match="file: no response has an answer after its thoughts"):
        teacher_thoughts.part(rows(("<think>cut",)), drop=True, prompts_closed=False)


def test_a_rejected_answer_that_ends_inside_its_thought_is_left_out():
    """It would be an empty text, and the row is left out where it has no other."""
    pairs = (("<think>a</think>No", "<think>cut"), ("<think>cut",), ("plain",))
    made = tuple(Row(USER, ("4",), str(n), rejected=each) for n, each in enumerate(pairs))
    for drop, kept in ((True, "No"), (False, "<think>a</think>No")):
        left, _ = teacher_thoughts.part(Rows("file", made, {}), drop, prompts_closed=False)
        assert [row.rejected for row in left] == [(kept,), ("plain",)]
        assert left.unfinished == 2
