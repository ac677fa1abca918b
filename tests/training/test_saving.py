"""What ranks the checkpoints of a run."""

import pytest

from gad_jax.metrics import heldout
from gad_jax.training.checkpoint import Checkpoints
from gad_jax.training.saving import Saver, together
from tests.training.runs import settings


@pytest.mark.parametrize(
    ("ratio", "flags", "expected"),
    [
        (1.0, [], 2 * 2 / 5),  # F of precision 1 and recall 2/3 in words
        (0.5, [], 2 * 2 / 5),
        (1.5, [], 2 * 2 / 5),
        (0.4, [], None),
        (1.6, [], None),
        (0.4, ["--checkpoint.best_min_length_ratio=0"], 2 * 2 / 5),
        (1.0, ["--checkpoint.best_metric=ngram_2"], 2 / 3),
    ],
)
def test_a_checkpoint_is_ranked_within_a_band_of_lengths(tmp_path, ratio, flags, expected):
    example = {"teacher": "the cat sat", "student": "the cat"}
    result = heldout.HeldoutResult("after gad", 3, {"evaluation/length_ratio": ratio}, [example])
    options = settings(tmp_path, *flags).checkpoint
    found = Saver(Checkpoints(tmp_path / "checkpoints"), options, "", 0).score(result)
    assert found == (None if expected is None else pytest.approx(expected))


def test_shapes_of_older_checkpoints_stand_alone() -> None:
    assert together([2, 9, 128]) == ((2, 9, 128),)
    assert together([[2, 9, 128], [2, 8, 128]]) == ((2, 9, 128), (2, 8, 128))
