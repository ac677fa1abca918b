"""Requests that take slots and free them; one of them fails."""

import dataclasses
import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from gad_jax.data.chat import Chat
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import weights
from gad_jax.models.builtin.tiny import write_tiny
from gad_jax.rollout.sampling import GREEDY
from gad_jax.serve.scheduler import Busy, Request, Scheduler
from gad_jax.serve.student import ServedStudent

NEVER = 10**9


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> ServedStudent:
    directory: Path = tmp_path_factory.mktemp("tiny")
    write_tiny(directory)
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        config, params = weights.load(directory, mesh)
    return ServedStudent.make(config, params, Chat.load(directory, "none"), mesh, 2, 256)


@pytest.fixture
def scheduler(student: ServedStudent) -> Iterator[Scheduler]:
    one = Scheduler(student, waiting=3)
    one.start()
    yield one
    one.stop()
    assert not one.alive


def request(
    limit: int, on_token: Callable[[int], None] = lambda token: None
) -> tuple[Request, "queue.Queue[Any]"]:
    """Returns a request, and where its tokens and then its end appear."""
    heard: queue.Queue[Any] = queue.Queue()

    def take(token: int, logprob: float) -> None:
        on_token(token)
        heard.put(token)

    return Request(np.asarray([7, 9], np.int32), limit, GREEDY, 0, take, heard.put), heard


def answer(heard: "queue.Queue[Any]") -> tuple[list[int], str]:
    tokens = []
    while not isinstance(item := heard.get(timeout=60), str):
        tokens.append(item)
    return tokens, item


def test_trouble_of_one_is_not_the_others(
    scheduler: Scheduler, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(token: int) -> None:
        raise ValueError("not this one")

    expected, heard = request(12)
    scheduler.submit(expected)
    tokens, reason = answer(heard)
    assert reason in ("length", "stop")
    troubled, heard = request(12, fail)
    others = [request(12) for _ in range(2)]
    for one, _ in [(troubled, heard), *others]:
        scheduler.submit(one)
    assert answer(heard) == ([], "error")
    assert [answer(heard) for _, heard in others] == [(tokens, reason)] * 2
    assert "not this one" in caplog.text
    assert scheduler.alive


def test_cancelled_requests_leave_and_too_many_are_refused(
    scheduler: Scheduler, student: ServedStudent, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_ends = dataclasses.replace(student.chat, end_tokens=(NEVER,))
    monkeypatch.setitem(vars(student), "chat", never_ends)
    alone, heard = request(5)
    scheduler.submit(alone)
    expected = answer(heard)
    assert (len(expected[0]), expected[1]) == (5, "length")
    several = [request(250) for _ in range(2)]
    for one, heard in several:
        scheduler.submit(one)
        assert isinstance(heard.get(timeout=60), int)
    waiting = [request(250) for _ in range(3)]
    for one, _ in waiting:
        scheduler.submit(one)
    assert (scheduler.busy, scheduler.waiting) == (2, 3)
    with pytest.raises(Busy):
        scheduler.submit(request(1)[0])
    for one, _ in several + waiting:
        one.cancelled.set()
    last, heard = request(5)
    while scheduler.waiting == 3:
        time.sleep(0.001)
    scheduler.submit(last)
    assert answer(heard) == expected
    assert all(heard.empty() for _, heard in waiting)


def test_an_end_of_the_service_is_told(student: ServedStudent) -> None:
    one = Scheduler(student, waiting=3)
    one.start()
    long, heard = request(250)
    one.submit(long)
    one.stop()
    assert answer(heard)[1] in ("error", "stop")
