"""The experiment on random-tiny: every method once, what resumes and what is refused."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from gad_jax.base import jsonl
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models.builtin import tiny
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.world import runs
from gad_jax.world.personas import __main__ as command_line
from gad_jax.world.personas import experiment, laboratory, mixture
from gad_jax.world.personas.teacher import Drawn

pytest_plugins = ["tests.run_fixtures"]

SIZES = ("--seeds=1", "--heldout=4", "--samples=2", "--max_new_tokens=4")
METHODS = "--methods=start,seqkd@1e-3,gad,best_of_8,rejection_sampling"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A network, its prompts and its personas, as flags."""
    place = tmp_path_factory.mktemp("inputs")
    asked = [f"Why {n}?" for n in range(20)]
    (place / "asked.txt").write_text("\n".join([*asked, asked[0]]) + "\n")
    personas = [
        {"name": name, "share": share, "system": f"Be {name}."}
        for name, share in (("brief", 0.75), ("grand", 0.25))
    ]
    (place / "personas.jsonl").write_text("".join(json.dumps(row) + "\n" for row in personas))
    return (
        "--model=random-tiny",
        f"--prompts={place / 'asked.txt'}",
        f"--personas={place / 'personas.jsonl'}",
        *SIZES,
    )


@pytest.fixture(params=["copied", pytest.param("trained", marks=pytest.mark.slow)])
def trains(
    request: pytest.FixtureRequest, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> list[Config]:
    """The settings of the runs so far. Runs are copies of a finished one, unless it is slow."""
    monkeypatch.setattr(laboratory, "make_mesh", lambda: make_mesh(devices=jax.devices()[:1]))
    real, found = runs.train, []

    def train(flags: Sequence[str], log: Path, *others: Any) -> bool:
        config = options.read(Config, flags, program="", description="")
        found.append(config)
        if request.param == "trained":
            return real(flags, log, *others)
        shutil.copytree(tiny_run, config.run_dir)
        return True

    monkeypatch.setattr(runs, "train", train)
    return found


def test_methods_are_trained_measured_and_compared(
    tmp_path: Path,
    inputs: tuple[str, ...],
    trains: list[Config],
    refused: Callable[..., str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    more = "--flags=--optimizer.beta2=0.95"
    flags = (f"--out={out}", *inputs, "--train_prompts=8", "--answers=2", METHODS, more)
    assert command_line.main([*flags]) == 0
    printed = capfd.readouterr().out
    assert all(len(line) <= 80 for line in printed.splitlines() if "│" in line)
    assert re.search(r"seed 0, gad: \d+\.\d minutes, KL\(q‖p\) ", printed)
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
    asked = [row["prompt"] for row in jsonl.read_rows(place / "start-answers.jsonl")]
    assert len(asked) == 8
    assert not {*asked} & {row["messages"][0]["content"] for row in rows}

    # settings and starts of the runs
    seqkd, gad, rejection = trains
    assert seqkd.seqkd.generator_learning_rate == 1e-3
    assert (seqkd.optimizer.beta2, seqkd.lora.rank, seqkd.rollout.max_new_tokens) == (0.95, 8, 4)
    assert gad.stages == ("warmup", "gad")
    assert gad.student.path == "random-tiny"
    assert rejection.data.train == str(place / "rejection_sampling-rows.jsonl")
    assert str(place / "seqkd_at_1e-3") in (rejection.student.path, rejection.lora.adapter[:-8])
    assert gad.data.train == str(place / "teacher.jsonl")

    found = json.loads((out / "results.json").read_text())
    names = ["teacher", "start", "SeqKD, 1e-3", "GAD", "best of 8 by D"]
    assert [*found] == ["seeds", "personas", *names, "SFT on best of 8 by D"]
    for name in names[1:4]:
        prompts = found[name][0]["prompts"]
        assert len(prompts["reverse_kl"]) == len(prompts["forward_kl"]) == 4
        np.testing.assert_allclose(np.sum(prompts["share"], axis=1), 1)
    assert "reverse_kl" not in found[names[4]][0]["prompts"]
    shown = jsonl.read_rows(place / "gad-answers.jsonl")
    ratios = np.reshape([line["log_q"] - line["log_p"] for line in shown], (4, 2)).mean(axis=1)
    np.testing.assert_allclose(found["GAD"][0]["prompts"]["reverse_kl"], ratios, atol=1e-3)
    cost = {name: found[name][0]["cost"] for name in names}
    assert cost["start"]["minutes"] == 0
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
    said = refused(command_line.main, *flags[:-1], "--flags=--optimizer.beta2=0.9")
    assert "than personas and --flags say now" in said
    for name, what in (("prompts", "other prompts"), ("personas", "other personas")):
        path = out / "settings.json"
        kept = path.read_text()
        path.write_text(json.dumps(json.loads(kept) | {name: "0"}))
        assert f"has results of {what}" in refused(command_line.main, *flags)
        path.write_text(kept)
    chosen = place / "best_of_8.json"
    kept = chosen.read_text()
    chosen.write_text(json.dumps(json.loads(kept) | {"built_on": ["seqkd@1e-4", "gad"]}))
    said = refused(command_line.main, *flags)
    assert "is built on seqkd@1e-4 and gad, and the methods now name seqkd@1e-3 and gad" in said
    chosen.write_text(kept)
    result = place / "gad.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"flags": ["--stage=gad"]}))
    assert "is of other flags than --stage=warmup,gad; remove" in refused(command_line.main, *flags)


def test_drawing_resumes_where_it_stopped(
    tmp_path: Path, inputs: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = options.read(
        command_line.Personas, [*inputs, "--train_prompts=8"], program="", description=""
    )
    train, heldout = experiment.split(settings)
    assert len(train) == 8
    assert len(heldout) == 4
    texts = [row.messages[0]["content"] for row in (*train, *heldout)]
    assert len({*texts}) == 12
    monkeypatch.setattr(laboratory, "make_mesh", lambda: make_mesh(devices=jax.devices()[:1]))
    monkeypatch.setattr(laboratory, "DRAWN_AT_ONCE", 5)
    lab = laboratory.Laboratory(settings, Config(), train, heldout)
    # test_policy.py: an answer depends on its number alone
    lab.teacher = ScriptedTeacher(settings)  # pyright: ignore
    lab.base = lab.teacher  # pyright: ignore
    path = tmp_path / "drawn.jsonl"
    assert lab.draw(train, 2, 5, path, lambda: True)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert [row["tokens"] for row in jsonl.read_rows(path)] == [[n] for n in range(16)]
    assert [row["text"] for row in jsonl.read_rows(path)][2:4] == [texts[1]] * 2
    path.write_bytes(b"".join(lines[:7]) + lines[7][:9])  # killed within a line
    assert not lab.draw(train, 2, 5, path, lambda: False)
    assert path.read_bytes() == b"".join(lines[:7])
    assert lab.draw(train, 2, 5, path, lambda: True)
    assert path.read_bytes() == whole


class ScriptedTeacher:
    """Answers a question with its text, as the token that is its number."""

    def __init__(self, settings: command_line.Personas) -> None:
        self.personas, self.chat = mixture.read(settings.personas), self
        self.texts: dict[int, str] = {}

    def draw(self, asked: Any, numbers: Sequence[int], key: Any) -> list[Drawn]:
        assert jax.random.key_data(key).size
        contents = [messages[-1]["content"] for messages in asked]
        self.texts |= dict(zip(numbers, contents, strict=True))
        return [Drawn(number % 2, np.asarray([number]), True) for number in numbers]

    def decode(self, tokens: np.ndarray) -> str:
        return self.texts[int(tokens[0])]


def test_too_few_prompts_are_refused(inputs: tuple[str, ...], refused: Callable[..., str]) -> None:
    said = refused(command_line.main, *inputs, "--train_prompts=17")
    assert "has 20 different prompts, and --train_prompts=17 with --heldout=4 need 21" in said


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--flags=--optimizer.beta=1", "Optimizer has no field 'beta'"),
        ("--flags=--run_dir=runs/mine", "--run_dir is given twice"),
        ("--training=world2", "world2"),
        ("--methods=seqkd@0e1,gad@7e99", "gad.generator_learning_rate"),
    ],
)
def test_flags_of_runs_are_checked_first(
    tmp_path: Path, inputs: tuple[str, ...], flag: str, said: str, refused: Callable[..., str]
) -> None:
    flags = (f"--out={tmp_path}", *inputs, "--train_prompts=8", flag)
    assert said in refused(command_line.main, *flags)
    assert not [*tmp_path.iterdir()]


def test_flags_of_all_methods_are_settings_of_training(inputs: tuple[str, ...]) -> None:
    flags = [*inputs, "--train_prompts=8", "--flags=--lora.rank=0"]
    settings = options.read(command_line.Personas, flags, program="", description="")
    assert len(settings.entries) > 6
    assert experiment.check_flags(settings).lora.rank == 0


def test_a_template_that_drops_system_messages_is_refused(
    tmp_path: Path,
    inputs: tuple[str, ...],
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(laboratory, "make_mesh", lambda: make_mesh(devices=jax.devices()[:1]))
    model = tmp_path / "model"
    shutil.copytree(tiny.fetch(), model)
    path = model / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    loop = "{% for message in messages %}"
    only = "{% for message in messages if message['role'] != 'system' %}"
    settings["chat_template"] = settings["chat_template"].replace(loop, only)
    path.write_text(json.dumps(settings))
    others = (f"--out={tmp_path / 'out'}", *inputs[1:], "--train_prompts=8", "--methods=start")
    said = refused(command_line.main, f"--model={model}", *others)
    assert "the prompts of 'brief' and 'grand' are the same; the chat template drops" in said
