"""The small world on a real method, small; what is refused, and what a failure says."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gad_jax.base import jsonl
from gad_jax.world import __main__ as world

pytest_plugins = ["tests.run_fixtures"]

SMALL = ("--seeds=1", "--rows=80", "--heldout=8", "--layers=1", "--width=24", "--workers=1")


def test_methods_are_trained_judged_and_compared(
    tmp_path: Path,
    command: Callable[..., Any],
    refused: Callable[..., str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "world"
    more = "--flags=--optimizer.max_gradient_norm=3 --optimizer.beta2=0.95"
    flags = (f"--out={out}", *SMALL, "--methods=seqkd,gad,rejection_sampling,dpo", more)
    done = command("world", *flags)
    assert done.returncode == 0, done.stderr
    assert "seed 0, warm:" in done.stdout
    assert "seed 0, seqkd:" in done.stdout
    results = json.loads((out / "results.json").read_text())
    methods = ["SeqKD", "GAD", "SeqKD, then its best of 8 by D", "DPO over the public"]
    assert [*results] == ["seeds", "warm start", *methods]
    (seqkd,) = results["SeqKD"]
    # three steps: an epoch has one
    assert [point["step"] for point in seqkd["curve"]] == [0, 3]
    assert set(seqkd["greedy"]) > {"valid", "coverage", "distinct", "tokens", "ngram_1", "rouge_l"}
    assert [*seqkd["knowledge"]["chosen"]] == ["first", "majority", "agrees", "discriminator"]
    (step,) = jsonl.read_rows(out / "seed-0" / "rejection_sampling" / "metrics.jsonl")
    assert step["rejection/best_score"] > step["rejection/mean_score"]
    settings = (out / "seed-0" / "rejection_sampling" / "config.yaml").read_text()
    assert "seqkd/export/student" in settings
    assert "seed-0/gad\n" in settings  # whose discriminator chooses
    steps = list(jsonl.read_rows(out / "seed-0" / "dpo" / "metrics.jsonl"))
    assert [step["stage"] for step in steps] == ["dpo"] * 3
    assert "pairs.jsonl" in (out / "seed-0" / "dpo" / "config.yaml").read_text()
    table = (out / "results.md").read_text().splitlines()
    assert table[0].startswith("|  | warm start | SeqKD | GAD |")
    assert f"| {100 * seqkd['greedy']['valid']:.1f} |" in table[2]
    settings = (out / "seed-0" / "seqkd" / "config.yaml").read_text()
    assert re.search(r"beta2: 0.95\n(?s:.*)max_gradient_norm: 3", settings)
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")

    # a second run repeats nothing, and results of other settings are refused
    known = out / "seed-0" / "seqkd-knowledge.json"
    found = json.loads(known.read_text())
    del found["chosen"]["discriminator"]  # as if GAD had been added since
    known.write_text(json.dumps(found))
    assert world.main(list(flags)) == 0
    assert "discriminator" in json.loads(known.read_text())["chosen"]
    printed = capfd.readouterr().out
    assert "warm start" in printed
    assert "seed 0, seqkd:" not in printed
    other = [flag.replace("--rows=80", "--rows=81") for flag in flags]
    assert "has results with rows=80, now 81" in refused(world.main, *other)
    settings = out / "settings.json"
    kept = json.loads(settings.read_text())
    said = refused(world.main, *flags[:-1], "--flags=--optimizer.beta2=0.95")
    assert "than world and --flags say now (warm: optimizer.max_gradient_norm: 3.0 → 1.0)" in said
    # What other methods depend on may change, so that a directory can get more of them.
    changed = f"{more} --dpo.beta=1"
    assert "(dpo: dpo.beta: 0.1 → 1.0)" in refused(world.main, *flags[:-1], changed)
    assert world.main([f"--out={out}", *SMALL, "--methods=seqkd", changed]) == 0
    settings.write_text(json.dumps(kept | {"world": "0"}))
    assert "has results of another world" in refused(world.main, *flags)


def test_a_method_is_refused_without_those_that_it_needs(refused: Callable[..., str]) -> None:
    said = refused(world.main, "--methods=seqkd,rejection_sampling,gad")
    assert "'rejection_sampling', which needs 'gad' before it" in said


def test_more_rows_than_there_are_instructions_are_refused(refused: Callable[..., str]) -> None:
    said = refused(world.main, "--rows=205800", "--heldout=1")
    assert "more than the 205800 instructions that the world has" in said


def test_failed_training_names_its_log(tmp_path: Path, refused: Callable[..., str]) -> None:
    training = tmp_path / "broken.yaml"
    training.write_text("batch: {prompts: 1000}\n")
    out = tmp_path / "out"
    said = refused(world.main, f"--out={out}", f"--training={training}", *SMALL)
    log = out / "seed-0" / "warm.log"
    assert str(log) in said
    assert "1000" in log.read_text()


def test_flags_are_checked_before_anything_is_made(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    """By method; those of D are not for the warm start."""
    small = ("--seeds=1", f"--out={tmp_path / 'out'}", "--methods=seqkd,gad")
    said = refused(world.main, *small, "--flags=--discriminator.replay_share=0.5")
    assert said.startswith("seqkd: --discriminator.replay_share=0.5")
    assert "warm: --no_such: Config has no field" in refused(
        world.main, *small, "--flags=--no_such=1"
    )
    assert "names 'gad' twice" in refused(world.main, *small[:2], "--methods=gad, gad")
    assert not list((tmp_path / "out").glob("seed-*"))
