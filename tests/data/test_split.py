"""Which rows are held out: by prompt, the same for a seed, whatever the order of the rows."""

import pytest

from gad_jax.base.errors import UserError
from gad_jax.data import split
from gad_jax.data.pipeline import prepare
from gad_jax.data.sources.rows import Row
from tests.data.rows import LIMITS, numbered, rows_of


def texts(sides):
    return [row.messages[-1]["content"] for file in sides if file for row in file.rows]


def divided(files, part, weights=(), seed=0):
    held = split.choose(files, weights, part, seed)
    return split.divide(files, held, seed)


@pytest.fixture
def hundred(chat):
    return prepare(numbered(100), chat, **LIMITS)


@pytest.mark.parametrize(("part", "count"), [(0.05, 5), (0.5, 50), (0.001, 1), (7, 7), (99, 99)])
def test_the_part_is_of_the_prompts(hundred, part, count):
    sides = divided([hundred], part)
    train, held_out = texts(sides.train), texts(sides.held_out)
    assert len(held_out) == count
    assert sorted(train + held_out) == sorted(texts([hundred]))
    assert train == [text for text in texts([hundred]) if text in train]  # in the file's order


def test_a_side_has_its_own_tokens_and_fingerprint(hundred, chat):
    (train,), (held_out,) = divided([hundred], 0.1)
    for side in (train, held_out):
        assert side.stats.rows == side.stats.responses == len(side)
        for index, row in enumerate(side.rows):
            assert side.prompt(index).tolist() == chat.encode_prompt(row.messages)
            (response,) = side.responses(index)
            assert response.tolist() == chat.encode_response(row.responses[0])
    alone = rows_of(*((row.messages[0]["content"], row.responses[0]) for row in train.rows))
    assert train.fingerprint == prepare(alone, chat, **LIMITS).fingerprint
    assert len({train.fingerprint, held_out.fingerprint, hundred.fingerprint}) == 3


def test_rows_with_one_prompt_are_on_one_side(chat):
    pairs = [(f"q{n % 10}" + " " * (n % 3), (f"a{n}", f"b{n}")) for n in range(30)]
    sides = divided([prepare(rows_of(*pairs), chat, **LIMITS)], 0.3)
    held_out, train = ({text.strip() for text in texts(side)} for side in (sides[1], sides[0]))
    assert len(held_out) == 3
    assert not held_out & train
    assert len(texts(sides.held_out)) == 9
    assert sides.held_out[0].stats.responses == 18


def test_the_choice_follows_the_seed_and_not_the_order(chat, hundred):
    held_out = texts(divided([hundred], 0.1).held_out)
    backwards = prepare(
        rows_of(*((f"question {n}", "x") for n in range(99, -1, -1))), chat, **LIMITS
    )
    assert texts(divided([backwards], 0.1).held_out) == held_out
    assert set(texts(divided([hundred], 0.1, seed=1).held_out)) != set(held_out)
    # More of them are these and others, so that a larger evaluation contains the smaller one.
    assert texts(divided([hundred], 0.2).held_out)[:10] == held_out
    assert held_out != sorted(held_out)


def test_files_that_are_mixed_by_weight_are_split_each(chat):
    files = [
        prepare(rows_of(*((f"{name}{n}", "x") for n in range(count))), chat, **LIMITS)
        for name, count in (("a", 40), ("b", 10))
    ]
    for part, counts in ((0.1, [4, 1]), (10, [7, 3]), (1, [1, 0]), (5, [4, 1])):
        sides = divided(files, part, (0.7, 0.3))
        assert [len(file) if file else 0 for file in sides.held_out] == counts
    with pytest.raises(UserError, match="leaves none to train on"):
        divided(files, 40, (0.7, 0.3))


def test_a_prompt_of_two_files_is_on_one_side(chat, hundred):
    again = prepare(rows_of(*((f"question {n}", "other") for n in range(50, 150))), chat, **LIMITS)
    for weights in ((), (0.5, 0.5)):
        sides = divided([hundred, again], 0.2, weights)
        assert not set(texts(sides.train)) & set(texts(sides.held_out))


def test_without_weights_files_are_one_set(chat, hundred):
    one = prepare(numbered(1), chat, **LIMITS)
    other = prepare(rows_of(*((f"r{n}", "x") for n in range(9))), chat, **LIMITS)
    assert len(texts(divided([one, other], 5).held_out)) == 5


@pytest.mark.parametrize(("part", "asked"), [(100, "100"), (500, "500"), (0.999, "99.9%")])
def test_something_is_left_to_train_on(hundred, part, asked):
    count = 100 if isinstance(part, float) else part
    with pytest.raises(UserError) as caught:
        divided([hundred], part)
    assert str(caught.value) == (
        f"--data.heldout={asked} holds out {count} of the 100 prompts of rows.jsonl and leaves "
        "none to train on; lower it, or give more rows"
    )


def test_a_key_is_of_the_whole_conversation():
    def key(*messages):
        conversation = tuple({"role": role, "content": text} for role, text in messages)
        return split.key(Row(conversation, ("x",), "id"))

    assert key(("user", "a  b\n")) == key(("user", "a b"))
    assert key(("system", "s"), ("user", "a")) != key(("user", "a"))
    assert key(("user", "a"), ("user", "b")) != key(("user", "a b"))
