"""Error bodies of many servers: what they say, and what follows."""

import pytest

from gad_jax.teacher.failures import Failure, Follows, failure_in, find_failure, said
from tests.teacher.bodies import ABOUT_THE_PROMPT, ABOUT_THE_RUN, UNCLEAR


@pytest.mark.parametrize(("status", "body"), ABOUT_THE_PROMPT)
def test_a_prompt_that_is_too_long_or_filtered(status: int, body: object) -> None:
    failure = failure_in(body)
    assert failure.words
    assert failure.follows(status) is Follows.PROMPT


@pytest.mark.parametrize(("status", "body"), UNCLEAR)
def test_what_does_not_say_whom_it_is_about(status: int, body: object) -> None:
    assert failure_in(body).follows(status) is Follows.DOUBT


@pytest.mark.parametrize(("status", "body"), ABOUT_THE_RUN)
def test_keys_models_and_money_are_about_all_requests(status: int, body: object) -> None:
    assert failure_in(body).follows(status) is Follows.END


def test_a_rate_limit_is_no_quota() -> None:
    words = "You exceeded your current quota, please check your plan."
    gemini = {"error": {"code": 429, "message": words, "status": "RESOURCE_EXHAUSTED"}}
    openai = {"error": {"message": words, "type": "insufficient_quota", "code": None}}
    assert failure_in(gemini).follows(429) is Follows.RETRY
    assert failure_in(openai).follows(429) is Follows.END
    assert failure_in({}).follows(500) is failure_in(openai).follows(503) is Follows.RETRY


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"code": 502, "message": "Provider returned error"}, 502),
        ({"code": "429", "message": "slow down"}, 429),
        ({"type": "rate_limit_error"}, 429),
        ({"code": "server_error"}, 500),
        ({"message": "something"}, 500),
        ("overloaded", 500),
        ({"code": "content_filter"}, 400),
        ({"type": "invalid_request_error", "message": "bad image"}, 400),
        ({"code": "invalid_api_key"}, 400),
    ],
)
def test_an_error_in_a_reply_has_the_status_of_its_code(error: object, status: int) -> None:
    failure = find_failure({"error": error})
    assert failure is not None
    assert failure.status == status


def test_a_reply_without_an_error_has_none() -> None:
    for reply in ({"choices": [], "error": None}, {"no": 1}, {"error": {}}, {}):
        assert find_failure(reply) is None
    assert find_failure({"object": "error", "message": "m", "code": 40303}) == ("40303", "m")
    assert find_failure({"detail": "Not authenticated"}) == ("", "Not authenticated")


def test_words_are_one_line_without_codes_for_a_terminal() -> None:
    text = said("a\n\x1b[2Jb \u202e sk-SENTINEL0123456789abcdef " + "x" * 400)
    assert text.startswith("a \ufffd[2Jb \ufffd [redacted] x")
    assert len(text) == 300


def test_a_hostile_body_is_read_to_a_bound() -> None:
    deep: object = "end"
    for _ in range(900):
        deep = {"error": [deep]}
    assert failure_in(deep) == Failure("", "")
    wide = failure_in({"errors": [{"code": n, "message": str(n)} for n in range(10_000)]})
    assert len(wide.code.split()) <= 12
    assert failure_in([]) == failure_in(None) == failure_in(7) == Failure("", "")
    assert failure_in({"error": {"code": True, "message": 3}}) == Failure("", "")
