"""Results of batches: their prompts are in another file."""

import json
from pathlib import Path
from typing import Any

import pytest

from gad_jax.base.errors import UserError
from gad_jax.data import sources


def request(name: str, prompt: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": prompt}]
    body = {"model": "m", "messages": messages}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


def result(name: str, answer: str, reason: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": answer, "refusal": None}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": reason}]}
    response = {"status_code": 200, "request_id": "r", "body": body}
    return {"id": "batch_req_1", "custom_id": name, "response": response, "error": None}


def failed(name: str) -> dict[str, Any]:
    body = {"error": {"message": "no", "code": "x"}}
    return {"id": "b", "custom_id": name, "response": {"status_code": 400, "body": body}}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_openai(tmp_path: Path) -> None:
    write(tmp_path / "requests.jsonl", *[request(f"r{n}", f"q{n}") for n in range(5)])
    write(tmp_path / "other.jsonl", {"prompt": "x"})
    answers = [result("r3", "a3"), result("r1", "a1"), result("r2", "", "length"), failed("r0")]
    path = write(tmp_path / "batch_output.jsonl", *answers)
    rows = sources.read(path)
    assert [(row.id, row.messages[-1]["content"], row.responses) for row in rows] == [
        ("r3", "q3", ("a3",)),
        ("r1", "q1", ("a1",)),
    ]
    assert rows[0].messages[0] == {"role": "system", "content": "s"}
    assert rows.unfinished == 2
    assert rows.notes == (
        f"{path}: read as messages and response: response is the teacher's answer",
    )


def test_anthropic(tmp_path: Path) -> None:
    params = {"model": "m", "system": "s", "messages": [{"role": "user", "content": "q"}]}
    write(tmp_path / "in.jsonl", {"custom_id": "r", "params": params})
    message = {"content": [{"type": "text", "text": "a"}], "stop_reason": "end_turn"}
    good = {"custom_id": "r", "result": {"type": "succeeded", "message": message}}
    bad = {"custom_id": "r", "result": {"type": "errored", "error": {"type": "x"}}}
    rows = sources.read(write(tmp_path / "out.jsonl", good, bad))
    assert [row.responses for row in rows] == [("a",)]
    assert [one["content"] for one in rows[0].messages] == ["s", "q"]
    assert rows.unfinished == 1


def test_requests_are_prompts(tmp_path: Path) -> None:
    path = write(tmp_path / "requests.jsonl", request("r", "q"))
    (row,) = sources.read(path, need_response=False)
    assert (row.id, row.messages[-1]["content"]) == ("r", "q")


def test_request_and_response_in_one_line(tmp_path: Path) -> None:
    openai = {"request": request("r", "q"), "response": result("r", "a")["response"]}
    parts = [{"role": "user", "parts": [{"text": "q"}]}]
    candidate = {"content": {"parts": [{"text": "a"}], "role": "model"}, "finishReason": "STOP"}
    gemini = {"request": {"contents": parts}, "response": {"candidates": [candidate]}}
    rows = sources.read(write(tmp_path / "log.jsonl", openai, gemini))
    assert [row.responses for row in rows] == [("a",), ("a",)]
    assert [row.messages[-1]["content"] for row in rows] == ["q", "q"]


def test_no_file_of_requests(tmp_path: Path) -> None:
    path = write(tmp_path / "out.jsonl", result("r1", "a"), result("r2", "b"))
    with pytest.raises(UserError) as caught:
        sources.read(path)
    assert str(caught.value) == (
        "out.jsonl:1: a batch's output holds no prompts, and no file of requests next to it has "
        f"the custom_id 'r1'; put the batch's input, which has 'body' in each line, in {tmp_path}"
    )


def test_two_files_of_requests(tmp_path: Path) -> None:
    path = write(tmp_path / "out.jsonl", result("r", "a"))
    write(tmp_path / "in1.jsonl", request("r", "q"))
    write(tmp_path / "in2.jsonl", request("r", "q"))
    assert sources.read(path)[0].messages[-1]["content"] == "q"
    write(tmp_path / "in2.jsonl", request("r", "other"))
    with pytest.raises(UserError, match="several files of requests have the same custom_id: 'r'"):
        sources.read(path)
