"""Errors of Orbax: short, silent where they are expected, and known at once."""

import contextlib
import logging
import sys

import pytest

from gad_jax.training import orbax_errors


def test_what_is_silenced_is_restored_after_an_error() -> None:
    hook, log = sys.unraisablehook, logging.getLogger("asyncio")

    def fail() -> None:
        assert sys.unraisablehook is not hook
        assert log.disabled
        raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"), orbax_errors.quiet():
        fail()
    assert sys.unraisablehook is hook
    assert not log.disabled


def test_two_threads_that_overlap_leave_what_was_there_before() -> None:
    hook = sys.unraisablehook
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        first.enter_context(orbax_errors.quiet())
        second.enter_context(orbax_errors.quiet())
        first.close()
        assert sys.unraisablehook is not hook
        second.close()
        assert sys.unraisablehook is hook


def test_an_error_that_orbax_logs_is_raised_by_the_wait() -> None:
    errors = orbax_errors.SaveErrors()
    log = logging.getLogger("absl")
    try:
        log.error("without an exception")
        errors.wait(lambda: False)
        try:
            raise OSError("disk full")
        except OSError:
            log.exception("a thread failed")
        with pytest.raises(OSError, match="disk full"):
            errors.wait(lambda: True)
    finally:
        log.removeHandler(errors)
