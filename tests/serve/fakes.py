"""A student without a network: its answers are texts that the test gives."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from gad_jax.base import listening
from gad_jax.data.chat import Chat
from gad_jax.models import weights
from gad_jax.serve import guard
from gad_jax.serve.scheduler import Busy, Request, Scheduler
from gad_jax.serve.student import ServedStudent


def student(directory: Path, context: int = 512) -> ServedStudent:
    """Returns a student of which only the tokenizer and the sizes are there."""
    one = object.__new__(ServedStudent)
    config, chat = weights.read_config(directory), Chat.load(directory, "none")
    vars(one).update(config=config, chat=chat, slots=2, context=context)
    vars(one).update(_encoding=threading.Lock(), _chats={})
    return one


class Decoding(Scheduler):
    """`say` gives the text of the answer to a prompt's text; None is a fault of that request.

    Between tokens it sleeps `pause` seconds; after `most` requests it is busy.
    """

    alive, busy, waiting = True, 0, 0  # pyright: ignore

    def __init__(
        self,
        student: ServedStudent,
        say: Callable[[str], str | None],
        pause: float = 0.0,
        most: int = 1000,
    ) -> None:
        self.student, self.say, self.pause, self.most = student, say, pause, most
        self.seen: list[Request] = []

    def submit(self, request: Request) -> None:
        """Answers in a thread."""
        if len(self.seen) >= self.most:
            raise Busy
        self.seen.append(request)
        threading.Thread(target=self._answer, args=[request], daemon=True).start()

    def _answer(self, request: Request) -> None:
        text = self.say(self.student.chat.tokenizer.decode(request.prompt.tolist()))
        if text is None:
            request.on_end("error")
            return
        for token in self.student.chat.encoder.continuation([text])[0]:
            if request.cancelled.is_set():
                return
            request.answered += 1
            request.on_token(token, -0.5)
            if request.cancelled.is_set():
                return
            if request.answered >= request.max_new_tokens:
                request.on_end("length")
                return
            time.sleep(self.pause)
        request.answered += 1
        request.on_end("stop")


@contextlib.contextmanager
def listen(application: Any) -> Iterator[str]:
    """Serves an application in a thread, on a real socket; yields its address."""
    with listening.bind("127.0.0.1", 0) as bound:
        bound.listen()
        config = uvicorn.Config(
            application, http=guard.Connection, ws="none", log_level="warning", lifespan="off"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=60)
