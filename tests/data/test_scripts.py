"""Scripts are told by token, and drift is the distance between two mixtures of them."""

import numpy as np
import pytest

from gad_jax.data import scripts
from gad_jax.data.tokenizer import load_tokenizer
from gad_jax.models.builtin import tiny

WORDS = ["", " ", "the", " für", "…", "12", "\u4f60\u597d", "\u043c\u0438\u0440", "\ufffd", "(a)"]


class Words:
    def batch_decode(self, sequences: list[list[int]]) -> list[str]:
        return ["".join(WORDS[token] for token in sequence) for sequence in sequences]


def test_a_token_has_the_script_of_its_first_letter() -> None:
    table = scripts.token_scripts(Words(), len(WORDS))
    latin, han, cyrillic = table[2], table[6], table[7]
    assert len({0, latin, han, cyrillic}) == 4
    np.testing.assert_array_equal(table, [0, 0, latin, latin, 0, 0, han, cyrillic, 0, latin])


def test_drift_by_hand() -> None:
    table = scripts.token_scripts(Words(), len(WORDS))
    latin, mixed = [np.asarray([2, 2, 3, 0, 5])], [np.asarray([2, 3]), np.asarray([2, 2, 6])]
    assert scripts.drift(table, latin, latin) == 0
    assert scripts.drift(table, latin, mixed) == pytest.approx(0.2)
    assert scripts.drift(table, [np.asarray([7, 7])], mixed) == 1
    assert scripts.drift(table, [np.asarray([0, 4])], mixed) == 0  # says nothing of language


def test_a_real_tokenizer(tmp_path) -> None:
    tiny.write_tiny(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    table = scripts.token_scripts(tokenizer, len(tokenizer))
    ids = tokenizer("plain words, 1 2 3")["input_ids"]
    assert table.shape == (len(tokenizer),)
    assert len(set(table[ids]) - {0}) == 1
