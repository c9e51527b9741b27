"""Whole numbers: the one check of arguments that must be integers."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

__all__ = ["whole_number"]


def whole_number(name: str, value: Any, least: int, most: float = math.inf) -> int:
    """Return `value` as an int.

    Parameters
    ----------
    name : str
        What errors call it.
    value : int
        Of any type that stands for an int, such as NumPy's integers.
    least, most : int
        The smallest and the largest value allowed.

    Raises
    ------
    TypeError
        If it is no integer, or a bool.
    ValueError
        If it is out of range.
    """
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if not least <= number <= most:
        allowed = f"at least {least}" if most == math.inf else f"in [{least}, {most}]"
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return number
