"""`.ci/words.py`: each fault of a page is found, and a good page has none."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

REPOSITORY = Path(__file__).parent.parent


words = SimpleNamespace(**runpy.run_path(str(REPOSITORY / ".ci" / "words.py")))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("A run goes on from here.", "'goes on': write resume, continue"),
        ("| table | it is right about 98 % |", "'right about': write D accuracy"),
        ("Responses that were broken are asked again.", "'asked again': write retried"),
        ("x" * 111, "111 characters; 110 is the limit"),
        ("See [this](missing.md).", "missing.md: no such file"),
        ("See [this](README.md#missing).", "README.md#missing: README.md has no such heading"),
        ("It is in `gad_jax/missing.py`.", "gad_jax/missing.py: no such file"),
        ("`python -m gad_jax.missing`", "python -m gad_jax.missing: no such command"),
    ],
)
def test_a_fault_is_found(line: str, fault: str) -> None:
    found = list(words.faults(REPOSITORY / "page.md", f"# Title\n\n{line}\n"))
    assert found == [(3, fault)]


@pytest.mark.parametrize(
    "text",
    [
        "```text\nit goes on\n```\n",
        "<!-- beside -->\n",
        "`goes on` is code\n",
        f"[a link](README.md#install) and [one](https://example.com/{'x' * 120})\n",
        f"| {'x' * 120} |\n",
        "Besides, the product of two user turns is not lost.\n",
    ],
)
def test_what_is_allowed(text: str) -> None:
    assert list(words.faults(REPOSITORY / "page.md", text)) == []


def test_length_counts_sentences_of_paragraphs_and_lists() -> None:
    text = """# A title does not count

One two three. Four (`five or more`
six)! Seven 8.9 ten?

| a table | does not |

- An item
  of four words
- and one.

```
nor code
```
"""
    # 3 + 3 + 3, and the items 5 + 2
    assert words.length(text) == (16, 5)
