"""Arguments of a chat template, as text."""

import pytest

from gad_jax.settings import options, template_arguments
from gad_jax.settings.config import Config
from gad_jax.settings.fields import FieldError


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("", {}),
        ("  ", {}),
        ("{}", {}),
        ("enable_thinking=false", {"enable_thinking": False}),
        ("enable_thinking=False", {"enable_thinking": False}),
        ("a=TRUE, b = none,c=3,d=0.5", {"a": True, "b": None, "c": 3, "d": 0.5}),
        ("effort=low,date=26 Jul 2024", {"effort": "low", "date": "26 Jul 2024"}),
        ("a=nan,b=x=y", {"a": "nan", "b": "x=y"}),
        ('{"enable_thinking": false, "o": {"a": [1, "x"]}}', None),
    ],
)
def test_both_ways_of_writing(text, arguments):
    found = template_arguments.parse(text)
    if arguments is None:
        arguments = {"enable_thinking": False, "o": {"a": [1, "x"]}}
    assert found == arguments
    assert [type(value) for value in found.values()] == [type(v) for v in arguments.values()]
    assert template_arguments.parse(template_arguments.show(found)) == found
    assert template_arguments.parse(template_arguments.canonical(text)) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("enable_thinking", "'enable_thinking' is not NAME=VALUE, as enable_thinking=false"),
        ("a=1,,b=2", "'' is not NAME=VALUE"),
        ("a b=1", "'a b=1' is not NAME=VALUE"),
        ("a=1,a=2", "has 'a' twice; keep one"),
        ('{"a": 1, "a": 2}', "has 'a' twice; keep one"),
        ("{'a': 1}", "is not a JSON object, such as"),
        ("messages=x", "messages is not for you to set"),
        ('{"tools": []}', "tools is not for you to set"),
        ("add_generation_prompt=false", "add_generation_prompt is not for you to set"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(FieldError, match=r"^chat_template_kwargs") as caught:
        template_arguments.parse(text)
    assert message in str(caught.value)


def test_the_same_arguments_are_the_same_setting(tmp_path):
    flags = {
        "enable_thinking=false,x=1": 0,
        '{"x": 1, "enable_thinking": false}': 0,
        "x=1, enable_thinking=FALSE": 0,
    }
    configs = [
        options.read(
            Config,
            [f"--data.chat_template_kwargs={flag}"],
            program="train",
            description="",
        )
        for flag in flags
    ]
    assert configs[0] == configs[1] == configs[2]
    path = tmp_path / "config.yaml"
    path.write_text(options.to_yaml(configs[0]))
    assert options.load(Config, path) == configs[0]
    none = options.read(Config, ["--data.chat_template_kwargs={}"], program="t", description="")
    assert none.data.chat_template_kwargs == ""
    assert template_arguments.canonical("{}") == "{}"  # which a command tells from nothing given
