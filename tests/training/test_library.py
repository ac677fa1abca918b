"""docs/library.md as its readers run it, and what it promises beyond its examples."""

import os
import re
from pathlib import Path

import jax
import pytest

from gad_jax import Discriminator, Run, Student, write_rows
from gad_jax.base.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "library.md"
FLAGS = ("--config=tiny", "--data.train=teacher.jsonl", "--data.heldout=8", "--checkpoint.every=1")
"""Of the page's run: its programs are compiled already."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An empty working directory for the tests of this file."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("library"))
    yield Path.cwd()
    os.chdir(before)


@pytest.fixture(scope="module")
def names(place):
    """The names that the page's examples leave, run in their order."""
    found: dict = {}
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    assert len(examples) == 10
    for number, example in enumerate(examples, 1):
        exec(compile(example, f"example {number} of {PAGE.name}", "exec"), found)
        if "run.export()" in example:
            found["answer"] = found["run"].student().generate(["Why?"], max_new_tokens=4)
    return found


def test_the_page_runs_and_its_run_is_the_commands_too(names, place, capsys):
    assert names["rollout"].tokens.shape == (8, 2, 16)
    assert names["pairs"].ends.shape[1:] == (8, 3, 2)
    assert set(names["found"]) > {"generator/loss", "discriminator/loss", "kl/reference"}
    assert int(names["state"].step) == int(names["trainer"].state.step) + 1
    exported, trained = Student("runs/counting/export/student"), Student("runs/counting")
    for student in (exported, trained):
        assert student.generate(["Why?"], max_new_tokens=4) == names["answer"]


def test_a_run_that_is_made_again_goes_on_where_it_stopped(names):
    def losses(run):
        return [metrics["discriminator/loss"] for metrics in run]

    with Run(*FLAGS, "--run_dir=runs/whole") as run:
        whole = losses(run)
        asked = run.student()
        before = asked.generate(["Why?"], max_new_tokens=4)
    with Run(*FLAGS, "--run_dir=runs/parts") as run:
        first = [next(run)["discriminator/loss"] for _ in range(3)]
        early = run.student()
    with Run(*FLAGS, "--run_dir=runs/parts") as run:
        assert first + losses(run) == whole
    assert jax.tree.leaves(early.params)[0].is_deleted() is False
    assert asked.generate(["Why?"], max_new_tokens=4) == before
    assert Student("runs/parts").generate(["Why?"], max_new_tokens=4) == before


def test_a_failed_step_is_not_the_end_of_a_run(names, monkeypatch):
    run = Run(*FLAGS, "--run_dir=runs/failing")
    with pytest.raises(UserError, match=r"runs/failing.* is in use"):
        Run(*FLAGS, "--run_dir=runs/failing")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run.trainer.iteration, "run", fail)
        with pytest.raises(KeyboardInterrupt):
            next(run)
    with pytest.raises(UserError, match="failed before; close the run and make it again"):
        next(run)
    run.close()
    with Run(*FLAGS, "--run_dir=runs/failing") as run:
        assert next(run)["step"] == 1


def test_mistakes_are_named(place):
    with pytest.raises(UserError, match="prompts is one text; give a list"):
        Student("random-tiny").generate("Why?")
    with pytest.raises(UserError, match="is not a run directory"):
        Discriminator("runs/none")
    with pytest.raises(UserError, match="--nothing: Config has no field"):
        Run("--config=tiny", "--nothing=1")
    with pytest.raises(UserError, match="max_new_tokens"):
        Student("random-tiny").generate(["Why?"], max_new_tokens=0)
    path = write_rows("umlaut.jsonl", [{"prompt": "Grüße?", "teacher_response": ["Ja.", "Nein."]}])
    assert path.read_text("utf-8").count("\n") == 1
    assert "Grüße" in path.read_text("utf-8")
