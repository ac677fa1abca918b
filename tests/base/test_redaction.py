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


@pytest.mark.parametrize(
    "name",
    [
        *("PGPASSWORD", "APIKEY", "ACCESSTOKEN", "OPENAI_API_KEY", "OPENAI_API_KEY_2", "HF_TOKEN"),
        *("MYSQL_PWD", "SSHPASS", "DB_PASS", "GITHUB_PAT", "AWS_SECRET_ACCESS_KEY", "API_KEYS"),
        *("CLIENT_SECRET", "HF_TOKEN_WRITE", "apikey", "dbpassword", "CREDENTIALS", "OPENAIKEY"),
        *("NPM_AUTH", "SERVICE_JWT", "HTTP_AUTHORIZATION", "SESSION_COOKIE"),
    ],
)
def test_a_variable_named_like_a_secret_is_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "correct-horse")
    assert redaction.redact("it is correct-horse") == f"it is {redaction.MASK}"


@pytest.mark.parametrize(
    "name",
    [
        *("TOKENIZERS_PARALLELISM", "KEYBOARD", "MONKEY", "SSL_KEY_FILE", "COMPASS", "BYPASS"),
        *("PATTERN", "XAUTHORITY", "SSH_AUTH_SOCK", "PGPASSFILE", "OLDPWD", "KEYMAP"),
    ],
)
def test_other_variables_are_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "correct-horse")
    assert redaction.redact("it is correct-horse") == "it is correct-horse"


def test_a_password_in_a_url_is_hidden() -> None:
    hidden = redaction.redact("http://user:correct@host:1 and postgres://:correct@host/x")
    assert hidden == f"http://user:{redaction.MASK}@host:1 and postgres://:{redaction.MASK}@host/x"
    assert redaction.redact("http://host:3128/a@b") == "http://host:3128/a@b"


def test_in_a_models_text_only_the_key_itself_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_variables", {"A_DOOR"})
    monkeypatch.setenv("A_DOOR", KEY)
    monkeypatch.setenv("OTHER_KEY", "function")
    text = "a function takes sk-abcdefghijklmnop0123456789"
    assert redaction.mask_keys(f"{text} {KEY}") == f"{text} {redaction.MASK}"
    monkeypatch.setenv("A_DOOR", "EMPTY")  # what local servers are given
    assert redaction.mask_keys("EMPTY is a word") == "EMPTY is a word"
    monkeypatch.setenv("A_DOOR", "ollama")
    assert redaction.mask_keys("ollama is a program") == "ollama is a program"
    monkeypatch.setenv("A_DOOR", "k3y-9z")  # short, and yet nobody's word
    assert redaction.mask_keys("it is k3y-9z") == f"it is {redaction.MASK}"


def test_text_cannot_steer_a_terminal() -> None:
    assert redaction.printable("a\x1b[2J\x9b\r\u202e\nb\tc") == "a\ufffd[2J\ufffd\ufffd\ufffd\nb\tc"
