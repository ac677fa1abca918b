"""Configuration files and flags that are wrong."""

from pathlib import Path

import pytest

from gad_jax import train

BILLIONS = (
    b"data: {train: [&a0 [x, x], "
    + b", ".join(b"&a%d [*a%d, *a%d, *a%d]" % (n, n - 1, n - 1, n - 1) for n in range(1, 30))
    + b"]}\n"
)

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
    "aliases of aliases": (BILLIONS, "c.yaml:1: data.train: not a plain value: more than 10000"),
    "aliases in an object": (
        b"data: {chat_template_kwargs: {a: &a {b: [1, 1]}, c: &c [*a, *a], d: &d [*c, *c], e: ["
        + b"*d, " * 9000
        + b"]}}\n",
        "c.yaml:1: data.chat_template_kwargs: not a plain value: more than 10000 values",
    ),
    "nested lists": (b"seed: " + b"[" * 20_000, "c.yaml: nested too deeply"),
    "nested names": (b"{a: " * 20_000, "c.yaml: nested too deeply"),
    "a list nested a little": (
        b"seed: " + b"[" * 60 + b"]" * 60 + b"\n",
        "c.yaml:1: seed: not a plain value: nested more than 50 times",
    ),
    "a large file": (b"#" * 300_000, "c.yaml: has 300000 bytes, and a file of settings has less"),
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
