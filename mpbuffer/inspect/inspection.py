"""Reports on segments, which the ``mpbuffer`` command prints.

No handle is opened and no line of the process table is taken. Dead and damaged segments can be
inspected too.
"""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import numpy as np

from mpbuffer import _core
from mpbuffer.buffer.description import read_description
from mpbuffer.buffer.frames import stored_bytes
from mpbuffer.buffer.sequences import record_bytes
from mpbuffer.errors import SegmentMismatch, SegmentNotFound
from mpbuffer.weights.parts import read_description as read_weights_description

__all__ = ["inspect", "list_segments", "remove_dead_segments"]

Report = dict[str, Any]


def inspect(name: str, *, every_slot: bool = True) -> Report:
    """Inspect a segment of this user, in any state.

    Parameters
    ----------
    name : str
        The buffer's name.
    every_slot : bool, optional
        Whether to check each slot and leaf too, which takes O(size).

    Returns
    -------
    dict
        Values of JSON types. ``damage`` is a list of sentences, empty if the segment is sound, and
        ``damages`` the number of findings, which may be larger. ``notes`` are findings that are no
        damage. ``path`` is the file; if ``nameless``, a process's descriptor of the segment. Keys
        that damage hides are left out.

    Raises
    ------
    SegmentNotFound
        If there is no such segment.
    SegmentMismatch
        If the name's file is no regular file, or belongs to another user.
    ValueError
        If the name is not valid.
    """
    if not name.isascii():
        raise ValueError(f"name must be 1 to 128 of [A-Za-z0-9._-], got {name!r}")
    return _report(_core.inspect(name, every_slot))


def list_segments(interval: float = 0.0) -> list[Report]:
    """Inspect all of this user's segments, dead ones included.

    Parameters
    ----------
    interval : float, optional
        Seconds between two inspections, which give ``rows_per_second``; 0 leaves it out.

    Returns
    -------
    list of dict
        As from inspect() without the slots, ordered by name. Segments that cannot be inspected
        have only ``name`` and ``damage``.
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
    """Remove this user's segments that no process has open.

    A segment is removed only if the kernel says that no process, running or stopped, has it open.

    Parameters
    ----------
    dry_run : bool, optional
        Whether to return the names without removing anything.

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
    """Return a value that differs if another segment has taken the name, and rows added."""
    return report.get("created_at"), report.get("rows_added", 0)


def _report(report: Report) -> Report:
    if not report["readable"]:
        return report
    report["alive"] = sum(each["state"] != "X" for each in report["processes"])
    add_fields = _add_arrays if "weights" in report else _add_fields
    problem = None
    try:
        problem = add_fields(report, report.pop("description"))
    except SegmentMismatch as error:
        if isinstance(error.__cause__, ImportError):
            report["notes"].append(str(error))
        else:
            problem = str(error)
    if problem is not None:
        report["damages"] += 1
        report["damage"].append(problem)
    return report


def _add_fields(report: Report, description: bytes) -> str | None:
    """Add a buffer's fields; return what its description and its header disagree about."""
    report["class"] = "PrioritizedReplayBuffer" if report["prioritized"] else "ReplayBuffer"
    described = read_description(report["name"], description)
    fields, report["strict"] = described.fields, described.strict
    report["fields"] = [
        {"name": name, "dtype": _dtype_name(dtype), "shape": list(shape)}
        for name, dtype, shape in fields
    ]
    report["sequence"] = None
    if described.sequence is not None:
        report["sequence"] = described.sequence._asdict()
    named = json.loads(description).get("class")
    if described.sequence is None:
        row_bytes = stored_bytes(fields, described.cuts)
    else:
        row_bytes = record_bytes(described.sequence)
    if named != report["class"]:
        return f"it is described as a {named!r}, its header is that of a {report['class']}"
    if row_bytes != report["row_bytes"]:
        return f"its fields make rows of {row_bytes} bytes, its header says {report['row_bytes']}"
    return None


def _add_arrays(report: Report, description: bytes) -> None:
    """Add the arrays of weights."""
    report["class"] = "SharedWeights"
    report["fields"] = [
        {"name": part.name, "dtype": part.torch or str(part.dtype), "shape": list(part.shape)}
        for part in read_weights_description(report["name"], description)
    ]


def _dtype_name(dtype: np.dtype[Any]) -> str:
    return str(dtype) if dtype.names else dtype.name
