"""Results of a provider's batch mode: answers in one file, their prompts in the file of requests.

A line of results has a `custom_id` and no prompt. The requests are searched for next to it, in the
files of its directory. OpenAI's form and Anthropic's are known.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gad_jax.data.sources.rows import Invalid, Record

_REQUEST = ("body", "params")
_RESULT = ("response", "result")
_OF_A_PROMPT = (
    *("messages", "contents", "system", "systemInstruction", "system_instruction"),
    *("tools", "functions"),
)

Reader = Callable[[Path], Iterable[Record]]


def is_result(record: Any) -> bool:
    """Returns whether a record is a line of a batch's output or of its errors."""
    return (
        _has_name(record)
        and any(name in record for name in _RESULT)
        and not {"messages", "prompt", *_REQUEST} & set(record)
    )


def is_request(record: Any) -> bool:
    """Returns whether a record is a line of a batch's input, with a chat request."""
    return _has_name(record) and "messages" in _body(record, _REQUEST)


def is_logged(record: Any) -> bool:
    """Returns whether a record holds a chat request and the response to it."""
    return isinstance(record, dict) and any(
        name in _logged_request(record) for name in ("messages", "contents")
    )


def _logged_request(record: dict[str, Any]) -> dict[str, Any]:
    request = _body(record, ("request",))
    return _body(request, ("body",)) or request


def _has_name(record: Any) -> bool:
    return isinstance(record, dict) and isinstance(record.get("custom_id"), str)


def _body(record: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    bodies = (record.get(name) for name in names)
    return next((body for body in bodies if isinstance(body, dict)), {})


def joined(path: Path, found: Iterable[Record], read: Reader) -> Iterator[Record]:
    """Yields the records of a file; in place of a batch's lines, prompts with their answers."""
    stream = iter(found)
    first = next(stream, None)
    if first is None:
        return
    requests = _requests(path, read) if is_result(first[1]) else None
    for where, record in itertools.chain([first], stream):
        if is_request(record):
            yield where, _prompt(record)
        elif requests is not None and is_result(record):
            yield where, _with_prompt(record, requests, path)
        elif is_logged(record):
            yield where, {**_known(_logged_request(record)), "response": record.get("response")}
        else:
            yield where, record


def _requests(path: Path, read: Reader) -> dict[str, tuple[Path, dict[str, Any]] | None]:
    """Returns file and prompt of each request next to a file; None where two have one name."""
    requests: dict[str, tuple[Path, dict[str, Any]] | None] = {}
    for other in sorted(path.parent.glob("*.jsonl*")):
        if other == path or not other.is_file():
            continue
        lines = iter(read(other))
        first = next(lines, None)
        if first is None or not is_request(first[1]):
            continue
        for _, record in itertools.chain([first], lines):
            if is_request(record):
                name, prompt = record["custom_id"], _prompt(record)
                held = requests.get(name, (other, prompt))
                same = held is not None and held[1]["messages"] == prompt["messages"]
                requests[name] = (other, prompt) if same else None
    return requests


def _prompt(record: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": record["custom_id"], **_known(_body(record, _REQUEST))}


def _known(body: dict[str, Any]) -> dict[str, Any]:
    """Returns what a request says about the prompt."""
    return {name: body[name] for name in _OF_A_PROMPT if body.get(name)}


def _with_prompt(
    record: dict[str, Any],
    requests: dict[str, tuple[Path, dict[str, Any]] | None],
    path: Path,
) -> Any:
    name = record["custom_id"]
    if name not in requests:
        return Invalid(
            "a batch's output holds no prompts",
            f", and no file of requests next to it has the custom_id {name!r}",
            columns=True,
            advice=f"put the batch's input, which has 'body' in each line, in {path.parent}",
        )
    held = requests[name]
    if held is None:
        return Invalid(
            "several files of requests have the same custom_id",
            f": {name!r}",
            columns=True,
            advice=f"leave only the input of this batch next to it in {path.parent}",
        )
    result = _body(record, _RESULT)
    answer = result.get("body", result.get("message"))
    if not isinstance(answer, dict) or "error" in answer:
        return held[1] | {"teacher_response": "", "finish_reason": "error"}
    return held[1] | {"response": answer}
