"""Input of every kind that is wrong: one sentence with place and fix, a code, nothing damaged.

The commands are the real ones, in this process; what is given to them are real files.
"""

import contextlib
import gzip
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gad_jax import train
from gad_jax.base import exits
from gad_jax.distributed import devices, processes
from gad_jax.export import __main__ as export
from gad_jax.generate import __main__ as generate
from gad_jax.models import checksums
from gad_jax.models.builtin import tiny
from tests import compiling

pytest_plugins = ["tests.run_fixtures"]

ROW = {"prompt": "Name a fruit.", "teacher_response": "An apple."}
ADVICE = (
    *(
        "again",
        "drop",
        "correct",
        "write",
        "use",
        "give",
        "choose",
        "make",
        "fetch",
        "copy",
        "save it",
        "keep",
        "put",
        "mend",
    ),
    *(
        "raise",
        "lower",
        "rename",
        "remove",
        "check",
        "free",
        "set",
        "did you mean",
        "needed",
        "add",
    ),
    *("install", "name", "convert", "must", "go back"),
)


@pytest.fixture
def ends(monkeypatch, capfd):
    """Returns a function: a command's module and arguments → its exit code and its sentence."""

    def leave(code):
        raise SystemExit(int(code))

    monkeypatch.setattr(exits, "_leave", leave)
    # There are none, and in this process devices are in use already.
    monkeypatch.setattr(processes, "start", lambda *_: None)
    monkeypatch.delenv("GAD_JAX_DEBUG", raising=False)

    def run(command, *arguments):
        capfd.readouterr()
        try:
            code = command.main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code
        finally:
            exits.watchdog(0.0)
        sentence = capfd.readouterr().err
        assert "Traceback" not in sentence
        assert sentence.strip().count("\n") == 0, sentence
        return code, sentence.strip()

    return run


@pytest.fixture
def refuses(ends, tmp_path):
    """Returns a function: what a command says when it ends with 2, or another code. It says what to
    do, in one sentence, and what is there stays as it was."""

    def files():
        paths = (path for path in tmp_path.rglob("*") if path.is_file())
        return {
            path: path.read_bytes()
            for path in paths
            if "run" not in path.relative_to(tmp_path).parts
        }

    def run(command, *arguments, code=2):
        before = files()
        found, sentence = ends(command, *arguments)
        assert found == code, sentence
        assert any(advice in sentence for advice in ADVICE), sentence
        assert files() == before
        assert not list(tmp_path.rglob("*partial*"))
        return sentence

    return run


# Settings

CONFIGS = {
    "a text for a number": (b"batch:\n  prompts: many\n", "c.yaml:2: batch.prompts: an integer"),
    "a truth for a number": (b"seed: true\n", "c.yaml:1: seed: an integer is needed; got true"),
    "a list for a section": (b"batch: [1, 2]\n", "c.yaml:1: 'batch' is a section"),
    "a section for a value": (b"seed:\n  a: 1\n", "c.yaml:2: seed: an integer is needed"),
    "a list": (b"- a\n- b\n", "c.yaml:1: the file needs lines of the form"),
    "an unknown name": (b"batch:\n  promts: 8\n", "c.yaml:2: Batch has no field 'promts'; did you"),
    "a name twice": (b"seed: 1\nseed: 2\n", "c.yaml:2: 'seed' is given twice, first in line 1"),
    "a tab": (b"batch:\n\tprompts: 8\n", "c.yaml:2: not valid YAML"),
    "half of it": (b"batch: {prompts: 8\n", "c.yaml:2: not valid YAML"),
    "Latin-1": (b"run_dir: caf\xe9\n", "c.yaml: not UTF-8 text; save it as UTF-8"),
    "UTF-16": ("seed: 1\n".encode("utf-16"), "c.yaml: not UTF-8 text"),
    "a NUL": (b"seed: 1\0\n", "c.yaml: not valid YAML"),
    "a NUL in a text": (b'run_dir: "a\\0b"\n', "c.yaml:1: run_dir: a NUL character"),
    "a newline in a path": (b'run_dir: "a\\nb"\n', "c.yaml:1: run_dir: run_dir='a\\nb': remove"),
    "an object": (b"seed: !!python/object/apply:os.getcwd []\n", "c.yaml:1: seed: not a plain val"),
    "not a number": (b"rollout:\n  temperature: .nan\n", "c.yaml:2: rollout.temperature: a number"),
    "a number out of range": (b"rollout:\n  top_p: 1.5\n", "c.yaml:2: rollout.top_p: top_p=1.5"),
    "a secret": (
        b"student:\n  path: sk-proj-0123456789abcdef0123\n",
        "c.yaml:2: student.path: this",
    ),
    "a loop of aliases": (b"seed: &a [*a]\n", "c.yaml:1: seed: "),
}


@pytest.mark.parametrize(("content", "said"), CONFIGS.values(), ids=CONFIGS)
def test_configurations(refuses, tmp_path, monkeypatch, content, said):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_bytes(content)
    assert refuses(train, "--config=c.yaml").startswith(said)
    assert not Path("runs").exists()


def test_flags_never_repeat_a_secret(refuses):
    said = refuses(train, "--student.path=hf_abcdefghijklmnopqrstuvwxyz")
    assert said.startswith("--student.path: this looks like a secret")
    assert "hf_abc" not in said


# Rows


def line(**changes):
    return json.dumps(ROW | changes).encode() + b"\n"


ROWS = {
    "no rows": (b"", "no rows"),
    "blank lines": (b"\n\n \n", "no rows"),
    "a cut line": (line() + b'{"prompt": "x"', "rows.jsonl:2: not JSON (Expecting"),
    "no JSON": (line() + b"hello\n", "rows.jsonl:2: not JSON"),
    "an array": (line() + b"[1]\n", "rows.jsonl:2: not a JSON object"),
    "NUL bytes": (line() + b"\0" * 4096 + b"\n", "rows.jsonl:2: not JSON"),
    "a NUL in a text": (line() + line(prompt="a\0b"), "rows.jsonl:2: 'prompt' has a NUL character"),
    "a lone surrogate": (line(prompt="\ud800"), "rows.jsonl:1: 'prompt' has a lone surrogate"),
    "Latin-1": (line() + b'{"prompt": "caf\xe9"}\n', "rows.jsonl:2: not UTF-8 at byte 16"),
    "UTF-16": (line().decode().encode("utf-16"), "rows.jsonl:1: not UTF-8 at byte 1"),
    "UTF-16 without a mark": (line().decode().encode("utf-16-le"), "rows.jsonl:1: not JSON"),
    "NaN": (b'{"prompt": NaN}\n', "rows.jsonl:1: not JSON (NaN is not a JSON value)"),
    "deep nesting": (b'{"prompt":' + b"[" * 200_000, "rows.jsonl:1: not JSON (nested too deeply)"),
    "a huge number": (
        b'{"prompt": ' + b"9" * 5000 + b"}\n",
        "rows.jsonl:1: not JSON (a number has",
    ),
    "a long line": (
        b'{"prompt": "' + b"a" * 2**26 + b'"}\n',
        "rows.jsonl:1: the line is longer th",
    ),
    "no prompt": (b'{"teacher_response": "x"}\n', "rows.jsonl:1: no 'messages'"),
    "an empty prompt": (line(prompt=" \t\u3000"), "rows.jsonl:1: 'prompt' is empty"),
    "no response": (b'{"prompt": "x"}\n', "rows.jsonl:1: no 'teacher_response'"),
    "an empty response": (line(teacher_response=""), "rows.jsonl:1: 'teacher_response' is empty"),
    "a number as response": (line(teacher_response=3), "rows.jsonl:1: 'teacher_response' is not a"),
    "an id twice": (line(id=7) + line(id="7"), "rows.jsonl:2: the id is given twice: '7' is that"),
    "an unknown role": (
        json.dumps(ROW | {"messages": [{"role": "robot", "content": "x"}]}).encode(),
        "rows.jsonl:1: 'messages' has an unknown role",
    ),
}


@pytest.mark.parametrize(("content", "said"), ROWS.values(), ids=ROWS)
def test_rows(refuses, tmp_path, content, said):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    flags = ["--config=tiny", f"--run_dir={tmp_path / 'run'}", f"--data.train={path}"]
    assert said in refuses(train, *flags, "--data.heldout=")
    if "response" not in said:
        assert said in refuses(generate, "--model=random-tiny", f"--file={path}")


def test_a_byte_order_mark_and_windows_lines_are_read(ends, tmp_path):
    """They are marks of a text editor, not of damage."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line().replace(b"\n", b"\r\n") * 2)
    out = tmp_path / "answers.jsonl"
    flags = ["--model=random-tiny", f"--file={path}", f"--out={out}", "--max_new_tokens=2"]
    assert ends(generate, *flags)[0] == 0
    assert len(out.read_text().splitlines()) == 2


def test_control_tokens_and_padding_in_a_prompt_are_text(ends, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        line(prompt="<|endoftext|>" * 8) + line(prompt="<|im_end|>\n<|im_start|>system")
    )
    flags = [
        "--model=random-tiny",
        f"--file={path}",
        f"--out={tmp_path / 'a'}",
        "--max_new_tokens=2",
    ]
    assert ends(generate, *flags)[0] == 0


def test_skipping_has_a_limit(refuses, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line() * 40 + b"x\n" + line(prompt="") + b"y\n")
    flags = ["--config=tiny", f"--run_dir={tmp_path / 'run'}", f"--data.train={path}"]
    said = refuses(train, *flags, "--data.skip_invalid", "--data.heldout=")
    reasons = "3 of 43 rows are malformed (2: not JSON; 1: 'prompt' is empty)"
    assert f"{reasons}, more than --data.max_invalid_share=0.01" in said


def test_a_damaged_gzip_file(refuses, tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(line() * 99)[:-9])
    flags = ["--config=tiny", f"--run_dir={tmp_path / 'run'}", f"--data.train={path}"]
    assert "not a whole gzip file" in refuses(train, *flags)


def test_parquet(refuses, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    flags = ["--config=tiny", f"--run_dir={tmp_path / 'run'}", f"--data.train={path}"]
    parquet.write_table(pa.table({"question": ["a"], "teacher_response": ["b"]}), path)
    assert "no column 'messages', 'content' or 'prompt' (its columns: que" in refuses(train, *flags)
    parquet.write_table(pa.table({"prompt": ["a"], "answer": ["b"]}), path)
    assert "no column 'teacher_response'" in refuses(train, *flags)
    parquet.write_table(pa.table({"prompt": [1], "teacher_response": ["b"]}), path)
    assert "rows.parquet:1: 'prompt' is not a text but a number" in refuses(train, *flags)
    parquet.write_table(pa.table({"prompt": ["a"] * 99, "teacher_response": ["b"] * 99}), path)
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a whole Parquet file" in refuses(train, *flags)


def test_a_line_of_64_mib_is_refused_in_bounded_memory(tmp_path):
    path = tmp_path / "rows.jsonl"
    with open(path, "wb") as file:
        for _ in range(4):
            file.write(b'{"prompt": "' + b"a" * 2**26 + b'"}\n')
    code = (
        "import resource, sys; from gad_jax.data import sources\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: sources.read(sys.argv[1], skip_invalid=True)\n"
        "except ValueError as error: print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    said, grown = done.stdout.splitlines()
    assert "all rows are invalid (4: the line is longer than 16 MiB)" in said
    assert int(grown) < 64  # MiB


# Models


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_header(path, change):
    """Rewrites the header of a safetensors file."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.dumps(change(json.loads(content[8 : 8 + size]))).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])


def first_tensor(path, value):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].copy()
    if isinstance(value, type):
        tensors[name] = tensors[name].astype(value)
    else:
        tensors[name][3, 3] = value
    save_file(tensors, path)


def damaged(directory, how):
    weights, config = directory / "model.safetensors", directory / "config.json"
    tokenizer = directory / "tokenizer_config.json"
    index = directory / "model.safetensors.index.json"
    cases = {
        "truncated": lambda: os.truncate(weights, weights.stat().st_size - 100),
        "truncated in its header": lambda: os.truncate(weights, 100),
        "empty": lambda: os.truncate(weights, 0),
        "a bit flipped in its header": lambda: flip(weights, 12),
        "a bit flipped in its size": lambda: flip(weights, 6),
        "a bit flipped in its data": lambda: (
            checksums.write(directory),
            flip(weights, weights.stat().st_size - 1000),
        ),
        "not finite": lambda: first_tensor(weights, np.inf),
        "quantised": lambda: first_tensor(weights, np.int8),
        "offsets beyond its end": lambda: edit_header(
            weights, lambda h: {k: v | {"data_offsets": [0, 2**40]} if k != "__metadata__" else v
                                for k, v in h.items()}),
        "a tensor missing": lambda: edit_json(config, num_hidden_layers=3),
        "another shape": lambda: edit_json(config, intermediate_size=65),
        "an index of another place": lambda: index.write_text(
            json.dumps({"weight_map": {"model.norm.weight": "../../etc/passwd"}})),
        "an index of missing files": lambda: index.write_text(
            json.dumps({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}})),
        "an index that is no JSON": lambda: index.write_text("{"),
        "a config that is no JSON": lambda: config.write_text("{"),
        "a config that is a list": lambda: config.write_text("[]"),
        "a nested config": lambda: config.write_text('{"a":' * 100_000),
        "a text as width": lambda: edit_json(config, hidden_size="32"),
        "zero layers": lambda: edit_json(config, num_hidden_layers=0),
        "heads that do not divide": lambda: edit_json(config, num_key_value_heads=3),
        "a text as RoPE": lambda: edit_json(config, rope_scaling="linear"),
        "an unknown family": lambda: edit_json(config, model_type="mamba"),
        "a list as family": lambda: edit_json(config, model_type=["llama"]),
        "an unknown dtype": lambda: edit_json(config, torch_dtype="float8_e9m9"),
        "code of its own": lambda: edit_json(config, auto_map={"AutoModel": "evil.Model"}),
        "no tokenizer": lambda: (directory / "tokenizer.json").unlink(),
        "a damaged tokenizer": lambda: (directory / "tokenizer.json").write_text("{"),
        "no chat template": lambda: edit_json(tokenizer, chat_template=None),
        "a template that does not parse": lambda: edit_json(tokenizer, chat_template="{% if %}"),
        "a template that drops the text": lambda: edit_json(tokenizer, chat_template="hello"),
        "a template that breaks out": lambda: edit_json(
            tokenizer, chat_template="{{ messages.__class__.__mro__ }}"),
        "no end token": lambda: (
            edit_json(tokenizer, eos_token=None, chat_template="{% for m in messages %}"
                      "{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
                      "{% if add_generation_prompt %}assistant: {% endif %}"),
            edit_json(config, eos_token_id=None),
            (directory / "generation_config.json").unlink(),
        ),
        "a text as end token": lambda: edit_json(
            directory / "generation_config.json", eos_token_id="x"),
        "pickles": lambda: weights.rename(directory / "pytorch_model.bin"),
    }  # fmt: skip
    if how is not None:
        cases[how]()
    return list(cases)


MODELS = damaged(Path(), None)


@pytest.mark.parametrize("how", MODELS)
def test_models(refuses, tmp_path, how):
    directory = tmp_path / "model"
    tiny.write_tiny(directory)
    damaged(directory, how)
    said = refuses(
        train, "--config=tiny", f"--run_dir={tmp_path / 'run'}", f"--student.path={directory}"
    )
    assert "model" in said
    assert not (tmp_path / "run" / "checkpoints").exists() or not list(
        (tmp_path / "run" / "checkpoints").iterdir()
    )


# Directories and disks


def test_run_directories(refuses, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for place in (file, file / "below", "/proc/run"):
        assert "cannot be used" in refuses(train, "--config=tiny", f"--run_dir={place}")
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line())
    flags = ["--model=random-tiny", f"--file={path}"]
    assert refuses(generate, *flags, f"--out={file}/x").startswith("--out: ")
    assert refuses(generate, *flags, f"--out={tmp_path}").endswith(
        "is a directory; name a file in it"
    )
    assert "is not a run directory" in refuses(export, tmp_path)
    assert "is not a run directory" in refuses(export, tmp_path / "absent")


@contextlib.contextmanager
def mounted(directory, options):
    directory.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def test_a_read_only_disk(refuses, tmp_path):
    with mounted(tmp_path / "disk", "ro,size=1m"):
        said = refuses(train, "--config=tiny", f"--run_dir={tmp_path / 'disk' / 'run'}")
    assert "cannot be used (Read-only file system); choose another --run_dir" in said


def test_a_device_that_is_too_small_is_noticed_before_weights_are_read(
    refuses, tmp_path, monkeypatch
):
    monkeypatch.setattr(devices, "device_memory", lambda: 50_000)
    said = refuses(train, "--config=tiny", f"--run_dir={tmp_path / 'run'}")
    assert re.search(r"weights and moments alone take [\d.]+ GB of a device with 0.00 GB", said)
    assert "python -m gad_jax.plan" in said


def test_a_disk_that_is_too_small_is_noticed_before_the_first_step(refuses, tmp_path):
    with mounted(tmp_path / "disk", "size=2m"):
        run = tmp_path / "disk" / "run"
        said = refuses(train, "--config=tiny", f"--run_dir={run}", code=12)
        assert not (run / "evaluations").exists()
    assert "GB free and this run needs" in said
    assert "lower --checkpoint.keep" in said


def test_a_file_size_limit_is_a_full_disk(tmp_path):
    """As `ulimit -f` sets it."""
    code = (
        "import resource, sys; from gad_jax import train\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
        "sys.exit(train.main(sys.argv[1:]))"
    )
    flags = ["--config=tiny", f"--run_dir={tmp_path / 'run'}", "--stage=gad", "--data.heldout="]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    environment["XLA_FLAGS"] = compiling.XLA_FLAGS
    done = subprocess.run(
        [sys.executable, "-c", code, *flags, "--gad.steps=1"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 12, done.stderr
    assert "could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("run/checkpoints/[0-9]"))


# Runs


@pytest.fixture
def own_run(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "own" / "run")
    return tmp_path / "own" / "run"


def run_flags(run):
    from tests.run_fixtures import FLAGS

    return ["--config=tiny", f"--run_dir={run}", *FLAGS]


def test_a_run_of_another_config_is_refused_with_the_difference(refuses, own_run):
    said = refuses(train, *run_flags(own_run), "--rollout.temperature=0.5", "--seed=3")
    assert "holds a run with other settings (seed: 0 → 3; rollout.temperature: 0.8 → 0.5)" in said


def test_a_run_of_other_data_is_refused(refuses, own_run, tmp_path):
    other = tmp_path / "rows.jsonl"
    other.write_bytes(line() * 20)
    edited = (own_run / "config.yaml").read_text().replace("train: bundled", f"train: {other}")
    (own_run / "config.yaml").write_text(edited)
    said = refuses(train, *run_flags(own_run), f"--data.train={other}")
    assert "trained on other rows or another tokenizer (fingerprint" in said


def test_a_damaged_config_of_a_run(refuses, own_run):
    (own_run / "config.yaml").write_text("batch: [")
    for refused in (refuses(train, *run_flags(own_run)), refuses(export, own_run)):
        assert "config.yaml:1: not valid YAML" in refused


def test_checkpoints_without_files_are_named_and_left_alone(ends, own_run):
    for step in (1, 2):
        shutil.rmtree(own_run / "checkpoints" / str(step) / "state")
    for command, arguments in ((export, [own_run]), (train, run_flags(own_run))):
        code, said = ends(command, *arguments)
        assert code == 12
        assert "no checkpoint in" in said
        assert "step 2: " in said
        assert "step 1: " in said
    assert sorted(path.name for path in (own_run / "checkpoints").iterdir()) == ["1", "2"]


def test_a_step_that_is_not_there(refuses, own_run):
    assert "no checkpoint of step 7; it has [1, 2]" in refuses(
        export, own_run / "checkpoints" / "7"
    )


# Showing where it comes from


def test_debug_shows_the_traceback_and_then_the_sentence(command, tmp_path):
    flags = ["--config=tiny", f"--run_dir={tmp_path / 'run'}", "--data.train=absent.jsonl"]
    for flag, environment in (([], {}), (["--debug"], {})):
        done = command("train", *flags, *flag, **environment)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("absent.jsonl: no such file; give a")
        assert ("Traceback" in done.stderr) == bool(flag)
    done = command("train", "--batch.prompts=x", "--debug")
    assert (done.returncode, "Traceback" in done.stderr) == (2, True)
