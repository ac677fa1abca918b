"""Names of students and prompt sets."""

import pytest

from gad_jax.evaluate.settings import split_label

pytest_plugins = ["tests.run_fixtures"]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("gad=runs/a/checkpoints/5", "gad"),
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("bundled:heldout", "bundled-heldout"),
        ("data/question.jsonl", "question"),
        ("data/dolly.jsonl.gz", "dolly"),
        ("ytz20/LMSYS-Chat-GPT-5-Chat-Response:test", "LMSYS-Chat-GPT-5-Chat-Response-test"),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen2.5-7B-Instruct"),
    ],
)
def test_labels(text: str, label: str) -> None:
    assert split_label(text)[0] == label
