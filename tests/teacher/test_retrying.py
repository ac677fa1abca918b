"""When a failed request is sent again: the waits that a server may ask for."""

import math

from gad_jax.teacher.retrying import retry_after


def test_odd_requests_to_wait_are_not_believed() -> None:
    for value in ("", "soon", "-3", "1e3", "٣", "Thu, 99 Foo 2026 99:99:99 GMT", "\x1b[2J"):
        assert retry_after({"retry-after": value}, 0.0) == 0.0
    assert retry_after({"retry-after": "1.5"}, 0.0) == 1.5
    assert retry_after({"retry-after": "9" * 400}, 0.0) == math.inf  # more than any patience
