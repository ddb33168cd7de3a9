"""Printed numbers that hold on every machine: results of learning with their room."""

import math
from typing import SupportsFloat

__all__ = ["about"]


def about(value: SupportsFloat, expected: float | int, *, within: float | int) -> str:
    """Format a result with its tolerance: the book's number where it is found again.

    Floating point differs a little between processors, and training makes little
    differences larger. So a result of learning comes with the room that it needs:

        about(0.6135, 0.62, within=0.03)  ->  "0.62"
        about(0.5512, 0.62, within=0.03)  ->  "0.55 (the book has 0.62)"

    Args:
        value: What was found, one number.
        expected: What the book says, with as many digits as the room gives meaning to.
        within: The room: |value - expected| <= within counts as found again.

    Returns:
        The expected number where the value is that near, and both where it is not.
    """
    if not (math.isfinite(within) and within > 0):
        raise ValueError(f"within must be a number above 0, but it is {within}.")
    digits = max(0, math.ceil(-math.log10(within)))
    if not math.isclose(round(expected, digits), expected, rel_tol=1e-12):
        raise ValueError(
            f"{expected} has more digits than a room of {within} gives meaning to. "
            f"Write {round(expected, digits)}."
        )
    found, written = float(value), f"{expected:,.{digits}f}"
    # The edge belongs to the room, however its numbers round.
    if abs(found - expected) <= within + 1e-9 * max(1.0, abs(expected)):
        return written
    return f"{found:,.{digits}f} (the book has {written})"
