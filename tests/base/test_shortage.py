"""What is said of memory that ran out, from the errors of those that ran into it."""

import errno

import numpy as np
import pytest

from gad_jax.base import shortage
from gad_jax.base.errors import OutOfMemoryError, UserError


class JaxRuntimeError(RuntimeError):
    """Has the name of jax's own."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 2500000000 bytes."),
            "out of memory: an allocation of 2.5 GB failed; this ",
        ),
        (
            JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 32.00GiB.\nmore"
            ),
            "out of memory: an allocation of 34.4 GB failed; ",
        ),
        (
            JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.00G of 15.75G "
                "hbm. Exceeded hbm capacity by 2.25G."
            ),
            "out of memory: a program needs 19.3 GB of a device with 16.9 GB, 2.4 GB too little",
        ),
        (JaxRuntimeError("INTERNAL: std::bad_alloc"), "out of memory: an allocation failed; "),
        (RuntimeError("can't start new thread"), "out of memory: an allocation failed; "),
        (MemoryError(), "out of memory: an allocation failed; "),
        (MemoryError("std::bad_alloc"), "out of memory: an allocation failed; "),
        (
            OSError(errno.ENOMEM, "Cannot allocate memory"),
            "out of memory: an allocation failed; ",
        ),
    ],
)
def test_what_ran_out_and_by_how_much(error: BaseException, said: str) -> None:
    found = shortage.what_ran_out(error)
    assert found is not None
    assert found.startswith(said), found


def test_numpy_says_how_much() -> None:
    with pytest.raises(MemoryError) as raised:
        np.zeros(2**58, np.uint8)
    found = shortage.what_ran_out(raised.value)
    assert found is not None
    assert found.startswith(f"out of memory: an allocation of {2**58 / 1e9:.1f} GB failed; ")
    assert "this process holds" in found


@pytest.mark.parametrize(
    "error",
    [
        ValueError("surprise"),
        JaxRuntimeError("INVALID_ARGUMENT: shapes differ"),
        RuntimeError("RESOURCE_EXHAUSTED: quota of requests"),
        UserError("a model for machines that are out of memory"),
        OSError(errno.ENOSPC, "No space left"),
    ],
)
def test_other_errors_are_left_alone(error: BaseException) -> None:
    assert shortage.what_ran_out(error) is None
    with pytest.raises(type(error)), shortage.explained(lambda: "no advice"):
        raise error


def test_advice_is_added_and_may_fail() -> None:
    def no_memory_left() -> str:
        raise MemoryError

    for advice, end in ((lambda: "set --x=1", "; set --x=1"), (no_memory_left, shortage.GENERAL)):
        with pytest.raises(OutOfMemoryError) as raised, shortage.explained(advice):
            raise MemoryError
        assert str(raised.value).endswith(end)
        assert isinstance(raised.value.__cause__, MemoryError)
