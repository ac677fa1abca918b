"""The file of responses: one JSON line each, on the disk before it counts, never written twice.

A line is a training row: `{"key", "sample", "id", "prompt_id", "messages", "teacher_response",
"finish_reason", "request_id", "model", "teacher", "system", "parameters", "usage", "time"}`. `key`
names the request by its content, `model` is the server's word and `teacher` what was asked for.
"""

import asyncio
import dataclasses
import datetime
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from gad_jax.base.errors import StorageError, UserError
from gad_jax.teacher import Reply
from gad_jax.teacher.budget import Use
from gad_jax.teacher.questions import Question, Teacher, most_prompt_tokens

Line = dict[str, Any]

_BEGINNING = b'{"key": "'
FREE_BYTES = 2**20
"""What a response on its way is given room for."""


class Contents(NamedTuple):
    """What a file holds. `whole_bytes` is where its last whole line ends; `lacks_line_feed` says
    that a whole line without line feed follows."""

    have: set[tuple[str, int]]
    used: Use
    reasons: Counter[str]
    whole_bytes: int = 0
    lacks_line_feed: bool = False


def make_line(question: Question, teacher: Teacher, reply: Reply) -> Line:
    """Returns what is kept of a reply to one sample."""
    completion = reply.completions[0]
    led = question.sent != question.messages
    return {
        "key": question.key,
        "sample": question.sample,
        "id": f"{question.key[:16]}-{question.sample}",
        "prompt_id": question.row,
        "messages": list(question.messages),
        "teacher_response": completion.text,
        "finish_reason": completion.finish_reason,
        "request_id": reply.id,
        "model": reply.model,
        "teacher": teacher.model,
        "system": teacher.system if led else "",
        "parameters": dict(teacher.parameters),
        "usage": reply.usage and dataclasses.asdict(reply.usage),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
    }


def used(line: Line) -> Use:
    """Returns what a line was billed, by the server's word or else the most that it can be."""
    usage = line["usage"]
    if usage is not None:
        return Use(1, usage["prompt_tokens"], usage["completion_tokens"])
    prompt = most_prompt_tokens([{"content": line["system"]}, *line["messages"]])
    return Use(1, prompt, len(line["teacher_response"].encode()) + 1)


def scan(path: Path) -> Contents:
    """Returns what a file holds, nothing where there is none; changes nothing.

    A last line that a crash has torn is left out. Raises UserError for any other line that
    collecting did not write.
    """
    contents = Contents(set(), Use(), Counter())
    if not path.exists():
        return contents
    with _open(path) as file:
        for number, raw in enumerate(file, start=1):
            torn = not raw.endswith(b"\n")
            line = _parse(raw)
            if line is None and torn and _may_be_ours(raw, number):
                break
            if line is None:
                raise UserError(
                    f"{path}:{number}: not a line that collect wrote; give another --out, or mend "
                    "or delete that line"
                )
            contents.have.add((line["key"], line["sample"]))
            contents.reasons[line["finish_reason"]] += 1
            contents = contents._replace(
                used=contents.used.plus(used(line)),
                whole_bytes=contents.whole_bytes + len(raw),
                lacks_line_feed=torn,
            )
    return contents


def _open(path: Path) -> Any:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(
            f"--out={path} cannot be read ({error.strerror}); name another file"
        ) from error


def _parse(raw: bytes) -> Line | None:
    try:
        line = json.loads(raw)
        named = isinstance(line["key"], str) and isinstance(line["sample"], int)
        return line if named and isinstance(line["finish_reason"], str) and used(line) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _may_be_ours(raw: bytes, number: int) -> bool:
    """Whether the beginning of a line is one of ours; it may be any if whole lines went before."""
    return number > 1 or raw.startswith(_BEGINNING) or _BEGINNING.startswith(raw)


@dataclasses.dataclass
class Store:
    """A file that lines are added to; the caller holds its lock. Made by `Store.open`."""

    path: Path
    contents: Contents
    _descriptor: int
    _size: int
    _pending: list[bytes] = dataclasses.field(default_factory=list)
    _queued: int = 0
    _written: int = 0
    _failure: OSError | None = None
    _writing: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)

    @classmethod
    def open(cls, path: Path) -> "Store":
        """Returns the store in a file, made if needed; cuts off what a crash has torn."""
        contents = scan(path)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            os.ftruncate(descriptor, contents.whole_bytes)
            if contents.lacks_line_feed:
                os.write(descriptor, b"\n")
            os.fsync(descriptor)
            directory = os.open(path.parent, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}") from error
        return cls(path, contents, descriptor, os.fstat(descriptor).st_size)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)

    def check_room(self, responses: int) -> None:
        """Raises StorageError if the disk has no room for that many responses: before they are
        paid."""
        free = shutil.disk_usage(self.path.parent).free
        if free < responses * FREE_BYTES:
            raise StorageError(
                f"{self.path}: the disk has {free >> 20} MiB left, too little for the responses on "
                "their way; make room and start again, which asks for what is missing"
            )

    async def add(self, line: Line) -> None:
        """Adds a line; when this returns, neither kill -9 nor a power failure loses it.

        Lines that come while others are being written go to the disk together. Raises StorageError
        when that fails; the file then ends with the last line that it held before.
        """
        self._pending.append(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._queued += 1
        ticket = self._queued
        async with self._writing:
            if self._written < ticket and self._failure is None:
                lines, self._pending, last = self._pending, [], self._queued
                try:
                    await asyncio.to_thread(self._write, b"".join(lines))
                    self._written = last
                except OSError as error:
                    self._failure = error
        if self._written < ticket:
            reason = self._failure.strerror if self._failure else "not written"
            raise StorageError(
                f"{self.path} could not be written: {reason}; responses on their way are lost; "
                "make room and start again, which asks for what is missing"
            )
        self.contents.have.add((line["key"], line["sample"]))
        self.contents.reasons[line["finish_reason"]] += 1

    def _write(self, content: bytes) -> None:
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(content)
