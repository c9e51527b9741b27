"""Statistics of a buffer's processes and its learner."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["LearnerStatus", "ProcessStatus", "SnapshotStatus"]


class ProcessStatus(NamedTuple):
    """One handle's line in the process table.

    Attributes
    ----------
    number : int
        1 to `max_handles`; the lowest free one when the handle was opened.
    pid : int
        Its pid in its own pid namespace.
    state : str
        The letter of ``/proc/PID/stat``; ``"?"`` if the process cannot be inspected.
    rows : int
        Rows added.
    skips : int
        Positions skipped because another living process was writing the slot.
    steals : int
        Slots taken over from a process that died while writing them.
    """

    number: int
    pid: int
    state: str
    rows: int
    skips: int
    steals: int


class LearnerStatus(NamedTuple):
    """Statistics published by the learner; counters start when it takes the role.

    Attributes
    ----------
    process : int
        The learner's number in the process table; 0 if nobody has the role.
    pid : int
        Its process.
    since : float
        When it took the role, in seconds since the epoch.
    folded : int
        The position up to which rows are in its tree.
    total : float
        Sum of all leaves.
    least_leaf : float
        The smallest leaf above 0; infinity if there is none.
    sampleable : int
        Rows in the tree whose leaf is above 0.
    updates, stale : int
        Priorities updated, and updates refused because their row was overwritten.
    draws, nodes_visited : int
        Rows drawn, and tree nodes visited to draw them.
    rows_folded : int
        Rows taken into the tree by all folds of this learner: the cost of its samples beside their
        own rows. Rows overwritten before they were folded are not counted.
    """

    process: int
    pid: int
    since: float
    folded: int
    total: float
    least_leaf: float
    sampleable: int
    updates: int
    stale: int
    draws: int
    nodes_visited: int
    rows_folded: int


class SnapshotStatus(NamedTuple):
    """What a snapshot came to.

    Attributes
    ----------
    number : int
        1 for the first snapshot in the directory, then one more each time.
    rows : int
        Rows in it.
    nbytes : int
        Bytes of all its files.
    written : int
        Bytes of those that were written: the others were there from earlier snapshots.
    """

    number: int
    rows: int
    nbytes: int
    written: int
