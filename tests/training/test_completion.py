"""Checkpoints that are completed while the next steps run: what they hold, and what waits."""

import errno
import json
import re
import threading

import pytest

from gad_jax.base.errors import StorageError
from gad_jax.training import completion, digest
from gad_jax.training.checkpoint import Checkpoints
from gad_jax.training.iteration import Iteration
from tests.training.checkpoint_states import abstract, host, make_mesh, make_state
from tests.training.runs import rows, run, settings

FLAGS = ("--stage=seqkd", "--seqkd.steps=3", "--checkpoint.every=1", "--evaluation.every=1")


def held(directory):
    """Returns the names of all files of a run, and the contents of those that do not vary."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    names = {re.sub(r"[0-9a-f]{32}|tfevents.*", "#", str(p.relative_to(directory))) for p in paths}
    texts = [path.read_text() for path in paths if path.name in ("record.json", "status.json")]
    evaluations = [path.read_text() for path in sorted((directory / "evaluations").iterdir())]
    return names, texts, evaluations, rows(directory)


def test_the_next_step_begins_before_a_checkpoint_is_complete(tmp_path, monkeypatch):
    write, step, begun = completion.sums.write, Iteration.run, threading.Event()
    written = []

    def slow_write(checkpoint):
        last = checkpoint.name == "3"
        assert last or begun.wait(600), "the next step waits for the checkpoint"
        begun.clear()
        written.append(checkpoint.name)
        write(checkpoint)

    def beginning(self, span, number, *others):
        assert len(written) < max(number, 1)  # of the step before, nothing is written yet
        begun.set()
        return step(self, span, number, *others)

    run(settings(tmp_path / "run", *FLAGS, "--checkpoint.background=off"))
    expected = held(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "waited")
    monkeypatch.setattr(completion.sums, "write", slow_write)
    monkeypatch.setattr(Iteration, "run", beginning)
    run(settings(tmp_path / "run", *FLAGS))
    assert written == ["1", "2", "3"]
    assert held(tmp_path / "run") == expected
    assert json.loads((tmp_path / "run" / "status.json").read_text())["step"] == 3


def test_a_run_ends_with_the_error_of_a_save_and_waits_for_one_before_other_errors(
    tmp_path, monkeypatch
):
    def full(checkpoint):
        raise OSError(errno.ENOSPC, "No space left on device")

    flags = (*FLAGS, "--data.heldout=")
    with monkeypatch.context() as patched:
        patched.setattr(completion.sums, "write", full)
        with pytest.raises(StorageError, match=r"1 could not be written \(OSError: .*No space"):
            run(settings(tmp_path / "full", *flags))
    write, step, go = completion.sums.write, Iteration.run, threading.Event()

    def waiting(checkpoint):
        assert go.wait(600)
        write(checkpoint)

    def failing(self, span, number, *others):
        if number < 1:
            return step(self, span, number, *others)
        threading.Timer(0.5, go.set).start()
        raise RuntimeError("of the second step")

    monkeypatch.setattr(completion.sums, "write", waiting)
    monkeypatch.setattr(Iteration, "run", failing)
    ended = []
    monkeypatch.setattr(Checkpoints, "close", lambda self: ended.append(self._completion.ended()))
    with pytest.raises(RuntimeError, match="of the second step"):
        run(settings(tmp_path / "failed", *flags))
    assert ended == [True]


def test_a_failed_save_is_said_where_another_error_ends_the_run(tmp_path, monkeypatch, caplog):
    def full(checkpoint):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(completion.sums, "write", full)
    checkpoints = Checkpoints(tmp_path, background=True)
    checkpoints.save(1, make_state(make_mesh()), {"stage": "gad"})
    checkpoints.settle(RuntimeError("of the next step"))
    assert "1 could not be written (OSError: [Errno 28] No space" in caplog.text


def test_decisions_wait_for_the_checkpoint_that_is_being_written(tmp_path, monkeypatch):
    state = make_state(make_mesh())
    go, compute = threading.Event(), digest._digest_of_parts
    monkeypatch.setattr(digest, "_digest_of_parts", lambda part: go.wait(600) and compute(part))
    checkpoints = Checkpoints(tmp_path, background=True)
    done = []
    checkpoints.save(1, state, {"stage": "gad"}, 0.5, done=lambda: done.append(checkpoints.best()))
    assert checkpoints.steps() == done == []
    assert not checkpoints.would_be_best(None, {"stage": "gad"})  # which needs no waiting
    checkpoints.check()
    threading.Timer(0.2, go.set).start()
    assert not checkpoints.would_be_best(0.4, {"stage": "gad"})
    assert checkpoints.steps() == done == [1]
    assert checkpoints.would_be_best(0.6, {"stage": "gad"})
    assert host(checkpoints.restore(lambda _: abstract(state)).state) == host(state)
    checkpoints.close()
