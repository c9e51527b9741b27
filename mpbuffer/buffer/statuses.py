"""What a buffer tells of its processes and its learner."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["LearnerStatus", "ProcessStatus"]


class ProcessStatus(NamedTuple):
    """One handle's line in the process table.

    Attributes
    ----------
    number : int
        1 to 1022; the lowest free one when the handle was opened.
    pid : int
        As its own pid namespace counts.
    state : str
        The letter of ``/proc/PID/stat``; ``"?"`` if the process cannot be inspected.
    rows : int
        Rows that it has added.
    skips : int
        Positions it gave up because another living process was writing that slot.
    steals : int
        Slots that it took over from a process that had died while writing them.
    """

    number: int
    pid: int
    state: str
    rows: int
    skips: int
    steals: int


class LearnerStatus(NamedTuple):
    """What the learner last published; the counts are since it took the role.

    Attributes
    ----------
    process : int
        The learner's number in the process table; 0 if nobody has the role.
    pid : int
        Its process.
    since : float
        When it took the role, in seconds since the epoch.
    folded : int
        The position up to which it has taken rows into its tree.
    total : float
        Sum of all leaves.
    least_leaf : float
        The smallest leaf above 0; infinity if there is none.
    sampleable : int
        Rows in the tree whose leaf is above 0.
    updates, stale : int
        Priorities updated, and updates refused because their row was gone.
    draws, nodes_visited : int
        Rows drawn, and lines of the tree looked at for that.
    rows_folded : int
        Rows taken into the tree, by all folds of this learner: what its samples cost beside their
        own rows. Of rows that were overwritten before a fold reached them it knows nothing.
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
