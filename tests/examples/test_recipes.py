"""The recipes of examples/, as bash runs them, with tiny networks: what each leaves behind."""

import contextlib
import dataclasses
import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import jax
import jax.numpy as jnp
import pytest
import yaml

from gad_jax.base import exits
from gad_jax.distributed import processes
from gad_jax.models import adapters, peft, source, weights
from gad_jax.models.config import Lora
from gad_jax.settings import options
from gad_jax.settings.config import Config
from tests import compiling
from tests.data.chat_templates import QWEN3
from tests.fault_server import FaultServer
from tests.test_thinking import write_student

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
TINY = (
    *("--batch.prompts=8", "--batch.micro_batch_prompts=8", "--rollout.samples=2"),
    *("--rollout.max_new_tokens=16", "--data.max_prompt_tokens=112", "--data.heldout=2"),
    *("--student.remat=full", "--data.stop_at_cut_share=1", "--checkpoint.every=50"),
    *("--evaluation.every=0", "--gad.steps=1", "--gad.discriminator_learning_rate=1e-4"),
    *("--gad.generator_learning_rate=1e-4", "--warmup.steps=1"),
)
"""Of all recipes: what is compiled for one serves the next."""
STUDENT = "--student.path=random-tiny"
GAD = "--stage=gad"  # the warm-up would be one more program to compile

Recipe = Callable[..., None]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recipe]:
    """Returns a function that runs the script of a recipe in an empty directory."""
    shim = tmp_path / "bin" / "python"
    shim.parent.mkdir()
    client = Path(__file__).with_name("recipe_python.py")
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -SE {client} "$@"\n')
    shim.chmod(0o755)
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(exits, "_leave", leave)
    monkeypatch.setattr(processes, "start", lambda *seconds: None)  # jax runs already
    started: list[subprocess.Popen[bytes]] = []

    def run(name: str, *flags: str, until: str = "", **variables: str) -> None:
        listener, path = socket.socket(socket.AF_UNIX), tmp_path / f"{len(started)}.socket"
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(0.1)
        environment = os.environ | variables | {
            "PATH": f"{shim.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RECIPE_SOCKET": str(path),
            "XLA_FLAGS": compiling.XLA_FLAGS,
        }  # fmt: skip
        script = EXAMPLES / name / "run.sh"
        process = subprocess.Popen(["bash", str(script), *flags], env=environment, cwd=place)
        started.append(process)
        with listener:
            while process.poll() is None and not (until and _answers(until)):
                with contextlib.suppress(TimeoutError):
                    connection, _ = listener.accept()
                    _serve(connection)
        os.chdir(place)
        assert process.returncode == 0 or (until and process.returncode is None)

    yield run
    for process in started:
        process.terminate()
        process.wait()


def _serve(connection: socket.socket) -> None:
    """Runs one command in this process."""
    connection.settimeout(10)
    with connection, connection.makefile("rw", encoding="utf-8") as file:
        asked = json.loads(file.readline())
        os.chdir(asked["cwd"])
        module = asked["given"][1]
        main = "" if module == "gad_jax.train" else ".__main__"
        try:
            code = importlib.import_module(module + main).main(asked["given"][2:])
        except SystemExit as ended:
            code = ended.code
        file.write(f"{int(code or 0)}\n")
        file.flush()


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/v1/models", timeout=1).status_code == 200
    except httpx2.HTTPError:
        return False


def write_rows(path: str, count: int = 12, answer: str = "It is {}.") -> None:
    rows = [{"prompt": f"What is {n}?", "teacher_response": answer.format(n)} for n in range(count)]
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def metrics(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def test_an_apis_answers_become_a_served_student(recipe: Recipe) -> None:
    Path("prompts.txt").write_text("".join(f"prompt {n}\n" for n in range(12)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with FaultServer(answer=lambda body: f"Of {body['messages'][-1]['content']}.") as server:
        url = f"http://127.0.0.1:{port}"
        variables = {"MODEL": "m", "BASE_URL": server.url, "KEY_VARIABLE": "", "PORT": str(port)}
        recipe("api-teacher", STUDENT, GAD, *TINY, until=url, **variables)
        assert server.billed == 12
    asked = {"model": "student", "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]}
    answer = httpx2.post(f"{url}/v1/chat/completions", json=asked, timeout=60).json()
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert [row["stage"] for row in metrics("runs/api-teacher")] == ["gad"]
    assert Path("runs/api-teacher/report.html").is_file()


def test_a_style_without_its_system_prompt(recipe: Recipe) -> None:
    Path("prompts.txt").write_text("".join(f"prompt {n}\n" for n in range(12)))
    variables = {"TEACHER": "local:random-tiny", "LONGEST": "16", "STYLE": "Speak as a sailor."}
    recipe("style", STUDENT, GAD, *TINY, "--data.keep_unfinished", **variables)
    assert len(metrics("runs/style")) == 1
    assert "sailor" not in Path("runs/style/heldout.jsonl").read_text()


def test_a_domain_of_few_rows(recipe: Recipe) -> None:
    write_rows("answers.jsonl")
    # What keeps D unsure would be other programs to compile, which training/ has tests of.
    plain = ("--discriminator.replay_share=0", "--discriminator.label_smoothing=0")
    for _ in ("from the start", "again, when all is done"):
        recipe("domain", GAD, *TINY, *plain, STUDENT="random-tiny", LONGEST="8")
    assert "after" in Path("runs/domain/comparison/report.html").read_text()
    assert len(metrics("runs/domain")) == 1


@pytest.mark.parametrize("thoughts", ["drop", "keep"])
def test_a_reasoning_teacher(
    recipe: Recipe, tmp_path: Path, thoughts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    student = write_student(tmp_path / "student", QWEN3.template)
    write_rows("reasoned.jsonl", answer="<think>\nCount.\n</think>\n\nIt is {}.")
    flags = (f"--student.path={student}", *TINY, "--warmup.discriminator_only_steps=0")
    flags += ("--stage=warmup", "--warmup.train_discriminator=false")
    recipe("reasoning", *flags, THOUGHTS=thoughts, LONGEST="8")
    (row,) = metrics(f"runs/reasoning-{thoughts}")
    assert row["stage"] == "warmup"
    assert options.load(Config, f"runs/reasoning-{thoughts}/config.yaml").data.thoughts == thoughts
    assert "12 responses had thoughts" in capsys.readouterr().out


def test_gad_from_an_sft_adapter(recipe: Recipe) -> None:
    base = source.resolve("random-tiny")
    lora = Lora(16, 32.0, ("query", "key", "value", "output", "gate", "up", "down"))
    config = dataclasses.replace(weights.read_config(base), lora=lora)
    trained = jax.tree.map(lambda x: 0.05 * jnp.ones(x.shape), adapters.abstract(config)[1])
    Path("sft").mkdir()
    peft.write(Path("sft"), config, peft.tensors(config, trained), "random-tiny")
    write_rows("teacher.jsonl")
    recipe("from-sft-adapter", GAD, *TINY, ADAPTER="sft", BASE="random-tiny")
    assert len(metrics("runs/from-sft")) == 1
    for name in ("student/model.safetensors", "student-adapter/adapter_model.safetensors"):
        assert Path("runs/from-sft/export", name).is_file()


def test_settings_of_every_recipe_are_read_and_scripts_are_short() -> None:
    found = sorted(EXAMPLES.glob("*/*.yaml"))
    assert len(found) == 6
    for path in found:
        flags = [f"--config={path}"]
        flags += ["--lora.rank=16"] if path.parent.name == "from-sft-adapter" else []
        config = options.read(Config, flags, program="", description="")
        assert config.lora.rank == 16
        few_rows = path.parent.name == "domain"
        assert (config.discriminator.label_smoothing > 0) == few_rows
        assert yaml.safe_load(path.read_text())["run_dir"] == config.run_dir
    for script in EXAMPLES.glob("*/run.sh"):
        assert len(script.read_text().splitlines()) <= 16
        assert (script.parent / "README.md").is_file()
