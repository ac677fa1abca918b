"""ROUGE-L by hand, and what its import must not do."""

import subprocess
import sys

import pytest

from gad_jax.evaluation import overlap


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("the cat sat", "the cat", 0.8),  # precision 1, recall 2/3
        ("the cat sat on the mat", "the cat sat on the mat", 1.0),
        ("The CAT, sat!", "the cat sat", 1.0),
        ("a b c d", "d c b a", 0.25),  # longest common subsequence 1 of 4
        ("a x b y c", "a b c", 0.75),  # 3 of 5 and 3 of 3
        ("running", "runs", 0.0),  # no stemming
        ("the cat", "", 0.0),
        ("", "the cat", 0.0),
        ("漢字", "漢字", 0.0),
    ],
)
def test_rouge_l(reference: str, answer: str, expected: float) -> None:
    assert overlap.rouge_l(reference, answer) == pytest.approx(expected, abs=1e-12)


def test_import_is_lazy_and_silent() -> None:
    code = (
        "import sys; from gad_jax.evaluation import overlap;"
        "assert 'rouge_score' not in sys.modules;"
        "sys.exit(overlap.rouge_l('a b', 'a b') != 1.0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
