"""The rollout benchmark on a tiny network; its schedule is the greedy one."""

import re
from pathlib import Path

import numpy as np
import pytest

from gad_jax.bench import rollout
from gad_jax.bench.__main__ import main
from tests.models import networks


def test_a_free_slot_takes_the_next_response() -> None:
    # slots: 5, then 3 · 2, then 2 and 4
    assert rollout.greedy_steps(np.array([5, 2, 2, 4]), 2) == 8
    assert rollout.greedy_steps(np.array([3, 3, 3]), 3) == 3


def test_decode_time_is_what_the_prefill_leaves_or_said_to_be_noise() -> None:
    timing = rollout.Timing(seconds=1.5, prefill=0.5, tokens=80, occupancy=1.0, steps=10)
    assert rollout.decode_text(timing, 0.4) == "decode 100.0 ms a step, 40% of the roofline"
    noise = rollout.decode_text(timing._replace(prefill=1.6), 0.4)
    assert "less than the noise" in noise
    assert "--response_tokens" in noise


@pytest.mark.parametrize("weights", ["auto", "bfloat16"])
def test_it_prints_rates_ratios_and_occupancy(
    capsys: pytest.CaptureFixture[str], weights: str
) -> None:
    flags = ["--model=random-tiny", "--uniform=2", "--response_tokens=6", "--responses=6"]
    flags += [
        "--slots=2",
        "--mean=8",
        "--longest=20",
        "--repeats=1",
        "--torch=false",
        f"--weights={weights}",
    ]
    assert main(["rollout", *flags]) == 0
    out = capsys.readouterr().out
    uniform, twice, tail, occupancy = out.splitlines()
    assert re.fullmatch(
        r"uniform, 2 × 6: [\d,]+ tokens/s; decode .*; prefill [\d,]+ tokens/s",
        uniform,
    )
    assert "with twice the max_new_tokens" in twice
    assert re.search(r"over 2 slots: [\d,]+ tokens/s, [\d.]+ times static batches of 2", tail)
    steps, ideal = re.search(r"(\d+) steps \((\d+)\)", occupancy).groups()  # pyright: ignore
    assert steps == ideal


def test_weights_of_a_mixture_are_not_said_to_be_rounded(refused, tmp_path: Path) -> None:
    mixture = networks.write(tmp_path / "model", networks.NETWORKS["qwen3-moe"])
    lengths = ("--prompt_tokens=4", "--response_tokens=4", "--longest=4", "--torch=false")
    sentence = refused(main, "rollout", f"--model={mixture}", *lengths, "--weights=bfloat16")
    assert "rollout.weights=bfloat16 rounds no experts" in sentence
