"""Errors as sentences."""

import pytest

from gad_jax.base.errors import DEBUG, UserError, first_line, sentence, stop


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("  one\ntwo")) == "one"
    assert first_line(ValueError("one\r\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"
    assert first_line(OSError("\n")) == "OSError"
    assert first_line(ValueError("one\ntwo"), with_class=True) == "ValueError: one"
    assert first_line(KeyError(), with_class=True) == "KeyError"
    assert first_line(ValueError("x" * 999)) == "x" * 300


def test_a_sentence_has_a_traceback_only_for_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DEBUG, raising=False)
    assert sentence(UserError("one sentence")) == "one sentence"
    monkeypatch.setenv(DEBUG, "1")
    assert sentence(UserError("one sentence")).endswith("UserError: one sentence\none sentence")


def test_stop_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        stop(UserError("one sentence"))
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("one sentence\n")
