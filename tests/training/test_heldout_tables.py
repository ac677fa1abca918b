"""What is shown of evaluations, and of changes between them."""

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from gad_jax.base.console import Display
from gad_jax.metrics.intervals import SHARES, difference_interval
from gad_jax.training import heldout_tables

PROMPTS = 48


def evaluation(label: str, seed: int, rouge_l: float, length: float, auc: float) -> Any:
    """Returns one whose examples scatter about these means."""
    random = np.random.default_rng(seed)
    examples = [
        {
            "prompt": f"question {number}",
            "rouge_l": float(np.clip(rouge_l + random.normal() / 20, 0, 1)),
            "length": round(length + 3 * random.normal()),
            "teacher_length": 40,
            "finished": length < 45,
            "auc": float(random.random() < auc),
        }
        for number in range(PROMPTS)
    ]

    def mean(name: str) -> float:
        return float(np.mean([example[name] for example in examples]))

    metrics = {
        "evaluation/rouge_l": mean("rouge_l"),
        "evaluation/length": mean("length"),
        "evaluation/length_ratio": mean("length") / 40,
        "evaluation/cut_share": 1 - mean("finished"),
        "evaluation/auc": mean("auc"),
    }
    return SimpleNamespace(label=label, step=seed, metrics=metrics, examples=examples)


BEFORE = evaluation("before", 0, 0.14, 50, 0.95)
AFTER = evaluation("after gad", 1, 0.2, 40, 0.6)


def test_means_are_shown_in_their_units() -> None:
    metrics = {
        "evaluation/rouge_l": 0.1414,
        "evaluation/length": 46.52,
        "evaluation/length_ratio": 1.271,
        "evaluation/cut_share": 0.875,
        "evaluation/auc": 0.968,
        "evaluation/new": 2.0,
    }
    [row] = heldout_tables.values(
        [SimpleNamespace(label="x", step=1, metrics=metrics, examples=[])]
    ).values()
    assert row == {
        "ROUGE-L": "0.141",
        "tokens": "46.5",
        "× teacher": "1.27",
        "cut": "88 %",
        "AUC": "97 %",
        "evaluation/new": 2.0,
    }


def test_changes_are_paired_by_prompt() -> None:
    [(title, rows)] = heldout_tables.changes([BEFORE, AFTER])
    assert title == "change against before [95 % interval]; * where that excludes 0"
    assert list(rows) == ["ROUGE-L", "tokens", "× teacher", "cut", "AUC"]
    values = [[example["rouge_l"] for example in one.examples] for one in (AFTER, BEFORE)]
    want = difference_interval(*values, bounds=SHARES)
    shown = f"{want.value:+.3f} [{want.low:+.3f}, {want.high:+.3f}] *"
    assert rows["ROUGE-L"] == {"after gad": shown}
    # 48 of 48 are cut no more: the interval of 48 of 48
    assert str(rows["cut"]["after gad"]).startswith("-100 % [-100, -8")
    ratio = AFTER.metrics["evaluation/length_ratio"] - BEFORE.metrics["evaluation/length_ratio"]
    assert str(rows["× teacher"]["after gad"]).startswith(f"{ratio:+.2f} [")


def test_a_change_that_may_be_chance_is_not_marked() -> None:
    again = evaluation("step 5", 2, 0.14, 50, 0.95)
    rows = heldout_tables.one(again, BEFORE)
    assert list(rows) == ["before", "step 5", "change"]
    assert rows["change"]["cut"] == "+0 %  "
    assert not any(str(cell).endswith("*") for cell in rows["change"].values())
    assert str(heldout_tables.one(AFTER, BEFORE)["change"]["ROUGE-L"]).endswith(" *")
    assert list(heldout_tables.one(again, None)) == ["step 5"]


def test_what_older_evaluations_lack_is_left_out() -> None:
    old = SimpleNamespace(
        label="before",
        step=0,
        metrics={"evaluation/rouge_l": 0.1},
        examples=[{"prompt": "p", "rouge_l": 0.1} for _ in range(PROMPTS)],
    )
    [(_, rows)] = heldout_tables.changes([old, AFTER])
    assert list(rows) == ["ROUGE-L"]
    old.examples[:] = [example | {"length": 9} for example in old.examples]
    [(_, rows)] = heldout_tables.changes([old, AFTER])
    assert list(rows) == ["ROUGE-L", "tokens"]  # × teacher needs the teacher's
    bare = SimpleNamespace(label="before", step=0, metrics={}, examples=[{"prompt": "p"}])
    assert heldout_tables.changes([bare, AFTER]) == []
    assert list(heldout_tables.one(AFTER, bare)) == ["before", "after gad"]
    assert heldout_tables.changes([bare]) == []


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_tables_fit_eighty_columns(stages: int) -> None:
    console = Console(file=io.StringIO(), width=80, highlight=False)
    display = Display(console)
    labels = ["after seqkd", "after warmup", "after offpolicy", "after rejection", "after gad"]
    found = [BEFORE, *(evaluation(x, n, 0.2, 40, 0.6) for n, x in enumerate(labels[:stages], 1))]
    display.table("held-out prompts", heldout_tables.values(found))
    for title, rows in heldout_tables.changes(found):
        display.table(title, rows)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    intervals = sum(line.count("]") for line in lines) - -(-stages // 2)  # less the titles'
    assert intervals == 5 * stages  # none is broken over two lines
