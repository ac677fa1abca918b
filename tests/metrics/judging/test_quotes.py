"""What a judge says itself, by hand."""

import pytest

from gad_jax.metrics.judging.quotes import QUOTED, own_lines, repeats


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n\n b ", ["a", "b"]),
        ("<think>x</think>a", ["a"]),
        ("x</think>y</think>a", ["a"]),
        ("a <think>x", []),
        ("a tag `<think>` is shown", [f"a tag {QUOTED} is shown"]),
        ("~~~\nx\n~~~\na", ["a"]),
        ("```text\na\n```", ["a"]),
        ("a\n```\nx", ["a"]),
        ("> x\na", ["a"]),
        ("it says “x\ny” a", [f"it says {QUOTED}", f"{QUOTED} a"]),
        ("5'10\" tall", ["5'10\" tall"]),
        ("<request>x\nx</request>\na", [QUOTED, "a"]),
        ("<answer 2>x", [QUOTED]),
        ("**`a`**", ["**`a`**"]),
        ("", []),
    ],
)
def test_own_lines(text: str, expected: list[str]) -> None:
    assert own_lines(text) == expected


def test_a_line_next_to_its_neighbour_is_repeated() -> None:
    shown = ("first\n\n  8 7\nlast", "")
    assert repeats(["it begins: first", "8 7", "so"], 1, shown)
    assert repeats(["8 7", "last, it says"], 0, shown)
    assert not repeats(["8 7", "because"], 0, shown)
    assert not repeats(["8 7"], 0, shown)
    assert not repeats(["first", "8 6"], 1, shown)
