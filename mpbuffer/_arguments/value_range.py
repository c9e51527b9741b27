"""Which numbers a dtype can represent, rounding aside."""

from __future__ import annotations

import functools
import sys
from typing import Any, NamedTuple

import numpy as np

__all__ = ["ValueRange", "value_range"]


class ValueRange(NamedTuple):
    """The numbers that a dtype can represent; for a complex dtype, that its parts can.

    Attributes
    ----------
    whole : bool
        Whether they are whole numbers only.
    lowest, highest : int or float
        The finite ones; floats include what rounds to the largest one.
    infinity, nan : bool
        Whether infinities and NaN are among them.
    words : str
        The same, for an error.
    """

    whole: bool
    lowest: float
    highest: float
    infinity: bool
    nan: bool
    words: str


@functools.cache
def value_range(dtype: np.dtype[Any]) -> ValueRange | None:
    """Return the range of a dtype in native byte order; None if it is unlimited or no number."""
    if dtype.isbuiltin == 1 and dtype.kind not in "biufc":
        return None
    if dtype == np.bool_:
        return ValueRange(True, 0, 1, False, False, "0 or 1 (bool)")
    package: Any = np if dtype.isbuiltin == 1 else sys.modules.get(dtype.type.__module__)
    try:
        whole = package.iinfo(dtype)
    except (AttributeError, ValueError):
        pass
    else:
        least, most = int(whole.min), int(whole.max)
        words = f"whole numbers from {least} to {most} ({dtype.name})"
        return ValueRange(True, least, most, False, False, words)
    try:
        finite = package.finfo(dtype)
    except (AttributeError, ValueError):
        return None
    part = np.dtype(finite.dtype)
    return None if part == np.longdouble else _range_of_floats(dtype, part, finite)


def _range_of_floats(dtype: np.dtype[Any], part: np.dtype[Any], finite: Any) -> ValueRange:
    largest, lowest = float(finite.max), float(finite.min)

    def as_part(number: float) -> float:
        with np.errstate(all="ignore"):
            return float(np.array(number, np.float64).astype(part).astype(np.float64))

    highest = largest
    beyond = 2 * largest
    if part != np.float64 and as_part(beyond) != largest:
        while highest < (middle := (highest + beyond) / 2) < beyond:
            if as_part(middle) == largest:
                highest = middle
            else:
                beyond = middle
    infinity, nan = np.isinf(as_part(np.inf)), np.isnan(as_part(np.nan))
    special = {
        (True, True): ", inf and nan",
        (True, False): " and inf",
        (False, True): " and nan",
        (False, False): "",
    }
    numbers = "numbers" if part == dtype else "complex numbers whose parts are"
    words = f"{numbers} from {lowest:g} to {largest:g}{special[infinity, nan]} ({dtype.name})"
    return ValueRange(
        False, -highest if lowest == -largest else lowest, highest, bool(infinity), bool(nan), words
    )
