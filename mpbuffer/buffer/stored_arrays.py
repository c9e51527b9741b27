"""The arrays that a buffer's rows and frames are in a snapshot."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import numpy as np

from mpbuffer.buffer.frames import Cut
from mpbuffer.buffer.schema import Field

__all__ = ["BIRTHS", "FRAMES", "POSITIONS", "StoredArray", "StoredRing", "stored_rings"]

POSITIONS, BIRTHS, FRAMES = "positions", "births", "frames"
_CHUNKS_IN_ALL = 192
_LEAST_BYTES, _MOST_BYTES = 1 << 20, 32 << 20  # of a chunk


class StoredArray(NamedTuple):
    """One array: what each slot has in it."""

    label: str  # in the names of its files
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class StoredRing(NamedTuple):
    """The ring of rows, or a source ring.

    Attributes
    ----------
    number : int
        0 for the rows.
    slots : int
        How many rows or frames it holds.
    arrays : dict of str to StoredArray
        Of rows, by the index of their field: its values, or the positions of its frames. Beside
        them the positions of the source rings when the row was added. Of a source ring: its frames.
    """

    number: int
    slots: int
    arrays: dict[str, StoredArray]

    @property
    def label(self) -> str:
        """What the names of its files begin with."""
        return f"frames{self.number}" if self.number else "rows"

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot in all arrays, that of the positions included."""
        return 8 + sum(each.dtype.itemsize * math.prod(each.shape) for each in self.arrays.values())

    @property
    def slots_per_chunk(self) -> int:
        """How many slots share a file: so that a few new rows change a small part of all files."""
        wanted = self.slots * self.slot_bytes // _CHUNKS_IN_ALL
        wanted = min(max(wanted, _LEAST_BYTES), _MOST_BYTES)
        return min(max(wanted // self.slot_bytes, 1), self.slots)


def stored_rings(
    fields: list[Field], cuts: list[Cut], slots: int, sources: list[int]
) -> list[StoredRing]:
    """Return the rings of a buffer with these fields."""
    rows = {}
    frames: dict[int, StoredArray] = {}
    for i, (name, dtype, shape) in enumerate(fields):
        safe = name if re.fullmatch(r"\w{1,64}", name, re.ASCII) else "field"
        ring, planes, last = cuts[i] if cuts else (0, 1, False)
        label = f"{i}-{safe}"
        if ring == 0:
            rows[str(i)] = StoredArray(label, dtype, tuple(shape))
            continue
        rows[str(i)] = StoredArray(label, np.dtype(np.uint64), (planes,))
        frame = shape if planes == 1 else shape[:-1] if last else shape[1:]
        frames.setdefault(ring, StoredArray(FRAMES, dtype, tuple(frame)))
    if frames:
        rows[BIRTHS] = StoredArray(BIRTHS, np.dtype(np.uint64), (len(frames),))
    rings = [StoredRing(0, slots, rows)]
    for ring, count in enumerate(sources, 1):
        rings.append(StoredRing(ring, count, {FRAMES: frames[ring]}))
    return rings
