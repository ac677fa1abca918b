"""A small real tokenizer for the data tests: byte-level BPE with merges and a ChatML template."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from gad_jax.data.chat import Chat

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SENTENCES = [
    "Below is an instruction that describes a task. Write a response that completes the request.",
    "The quick brown fox jumps over the lazy dog, and the dog does not mind the fox.",
    "### Instruction: ### Response: user assistant system",
]


def _train():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def chatml() -> str:
    return CHATML


@pytest.fixture(scope="session")
def write_tokenizer() -> Callable[..., Path]:
    """Writes a tokenizer directory; `eos` is the tokenizer's, `ends` what generation_config says.

    `<|im_end|>` has the flags in `end_flags`; `chat_template` None leaves the template out.
    `special` and `added` are further tokens, control tokens and others.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    def write(
        directory: Path,
        chat_template: str | None = CHATML,
        eos: str | None = "<|im_end|>",
        pad: str | None = "<|endoftext|>",
        ends: str | list[str] | None = None,
        end_flags: dict[str, bool] | None = None,
        backend=None,
        special: Sequence[str] = (),
        added: Sequence[str] = (),
        bos: str | None = None,
    ) -> Path:
        backend = backend or _train()
        backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|bos|>", *special])
        backend.add_tokens(list(added))
        backend.add_tokens(
            [
                AddedToken(
                    "<|im_end|>", **{"special": True, "normalized": False, **(end_flags or {})}
                )
            ]
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, eos_token=eos, pad_token=pad, bos_token=bos
        )
        tokenizer.chat_template = chat_template
        tokenizer.save_pretrained(directory)
        if ends is not None:
            ids = [backend.token_to_id(end) for end in ([ends] if isinstance(ends, str) else ends)]
            value = ids[0] if isinstance(ends, str) else ids
            config = directory / "generation_config.json"
            config.write_text(json.dumps({"eos_token_id": value}))
        return directory

    return write


@pytest.fixture(scope="session")
def student(write_tokenizer, tmp_path_factory) -> Path:
    """A directory with the ChatML tokenizer, two end tokens in its generation_config."""
    directory = tmp_path_factory.mktemp("student")
    return write_tokenizer(directory, ends=["<|im_end|>", "<|endoftext|>"])


@pytest.fixture(scope="session")
def chat(student) -> Chat:
    return Chat.load(student, template="none")
