"""Requests that take slots and free them; one of them fails, hangs up, or has a long prompt."""

import dataclasses
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from gad_jax.data.chat import Chat
from gad_jax.distributed import devices
from gad_jax.distributed.mesh import make_mesh
from gad_jax.models import weights
from gad_jax.models.builtin.tiny import write_tiny
from gad_jax.rollout import chunks, decoding, live
from gad_jax.rollout.sampling import GREEDY, Sampler
from gad_jax.serve.scheduler import Busy, Request, Scheduler
from gad_jax.serve.student import ServedStudent

NEVER = 10**9
CONTEXT, CHUNK = 600, 16


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> ServedStudent:
    directory: Path = tmp_path_factory.mktemp("tiny")
    write_tiny(directory)
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        config, params = weights.load(directory, mesh)
    chat = Chat.load(directory, "none")
    return ServedStudent.make(config, params, chat, mesh, 2, CONTEXT, CHUNK, kept=256)


@pytest.fixture
def scheduler(student: ServedStudent) -> Iterator[Scheduler]:
    one = Scheduler(student, waiting=3)
    one.start()
    yield one
    one.stop()
    assert not one.alive


@pytest.fixture
def endless(student: ServedStudent, monkeypatch: pytest.MonkeyPatch) -> None:
    """No token ends an answer."""
    monkeypatch.setitem(
        vars(student), "chat", dataclasses.replace(student.chat, end_tokens=(NEVER,))
    )


def request(
    limit: int,
    on_token: Callable[[int], None] = lambda token: None,
    prompt: Any = (7, 9),
    sampler: Sampler = GREEDY,
    seed: int = 0,
) -> tuple[Request, "queue.Queue[Any]"]:
    """Returns a request, and where its tokens and then its end appear."""
    heard: queue.Queue[Any] = queue.Queue()

    def take(token: int, logprob: float) -> None:
        on_token(token)
        heard.put(token)

    tokens = np.asarray(prompt, np.int32)
    return Request(tokens, limit, sampler, seed, take, heard.put), heard


def answer(heard: "queue.Queue[Any]") -> tuple[list[int], str]:
    tokens = []
    while not isinstance(item := heard.get(timeout=600), str):
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
    scheduler: Scheduler, endless: None
) -> None:
    alone, heard = request(5)
    scheduler.submit(alone)
    expected = answer(heard)
    assert (len(expected[0]), expected[1]) == (5, "length")
    several = [request(250) for _ in range(2)]
    for one, heard in several:
        scheduler.submit(one)
        assert isinstance(heard.get(timeout=600), int)
    waiting = [request(250) for _ in range(3)]
    for one, _ in waiting:
        scheduler.submit(one)
    assert (scheduler.busy, scheduler.waiting) == (2, 3)
    with pytest.raises(Busy):
        scheduler.submit(request(1)[0])
    waiting[1][0].cancelled.set()
    assert scheduler.waiting == 2  # at once, although no slot is free
    waiting.append(request(250))
    scheduler.submit(waiting[-1][0])
    for one, _ in several + waiting:
        one.cancelled.set()
    assert scheduler.waiting == 0
    last, heard = request(5)
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


def test_no_request_waits_for_a_compile(
    scheduler: Scheduler, student: ServedStudent, endless: None
) -> None:
    told: list[tuple[int, int]] = []
    other = Scheduler(student, waiting=20)
    other.start(lambda *numbers: told.append(numbers))
    assert told == [(n, 8) for n in range(1, 9)]  # two capacities
    compiled = devices.CompileCounter()
    random = np.random.default_rng(0)
    samplers = (GREEDY, Sampler(0.7, top_k=5), Sampler(1.3, top_p=0.6, min_p=0.01))
    asked = [
        request(limit, prompt=random.integers(0, 256, length), sampler=samplers[n % 3], seed=n)
        for n, (length, limit) in enumerate(
            [(1, 3), (15, 9), (16, 1), (17, 5), (300, 290), (33, 7), (260, 2), (9, 200), (599, 1)]
        )
    ]
    try:
        for one, _ in asked:
            other.submit(one)
        ended = [answer(heard) for _, heard in asked]
    finally:
        other.stop()
    assert [(len(tokens), why) for tokens, why in ended] == [
        (one.max_new_tokens, "length") for one, _ in asked
    ]
    assert compiled.count == 0


@pytest.mark.parametrize("where", ["run", "insert", "sampler", "seed", "prompt", "nan"])
def test_a_request_that_cannot_be_admitted_fails_alone(
    scheduler: Scheduler, endless: None, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    expected, heard = request(4)
    scheduler.submit(expected)
    tokens = answer(heard)
    module = {"run": chunks, "insert": live}.get(where)
    if module is not None:
        real, calls = getattr(module, where), []

        def fail_once(*arguments: Any) -> Any:
            calls.append(arguments)
            if len(calls) == 1:
                raise RuntimeError("this one cannot")
            return real(*arguments)

        monkeypatch.setattr(module, where, fail_once)
    absurd = {"sampler": Sampler(1.0, top_k=-(2**40)), "nan": Sampler(1.0, min_p=float("inf"))}.get(
        where, GREEDY
    )
    prompt = range(20) if where == "run" else (7, 9)
    broken, broken_heard = request(4, prompt=prompt, sampler=absurd, seed=-int(where == "seed"))
    if where == "prompt":
        broken.prompt = np.asarray([["x"]])
    others = [request(4) for _ in range(2)]
    for one, _ in [(broken, broken_heard), *others]:
        scheduler.submit(one)
    assert answer(broken_heard) == ([], "error")
    assert [answer(heard) for _, heard in others] == [tokens] * 2
    assert scheduler.alive
    assert scheduler.busy == 0


def test_a_long_prompt_does_not_hold_up_an_answer(
    scheduler: Scheduler, endless: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    run = chunks.run

    def told(*arguments: Any) -> Any:
        order.append("chunk")
        return run(*arguments)

    monkeypatch.setattr(chunks, "run", told)
    short, heard = request(100, lambda token: order.append("token"))
    scheduler.submit(short)
    assert isinstance(heard.get(timeout=600), int)
    order.clear()
    long, long_heard = request(3, prompt=np.arange(400) % 256)
    scheduler.submit(long)
    assert answer(heard)[1] == "length"
    assert answer(long_heard)[1] == "length"
    assert order.count("chunk") == 25
    first = order.index("chunk")
    between = "".join("t" if one == "token" else "c" for one in order[first:])
    assert "ccc" not in between.rstrip("c")  # a chunk, or one more where a token is being read
    leaving, heard = request(3, prompt=np.arange(400)[::-1] % 256)
    scheduler.submit(leaving)
    while order.count("chunk") < 27:
        pass
    leaving.cancelled.set()
    after, after_heard = request(3)
    scheduler.submit(after)
    assert answer(after_heard)[1] == "length"
    assert order.count("chunk") < 45  # the rest of the prompt never ran


def test_the_end_of_the_devices_is_the_end(
    scheduler: Scheduler, endless: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> Any:
        raise jax.errors.JaxRuntimeError("INTERNAL: the device is lost")

    one, heard = request(500)
    scheduler.submit(one)
    assert isinstance(heard.get(timeout=600), int)
    monkeypatch.setattr(decoding.live, "step", lost)
    assert answer(heard)[1] == "error"
    scheduler._thread.join(timeout=600)
    with pytest.raises(jax.errors.JaxRuntimeError, match="the device is lost"):
        scheduler.submit(request(1)[0])
