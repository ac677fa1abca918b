"""The experiment on a network of words: every method once, what resumes and what is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gad_jax.base import jsonl
from gad_jax.world import words
from gad_jax.world.personas import __main__ as command_line

pytest_plugins = ["tests.run_fixtures"]

WORDS = ("be", "brief", "grand", "yes", "no", "why", "because")
SIZES = ("--seeds=1", "--train_prompts=8", "--heldout=4", "--samples=2", "--max_new_tokens=4")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A network, its prompts and its personas, as flags."""
    place = tmp_path_factory.mktemp("inputs")
    words.write_student(place / "model", WORDS, layers=1, width=24, seed=0)
    asked = [f"why {a} {b}" for a in WORDS for b in WORDS[:2]]
    (place / "asked.txt").write_text("\n".join([*asked, asked[0]]) + "\n")
    personas = [
        {"name": name, "share": share, "system": f"be {name}"}
        for name, share in (("brief", 0.75), ("grand", 0.25))
    ]
    (place / "personas.jsonl").write_text("".join(json.dumps(row) + "\n" for row in personas))
    return (
        f"--model={place / 'model'}",
        f"--prompts={place / 'asked.txt'}",
        f"--personas={place / 'personas.jsonl'}",
    )


def test_methods_are_trained_measured_and_compared(
    tmp_path: Path,
    inputs: tuple[str, ...],
    command: Callable[..., Any],
    refused: Callable[..., str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    chosen = "--methods=start,seqkd@1e-3,gad,best_of_8,rejection_sampling"
    more = "--flags=--optimizer.beta2=0.95"
    flags = (f"--out={out}", *inputs, *SIZES, "--answers=2", chosen, more)
    done = command("world.personas", *flags)
    assert done.returncode == 0, done.stderr
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if "│" in line)
    assert re.search(r"seed 0, gad: \d+\.\d minutes, KL\(q‖p\) ", done.stdout)
    place = out / "seed-0"

    # what training sees: prompts and texts, nothing of personas
    rows = list(jsonl.read_rows(place / "teacher.jsonl"))
    drawn = list(jsonl.read_rows(place / "drawn.jsonl"))
    assert len(drawn) == 16
    assert {key for row in rows for key in row} == {
        *("id", "messages", "teacher_response", "finish_reason"),
    }
    assert {row["messages"][0]["role"] for row in rows} == {"user"}
    texts = [row["text"] for row in drawn if row["text"].strip()]
    assert [row["teacher_response"] for row in rows] == texts
    asked = [json.loads(line)["prompt"] for line in (place / "start-answers.jsonl").open()]
    assert len(asked) == 8
    assert not {*asked} & {row["messages"][0]["content"] for row in rows}

    # settings and starts of the runs
    settings = (place / "seqkd_at_1e-3" / "config.yaml").read_text()
    for line in ("generator_learning_rate: 0.001", "beta2: 0.95", "rank: 8", "max_new_tokens: 4"):
        assert line in settings
    settings = (place / "rejection_sampling" / "config.yaml").read_text()
    assert "seqkd_at_1e-3\n" in settings
    assert "rejection_sampling-rows.jsonl" in settings

    found = json.loads((out / "results.json").read_text())
    names = ["teacher", "start", "SeqKD, 1e-3", "GAD", "best of 8 by D"]
    assert [*found] == ["seeds", "personas", *names, "SFT on best of 8 by D"]
    for name in names[1:4]:
        prompts = found[name][0]["prompts"]
        assert len(prompts["reverse_kl"]) == len(prompts["forward_kl"]) == 4
        np.testing.assert_allclose(np.sum(prompts["share"], axis=1), 1)
    assert "reverse_kl" not in found[names[4]][0]["prompts"]
    shown = [json.loads(line) for line in (place / "gad-answers.jsonl").open()]
    ratios = np.reshape([line["log_q"] - line["log_p"] for line in shown], (4, 2)).mean(axis=1)
    np.testing.assert_allclose(found["GAD"][0]["prompts"]["reverse_kl"], ratios, atol=1e-3)
    cost = {name: found[name][0]["cost"] for name in names}
    assert cost["start"]["minutes"] == cost["SeqKD, 1e-3"]["sampled"] == 0
    assert cost["SeqKD, 1e-3"]["discriminator"] == 0
    assert min(cost["GAD"].values()) > 0
    assert cost[names[4]]["generator"] == pytest.approx(
        cost["SeqKD, 1e-3"]["generator"] + cost["GAD"]["generator"]
    )
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")

    # a second run repeats nothing, and results of other settings are refused
    assert command_line.main([*flags]) == 0
    printed = capfd.readouterr().out
    assert "seed 0" not in printed
    assert "KL(q‖p)" in printed
    other = [flag.replace("samples=2", "samples=3") for flag in flags]
    assert "has results with samples=2, now 3" in refused(command_line.main, *other)
    said = refused(command_line.main, *flags[:-1], "--flags=--x=1")
    assert "than personas and --flags say now" in said
    for name, what in (("prompts", "other prompts"), ("personas", "other personas")):
        path = out / "settings.json"
        kept = path.read_text()
        path.write_text(json.dumps(json.loads(kept) | {name: "0"}))
        assert f"has results of {what}" in refused(command_line.main, *flags)
        path.write_text(kept)
    result = place / "gad.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"flags": ["--stage=gad"]}))
    assert "is of other flags than --stage=warmup,gad; remove" in refused(command_line.main, *flags)


def test_drawing_resumes_where_it_stopped(tmp_path: Path, inputs: tuple[str, ...]) -> None:
    import jax

    from gad_jax.settings import options
    from gad_jax.world.personas import experiment, laboratory

    settings = options.read(command_line.Personas, [*inputs, *SIZES], program="", description="")
    train, heldout = experiment.split(settings)
    assert len(train) == 8
    assert len(heldout) == 4
    texts = [row.messages[0]["content"] for row in (*train, *heldout)]
    assert len({*texts}) == 12
    lab = laboratory.Laboratory(settings, train, heldout)
    path = tmp_path / "drawn.jsonl"
    with jax.set_mesh(lab.mesh):
        assert lab.draw(train, 2, 5, path, lambda: True)
        whole = path.read_bytes()
        lines = whole.splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:5]) + lines[5][:9])  # killed within a line
        assert not lab.draw(train, 2, 5, path, lambda: False)
        assert path.read_bytes() == b"".join(lines[:5])
        assert lab.draw(train, 2, 5, path, lambda: True)
    assert path.read_bytes() == whole
    assert {row["persona"] for row in jsonl.read_rows(path)} == {"brief", "grand"}


def test_too_few_prompts_are_refused(inputs: tuple[str, ...], refused: Callable[..., str]) -> None:
    said = refused(command_line.main, *inputs, *SIZES, "--train_prompts=11")
    assert "has 14 different prompts, and --train_prompts=11 with --heldout=4 need 15" in said
