"""What is said about a source."""

from gad_jax.data.sources import notes
from gad_jax.data.sources.fields import Columns
from gad_jax.data.sources.notes import Notes


def test_a_format_is_said_once_with_all_columns_of_the_prompt() -> None:
    found = Notes()
    found.add("Alpaca: output is the teacher's answer", ["instruction"], [])
    found.add("Alpaca: output is the teacher's answer", ["instruction", "input"], ["hue"])
    found.add("ShareGPT: …", ["conversations"], ["shade"])
    assert found.lines("a.jsonl") == (
        "a.jsonl: read as Alpaca: output is the teacher's answer; prompt: instruction, input; not "
        "used: hue, shade",
        "a.jsonl: read as ShareGPT: …",
    )


def test_the_projects_own_rows_need_no_words() -> None:
    found = Notes()
    found.add("", ["prompt"], [])
    assert found.lines("a.jsonl") == ()
    found.add("", ["prompt"], [f"c{n}" for n in range(20)])
    (line,) = found.lines("a.jsonl")
    assert line.startswith("a.jsonl: not used: c0, c1, ")
    assert line.endswith(", c11 and 8 more")


def test_names_cannot_write_to_the_terminal() -> None:
    found = Notes()
    found.add("", [], ["a\x1b[31m", "\ud800", "b\nc"])
    assert found.lines("a.jsonl") == (r"a.jsonl: not used: a\x1b[31m, \ud800, b\nc",)


def test_turns_from_other_columns_of_own_rows_are_said() -> None:
    found = Notes()
    found.add("", ["prompt", "system", "history"], [])
    assert found.lines("a.jsonl") == ("a.jsonl: also in the prompt: system, history",)


def test_unknown_finish_reasons_are_counted() -> None:
    found = Notes()
    for reason in ("stop", "STOP", "FINISH_REASON_STOP", "length", "", "sated", "sated", "x" * 99):
        found.add_reason(reason)
    (line,) = found.lines("a")
    assert line == (f"a: unknown finish reasons, taken for finished: 'sated' (2), '{'x' * 40}' (1)")


def test_which_columns_are_named() -> None:
    columns = Columns({"prompt": "x", "Score": 3, "hue": "red", "blank": " ", "again": "x"})
    columns.take("prompt")
    columns.repeated.add("again")
    assert notes.unused(columns) == ["hue"]
