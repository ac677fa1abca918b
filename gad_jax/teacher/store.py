"""The file of responses: one JSON line each, on the disk before it counts, never written twice.

A line is a training row: `{"key", "sample", "id", "prompt_id", "messages", "teacher_response",
"finish_reason", "request_id", "model", "teacher", "system", "parameters", "usage", "time"}`. `key`
is a hash of the request. `model` is what the server says it is; `teacher` is the requested model.
A teacher that thinks adds "reasoning", its thought. No field holds the key, even if a server sends
it.
"""

import asyncio
import dataclasses
import datetime
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gad_jax.base import files, jsonl
from gad_jax.base.errors import StorageError, UserError
from gad_jax.base.redaction import mask_keys, redact
from gad_jax.teacher.budget import Use
from gad_jax.teacher.questions import Question, Teacher, most_prompt_tokens
from gad_jax.teacher.wire import Reply

Line = dict[str, Any]
S = TypeVar("S", bound="Store")

_BEGINNING = b'{"key": "'
FREE_BYTES = 2**20
"""Free disk space that each response in flight needs."""


class Contents(NamedTuple):
    """What a file holds. `whole_bytes` is where its last whole line ends; that line may lack its
    line feed. `teachers` are the models that answered, with their parameters, as `teacher_name`
    writes them."""

    have: set[tuple[str, int]]
    used: Use
    reasons: Counter[str]
    whole_bytes: int = 0
    teachers: frozenset[str] = frozenset()


def make_line(question: Question, teacher: Teacher, reply: Reply) -> Line:
    """Returns the line for the reply to one sample."""
    completion = reply.completions[0]
    system_was_sent = question.sent != question.messages
    line = {
        "key": question.key,
        "sample": question.sample,
        "id": f"{question.key[:16]}-{question.sample}",
        "prompt_id": question.row,
        "messages": list(question.messages),
        "teacher_response": mask_keys(completion.text),
        "finish_reason": redact(completion.finish_reason),
        "request_id": redact(reply.id),
        "model": redact(reply.model),
        "teacher": teacher.model,
        "system": teacher.system if system_was_sent else "",
        "parameters": dict(teacher.parameters),
        "usage": reply.usage and dataclasses.asdict(reply.usage),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
    }
    return line | ({"reasoning": mask_keys(completion.reasoning)} if completion.reasoning else {})


def teacher_name(model: Any, parameters: Any) -> str:
    """Returns a teacher's name in `Contents.teachers`."""
    return json.dumps([model, parameters], sort_keys=True)


def used(line: Line) -> Use:
    """Returns what was billed for a line: the server's counts, or else upper bounds."""
    usage = line["usage"] or {}
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if prompt is None:
        prompt = most_prompt_tokens([{"content": line["system"]}, *line["messages"]])
    if completion is None:
        texts = (line["teacher_response"], line.get("reasoning", ""))
        completion = sum(len(text.encode()) for text in texts) + 1
    return Use(1, prompt, completion)


def scan(path: Path) -> Contents:
    """Returns what a file holds, nothing where there is no file; changes nothing.

    A torn last line is left out. Raises UserError for any other line that collect did not write.
    """
    contents = Contents(set(), Use(), Counter())
    teachers: set[str] = set()
    for raw, line in _read(path):
        contents.have.add((line["key"], line["sample"]))
        contents.reasons[line["finish_reason"]] += 1
        teachers.add(teacher_name(line.get("teacher"), line.get("parameters")))
        contents = contents._replace(
            used=contents.used.plus(used(line)), whole_bytes=contents.whole_bytes + len(raw)
        )
    return contents._replace(teachers=frozenset(teachers))


def read_lines(path: Path) -> Iterator[Line]:
    """Yields the lines of a file in their order. Raises UserError as `scan` does."""
    return (line for _, line in _read(path))


def _read(path: Path) -> Iterator[tuple[bytes, Line]]:
    """Yields the whole lines, raw and parsed."""
    files.need_regular(path)
    if not path.exists():
        return
    with _open(path) as file:
        for number, raw in enumerate(file, start=1):
            line = _parse(raw)
            if line is not None:
                yield raw, line
            elif raw.endswith(b"\n") or not _may_be_ours(raw, number):
                raise UserError(
                    f"{path}:{number}: not a line that collect wrote; give another --out, or mend "
                    "or delete that line"
                )


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
    """Whether a torn line may be the beginning of one of ours. After whole lines it may be
    anything: a power failure can leave a block of zeros."""
    return number > 1 or raw.startswith(_BEGINNING) or _BEGINNING.startswith(raw)


@dataclasses.dataclass
class Store:
    """A file that lines are added to; the caller holds its lock. Made by `Store.open`."""

    path: Path
    contents: Contents
    _file: jsonl.Appender
    _pending: list[bytes] = dataclasses.field(default_factory=list)
    _queued: int = 0
    _written: int = 0
    _failure: OSError | None = None
    _writing: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)

    @classmethod
    def open(cls: type[S], path: Path) -> S:
        """Returns the store in a file, which is made if needed; cuts off a torn last line."""
        contents = scan(path)
        try:
            file = jsonl.Appender(path, contents.whole_bytes)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}") from error
        files.hold(path)  # which may be new
        return cls(path, contents, file)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def check_room(self, responses: int) -> None:
        """Raises StorageError if the disk has no room for so many responses. Call it before the
        requests are sent: a response that cannot be stored is paid in vain."""
        free = shutil.disk_usage(self.path.parent).free
        if free < responses * FREE_BYTES:
            raise StorageError(
                f"{self.path}: the disk has {free >> 20} MiB left, too little for the responses on "
                "their way; make room and start again, which asks for what is missing"
            )

    async def add(self, line: Line) -> None:
        """Adds a line. When this returns, it survives kill -9 and a power failure.

        Lines that come while others are being written go to the disk together. Raises StorageError
        when that fails; the file then ends with the last line that it held before.
        """
        self._pending.append(jsonl.encode(line))
        self._queued += 1
        ticket = self._queued
        async with self._writing:
            if self._written < ticket and self._failure is None:
                lines, self._pending, last = self._pending, [], self._queued
                try:
                    await asyncio.to_thread(self._file.write, b"".join(lines))
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
