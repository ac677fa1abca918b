"""Whether a library's kernel runs on this machine's device: tried once for each shape."""

import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from gad_jax.base.errors import first_line
from gad_jax.distributed import devices

logger = logging.getLogger(__name__)


@functools.cache
def runs(function: Callable[..., Any], *arguments: tuple[tuple[int, ...], str]) -> bool:
    """Returns whether a function runs here on zeros of these shapes and dtypes.

    Libraries such as cuDNN refuse some shapes, which depends on their version and on the card, and
    is known only when a program runs. A warning says what was refused. What is compiled for another
    machine is taken to run there.
    """
    if devices.platform() != jax.default_backend():
        return True

    def attempt() -> None:
        device = jax.local_devices()[0]
        zeros = [jax.device_put(np.zeros(shape, dtype), device) for shape, dtype in arguments]
        jax.block_until_ready(jax.jit(function)(*zeros))

    try:
        with ThreadPoolExecutor(1) as own:  # a thread of its own has neither mesh nor trace
            own.submit(attempt).result()
    except Exception as error:
        logger.warning(
            "warning: %s does not run here on %s (%s); a slower form takes its place",
            *(getattr(function, "__name__", function), arguments[0][0], first_line(error)),
        )
        return False
    return True
