"""Prompts and teacher rows are those of the template's own text, for the forms of public models."""

import pytest

from gad_jax.base.errors import UserError
from gad_jax.data.chat import Chat
from tests.data import chat_templates
from tests.data.chat_templates import OPEN, PLAIN, THINKING, Family

ANSWERS = [
    "Paris.",
    "  Two lines,\n\nthe second.  \n",
    "안녕 \N{GRINNING FACE}",
    "1",
    "a <b> [x] {{ x }}",
]


def user(text):
    return {"role": "user", "content": text}


def conversations(family):
    found = [
        [user("Which city?")],
        [user("  One\n"), {"role": "assistant", "content": "Yes."}, user("Two")],
    ]
    if family.system:
        found.append([{"role": "system", "content": "Be brief."}, user("Three")])
    return found


def load(write_tokenizer, directory, family: Family, arguments=None, backend=None, **more) -> Chat:
    write_tokenizer(
        directory,
        family.template,
        eos=family.eos,
        special=family.special,
        added=family.added,
        bos=family.bos,
        backend=backend,
    )
    return Chat.load(directory, "none", arguments, **more)


def rendered(chat, messages, prompt, **arguments):
    """transformers' own tokens, at the date of the program."""
    template = chat.jinja.source.replace("strftime_now(", "'26 July 2024' or (")
    text = chat.tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=prompt, **arguments
    )
    return chat.tokenizer(text, add_special_tokens=False)["input_ids"]


def check_rows(chat, family, arguments, answers=ANSWERS):
    for messages in conversations(family):
        prompt = chat.encode_prompt(messages)
        if "strftime_now" not in family.template:
            assert prompt == rendered(chat, messages, True, **arguments)
        for answer in answers:
            row = chat.encode_response(answer)
            whole = [*messages, {"role": "assistant", "content": answer}]
            if chat.jinja.render(messages, True).endswith(" "):
                # A token with the last blank would be half of the prompt: the texts are equal.
                text = chat.tokenizer.decode(prompt + row)
                assert chat.jinja.render(whole, False).startswith(text)
                continue
            expected = chat.encoder.encode([chat.jinja.render(whole, False)])[0]
            if "strftime_now" not in family.template:
                assert expected == rendered(chat, whole, False, **arguments)
            assert expected[: len(prompt)] == prompt
            assert expected[len(prompt) :][: len(row) - 1] == row[:-1]
            assert row[-1] == chat.end_token
            if len(expected) >= len(prompt) + len(row):  # GLM's end is the next turn's header
                assert expected[len(prompt) + len(row) - 1] == chat.end_token
            assert row.count(chat.end_token) == 1


@pytest.mark.parametrize("name", PLAIN)
def test_prompt_and_row_are_those_of_transformers(write_tokenizer, tmp_path, name):
    family = PLAIN[name]
    chat = load(write_tokenizer, tmp_path, family)
    check_rows(chat, family, {})
    text = chat.tokenizer.convert_ids_to_tokens(chat.end_token)
    assert text == (family.end or family.eos)
    if family.bos:
        bos = chat.tokenizer.bos_token_id
        assert chat.encode_prompt([user("x")]).count(bos) == family.template.count("bos_token }}")


def sentencepiece(old: bool):
    """A BPE tokenizer with SentencePiece's blanks, as Llama 2's or as Mistral v3's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    letters = sorted({chr(n) for n in range(33, 127)} | {"\u2581", "\n"})
    trainer = trainers.BpeTrainer(
        initial_alphabet=letters,
        special_tokens=["<unk>", *(f"<0x{n:02X}>" for n in range(256))],
        vocab_size=420,
        show_progress=False,
    )
    blanks = normalizers.Replace(" ", "\u2581")
    if old:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), blanks])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.train_from_iterator(["Which city? Paris. Two lines, the second. Yes."], trainer)
    return backend


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(
    "name", ["llama2", "mistral v1", "mistral v3", "mistral v7", "zephyr", "vicuna", "gemma"]
)
def test_sentencepiece_rows_are_those_of_transformers(write_tokenizer, tmp_path, name, old):
    family = PLAIN[name]
    chat = load(write_tokenizer, tmp_path, family, backend=sentencepiece(old))
    check_rows(chat, family, {}, ("Paris.", "Yes, two\nlines.", "안녕"))
    row = chat.encode_response("Yes.")
    assert chat.decode(row) == "Yes."


@pytest.mark.parametrize("name", PLAIN)
def test_a_response_gives_its_text_back(write_tokenizer, tmp_path, name):
    chat = load(write_tokenizer, tmp_path, PLAIN[name])
    for answer in ANSWERS:
        row = chat.encode_response(answer)
        assert chat.decode(row) == chat.turn.strip(answer)
        assert chat.reply(row) == ("", chat.turn.strip(answer), True)
        assert chat.encode_response(chat.decode(row)) == row


@pytest.mark.parametrize("name", THINKING)
def test_without_thinking_the_answer_follows_the_prompt(write_tokenizer, tmp_path, name):
    family, arguments = THINKING[name], {"enable_thinking": False}
    chat = load(write_tokenizer, tmp_path, family, arguments, close_thoughts=True)
    assert chat.turn.closed
    assert chat.check_answers_only() == ""
    check_rows(chat, family, arguments)
    for answer in ANSWERS:  # what D sees of a student that gives the teacher's answer
        row = chat.encode_response(answer)
        assert chat.encode_response(chat.reply(row).answer) == row


@pytest.mark.parametrize("name", THINKING)
def test_a_student_that_would_think_is_refused_by_the_arguments_name(
    write_tokenizer, tmp_path, name
):
    chat = load(write_tokenizer, tmp_path, THINKING[name], close_thoughts=True)
    with pytest.raises(UserError, match=r"pass --data\.chat_template_kwargs=enable_thinking=false"):
        chat.check_answers_only()
    wanted = chat.with_arguments({"enable_thinking": True})  # the user has decided
    assert wanted.check_answers_only() == ""


@pytest.mark.parametrize("name", OPEN)
def test_an_open_thought_is_closed_before_the_answer(write_tokenizer, tmp_path, name):
    family, closing = OPEN[name]
    open_chat = load(write_tokenizer, tmp_path, family)
    closed = Chat.load(tmp_path, "none", close_thoughts=True)
    assert open_chat.turn.opens
    assert f"closed with {closing!r}" in closed.check_answers_only()
    messages = conversations(family)[0]
    text = closed.jinja.render(messages, True)
    assert closed.encode_prompt(messages) == closed.encoder.encode([text + closing])[0]
    assert open_chat.encode_prompt(messages) == closed.encoder.encode([text])[0]
    for answer in ANSWERS:
        # The same row either way: no answer is ever inside the thought.
        row = closed.encode_prompt(messages) + closed.encode_response(answer)
        assert row == open_chat.encode_prompt(messages) + open_chat.encode_response(answer)
        for chat in (open_chat, closed):
            response = chat.encode_response(answer)
            assert chat.reply(response) == ("", chat.turn.strip(answer), True)
            assert chat.encode_response(chat.decode(response)) == response


def test_an_empty_thought_before_answers_becomes_the_end_of_the_prompt(write_tokenizer, tmp_path):
    chat = load(write_tokenizer, tmp_path, chat_templates.EMPTY)
    closed = Chat.load(tmp_path, "none", close_thoughts=True)
    assert "prompts end in it ('<think></think>')" in closed.check_answers_only()
    check_rows(chat, chat_templates.EMPTY, {})
    messages = conversations(chat_templates.EMPTY)[1]
    for answer in ANSWERS:  # the same row, of which the student samples the answer alone
        whole = chat.encode_prompt(messages) + chat.encode_response(answer)
        assert whole == closed.encode_prompt(messages) + closed.encode_response(answer)
        assert closed.decode(closed.encode_response(answer)) == answer
    assert closed.encode_response("1") == [*closed.encoder.encode(["1"])[0], closed.end_token]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "[{{ add_generation_prompt }}{{ messages[-1].content }}]",
            "writes an answered turn other",
        ),
        ("{% if add_generation_prompt %}x{% endif %}", "drops the user's text"),
    ],
)
def test_a_template_whose_answers_do_not_follow_its_prompt(
    write_tokenizer, tmp_path, template, message
):
    with pytest.raises(UserError, match=message):
        load(write_tokenizer, tmp_path, Family(template))


def test_a_template_that_shows_no_answered_turn_ends_with_eos(write_tokenizer, tmp_path):
    refusing = (
        "{% if messages[-1].role != 'user' %}{{ raise_exception('user last') }}{% endif %}"
        + PLAIN["chatml"].template
    )
    chat = load(write_tokenizer, tmp_path, Family(refusing, eos="<|endoftext|>"))
    assert chat.end_token == chat.tokenizer.eos_token_id
    assert chat.encode_response("1") == [*chat.encoder.encode(["1"])[0], chat.end_token]


def test_the_tags_are_known(write_tokenizer, tmp_path):
    chat = load(write_tokenizer, tmp_path, chat_templates.MAGISTRAL)
    assert chat.turn.opens == ""  # those in the system prompt open nothing
    tokens = chat.encode_response("[THINK]so[/THINK]Yes.")
    assert chat.tokenizer.convert_tokens_to_ids("[THINK]") == tokens[0]
    assert chat.reply(tokens) == ("so", "Yes.", True)
    assert chat.reply(tokens[:3]).finished is False
