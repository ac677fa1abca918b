"""What looks like a secret is hidden, and what does not is kept."""

import pytest

from gad_jax.base import redaction

KEY = "sk-proj-SENTINEL0123456789abcdef"


def test_what_looks_like_a_secret_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TEACHER_KEY", "correct horse battery")
    monkeypatch.setenv("SHORT_TOKEN", "true")
    monkeypatch.setenv("MY_DOOR", "7-7")
    assert redaction.redact("7-7") == "7-7"
    monkeypatch.setattr(redaction, "_variables", set())
    redaction.protect("MY_DOOR")
    assert redaction.redact("it is 7-7") == f"it is {redaction.MASK}"
    for text in (
        f"Incorrect API key provided: {KEY}.",
        "token hf_abcdefghijklmnopqrstuvwxyz012345 is wrong",
        "Authorization: Bearer abc.def-ghi_jkl",
        "ghp_0123456789abcdefghijklmnopqrstuvwxyz",
        "the password is correct horse battery!",
    ):
        hidden = redaction.redact(text)
        assert redaction.MASK in hidden
        for secret in (KEY, "hf_abc", "abc.def", "ghp_0", "horse"):
            assert secret not in hidden
    for text in (
        "task-specific prompts, true or false",
        "org/risk-assessment-of-language-models",
        "a bearer of news",
        "hf-internal-testing/tiny-random-LlamaForCausalLM",
        "shf_x",
    ):
        assert redaction.redact(text) == text
        assert not redaction.looks_secret(text)
