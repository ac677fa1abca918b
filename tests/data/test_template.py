"""Templates with arguments, in bounded time, and as they are stored."""

import time

import pytest

from gad_jax.base.errors import UserError
from gad_jax.data import template as templates
from gad_jax.data.template import Template
from tests.data.chat_templates import PLAIN, QWEN3, SMOLLM3

_DOUBLED = (
    "{{% set n = namespace(x='a') %}}"
    "{{% for i in range(60) %}}{{% set n.x = n.x {} n.x %}}{{% endfor %}}"
)
QUESTION = [{"role": "user", "content": "q"}]
ANSWERED = [*QUESTION, {"role": "assistant", "content": "a"}]


def make(source, arguments=None):
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    return Template("model", source, special, arguments)


def test_an_argument_that_is_never_read_is_refused_with_those_that_are():
    assert make(QWEN3.template).reads == ("enable_thinking",)
    with pytest.raises(UserError) as caught:
        make(QWEN3.template, {"enable_thinkin": False})
    assert str(caught.value) == (
        "chat_template_kwargs: the chat template of model never reads 'enable_thinkin'; it reads "
        "enable_thinking"
    )
    with pytest.raises(UserError, match=r"never reads 'thinking'; it reads none$"):
        make(PLAIN["chatml"].template, {"thinking": True})
    # what the program passes is no argument
    with pytest.raises(UserError, match="never reads 'messages'"):
        make(QWEN3.template, {"messages": []})
    assert make(PLAIN["llama3"].template).reads == ("date_string",)
    assert make(PLAIN["gpt-oss"].template).reads == ("reasoning_effort",)


def test_arguments_reach_the_template():
    assert make("{{ x or 'none' }}{{ messages }}").render(QUESTION, True)[:4] == "none"
    assert make("{{ x }}{{ messages }}", {"x": "low"}).render(QUESTION, True)[:3] == "low"
    assert make("{{ bos_token }}", {"bos_token": "B"}).render(QUESTION, True) == "B"


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        (QWEN3.template, {"enable_thinking": False}),
        (QWEN3.template, {"enable_thinking": True}),
        (SMOLLM3.template, {"enable_thinking": False}),
        (PLAIN["llama3"].template, {"date_string": "1. Mai \N{GRINNING FACE} \"'\\"}),
        (PLAIN["gpt-oss"].template, {"reasoning_effort": "low"}),
        (
            "{% macro say(m) %}{{ m.content }}{{ x.a }}{{ y[1] }}{% endmacro %}"
            "{% for m in messages %}{{ say(m) }}{{ x.b }}{{ z is none }}{% endfor %}",
            {"x": {"a": 1, "b": False}, "y": [0.5, "\n"], "z": None},
        ),
    ],
)
def test_the_stored_template_needs_no_arguments(source, arguments):
    given = make(source, arguments)
    stored = make(given.stored("</think>"))
    for messages in (QUESTION, ANSWERED):
        assert stored.render(messages, False) == given.render(messages, False)
        assert stored.render(messages, True) == given.render(messages, True) + "</think>"
    # what is given later still counts
    other = dict.fromkeys(arguments, "other") if len(arguments) == 1 else arguments
    assert make(given.stored(), other).render(QUESTION, True) == (
        make(source, other).render(QUESTION, True)
    )
    assert make(source).stored() == source


@pytest.mark.parametrize("name", PLAIN)
def test_templates_are_stored_as_they_are(name):
    source = PLAIN[name].template
    assert make(source).stored() == source


def test_the_date_is_fixed_in_every_form():
    source = (
        "{{ strftime_now('%d %b %Y') }}|{{ strftime_now('%Y-%m-%d') }}|{{ strftime_now('%B') }}"
    )
    assert make(source).render(QUESTION, True) == "26 Jul 2024|2024-07-26|July"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ range(99999) | join }}{% endfor %}",
        "{% for i in range(99999) %}{{ range(99999) | list | length }}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
        "{{ 'x' * 10 ** 9 }}",
        "{{ 10 ** (10 ** 9) }}",
        "{{ 'x'.center(10 ** 9) }}{{ 'x' | center(1000000000) }}",
        "{{ 'x' | center(1000000000) }}",
        "{{ '%1000000000d' % 3 }}",
        _DOUBLED.format("+"),
        _DOUBLED.format("~"),
    ],
)
def test_a_template_ends_in_bounded_time(monkeypatch, source):
    monkeypatch.setattr(templates, "MOST_SECONDS", 0.3)
    monkeypatch.setattr(templates, "MOST_CHARACTERS", 2**20)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"^model: the chat template (takes more than|refuses)"):
        make(source).render(QUESTION, True)
    assert time.monotonic() - started < 60


def test_loops_see_what_they_see_in_jinja():
    source = (
        "{% for m in messages %}{{ loop.index }}{{ loop.last }}{{ loop.length }}"
        "{{ loop.previtem is defined }}{{ loop.nextitem is defined }}"
        "{% if m.role == 'user' %}{% continue %}{% endif %}"
        "{{ loop.cycle('x', 'y') }}{% else %}none{% endfor %}"
        "{% for k, v in {'a': 1}.items() if v %}{{ k }}{{ v }}{% endfor %}{{ 'a' ~ 1 ~ [2] }}"
    )
    from transformers.utils import chat_template_utils

    (expected,), _ = chat_template_utils.render_jinja_template([ANSWERED], chat_template=source)
    assert make(source).render(ANSWERED, False) == expected
