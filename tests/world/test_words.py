"""An untrained student of whole words: a model like any other, with a token per word."""

from pathlib import Path

from gad_jax.data.chat import Chat
from gad_jax.models import source, weights
from gad_jax.world import language, words


def write(directory: Path, **sizes: int) -> Path:
    words.write_student(
        directory, language.WORDS, **({"layers": 2, "width": 48, "seed": 3} | sizes)
    )
    return directory


def test_a_word_is_a_token_and_text_comes_back(tmp_path: Path) -> None:
    chat = Chat.load(write(tmp_path / "student"), "none")
    text = language.answer("3 plus 2 times 4", "headline")
    tokens = chat.encode_response(text)
    assert len(tokens) == len(text.split()) + 1  # and the end token
    assert chat.decode(tokens) == text
    prompt = chat.encode_prompt([{"role": "user", "content": "3 plus 2"}])
    assert len(prompt) == 3 + 3  # user, end, assistant


def test_it_loads_and_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    first, again, other = (
        write(tmp_path / name, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    config = weights.read_config(source.resolve(str(first)))
    assert (config.layers, config.width, config.heads, config.head_width) == (2, 48, 2, 24)
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (first / file).read_bytes() == (again / file).read_bytes()
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_an_unknown_word_stays_one_token(tmp_path: Path) -> None:
    chat = Chat.load(write(tmp_path / "student"), "none")
    assert len(chat.encode_response("eleven plus 2")) == 4
