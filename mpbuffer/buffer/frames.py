"""Which fields share frames: the arguments ``next_of=`` and ``stack_compress=``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mpbuffer._arguments.integers import whole_number
from mpbuffer.buffer.schema import Field

__all__ = ["Cut", "FrameArguments", "FramePlan", "cuts_from_json", "frame_plan", "stored_bytes"]

# What a frame takes beside its bytes, in the ring and in each row that refers to it, is worth it
# from here on.
_SMALLEST_FRAME = 128
_MOST_RINGS = 7
_MOST_REFERENCES = 256
_FEWEST_SOURCES = 16
_MOST_SOURCES = 2**31

# The number of the source ring (0: the value lies in the row), planes, whether on the last axis.
Cut = tuple[int, int, bool]
FieldNames = str | Iterable[str] | None


class FrameArguments(NamedTuple):
    """The arguments of a buffer, as they were given."""

    next_of: FieldNames = None
    stack_compress: FieldNames | Mapping[str, int | None] = None
    sources: int | None = None


class FramePlan(NamedTuple):
    """What they mean for a buffer's fields.

    Attributes
    ----------
    fields : list of Field
        Those given, and for each of `next_of` its next value.
    cuts : list of Cut
        One for each field, or none if no field is worth it.
    sources : int
        How many frames each source ring holds; 0: as many as the rows need.
    """

    fields: list[Field]
    cuts: list[Cut]
    sources: int


def frame_plan(given: FrameArguments, fields: list[Field]) -> FramePlan:
    """Check the arguments against the fields.

    Raises
    ------
    TypeError
        If a name is no str, or an axis or `sources` no integer.
    ValueError
        If a name is no field's, a field ``next_<name>`` has another shape or dtype than the field
        itself, an axis is neither the first nor the last, or `sources` is too small or large.
    """
    next_of = _names("next_of", given.next_of, fields)
    stacked = given.stack_compress
    axes = dict(stacked) if isinstance(stacked, Mapping) else {}
    described = {name: (dtype, shape) for name, dtype, shape in fields}
    all_fields = list(fields)
    for name in next_of:
        dtype, shape = described[name]
        if described.setdefault(f"next_{name}", (dtype, shape)) != (dtype, shape):
            raise ValueError(
                f"next_of names {name!r}, but field {f'next_{name}'!r} has another shape or dtype; "
                "expected the same, or no such field"
            )
        if all(field != f"next_{name}" for field, _, _ in fields):
            all_fields.append((f"next_{name}", dtype, shape))
    stack_names = _names("stack_compress", axes or stacked, all_fields)
    on_last = {
        name: _on_last_axis(name, described[name][1], axes.get(name)) for name in stack_names
    }
    cuts = _cuts(all_fields, next_of, on_last)
    sources = 0
    if given.sources is not None:
        sources = whole_number("sources", given.sources, _FEWEST_SOURCES, _MOST_SOURCES)
        references = sum(planes for ring, planes, _ in cuts if ring)
        if sources < 4 * references:
            raise ValueError(
                f"sources must be at least 4 times the {references} frames of a row, got {sources}"
            )
    return FramePlan(all_fields, cuts, sources)


def _names(what: str, given: Any, fields: list[Field]) -> list[str]:
    if given is None or given is False:
        return []
    names = [given] if isinstance(given, str) else list(given)
    known = [field for field, _, _ in fields]
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{what} must be a field's name or several, got {given!r}")
        if name not in known:
            raise ValueError(
                f"{what} names {name!r}, which is no field; fields are "
                f"{', '.join(map(repr, known))}"
            )
    return [str(name) for name in dict.fromkeys(names)]


def _on_last_axis(name: str, shape: list[int], axis: int | None) -> bool:
    """Return whether the field is stacked there; if nobody says so, along the shorter one."""
    if axis is None:
        return len(shape) == 1 or shape[-1] <= shape[0]
    number = whole_number(f"stack_compress[{name!r}]", axis, -len(shape), len(shape) - 1)
    if number % len(shape) not in (0, len(shape) - 1):
        raise ValueError(
            f"stack_compress[{name!r}] must be the first or the last axis, got {axis} of the "
            f"{len(shape)} axes of shape {tuple(shape)}"
        )
    return number % len(shape) == len(shape) - 1


def _cuts(fields: list[Field], next_of: list[str], on_last: dict[str, bool]) -> list[Cut]:
    described = {name: (dtype, shape) for name, dtype, shape in fields}
    rings: dict[str, int] = {}
    references = 0
    cuts: list[Cut] = []
    for name, dtype, shape in fields:
        base = name.removeprefix("next_")
        joint = base in next_of or (
            {base, f"next_{base}"} <= set(on_last)
            and described[base] == described.get(f"next_{base}")
        )
        family = base if joint else name
        stacked = on_last.get(family, on_last.get(f"next_{family}") if joint else None)
        planes, last = _planes(dtype, shape, stacked, joint)
        fits = family in rings or len(rings) < _MOST_RINGS
        if planes == 0 or not fits or references + planes > _MOST_REFERENCES:
            cuts.append((0, 1, False))
            continue
        references += planes
        cuts.append((rings.setdefault(family, len(rings) + 1), planes, last))
    return cuts if rings else []


def _planes(
    dtype: np.dtype[Any], shape: list[int], last: bool | None, has_next: bool
) -> tuple[int, bool]:
    """Return how many frames a value is, 0 if it is not worth it, and whether on the last axis."""
    whole = dtype.itemsize * math.prod(shape)
    if last is not None:
        planes = shape[-1] if last else shape[0]
        if whole // planes >= _SMALLEST_FRAME:
            return planes, last and planes > 1
    return (1, False) if has_next and whole >= _SMALLEST_FRAME else (0, False)


def cuts_from_json(described: Any, fields: list[Field]) -> list[Cut]:
    """Read the cuts from a segment's description; damage raises whatever it causes."""
    cuts = [(int(ring), int(planes), bool(last)) for ring, planes, last in described]
    if len(cuts) not in (0, len(fields)):
        raise ValueError(f"{len(cuts)} cuts")
    frame_bytes: dict[int, int] = {}
    for (ring, planes, last), (_, dtype, shape) in zip(cuts, fields, strict=False):
        if not ring:
            continue
        extent = planes if planes == 1 else shape[-1] if last else shape[0]
        size = dtype.itemsize * math.prod(shape) // extent
        if not 1 <= ring <= min(_MOST_RINGS, len(frame_bytes) + 1) or planes != extent:
            raise ValueError(f"ring {ring}, {planes} planes")
        if frame_bytes.setdefault(ring, size) != size:
            raise ValueError(f"frames of {size} bytes in ring {ring}")
    if sum(planes for ring, planes, _ in cuts if ring) > _MOST_REFERENCES:
        raise ValueError("too many planes")
    return cuts


def stored_bytes(fields: list[Field], cuts: list[Cut]) -> int:
    """Return the bytes of a row's record, as format/row_layout.hpp lays it out."""
    end = 8 * max((ring for ring, _, _ in cuts), default=0)
    for i, (_, dtype, shape) in enumerate(fields):
        shared = bool(cuts and cuts[i][0])
        alignment = 4 if shared else dtype.alignment
        size = 4 * cuts[i][1] if shared else dtype.itemsize * math.prod(shape)
        end = -(-end // alignment) * alignment + size
    return end
