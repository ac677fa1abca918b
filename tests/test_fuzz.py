"""Random input for what reads text of others: it is read or refused with a UserError, nothing else.

A few seconds; `HYPOTHESIS_PROFILE=long` tries a hundred times as many examples.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gad_jax.base.errors import UserError
from gad_jax.data import sources
from gad_jax.data.chat import Chat
from gad_jax.models.builtin import tiny
from gad_jax.settings import options
from gad_jax.settings.config import Config

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
# The same examples each time; caches of libraries make the first one slow.
settings.register_profile(
    "fuzz",
    max_examples=6000 if LONG else 60,
    deadline=None,
    derandomize=not LONG,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("fuzz")

TEXT = st.text(st.characters(exclude_categories=[]), max_size=30)  # surrogates too
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]) | SCALARS, "content": SCALARS}
    ),
    max_size=4,
)
RECORDS = st.fixed_dictionaries(
    {},
    optional={
        "messages": MESSAGES | VALUES,
        "prompt": VALUES,
        "teacher_response": VALUES | st.lists(TEXT, max_size=3),
        "id": VALUES,
    },
)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Chat:
    directory = tmp_path_factory.mktemp("model")
    tiny.write_tiny(directory)
    return Chat.load(directory)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    before = Path.cwd()
    folder = tmp_path_factory.mktemp("fuzz")
    os.chdir(folder)
    yield folder
    os.chdir(before)


def check_sentence(error: UserError, begins: str = "") -> None:
    """It is one line, and says where."""
    assert "\n" not in str(error)
    assert str(error).startswith(begins)


@given(st.lists(RECORDS.map(json.dumps).map(str.encode) | st.binary(max_size=80), max_size=4))
@example([b'{"prompt": "\\ud800", "teacher_response": "x"}'])
def test_rows(folder: Path, chat: Chat, lines: list[bytes]) -> None:
    path = folder / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    for skip in (False, True):
        try:
            rows = sources.read(path, skip_invalid=skip)
        except UserError as error:
            check_sentence(error)
            continue
        for row in rows:
            prompt = chat.encode_prompt(row.messages)
            # What a user wrote opens no turn and ends none: the template's own tokens are all.
            turns = len(row.messages)
            assert prompt.count(chat.end_token) == turns
            for response in row.responses:
                tokens = chat.encode_response(response)
                assert tokens.count(chat.end_token) == 1
                assert chat.decode(tokens) == response


NAMES = st.sampled_from(
    [
        "seed",
        "run_dir",
        "batch",
        "prompts",
        "rollout",
        "top_p",
        "health",
        "kl",
        "limit",
        "action",
        "x",
    ]
)
TREES = st.recursive(SCALARS, lambda inner: st.dictionaries(NAMES | TEXT, inner, max_size=3))


@given(st.one_of(TREES.map(lambda tree: json.dumps(tree).encode()), st.binary(max_size=120)))
@example(b"seed: &a [*a]")
@example(b"? [a, b]\n: 1")
@example(b"seed: 2001-13-45")
@example(b"seed: 1_0:59")
def test_configurations(folder: Path, content: bytes) -> None:
    path = folder / "config.yaml"
    path.write_bytes(content)
    try:
        config = options.load(Config, path)
    except UserError as error:
        check_sentence(error, "config.yaml")
        return
    path.write_text(options.to_yaml(config), encoding="utf-8")
    assert options.load(Config, path) == config


PIECES = st.sampled_from(
    [
        *("{% for m in messages %}", "{% endfor %}", "{{ m['content'] }}", "{{ m.role }}"),
        *("{% if add_generation_prompt %}", "{% endif %}", "{{ eos_token }}", "{{ x.y.z }}"),
        *("{{ messages[0]['content'] }}", "{{ 1 / 0 }}", "{{ raise_exception('no') }}"),
        *("{%", "}}", "<|im_end|>", "assistant\n"),
    ]
)


@settings(max_examples=2000 if LONG else 20)
@given(st.lists(PIECES | TEXT, max_size=8).map("".join))
@example("{% for m in messages %}{{ m['content'] }}{% endfor %}{{ messages.__class__ }}")
def test_templates(folder: Path, template: str) -> None:
    directory = folder / "model"
    tiny.write_tiny(directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    try:
        chat = Chat.load(directory)
        prompt = chat.encode_prompt([{"role": "user", "content": "hello"}])
    except UserError as error:
        check_sentence(error, str(directory))
        return
    assert "hello" in chat.tokenizer.decode(prompt)
