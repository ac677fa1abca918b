"""What becomes of a number in float32, in which networks and optimizers compute."""

import math
import struct

LEAST = 2.0**-126
"""The smallest size that keeps its precision; accelerators take smaller ones for 0."""


def as_float32(value: int | float) -> float:
    """Returns the number as float32 holds it: inf if it is too large, 0 if it is too small.

    Example: 0.99999999999 → 1.0, 1e-50 → 0.0, 1e39 → inf.
    """
    try:
        rounded = struct.unpack("f", struct.pack("f", value))[0]
    except (OverflowError, struct.error):  # the latter for an integer
        return math.inf if value > 0 else -math.inf
    return rounded if math.isnan(rounded) or abs(rounded) >= LEAST else 0.0
