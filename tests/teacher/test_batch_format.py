"""Batches as providers describe them, and the lines of their files."""

import json

import pytest

from gad_jax.teacher.batch_format import read_batch, read_batch_responses
from gad_jax.teacher.wire import BadResponse, read_failure


def test_a_batch_has_a_status_and_a_line_per_request() -> None:
    counts = {"completed": 2, "failed": 1}
    status = read_batch(
        json.dumps({"id": "b", "status": "completed", "request_counts": counts}).encode()
    )
    assert (status.ended, status.done, status.problem) == (True, 3, "")
    assert not read_batch(b'{"id": "b", "status": "in_progress"}').ended
    lines = [
        {"custom_id": "1", "response": {"status_code": 200, "body": {"x": 1}}},
        {"custom_id": "2", "error": {"code": "expired", "message": "Late."}},
    ]
    first, second = read_batch_responses(b"\n".join(json.dumps(line).encode() for line in lines))
    assert (first.custom_id, first.status, json.loads(first.body)) == ("1", 200, {"x": 1})
    assert (second.custom_id, second.status) == ("2", 0)
    assert read_failure(second.body) == ("expired", "Late.")


def test_a_damaged_line_costs_itself_alone() -> None:
    good = json.dumps({"custom_id": "1", "response": {"status_code": 200, "body": {}}}).encode()
    lone = rb'{"custom_id": "2", "response": {"status_code": 200, "body": "\ud800"}}'
    found = read_batch_responses(b"\n".join([good, b"{no", lone, b"", good]))
    assert [response.custom_id for response in found] == ["1", "2", "1"]
    for torn in (b"{torn", good + b"\n" + good[:-9]):
        with pytest.raises(BadResponse):
            read_batch_responses(torn)
