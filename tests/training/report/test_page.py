"""The report: what it says, in which order, and that text of a model stays text."""

import dataclasses
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gad_jax.metrics import overlap
from gad_jax.training.report import page as report
from gad_jax.training.report.answers import Answers

EVIL = "</pre><script>document.title='owned'</script><img src=http://example.org/x.png>&lt;"
TEACHER = "one two three four five six seven"


def answers(label: str, texts: list[str], score: float | None = None) -> Answers:
    lines = []
    for number, text in enumerate(texts):
        answer: dict[str, Any] = {"text": text, "tokens": len(text.split()), "finished": True}
        answer |= overlap.scores(TEACHER, text)
        if score is not None:
            answer["score"] = score * number
        line = {"id": str(number), "prompt": f"Prompt {number}", "teacher": TEACHER}
        lines.append(line | {"teacher_tokens": 8, "answers": [answer] if text else []})
    return Answers(label, "my set", f"weights of {label}", tuple(lines))


class Tags(HTMLParser):
    """Collects the tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_a_comparison_says_what_changed() -> None:
    before = answers("before", ["one two", TEACHER, "x y", ""])
    after = answers("gad", [TEACHER, "no words", "x y", "one"])
    made = report.collect([before, after], {})
    (one,) = made.sets
    assert (one.prompts, one.left_out) == (3, 1)
    assert [label for label, _ in one.rows] == ["before", "gad", "teacher"]
    assert one.columns[:2] == ["tokens", "× teacher"]
    assert one.rows[0][1][0].startswith("3.667 [")
    (differences,) = one.judged
    assert differences.title == "Differences from before"
    assert [label for label, _ in differences.rows] == ["gad"]
    assert one.measure == "ROUGE-L"
    assert [(e.prompt, round(e.change, 3)) for e in one.improved] == [("Prompt 0", 0.556)]
    assert [(e.prompt, e.change) for e in one.damaged] == [("Prompt 1", -1.0)]
    assert len(one.figures) == 2
    page = report.render(made)
    assert "Most improved, from before to gad, by ROUGE-L" in page
    assert "weights of gad" in page
    assert page == report.render(report.collect([before, after], {}))


def test_differences_are_also_from_one_to_the_next_and_marked() -> None:
    before, middle, last = ["x"] * 9, [f"one {n}" for n in range(9)], [TEACHER] * 9
    several = [answers(*each) for each in (("before", before), ("warm", middle), ("gad", last))]
    (one,) = report.collect(several, {}).sets
    first, steps = one.judged
    assert [label for label, _ in first.rows] == ["warm", "gad"]
    assert steps.title == "Differences from one to the next"
    ((label, cells),) = steps.rows
    assert label == "gad − warm"
    assert cells[steps.columns.index("ROUGE-L")].startswith("▲ 0.7")
    assert cells[steps.columns.index("cut")].startswith("0.000 [")
    seeds = [answers("before", before), answers("gad#1", middle), answers("gad#2", last)]
    assert len(report.collect(seeds, {}).sets[0].judged) == 1


def test_metrics_of_an_evaluation_that_answers_do_not_have_are_shown() -> None:
    known = {"evaluation/rouge_l": 0.5, "evaluation/auc": 0.75, "evaluation/new": 3.0}
    before = dataclasses.replace(answers("before", ["one"]), metrics=known)
    (one,) = report.collect([before, answers("gad", ["one"])], {}).sets
    assert one.columns[-2:] == ["AUC", "new"]
    assert [cells[-2:] for _, cells in one.rows] == [["0.750", "3.000"], ["–", "–"], ["–", "–"]]


def test_changes_are_by_the_discriminator_where_it_scored() -> None:
    texts = ["one", "two", "three"]
    made = report.collect([answers("before", texts, 1.0), answers("gad", texts, -1.0)], {})
    (one,) = made.sets
    assert one.measure == "the discriminator's score"
    assert [e.change for e in one.damaged] == [-4.0, -2.0]
    assert one.improved == []
    assert "3 tokens" not in report.render(made)
    assert "1 tokens, D -2.00" in report.render(made)


def test_text_stays_text_and_nothing_is_loaded() -> None:
    page = report.render(report.collect([answers("a", ["x", "y"]), answers("b", [EVIL, EVIL])], {}))
    tags = Tags()
    tags.feed(page)
    names = {tag for tag, _ in tags.found}
    assert not names & {"script", "link", "iframe", "object"}
    images = [attributes["src"] for tag, attributes in tags.found if tag == "img"]
    assert images
    assert all(str(source).startswith("data:image/svg+xml;base64,") for source in images)
    (policy,) = [a["content"] for _, a in tags.found if a.get("http-equiv")]
    assert str(policy).startswith("default-src 'none'")
    assert len(page) < 400_000


def test_curves_of_a_run(tmp_path: Path) -> None:
    rows = [
        {"step": n, "stage": "warmup" if n < 3 else "gad", "response/length": 10 + n}
        | ({"reward/mean": 0.1 * n, "kl/reference": None} if n >= 3 else {})
        for n in range(1, 6)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = report.collect([answers("a", ["x"])], {"run": tmp_path, "gone": tmp_path / "no"})
    assert len(made.curves) == 2  # reward and length: the run has no others
    assert made.sets[0].measure == ""  # nothing to compare with
    assert made.alarms == [
        (tmp_path.name, ["no alarms are shown: this version cannot read the run's config.yaml"])
    ]


def test_alarms_of_a_run_are_listed(tmp_path: Path) -> None:
    rows = [
        {"step": n, "stage": "gad", "kl/reference": 1.2 if n % 20 < 10 else 0.1}
        for n in range(1, 600)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.yaml").write_text("health:\n  smoothing_steps: 1\n  kl:\n    steps: 2\n")
    made = report.collect([answers("a", ["x"])], {"run": tmp_path})
    ((_, lines),) = made.alarms
    assert lines[0].startswith("step 2, gad: alarm kl: the generator is 1.20 nats per token from")
    assert len(lines) == 21
    assert lines[-1] == "and 10 more"
    page = report.render(made)
    assert f"Alarms of {tmp_path.name}" in page
    assert "<li>step 2, gad: alarm kl: " in page


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_in_a_browser(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(report.render(report.collect([answers("a", ["x"]), answers("b", [EVIL])], {})))
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", path.as_uri())
    done = subprocess.run(["chromium", *flags], capture_output=True, text=True, timeout=120)
    assert "<title>a · b</title>" in done.stdout
    assert not re.search("<script", done.stdout)
