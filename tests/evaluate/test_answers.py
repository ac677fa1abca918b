"""Files of answers: resuming after a crash, refusing what does not fit."""

from pathlib import Path

import pytest

from gad_jax.base.errors import UserError
from gad_jax.data.sources.rows import Row
from gad_jax.evaluate.answers import AnswerFile
from tests.training.report.test_answers import line

ROWS = [Row(({"role": "user", "content": f"Question {n}?"},), (), f"row-{n}") for n in range(4)]
ABOUT = {"label": "gad", "model": "m", "prompts": "set", "max_new_tokens": 8}


def test_a_file_resumes_where_a_crash_ended_it(tmp_path: Path) -> None:
    path = tmp_path / "set" / "gad.jsonl"
    file = AnswerFile(path, ROWS, dict(ABOUT))
    file.begin("step 1")
    file.append([line(0, 3), line(1, 4)])
    whole = path.read_bytes()
    for cut in (1, 40):  # the last line torn in its last byte, and in its middle
        path.write_bytes(whole[:-cut])
        again = AnswerFile(path, ROWS, dict(ABOUT))
        assert again.lines == [line(0, 3)]
        assert not again.complete
        again.begin("step 1")
        again.append([line(1, 4)])
        assert path.read_bytes() == whole
    again.append([line(2, 5), line(3, 6)])
    done = AnswerFile(path, ROWS, dict(ABOUT))
    assert done.complete
    assert done.answers().origin == "step 1"
    # fewer prompts of the same set
    assert len(AnswerFile(path, ROWS[:2], dict(ABOUT)).answers().lines) == 2


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gad.jsonl"
    file = AnswerFile(path, ROWS, dict(ABOUT))
    file.begin("step 1")
    file.append([line(0, 3)])
    with pytest.raises(UserError, match="max_new_tokens: 8 → 9"):
        AnswerFile(path, ROWS, ABOUT | {"max_new_tokens": 9})
    with pytest.raises(UserError, match="other prompts, the first of them at row-1"):
        AnswerFile(path, ROWS[1:], dict(ABOUT))
    (tmp_path / "other.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="but not other"):
        AnswerFile(tmp_path / "other.jsonl", ROWS, dict(ABOUT))
    with pytest.raises(UserError, match="answers of step 1 and would continue with step 2"):
        AnswerFile(path, ROWS, dict(ABOUT)).begin("step 2")
    scored = AnswerFile(tmp_path / "scored.jsonl", ROWS, dict(ABOUT))
    scored.begin("step 1", "run D, step 4")
    scored.append([line(0, 3)])
    again = AnswerFile(tmp_path / "scored.jsonl", ROWS, dict(ABOUT))
    again.begin("step 1", "run D, step 4")
    with pytest.raises(UserError, match="scores of run D, step 4 and would continue with run D, s"):
        again.begin("step 1", "run D, step 5")
    path.write_text("no JSON\n")
    with pytest.raises(UserError, match="no JSON"):
        AnswerFile(path, ROWS, dict(ABOUT))


def test_a_file_of_before_had_no_arguments_of_the_chat_template(tmp_path: Path) -> None:
    path = tmp_path / "set" / "gad.jsonl"
    file = AnswerFile(path, ROWS, dict(ABOUT))
    file.begin("run, step 1")
    file.append([line(0, 3)])
    assert len(AnswerFile(path, ROWS, ABOUT | {"chat_template_kwargs": ""}).lines) == 1
    with pytest.raises(UserError, match=r"chat_template_kwargs:  → \{"):
        AnswerFile(path, ROWS, ABOUT | {"chat_template_kwargs": '{"enable_thinking": false}'})
