"""docs/library.md as its readers run it, and what it promises beyond its examples."""

import json
import os
import re
from pathlib import Path

import jax
import pytest

import gad_jax
from gad_jax import Discriminator, Run, Student, write_rows
from gad_jax.base.errors import UserError
from gad_jax.models import families
from gad_jax.training import pushing
from gad_jax.training.report import writing

PAGE = Path(__file__).parents[2] / "docs" / "library.md"
FLAGS = ("--config=tiny", "--data.train=teacher.jsonl", "--data.heldout=8", "--checkpoint.every=1")
"""Of the page's run: its programs are compiled already."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An empty working directory for the tests of this file.

    Reports take a second: that of runs/counting is whole, the others have the steps alone.
    """
    whole = writing.write

    def write(run):
        if run.name == "counting":
            return whole(run)
        lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
        (run / "report.html").write_text(" ".join(str(json.loads(x)["step"]) for x in lines))
        return run / "report.html"

    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("library"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(writing, "write", write)
        yield Path.cwd()
    os.chdir(before)


@pytest.fixture(scope="module")
def names(place):
    """The names that the page's examples leave, run in their order."""
    found: dict = {}
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    assert len(examples) == 15
    for number, example in enumerate(examples, 1):
        exec(compile(example, f"example {number} of {PAGE.name}", "exec"), found)
        if "run.export()" in example and "answer" not in found:
            found["answer"] = found["run"].student().generate(["Why?"], max_new_tokens=4)
    yield found
    families.OWN.discard("acme")
    families.FAMILIES.pop("acme", None)


def test_the_page_runs_and_its_run_is_the_commands_too(names, place, capsys):
    assert names["rollout"].tokens.shape == (8, 2, 16)
    assert names["pairs"].ends.shape[1:] == (8, 3, 2)
    assert set(names["found"]) > {"generator/loss", "discriminator/loss", "kl/reference"}
    assert int(names["state"].step) == int(names["trainer"].state.step) + 1
    exported, trained = Student("runs/counting/export/student"), Student("runs/counting")
    for student in (exported, trained):
        assert student.generate(["Why?"], max_new_tokens=4) == names["answer"]
    report = (place / "runs/counting/report.html").read_text("utf-8")
    assert "<title>counting: random-tiny from teacher.jsonl" in report
    assert "after gad" in report


def test_a_stage_of_ones_own_is_the_file_that_it_was(names, place):
    flags = (
        "--config=tiny",
        "--stage=custom",
        "--custom.step=anchored.py:step",
        "--run_dir=runs/anchored",
    )
    with Run(*flags, "--custom.steps=3") as run:
        assert [metrics["step"] for metrics in run] == [3]
    file = place / "anchored.py"
    file.write_text(file.read_text("utf-8").replace("0.1 *", "0.2 *"), "utf-8")
    with pytest.raises(
        UserError, match=r"custom.step=anchored.py:step took as it was before .* now "
    ):
        Run(*flags, "--custom.steps=4")
    accepted = (*flags, "--custom.steps=4", "--checkpoint.accept_new_code")
    with Run(*accepted) as run:
        assert [metrics["step"] for metrics in run] == [4]
    with Run(*flags, "--custom.steps=5") as run:  # its last step was taken by the new file
        assert [metrics["step"] for metrics in run] == [5]


def test_a_family_of_ones_own_is_read_and_written(names, place):
    exported = json.loads((place / "runs/acme/export/student/config.json").read_text("utf-8"))
    assert (exported["model_type"], exported["acme_version"], exported["acme_scale"]) == (
        "acme",
        1,
        2.0,
    )
    assert exported["acme_width"] == 32
    assert "hidden_size" not in exported
    before, after = (names["logits"](name, names["ids"]) for name in
                     ("acme-model", "runs/acme/export/student"))  # fmt: skip
    assert before.shape == (1, 20, 512)
    assert 0 < abs(before - after).max() < 0.01  # of one step
    assert "once the family acme is registered" in (
        place / "runs/acme/export/student/README.md"
    ).read_text("utf-8")


def test_a_run_that_is_made_again_goes_on_where_it_stopped(names, place, capsys):
    report, said = place / "runs/parts/report.html", "the report is runs/parts/report.html"

    def losses(run):
        return [metrics["discriminator/loss"] for metrics in run]

    with Run(*FLAGS, "--run_dir=runs/whole") as run:
        whole = losses(run)
        asked = run.student()
        before = asked.generate(["Why?"], max_new_tokens=4)
    capsys.readouterr()
    with Run(*FLAGS, "--run_dir=runs/parts") as run:
        first = [next(run)["discriminator/loss"] for _ in range(2)]
        assert run.report() == Path("runs/parts/report.html")
        first.append(next(run)["discriminator/loss"])
        early = run.student()
        assert report.read_text() == "1 2"
    assert report.read_text() == "1 2 3"  # it was left before its end
    assert "\nheld-out prompts" not in capsys.readouterr().out
    with Run(*FLAGS, "--run_dir=runs/parts") as run:
        assert first + losses(run) == whole
        printed = capsys.readouterr().out
        assert "\nheld-out prompts" in printed
        assert printed.endswith(f"{said}\n")
        assert report.read_text().split() == [str(n + 1) for n in range(len(whole))]
        report.write_text("with a judge's table")
        assert run.report() == Path("runs/parts/report.html")
    assert report.read_text() == "with a judge's table"
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
    with pytest.raises(UserError, match=r"the run in runs/failing is closed; make it again"):
        next(run)
    with Run(*FLAGS, "--run_dir=runs/failing") as run:
        assert next(run)["step"] == 1


def test_an_export_is_pushed_where_it_is_asked_for(names, monkeypatch, capsys):
    done = []
    monkeypatch.setattr(pushing, "create", lambda *given: done.append(given))
    monkeypatch.setattr(
        pushing, "upload", lambda *given: done.append(given[:2]) or "https://hub/it"
    )
    with Run(*FLAGS, "--run_dir=runs/whole") as run:
        with pytest.raises(UserError, match="give ORG/NAME"):
            run.export(push="name")
        directory = run.export(push="org/name", public=True)
    assert directory == Path("runs/whole/export/student")
    assert done == [("org/name", True), ("org/name", directory)]
    assert "https://hub/it" in capsys.readouterr().out


def test_mistakes_are_named(place):
    with pytest.raises(UserError, match="prompts is one text; give a list"):
        Student("random-tiny").generate("Why?")
    with pytest.raises(UserError, match=r"a prompt is .*; give a text, or a list of messages"):
        Student("random-tiny").generate([[{"role": "user"}]])
    with pytest.raises(gad_jax.UserError, match="max_new_tokens=100000 leaves no room for a prom"):
        Student("random-tiny").generate(["Why?"], max_new_tokens=100000)
    assert Student("random-tiny").generate([]) == []
    with pytest.raises(UserError, match="is not a run directory"):
        Discriminator("runs/none")
    with pytest.raises(UserError, match="--nothing: Config has no field"):
        Run("--config=tiny", "--nothing=1")
    with pytest.raises(UserError, match="max_new_tokens"):
        Student("random-tiny").generate(["Why?"], max_new_tokens=0)
    path = write_rows("umlaut.jsonl", [{"prompt": "Grüße?", "teacher_response": ["Ja.", "Nein."]}])
    assert path.read_text("utf-8").count("\n") == 1
    assert "Grüße" in path.read_text("utf-8")
    good = {"prompt": "Hi", "teacher_response": "Yes."}
    for bad, said in (
        ({"promt": "Hi", "teacher_response": "Yes."}, r"^umlaut.jsonl:2: .*prompt"),
        ({"prompt": "Hi", "teacher_respons": "Yes."}, r"^umlaut.jsonl:2: no 'teacher_response'"),
        ({"prompt": "Hi", "teacher_response": ""}, r"^umlaut.jsonl:2: 'teacher_response' is emp"),
        (good | {"id": "a"}, r"^umlaut.jsonl:2: the id is given twice"),
        ({"prompt": {1, 2}}, r"^row 2: .*not JSON serializable; correct it"),
    ):
        with pytest.raises(UserError, match=said):
            write_rows("umlaut.jsonl", [good | {"id": "a"}, bad])
    with pytest.raises(UserError, match=r"^there are no rows for umlaut.jsonl"):
        write_rows("umlaut.jsonl", [])
    assert "Grüße" in path.read_text("utf-8")  # as it was
