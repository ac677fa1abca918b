"""Students with thinking templates, end to end: trained, answered, refused, served."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import jax
import numpy as np
import pytest

from gad_jax.base.errors import UserError
from gad_jax.collect import __main__ as collect
from gad_jax.data.chat import Chat
from gad_jax.distributed.mesh import make_mesh
from gad_jax.evaluate import __main__ as evaluate
from gad_jax.generate import __main__ as generate
from gad_jax.models import weights
from gad_jax.models.builtin.tiny import write_tiny
from gad_jax.rollout import answering
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.settings.decoding import Decoding
from gad_jax.training import loading, reading, setup
from tests.data.chat_templates import QWEN3
from tests.serve.servers import serving

pytest_plugins = ["tests.run_fixtures"]

R1 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)
TEMPLATES = {"qwen3": QWEN3.template, "r1": R1}
NO_THINKING = "--data.chat_template_kwargs=enable_thinking=false"
ROWS = [
    ("Which city?", "Paris."),
    ("2 + 2?", "<think>\nTwo and two.\n</think>\n\n4"),
    ("And 3 + 3?", "Three and three.\n</think>\n\n6"),
    ("Hard?", "<think>so long that it was cut"),
]


@pytest.fixture(scope="module", params=sorted(TEMPLATES))
def student(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp(request.param), TEMPLATES[request.param])


def write_student(directory: Path, template: str) -> Path:
    write_tiny(directory)
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"chat_template": template}))
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    return directory


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": p, "teacher_response": r}) + "\n" for p, r in ROWS]
    path.write_text("".join(lines))
    return path


def settings(student: Path, rows: Path, *flags: str) -> list[str]:
    shared = [f"--student.path={student}", f"--data.train={rows}", f"--data.heldout={rows}"]
    return ["--config=tiny", "--batch.prompts=2", "--rollout.max_new_tokens=64", *shared, *flags]


def read(arguments: list[str]) -> Any:
    config = options.read(Config, arguments, program="train", description="")
    return reading.read(config, store=False)[1:4]


def arguments_of(student: Path) -> str:
    return "" if "r1" in student.name else "enable_thinking=false"


def test_d_sees_the_answer_alone(
    student: Path, rows: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Teacher and student that say the same have the same tokens, prompt and end token too."""
    flag = f"--data.chat_template_kwargs={arguments_of(student)}"
    chat, data, _ = read(settings(student, rows, flag))
    said = capfd.readouterr().out
    assert "3 responses had thoughts" in said
    assert "1 responses left out" in said
    assert ("is closed with" in said) == ("r1" in student.name)
    assert [row.responses for row in data.rows] == [("Paris.",), ("4",), ("6",)]
    for number, row in enumerate(data.rows):
        prompt = data.prompt(number).tolist()
        text = chat.tokenizer.decode(prompt)
        assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        assert prompt == chat.encode_prompt(row.messages)
        (teacher,) = data.responses(number)
        sampled = [*chat.encoder.encode([row.responses[0]])[0], chat.end_token]
        assert teacher.tolist() == sampled
        assert chat.decode(sampled) == row.responses[0]


def test_thoughts_can_be_kept(student: Path, rows: Path) -> None:
    chat, data, _ = read(settings(student, rows, "--data.thoughts=keep"))
    opened = "<think>\n" if "r1" in student.name else ""
    shown = [
        chat.tokenizer.decode([*data.prompt(n), *data.responses(n)[0]]).partition("assistant\n")[2]
        for n in range(len(data))
    ]
    assert shown == [
        "<think>\n\n</think>\n\nParis.<|im_end|>",
        "<think>\nTwo and two.\n</think>\n\n4<|im_end|>",
        "<think>\nThree and three.\n</think>\n\n6<|im_end|>",
    ]
    assert all(
        chat.tokenizer.decode(data.prompt(n)).endswith(f"assistant\n{opened}")
        for n in range(len(data))
    )


def test_a_run_keeps_its_arguments(
    rows: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    command: Callable[..., Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    student = write_student(tmp_path / "qwen3", QWEN3.template)
    run = tmp_path / "run"
    flags = settings(student, rows, f"--run_dir={run}", "--stage=gad", "--gad.steps=1")
    with pytest.raises(UserError, match=r"pass --data.chat_template_kwargs=enable_thinking=false"):
        read(flags)
    with pytest.raises(UserError, match="never reads 'thinking'; it reads enable_thinking"):
        read([*flags, "--data.chat_template_kwargs=thinking=false"])
    done = command("train", *flags, NO_THINKING)
    assert done.returncode == 0, done.stderr
    stored = options.load(Config, run / "config.yaml")
    assert stored.data.chat_template_kwargs == '{"enable_thinking": false}'
    other = [*flags, "--data.chat_template_kwargs=enable_thinking=true"]
    with pytest.raises(UserError, match="holds a run with other settings"):
        setup.claim(options.read(Config, other, program="train", description=""))
    exported = Chat.load(run / "export" / "student", "none")  # which needs no arguments
    assert exported.jinja.render([USER], True).endswith("<think>\n\n</think>\n\n")
    with jax.set_mesh(make_mesh()):
        network = loading.load_student(str(run), make_mesh())
    texts = {
        arguments: network.load_chat("auto", arguments).jinja.render([{**USER}], True)[-24:]
        for arguments in ("", "enable_thinking=true", "{}")
    }
    assert texts[""].endswith("<think>\n\n</think>\n\n")
    assert texts["enable_thinking=true"] == texts["{}"]
    assert texts["{}"].endswith("assistant\n")
    short = "--max_new_tokens=4"
    assert generate.main(["--model", str(run), "--prompt", "x", short]) == 0
    bad = refused(generate.main, f"--model={run}", "--prompt=x", "--chat_template_kwargs=y=1")
    assert "never reads 'y'" in bad
    answers = ["--model", str(run), f"--prompts={rows}", f"--out={tmp_path / 'answers'}", short]
    assert evaluate.main(answers) == 0
    capfd.readouterr()
    changed = refused(evaluate.main, *answers, "--chat_template_kwargs=enable_thinking=true")
    assert "chat_template_kwargs:  → " in changed
    local = [f"--prompts={rows}", f"--out={tmp_path / 'local.jsonl'}", f"--teacher=local:{run}"]
    assert collect.main([*local, short, "--chat_template_kwargs=enable_thinking=false"]) == 0
    line = json.loads((tmp_path / "local.jsonl").read_text().splitlines()[0])
    assert line["parameters"]["chat_template_kwargs"] == {"enable_thinking": False}
    capfd.readouterr()


USER = {"role": "user", "content": "2 + 2?"}


def scripted(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Lets every student sample the tokens of this text."""

    class Rollout:
        def __init__(self, tokens: list[int], finished: bool, prompts: int) -> None:
            self.tokens = np.broadcast_to(np.asarray(tokens, np.int32), (prompts, 1, len(tokens)))
            self.lengths = np.full((prompts, 1), len(tokens))
            self.finished = np.full((prompts, 1), finished)

    def generated(*arguments: Any, **_: Any) -> Rollout:
        prompts, program = arguments[2], arguments[5]
        body = list(text.encode())
        finished = len(body) < program.max_new_tokens
        tokens = [*body, program.end_tokens[0]] if finished else body[: program.max_new_tokens]
        return Rollout(tokens, finished, len(prompts))

    monkeypatch.setattr(answering.engine, "generate", generated)


def test_thoughts_stand_apart_from_answers(
    tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    student = write_student(tmp_path / "r1", R1)
    scripted(monkeypatch, "Two and two.\n</think>\n\n4")
    flags = ["--model", str(student), "--max_new_tokens=64"]
    assert generate.main([*flags, "--prompt=2 + 2?"]) == 0
    shown = capfd.readouterr()
    assert shown.out == "4\n"
    assert "[thoughts]\nTwo and two.\n[answer]" in shown.err
    assert generate.main([*flags, f"--file={rows}"]) == 0
    line = json.loads(capfd.readouterr().out.splitlines()[0])
    assert (line["responses"], line["thoughts"]) == (["4"], ["Two and two."])
    out = tmp_path / "answers"
    assert evaluate.main([*flags, f"--prompts=own={rows}", f"--out={out}"]) == 0
    lines = [json.loads(line) for line in (out / "own" / "r1.jsonl").read_text().splitlines()]
    (answer,) = lines[1]["answers"]
    assert answer["text"] == "4"
    assert answer["tokens"] == 2  # with the end token
    assert answer["thought_tokens"] == len("Two and two.\n</think>\n\n")
    assert answer["rouge_l"] == 1.0
    assert (lines[1]["teacher"], lines[1]["teacher_tokens"]) == ("4", 2 + len("\n</think>\n\n"))
    local = tmp_path / "local.jsonl"
    flags = [f"--prompts={rows}", f"--out={local}", f"--teacher=local:{student}"]
    assert collect.main([*flags, "--max_new_tokens=64"]) == 0
    line = json.loads(local.read_text().splitlines()[0])
    assert line["teacher_response"] == "4"
    assert line["usage"]["completion_tokens"] == len("Two and two.\n</think>\n\n4") + 1


def test_an_unfinished_thought_has_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    student = write_student(tmp_path / "r1", R1)
    scripted(monkeypatch, "Two and two and two.")
    flags = ["--model", str(student), "--prompt=2 + 2?", "--max_new_tokens=8"]
    assert generate.main(flags) == 0
    shown = capfd.readouterr()
    assert shown.out == "\n"
    assert "[thoughts (cut before an answer)]\nTwo and" in shown.err


def test_serve_answers_with_reasoning_content(tmp_path: Path) -> None:
    student = write_student(tmp_path / "r1", R1)
    body = {"model": "s", "messages": [USER], "max_tokens": 8, "temperature": 0}
    with (
        serving(f"--model={student}", "--name=s", "--slots=1", "--context=256") as server,
        httpx2.Client(base_url=server.address, timeout=600) as client,
    ):
        message = client.post("/chat/completions", json=body).json()["choices"][0]["message"]
        assert message["content"] is None  # it never closes its thought
        assert message["reasoning_content"]
        with client.stream("POST", "/chat/completions", json=body | {"stream": True}) as got:
            events = [line.removeprefix("data: ") for line in got.iter_lines() if line]
        deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
        said = "".join(delta.get("reasoning_content", "") for delta in deltas)
        assert said == message["reasoning_content"]
        assert not any(delta.get("content") for delta in deltas)
        wrong = client.post("/chat/completions", json=body | {"chat_template_kwargs": {"y": 1}})
        assert wrong.status_code == 400
        assert "never reads 'y'; it reads none" in wrong.json()["error"]["message"]


def test_a_tokenizer_beyond_the_embedding_is_refused_wherever_they_meet(
    tmp_path: Path, rows: Path, refused: Callable[..., str]
) -> None:
    student = tmp_path / "student"
    write_tiny(student)
    path = student / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = [{"id": n, "content": f"word{n}"} for n in range(259, 600)]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    tokenizer["added_tokens"] += [word | flags for word in words]
    path.write_text(json.dumps(tokenizer))
    sentence = "the tokenizer knows 600 tokens and the network 512; use the tokenizer that belongs"
    model = f"--model={student}"
    assert sentence in refused(generate.main, model, "--prompt=x")
    assert sentence in refused(evaluate.main, model, f"--prompts={rows}", f"--out={tmp_path / 'o'}")
    flags_ = [f"--prompts={rows}", f"--out={tmp_path / 'l.jsonl'}", f"--teacher=local:{student}"]
    assert sentence in refused(collect.main, *flags_)
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        config, params = weights.load(student, mesh)
        with pytest.raises(UserError, match=sentence):
            answering.Responder(config, params, Chat.load(student), mesh, Decoding())


def test_a_special_token_that_is_never_used_may_be_beyond(tmp_path: Path) -> None:
    """Gemma 3's image token is, in its text models."""
    student = tmp_path / "student"
    write_tiny(student)
    path = student / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"].append({"id": 600, "content": "<image>", "special": True} | flags)
    path.write_text(json.dumps(tokenizer))
    chat = Chat.load(student, "none")
    chat.check_vocabulary(512)
    assert 600 not in chat.encode_prompt([{"role": "user", "content": "<image>"}])
    with pytest.raises(UserError, match="knows 259 tokens and the network 200"):
        chat.check_vocabulary(200)
