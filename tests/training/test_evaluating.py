"""The files of a run's evaluations: damaged, of other settings, of a stage that became longer."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest

from gad_jax.metrics import heldout
from gad_jax.metrics.heldout import HeldoutResult
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.training import evaluating
from gad_jax.training.evaluating import Evaluations
from gad_jax.training.tracker import Tracker
from tests.training.test_tracker import plain, read_events, shown

LIMITS = (
    "--evaluation.max_new_tokens=7",
    "--data.max_prompt_tokens=40",
    "--rollout.slots=3",
    "--rollout.resize=false",
)


def result(label: str, step: int, prompts: int = 3) -> HeldoutResult:
    examples = [
        {"prompt": f"question {n}", "teacher": f"teacher {n}", "student": f"{label} {n}"}
        for n in range(prompts)
    ]
    metrics = {"evaluation/rouge_l": step / 10, "evaluation/length_ratio": 1.0}
    return HeldoutResult(label, step, metrics, examples)


class Run:
    """A run directory with evaluations, whose student always answers the same."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self.console = directory, plain(150)
        self.tracker = Tracker(directory, self.console)
        self.tracker.start(0, 9)
        self.made: list[str] = []
        flags = ["--config=tiny", f"--run_dir={directory}", "--evaluation.examples=1", *LIMITS]
        config = options.read(Config, flags, program="train", description="")
        rows: Any = [0, 1, 2]
        nothing: Any = None
        self.evaluations = object.__new__(Evaluations)
        for name, value in {
            "config": config,
            "options": config.evaluation,
            "directory": directory / "evaluations",
            "held_out": rows,
            "tracker": self.tracker,
            **dict.fromkeys(("chat", "mesh", "network"), nothing),
        }.items():
            setattr(self.evaluations, name, value)
        self.responder = create_autospec(evaluating.Responder)
        monkeypatch.setattr(evaluating, "Responder", self.responder)
        monkeypatch.setattr(heldout, "evaluate", self.answer)

    def answer(self, responder: Any, rows: Any, *, label: str, step: int, **_: Any) -> Any:
        self.made.append(label)
        return result(label, step)

    def make(self, label: str, step: int) -> HeldoutResult:
        found = self.evaluations.make(label, step, {}, lambda: True)
        assert found is not None
        return found

    def store(self, *results: HeldoutResult) -> None:
        (self.directory / "evaluations").mkdir(exist_ok=True)
        for each in results:
            self.path(each.label).write_text(each.to_json())

    def path(self, label: str) -> Path:
        return self.directory / "evaluations" / f"{label.replace(' ', '-')}.json"

    def texts(self) -> list[tuple[int, str]]:
        """The texts in TensorBoard."""
        return [
            (event.step, value.tag.removesuffix("/text_summary"))
            for event in read_events(self.directory / "tensorboard")
            for value in event.summary.value
            if value.tag.endswith("/text_summary")
        ]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = Run(tmp_path, monkeypatch)
    yield made
    made.tracker.close()


def test_answers_are_within_the_limits_of_the_runs_rollouts(run: Run) -> None:
    run.make("step 4", 4)
    *_, decoding = run.responder.call_args.args
    assert (decoding.max_new_tokens, decoding.temperature, decoding.samples) == (7, 0.0, 1)
    assert run.responder.call_args.kwargs == {"slots": 3, "longest": 47, "resizes": False}


DAMAGES = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "another object": lambda text: "[]",
    "a field less": lambda text: text.replace('"student"', '"pupil"'),
    "no examples": lambda text: json.dumps(json.loads(text) | {"examples": []}),
    "a text for a number": lambda text: text.replace('ratio": 1.0', 'ratio": "x"'),
    "nested": lambda text: "[" * 100_000,
    "of another step": lambda text: text.replace('"step": 4', '"step": 5'),
}


@pytest.mark.parametrize("damage", [*DAMAGES, "bytes", "a directory"])
def test_a_damaged_evaluation_is_kept_and_made_anew(run: Run, damage: str) -> None:
    run.store(result("after gad", 4))
    path = run.path("after gad")
    if damage == "bytes":
        path.write_bytes(b"\xff" + path.read_bytes())
    elif damage == "a directory":
        path.unlink()
        path.mkdir()
    else:
        path.write_text(DAMAGES[damage](path.read_text()))
    assert run.make("after gad", 4) == result("after gad", 4)
    assert run.made == ["after gad"]
    assert run.make("after gad", 4) == result("after gad", 4)
    assert run.made == ["after gad"]
    [moved] = (run.directory / "evaluations").glob("after-gad.json.corrupt-*")
    said = shown(run.console).replace("\n", "")
    assert "after-gad.json is made anew (" in said
    assert moved.name in said


def test_evaluations_of_other_prompts_are_compared_with_their_numbers(run: Run) -> None:
    run.store(result("before", 0, 2), result("after gad", 4, 3))
    run.evaluations.compare(["before", "after warmup", "after gad"])
    said = shown(run.console)
    assert "before (2 prompts)" in said
    assert "after gad (3 prompts)" in said
    assert run.texts() == [(4, "comparison")]


def test_an_evaluation_of_other_rows_is_left_out_of_the_comparison(run: Run) -> None:
    other = result("before", 0)
    other.examples[1]["prompt"] = "another question"
    run.store(other, result("after warmup", 2), result("after gad", 4))
    run.evaluations.compare(["before", "after warmup", "after gad"])
    assert "left out of the comparison: before, of other rows" in shown(run.console)
    assert "before 0" not in shown(run.console)


def test_a_damaged_evaluation_is_left_out_of_the_comparison_with_a_word(run: Run) -> None:
    run.store(result("before", 0), result("after gad", 4))
    run.path("before").write_text("{")
    run.evaluations.compare(["before", "after gad"])
    said = shown(run.console).replace("\n", "")
    assert "left out: " in said
    assert "is no evaluation of a run (it is cut or damaged" in said
    assert "after gad 0" in said


def test_a_start_has_every_text_once(run: Run) -> None:
    """Also of an evaluation at a step that runs again: it is read from its file then."""
    run.store(result("before", 0), result("step 2", 2), result("step 4", 4))
    run.evaluations.recall(3, {})
    run.evaluations.recall(3, {})
    assert run.make("step 4", 4) == result("step 4", 4)
    assert run.made == []
    assert run.texts() == [(0, "before"), (2, "step 2"), (4, "step 4")]
    assert sorted(path.name for path in (run.directory / "samples").iterdir()) == [
        "000000-before.md",
        "000002-step-2.md",
        "000004-step-4.md",
    ]


def test_the_evaluation_at_a_former_end_becomes_that_of_a_step(run: Run) -> None:
    run.store(result("before", 0), result("after warmup", 1), result("after gad", 4))
    run.evaluations.recall(4, {"after warmup": 1, "after gad": 9})
    names = sorted(path.name for path in (run.directory / "evaluations").iterdir())
    assert names == ["after-warmup.json", "before.json", "step-4.json"]
    assert heldout.read(run.path("step 4")).label == "step 4"
    assert run.make("after gad", 9).step == 9
