"""What the dataset card of checked rows says, and what it leaves to their owner."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard

from gad_jax.collect import __main__ as collect
from gad_jax.collect import card
from gad_jax.collect.card import Made, Seen


def line(number: int, **more: Any) -> dict[str, Any]:
    """A line as `collect` writes them."""
    return {
        "key": f"{number:x}",
        "sample": 0,
        "messages": [{"role": "user", "content": f"question {number}"}],
        "teacher_response": f"the answer to number {number}",
        "finish_reason": "stop",
        "model": "m-2026",
        "teacher": "m",
        "system": "",
        "parameters": {},
        "usage": None,
        "time": f"2026-11-{number + 1:02}T10:00:00.000+00:00",
    } | more


def written(lines: list[dict[str, Any]], **how: Any) -> str:
    seen = Seen()
    for one in lines:
        seen.add(one, 1)
    made: dict[str, Any] = {
        "sources": ("/home/me/secret/teacher.jsonl",),
        "against": (),
        "dropped": {},
        "licence": "",
    }
    return card.write(seen, Made(**(made | how)), "rows", "rows.jsonl")


def test_a_card_next_to_the_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line(n, usage={"prompt_tokens": n}) for n in range(3)]
    lines.append(line(3, teacher_response="cut", finish_reason="length", system="Be brief."))
    lines[0]["teacher_response"] += ": write to a@example.org"
    Path("rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    Path("eval.jsonl").write_text('{"prompt": "something else"}\n')
    flags = ("--out=good.jsonl", "--card=README.md", "--license=CC BY 4.0", "--against=eval.jsonl")
    assert collect.main(["check", "rows.jsonl", *flags]) == 0
    found = DatasetCard.load("README.md")
    assert found.data["license"] == "cc-by-4.0"
    assert found.data["size_categories"] == "n<1K"
    assert found.data["configs"] == [{"config_name": "default", "data_files": "good.jsonl"}]
    for said in (
        "# good",
        "what `m (m-2026)` answered",
        "| rows | 3 |",
        "| collected | 2026-11-01 to 2026-11-03 |",
        "| sampling parameters | `defaults of the provider` |",
        "| why responses ended | `stop` |",
        "| made from | `rows.jsonl` |",
        "| lines left out | cut 1 |",
        "| overlap left out with | `eval.jsonl` |",
        "| rows with an e-mail address | 1, counted by its form",
        "| `teacher_response` | 3 | the teacher's response |",
        'load_dataset("json", data_files="good.jsonl", split="train")',
        "--data.train=good.jsonl",
        "Licence of the rows: `CC BY 4.0`.",
        "The terms of the teacher's provider may limit",
    ):
        assert said in found.text, said
    assert "| `system` | 0 | system prompt that the teacher saw |" in found.text
    for unsaid in ("rows with a system prompt", str(tmp_path)):
        assert unsaid not in found.text


def test_the_owner_states_the_licence() -> None:
    assert card.licence("") == {}
    assert card.licence("Apache-2.0") == {"license": "apache-2.0"}
    assert card.licence("cc_by_nc_3.0") == {"license": "cc-by-nc-3.0"}
    assert card.licence("Our own") == {"license": "other", "license_name": "our-own"}
    found = DatasetCard(written([line(0)]))
    assert found.data.get("license") is None
    assert "Licence of the rows: not stated." in found.text


def test_rows_of_many_kinds_are_counted_and_cannot_break_the_page() -> None:
    lines = [line(n, teacher=f"t{n}|`x`\n#", model=None, time="noon") for n in range(7)]
    lines[6] = {"prompt": "a", "teacher_response": "b", "parameters": {"temperature": 0.5}}
    said = DatasetCard(written(lines)).text
    assert "| teacher | `t0\\|'x' #` 1, `t1\\|'x' #` 1," in said
    assert "`t4\\|'x' #` 1 and 1 more |" in said
    assert (
        '| sampling parameters | `defaults of the provider` 6, `{"temperature": 0.5}` 1 |' in said
    )
    assert "| `prompt` | 1 |" in said
    assert "collected |" not in said
    assert "/home" not in said
    unnamed = written([{"prompt": "a", "teacher_response": "b"}])
    assert "a teacher that the rows do not name" in unnamed
    assert "| `prompt` | 1 |  |" in unnamed
    one_of_two = written([line(0), {"prompt": "a", "teacher_response": "b"}])
    assert "| teacher | `m (m-2026)` 1 |" in one_of_two
