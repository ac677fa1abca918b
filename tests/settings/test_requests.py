"""The parameters of a request, and the checks that collect and the judge share."""

import pytest

from gad_jax.collect.settings import Collect
from gad_jax.evaluate.judge.settings import Judge
from gad_jax.settings.requests import api_parameters, longest_response


def test_parameters_of_the_api() -> None:
    named = {"temperature": 0.0, "top_p": None, "max_tokens": 7}
    found = api_parameters(named, '{"presence_penalty": 0.5, "max_completion_tokens": 9}')
    assert found == {
        "temperature": 0.0,
        "max_tokens": 7,
        "presence_penalty": 0.5,
        "max_completion_tokens": 9,
    }
    assert longest_response(found) == 9
    assert longest_response({"max_tokens": 7}) == 7
    assert longest_response(api_parameters({}, " ")) == 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("[1]", "parameters must be a JSON object"),
        ("{", "parameters must be a JSON object"),
        ('{"stream": true}', "stream has a flag of its own or is not for you to set"),
        ('{"max_tokens": 0}', "max_tokens must be an integer greater than 0"),
        ('{"max_tokens": true}', "max_tokens must be an integer greater than 0"),
    ],
)
def test_parameters_that_cannot_be_sent(more: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        api_parameters({}, more)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"concurrency": 0}, "concurrency=0 must be greater than 0"),
        ({"attempts": 0}, "attempts=0 must be greater than 0"),
        ({"timeout": 0.0}, "timeout=0.0 must be greater than 0"),
        ({"max_wait": -1.0}, "max_wait=-1.0 must be 0 or more"),
        ({"prompt_price": -1.0}, "prompt_price=-1.0 must be 0 or more"),
        ({"max_cost": 1.0}, "max_cost needs prices"),
        ({"max_total_tokens": 5, "max_new_tokens": 0}, "max_new_tokens is needed"),
    ],
)
def test_collect_and_the_judge_refuse_the_same(given: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Collect(prompts="p", out="o", model="m", **given)
    with pytest.raises(ValueError, match=says):
        Judge(model="m", **given)
    Judge(**given)  # without a model nothing is judged
