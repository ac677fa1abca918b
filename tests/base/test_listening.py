"""Addresses that can be used, and those that cannot."""

import pytest

from gad_jax.base import listening
from gad_jax.base.errors import UserError


def test_a_port_in_use_is_named() -> None:
    with listening.bind("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        bound.listen()
        with pytest.raises(UserError, match=f"--port={port} cannot be used on 127.0.0.1"):
            listening.bind("127.0.0.1", port)
    listening.bind("127.0.0.1", port).close()  # free again
