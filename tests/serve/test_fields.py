"""Fields of other servers: harmless, neutral, or refused by name."""

from typing import Any

import pytest

from gad_jax.serve import fields
from gad_jax.serve.errors import Refused

OWN = ("temperature", "max_tokens", "stop", "messages", "chat_template_kwargs")


def refusal(given: dict[str, Any], **more: tuple[Any, ...]) -> Refused:
    with pytest.raises(Refused) as caught:
        fields.check(given, OWN, more)
    assert caught.value.status == 400
    assert caught.value.param in given
    return caught.value


def test_what_changes_nothing_is_taken() -> None:
    fields.check({name: {"a": [1]} for name in fields.HARMLESS}, OWN, {})
    for name, values in fields.NEUTRAL.items():
        assert None in values
        for value in values:
            fields.check({name: value}, OWN, {})
    fields.check({"logit_bias": {"5": 0, "6": 0.0}}, OWN, {})
    fields.check({"suffix": ""}, OWN, {"suffix": (None, "")})


@pytest.mark.parametrize("name", sorted(fields.NEUTRAL))
def test_other_values_are_refused_by_name(name: str) -> None:
    error = refusal({"user": "me", name: "<other>"})
    assert error.message == f"{name} is not supported; leave it out"
    assert (error.param, error.code) == (name, "unsupported")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("temprature", "did you mean temperature?"),
        ("max_new_tokens", "did you mean max_tokens?"),
        ("enable_thinking", "did you mean chat_template_kwargs?"),
        ("random_seed", "leave it out"),  # this endpoint has no seed
        ("no_such_field", "leave it out"),
    ],
)
def test_unknown_fields_are_named(name: str, advice: str) -> None:
    error = refusal({name: None})
    assert error.message == f"{name} is unknown to this server; {advice}"
    assert error.code == "unknown_field"


def test_a_long_name_is_cut() -> None:
    with pytest.raises(Refused) as caught:
        fields.check({"x" * 10**6: 1}, OWN, {})
    assert len(caught.value.message) < 200
