"""The arrays of each version: their names, dtypes and shapes, as a segment describes them."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import numpy as np

from mpbuffer._segment.description import (
    dtype_from_json,
    dtype_to_json,
    name_from_json,
    refusing_damage,
    shape_from_json,
)

__all__ = ["Part", "describe", "read_description"]

_CLASS = "SharedWeights"


class Part(NamedTuple):
    """One array of each version. `torch` is a tensor's dtype by name; None for an array."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    torch: str | None

    @property
    def bytes(self) -> int:
        """Its length in bytes."""
        return self.dtype.itemsize * math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.torch or self.dtype} {self.shape}"


def describe(parts: tuple[Part, ...]) -> str:
    """Return the JSON text that a segment carries, so that it can be attached by name."""
    return json.dumps(
        {
            "class": _CLASS,
            "arrays": [
                {
                    "name": part.name,
                    "descr": dtype_to_json(part.dtype),
                    "shape": part.shape,
                    "torch": part.torch,
                }
                for part in parts
            ],
            "attributes": {},
        }
    )


def read_description(name: str, text: bytes) -> tuple[Part, ...]:
    """Return the arrays that a segment's JSON text describes.

    Raises
    ------
    SegmentMismatch
        If the text is damaged.
    """
    with refusing_damage(name):
        description = json.loads(text.decode())
        if description["class"] != _CLASS or description["attributes"]:
            raise ValueError(f"class {description['class']!r}, {description['attributes']!r}")
        parts = tuple(
            Part(
                name_from_json(each["name"]),
                dtype_from_json(each["descr"]),
                tuple(shape_from_json(each["shape"], least=0)),
                None if each["torch"] is None else str(each["torch"]),
            )
            for each in description["arrays"]
        )
        if not parts or len({part.name for part in parts}) != len(parts):
            raise ValueError("no arrays, or two of one name")
        if any(part.dtype.hasobject for part in parts):
            raise ValueError("an array holds Python objects")
    return parts
