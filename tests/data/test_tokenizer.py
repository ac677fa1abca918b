import json

import pytest

from gad_jax.base.errors import UserError
from gad_jax.data.chat import Chat

HEADER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def turns(close):
    """A template whose turns end with `close`, without a generation prompt."""
    turn = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    return "{% for m in messages %}" + turn + close + "{% endfor %}"


def user(text):
    return [{"role": "user", "content": text}]


def token(chat, text):
    return chat.tokenizer.convert_tokens_to_ids(text)


# --- end tokens ---------------------------------------------------------------------------------


def test_end_tokens_come_from_all_files(chat):
    assert chat.end_token == token(chat, "<|im_end|>")
    assert chat.end_tokens == (token(chat, "<|im_end|>"), token(chat, "<|endoftext|>"))
    assert chat.pad_token == token(chat, "<|endoftext|>")


@pytest.mark.parametrize(
    ("options", "end", "ends"),
    [
        # The list's order does not matter: the template decides.
        ({"ends": ["<|endoftext|>", "<|im_end|>"]}, "<|im_end|>", {"<|im_end|>", "<|endoftext|>"}),
        ({"ends": "<|endoftext|>"}, "<|im_end|>", {"<|im_end|>", "<|endoftext|>"}),
        # A base tokenizer with a ChatML template: its eos ends texts, not turns.
        ({"eos": "<|endoftext|>"}, "<|im_end|>", {"<|im_end|>", "<|endoftext|>"}),
        ({"eos": None, "ends": None}, "<|im_end|>", {"<|im_end|>"}),
        # A turn closed by plain text: the tokenizer's eos.
        (
            {"chat_template": turns("\n") + HEADER, "eos": "<|endoftext|>"},
            "<|endoftext|>",
            {"<|endoftext|>"},
        ),
        # A turn closed by the next turn's header, which generation_config lists (as GLM does).
        (
            {
                "chat_template": turns("") + HEADER,
                "eos": "<|endoftext|>",
                "ends": ["<|endoftext|>", "<|im_start|>"],
            },
            "<|im_start|>",
            {"<|endoftext|>", "<|im_start|>"},
        ),
    ],
)
def test_the_template_decides_the_end_token(write_tokenizer, tmp_path, options, end, ends):
    chat = Chat.load(write_tokenizer(tmp_path, **options))
    assert chat.end_token == token(chat, end)
    assert set(chat.end_tokens) == {token(chat, text) for text in ends}


def test_config_json_speaks_without_a_generation_config(write_tokenizer, tmp_path):
    end = token(Chat.load(write_tokenizer(tmp_path)), "<|endoftext|>")
    config = {"model_type": "llama", "eos_token_id": end}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert end in Chat.load(tmp_path).end_tokens
    (tmp_path / "generation_config.json").write_text("{}")
    assert end not in Chat.load(tmp_path).end_tokens


def test_an_end_token_that_ordinary_text_makes_is_refused(write_tokenizer, tmp_path):
    letter = token(Chat.load(write_tokenizer(tmp_path)), "(")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": letter}))
    with pytest.raises(UserError, match=rf"reads the text '\(' as end token {letter}; make it a"):
        Chat.load(tmp_path)


def test_an_end_token_that_is_not_special_stays_text_too(write_tokenizer, tmp_path):
    chat = Chat.load(write_tokenizer(tmp_path, end_flags={"special": False}))
    assert chat.end_token == token(chat, "<|im_end|>")
    assert chat.encode_response("a<|im_end|>b").count(chat.end_token) == 1
    assert chat.encode_prompt(user("a<|im_end|>b")).count(chat.end_token) == 1


def test_without_a_pad_token_the_end_token_pads(write_tokenizer, tmp_path):
    chat = Chat.load(write_tokenizer(tmp_path, pad=None))
    assert chat.pad_token == chat.end_token


# --- directories that cannot be used ------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "the tokenizer has no chat template; use an instruct model or add its chat_templ"),
        ("<|im_start|>" + HEADER, "the chat template drops the user's text"),
        (turns("<|im_end|>\n"), "the chat template ignores add_generation_prompt"),
        ("{{ messages.__class__.__mro__ }}", r"the chat template refuses the conversation \("),
        ("{{ raise_exception('no, never') }}", r"refuses the conversation \(no, never\)"),
        ("{% if %}", r"the chat template refuses the conversation \("),
    ],
)
def test_templates_that_cannot_be_used(write_tokenizer, tmp_path, template, message):
    write_tokenizer(tmp_path, chat_template=template)
    with pytest.raises(UserError, match=message) as caught:
        Chat.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: ")


def test_a_template_may_open_the_answer_with_the_user_turn(write_tokenizer, tmp_path):
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
    )
    chat = Chat.load(write_tokenizer(tmp_path, chat_template=template), "none")
    assert chat.tokenizer.decode(chat.encode_prompt(user("x"))) == "[INST] x [/INST]"
    assert chat.end_token == token(chat, "<|im_end|>")


def test_no_end_token_anywhere(write_tokenizer, tmp_path):
    write_tokenizer(tmp_path, chat_template=turns("\n") + HEADER, eos=None)
    with pytest.raises(UserError, match="neither the chat template nor the tokenizer names an end"):
        Chat.load(tmp_path)


def test_directories_without_a_tokenizer(tmp_path):
    with pytest.raises(UserError, match="absent: no such directory; give a downloaded"):
        Chat.load(tmp_path / "absent")
    with pytest.raises(UserError, match=r"the tokenizer cannot be loaded \("):
        Chat.load(tmp_path)


DAMAGED = [
    {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    },
]


@pytest.mark.parametrize("parts", DAMAGED)
def test_a_tokenizer_that_panics_is_refused(write_tokenizer, tmp_path, parts):
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))
    with pytest.raises(UserError, match=r"the tokenizer cannot be loaded \("):
        Chat.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "generation_config.json: not a JSON object"),
        ("{", "generation_config.json: not a JSON object"),
        ('{"eos_token_id": "</s>"}', "eos_token_id='</s>' must be a token id or a list"),
        ('{"eos_token_id": [true]}', r"eos_token_id=\[True\] must be a token id or a list"),
    ],
)
def test_broken_generation_configs(write_tokenizer, tmp_path, content, message):
    write_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        Chat.load(tmp_path)


def test_code_in_the_directory_is_not_run(write_tokenizer, tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}, "tokenizer_class": "Evil"}
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"the tokenizer cannot be loaded \("):
        Chat.load(tmp_path)
    assert not (tmp_path / "ran").exists()


# --- where templates and tokenizers are ---------------------------------------------------------


def without_template(write_tokenizer, directory):
    write_tokenizer(directory, chat_template=None)
    return directory / "chat_template.json"


def test_the_template_of_a_processor_is_read(write_tokenizer, tmp_path, chatml):
    path = without_template(write_tokenizer, tmp_path)
    path.write_text(json.dumps({"chat_template": chatml}))
    chat = Chat.load(tmp_path, "none")
    assert chat.jinja.source == chatml
    assert chat.end_token == token(chat, "<|im_end|>")
    (tmp_path / "chat_template.jinja").write_text("<|bos|>" + chatml)  # the tokenizer's own wins
    assert Chat.load(tmp_path, "none").jinja.source == "<|bos|>" + chatml
    (tmp_path / "chat_template.jinja").unlink()
    path.write_text("{}")
    with pytest.raises(UserError, match=r"chat_template.json: it has no text under chat_template"):
        Chat.load(tmp_path)


def test_of_named_templates_the_default_is_taken(write_tokenizer, tmp_path, chatml):
    without_template(write_tokenizer, tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    named = [{"name": "default", "template": chatml}, {"name": "tool_use", "template": "tools"}]
    path.write_text(json.dumps(config | {"chat_template": named}))
    assert Chat.load(tmp_path).jinja.source == chatml
    named[0]["name"] = "rag"
    path.write_text(json.dumps(config | {"chat_template": named}))
    with pytest.raises(
        UserError, match=r"none of its chat templates \(rag, tool_use\) is called d"
    ):
        Chat.load(tmp_path)


def test_tokenizer_model_alone_needs_sentencepiece(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"needs sentencepiece; run `pip install sentencepiece prot"
    ):
        Chat.load(tmp_path)


def test_a_template_without_end_is_refused_when_it_is_loaded(
    write_tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr("gad_jax.data.template.MOST_SECONDS", 0.2)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    write_tokenizer(tmp_path, chat_template=loops)
    with pytest.raises(UserError, match="takes more than"):
        Chat.load(tmp_path)
