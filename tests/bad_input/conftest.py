"""Input of every kind that is wrong: one sentence with place and fix, a code, nothing damaged.

The commands are the real ones, in this process; what is given to them are real files.
"""

import pytest

from gad_jax.base import exits
from gad_jax.distributed import processes

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
        "replace",
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
