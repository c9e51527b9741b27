"""How many handles may have a segment open at once."""

from __future__ import annotations

from mpbuffer._arguments.integers import whole_number

__all__ = ["MOST_HANDLES", "checked_handles"]

MOST_HANDLES = 1022


def checked_handles(max_handles: int) -> int:
    """Return the number; TypeError or ValueError if it is none from 1 to 1022."""
    return whole_number("max_handles", max_handles, 1, MOST_HANDLES)
