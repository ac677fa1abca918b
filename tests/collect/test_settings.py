"""Settings of a local teacher that do not fit."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gad_jax.collect import __main__ as collect

pytest_plugins = ["tests.run_fixtures"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--teacher=random-tiny"], "must be api or local:MODEL"),
        (["--teacher=local:"], "must be api or local:MODEL"),
        (["--teacher=local:random-tiny", "--model=m"], "leave it out with teacher=local"),
        (["--teacher=local:random-tiny", "--max_cost=1", "--prompt_price=1"], "has a price"),
        (["--teacher=local:random-tiny", '--parameters={"stop": "x"}'], "stop is not known"),
        (["--teacher=local:random-tiny", '--parameters={"seed": "x"}'], "seed must be an integer"),
        (["--teacher=local:random-tiny", "--temperature=-1"], "temperature=-1"),
        (["--teacher=local:nowhere"], "nowhere"),
        ([], "model must not be empty"),
    ],
)
def test_settings_that_do_not_fit(
    prompts: Path, tmp_path: Path, flags: list[str], said: str, refused: Callable[..., str]
) -> None:
    assert said in refused(collect.main, f"--prompts={prompts}", f"--out={tmp_path}/o", *flags)
