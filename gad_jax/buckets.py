"""The declared sizes to which shapes are rounded, so that few programs are ever compiled."""


def round_up(size: int, multiple: int = 1) -> int:
    """Returns the least bucket that holds `size`: multiple × (4, 5, 6 or 7) × a power of two,
    or multiple × (1, 2, 3). A bucket is at most a quarter larger than its predecessor needs.

    Example: round_up(9) = 10, round_up(70, 32) = 96.
    """
    units = max(-(-size // multiple), 1)
    if units <= 8:
        return units * multiple
    step = 1 << (units.bit_length() - 3)
    return -(-units // step) * step * multiple
