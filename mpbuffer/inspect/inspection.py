"""Looking at buffers from outside: what the ``mpbuffer`` command shows, as Python objects.

Nothing here becomes part of a buffer: no handle is opened, no number of the process table taken,
and dead or damaged segments can be looked at as well.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from mpbuffer import _core
from mpbuffer.buffer.description import read_description
from mpbuffer.buffer.schema import Field
from mpbuffer.errors import SegmentMismatch, SegmentNotFound
from mpbuffer.weights.parts import read_description as read_weights_description

__all__ = ["inspect", "list_segments", "remove_dead_segments"]

Report = dict[str, Any]


def inspect(name: str, *, every_slot: bool = True) -> Report:
    """Look at one segment of this user, whatever state it is in.

    Parameters
    ----------
    name : str
        The buffer's name.
    every_slot : bool, optional
        Whether each slot and leaf is checked too, which takes O(size).

    Returns
    -------
    dict
        Values of JSON types. ``damage`` is a list of sentences, empty if the segment is sound;
        ``damages`` how many there would be; ``notes`` tell of what is no damage. ``path`` is the
        file, or, of a segment without a name, where a process has it open, and ``nameless`` says
        which. The rest is left out where damage hides it.

    Raises
    ------
    SegmentNotFound
        If there is no such segment.
    SegmentMismatch
        If what has that name is no regular file, or somebody else's.
    ValueError
        If it is no name of a buffer.
    """
    if not name.isascii():
        raise ValueError(f"a name is 1 to 128 of [A-Za-z0-9._-], got {name!r}")
    return _report(_core.inspect(name, every_slot))


def list_segments(interval: float = 0.0) -> list[Report]:
    """Look at all of this user's segments, dead ones included.

    Parameters
    ----------
    interval : float, optional
        Seconds between two looks, from which ``rows_per_second`` follows; without it there is none.

    Returns
    -------
    list of dict
        As from inspect() without the slots, ordered by name. What cannot be looked at has only
        ``name`` and ``damage``.
    """
    earlier = {}
    if interval > 0:
        for name in _core.segments():
            with contextlib.suppress(SegmentNotFound):
                earlier[name] = _identity_and_rows(_look(name)), time.monotonic()
        if earlier:
            time.sleep(interval)
    reports = []
    for name in _core.segments():
        try:
            report = _look(name)
        except SegmentNotFound:
            continue
        if name in earlier and "rows_added" in report:
            (identity, rows), then = earlier[name]
            now = _identity_and_rows(report)
            if identity == now[0]:
                elapsed = time.monotonic() - then
                report["rows_per_second"] = max(now[1] - rows, 0) / elapsed
        reports.append(report)
    return reports


def remove_dead_segments(*, dry_run: bool = False) -> list[str]:
    """Remove this user's segments that nobody has open any more.

    Only what is provably dead goes: the kernel says that no process, stopped ones included, has
    the segment open.

    Parameters
    ----------
    dry_run : bool, optional
        Whether to remove nothing.

    Returns
    -------
    list of str
        Their names.
    """
    return _core.sweep(dry_run)


def _look(name: str) -> Report:
    try:
        return _report(_core.inspect(name, False))
    except SegmentNotFound:
        raise
    except (SegmentMismatch, OSError, ValueError, TypeError) as error:
        why = str(error) if name.isascii() else "no name of a buffer"
        return {"name": name, "damages": 1, "damage": [why], "notes": [], "readable": False}


def _identity_and_rows(report: Report) -> tuple[Any, int]:
    """Which segment it is, should another one have taken the name; and the rows added so far."""
    return report.get("created_at"), report.get("rows_added", 0)


def _report(facts: Report) -> Report:
    report = {key: value for key, value in facts.items() if key not in ("header", "kind")}
    if not facts["readable"]:
        return report
    report["processes"] = [dict(each) for each in facts["processes"]]
    report["alive"] = sum(each["state"] != "X" for each in report["processes"])
    if facts["kind"] == "weights":
        return _report_of_weights(report)
    header = dict(facts["header"])
    text = header.pop("description")
    report.update(header)
    report["class"] = "PrioritizedReplayBuffer" if header["prioritized"] else "ReplayBuffer"
    problem = None
    try:
        fields, report["strict"], _ = read_description(facts["name"], text)
        named = json.loads(text)["class"]
        if named != report["class"]:
            problem = f"it is described as a {named!r}, its header is that of a {report['class']}"
        elif _row_bytes(fields) != header["row_bytes"]:
            problem = (
                f"its fields make rows of {_row_bytes(fields)} bytes, its header says "
                f"{header['row_bytes']}"
            )
        report["fields"] = [
            {"name": name, "dtype": _dtype_name(dtype), "shape": list(shape)}
            for name, dtype, shape in fields
        ]
    except SegmentMismatch as error:
        if isinstance(error.__cause__, ImportError):
            report["notes"] = [*report["notes"], str(error)]
        else:
            problem = str(error)
    except (ValueError, RecursionError, OverflowError, AttributeError) as error:
        problem = f"its description is damaged ({error!r})"
    if problem is not None:
        report["damages"] += 1
        report["damage"] = [*report["damage"], problem]
    return report


def _report_of_weights(report: Report) -> Report:
    report["class"] = "SharedWeights"
    try:
        parts = read_weights_description(report["name"], report.pop("description"))
        report["fields"] = [
            {"name": part.name, "dtype": part.torch or str(part.dtype), "shape": list(part.shape)}
            for part in parts
        ]
    except SegmentMismatch as error:
        if isinstance(error.__cause__, ImportError):
            report["notes"] = [*report["notes"], str(error)]
        else:
            report["damages"] += 1
            report["damage"] = [*report["damage"], str(error)]
    return report


def _row_bytes(fields: Sequence[Field]) -> int:
    end = 0
    for _, dtype, shape in fields:
        end = -(-end // dtype.alignment) * dtype.alignment + dtype.itemsize * math.prod(shape)
    return end


def _dtype_name(dtype: np.dtype[Any]) -> str:
    return str(dtype) if dtype.names else dtype.name
