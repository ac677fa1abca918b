"""The declared sizes to which shapes are rounded, so that few programs are ever compiled."""


def round_up(size: int, multiple: int = 1, parts: int = 4) -> int:
    """Returns the least bucket that holds `size`: multiple × (parts … 2·parts - 1) × a power of
    two, or a smaller multiple. A bucket is at most 1/parts larger than its predecessor needs.

    `parts` is a power of two. Example: round_up(9) = 10, round_up(70, 32) = 96,
    round_up(17, parts=8) = 18.
    """
    units = max(-(-size // multiple), 1)
    if units <= 2 * parts:
        return units * multiple
    step = 1 << (units.bit_length() - parts.bit_length())
    return -(-units // step) * step * multiple


def power_of_two(size: int) -> int:
    """Returns the least power of two that holds `size`."""
    return 1 << (size - 1).bit_length()
