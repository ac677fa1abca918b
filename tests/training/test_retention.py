"""Which checkpoints stay."""

from gad_jax.training.retention import Retention


def stored(newest: int, keep_best: bool, steps: dict[int, tuple[float | None, str, bool]]):
    """Returns what stays on the disk after each save."""
    retention = Retention(newest, keep_best)
    here: list[int] = []
    found = []
    for step, (score, stage, good) in steps.items():
        retention.mark(step, score, {"stage": stage}, good)
        here = sorted(retention.kept([*here, step]))
        found.append(here)
        assert len(here) <= retention.most
    return found


def test_the_best_is_that_of_the_last_stage_that_has_one() -> None:
    steps = {
        1: (0.9, "warmup", True),
        2: (None, "gad", True),
        3: (None, "gad", True),
        4: (0.2, "gad", True),
        5: (0.1, "gad", True),
        6: (None, "gad", True),
    }
    assert stored(1, True, steps) == [[1], [1, 2], [1, 3], [4], [4, 5], [4, 6]]


def test_scores_of_another_measure_do_not_compare() -> None:
    retention = Retention(1, keep_best=True)
    retention.mark(1, 0.9, {"stage": "gad", "ranking": "rouge_l"})
    assert not retention.beats(0.8, {"stage": "gad", "ranking": "rouge_l"}, [1])
    assert retention.beats(0.9, {"stage": "gad", "ranking": "rouge_l"}, [1])
    assert retention.beats(0.1, {"stage": "gad", "ranking": "ngram_2"}, [1])
    assert not retention.beats(None, {"stage": "gad", "ranking": "ngram_2"}, [1])
    retention.mark(2, 0.1, {"stage": "gad", "ranking": "ngram_2"})
    assert retention.best([1, 2]) == 2
    assert retention.best([]) is None


def test_the_last_one_before_an_alarm_is_not_rotated_out() -> None:
    good, bad = (None, "gad", True), (None, "gad", False)
    steps = {1: good, 2: good, 3: bad, 4: bad, 5: bad, 6: good, 7: good}
    assert stored(2, False, steps) == [
        *([1], [1, 2], [2, 3], [2, 4], [2, 5]),  # in place of the oldest of the newest
        *([5, 6], [6, 7]),
    ]
    assert stored(1, False, steps) == [[1], [2], [2, 3], [2, 4], [2, 5], [6], [7]]
    assert stored(2, False, {1: bad, 2: bad, 3: bad}) == [[1], [1, 2], [2, 3]]
