"""TensorBoard's files: every scalar and every text once, and errors where they happen."""

import math
import time
from pathlib import Path

from tensorboardX.proto.layout_pb2 import Layout

from gad_jax.training.events import CHARTS, Events
from tests.training.test_tracker import read_events, read_scalars


def row(step: int, **more: float | None) -> dict[str, float | str | None]:
    return {"step": step, "stage": "gad", "loss": step / 2, "seconds/step": 10.0} | more


def test_a_start_writes_everything_anew_and_once(tmp_path: Path) -> None:
    for _ in range(3):
        events = Events(tmp_path)
        events.rebuild([row(1), row(2, nothing=None)], time.time())
        events.scalars(0, {"evaluation/rouge_l": 0.25})
        events.text(0, "before", "text")
        events.scalars(2, {"evaluation/rouge_l": 0.5, "loss": 7.0, "bad": math.inf})
        events.text(0, "before", "text")
        events.scalars(2, {"evaluation/rouge_l": 0.5})
        events.close()
    found = [
        (value.tag, event.step) for event in read_events(tmp_path) for value in event.summary.value
    ]
    assert len(list(tmp_path.iterdir())) == 1
    assert sorted(found) == sorted({*found})
    scalars = read_scalars(tmp_path)
    assert scalars["loss", 2] == 1.0
    assert scalars["evaluation/rouge_l", 0] == 0.25
    assert scalars["evaluation/rouge_l", 2] == 0.5
    assert ("before/text_summary", 0) in found
    assert not {name for name, _ in scalars} & {"step", "stage", "nothing", "bad"}


def test_the_time_of_a_row_follows_from_the_seconds_of_the_later_ones(tmp_path: Path) -> None:
    events = Events(tmp_path)
    events.rebuild([row(1), row(2), row(3)], 1000.0)
    events.close()
    assert {event.step: event.wall_time for event in read_events(tmp_path) if event.step} == {
        1: 980.0,
        2: 990.0,
        3: 1000.0,
    }


def test_nothing_is_written_for_nothing(tmp_path: Path) -> None:
    events = Events(tmp_path / "tensorboard")
    events.rebuild([], time.time())
    events.scalars(1, {"bad": math.nan})
    events.close()
    assert not (tmp_path / "tensorboard").exists()


def test_charts_of_the_game_are_laid_out_once_a_file(tmp_path: Path) -> None:
    for _ in range(2):
        events = Events(tmp_path)
        events.rebuild([row(1)], time.time())
        events.scalars(2, {"loss": 1.0})
        events.close()
    layouts = [
        value
        for event in read_events(tmp_path)
        for value in event.summary.value
        if value.tag == "custom_scalars__config__"
    ]
    (layout,) = layouts
    assert layout.metadata.plugin_data.plugin_name == "custom_scalars"
    (category,) = Layout.FromString(layout.tensor.string_val[0]).category
    assert [chart.title for chart in category.chart] == list(CHARTS)
    assert category.chart[0].multiline.tag == [
        "^discriminator/accuracy$",
        "^discriminator/accuracy_replayed$",
    ]
