"""Which row follows which in an episode, for rows of many environments in one ring."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["EpisodeLinks"]

Slots = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class EpisodeLinks:
    """Links between the rows that one process has added, by slot.

    Attributes
    ----------
    prev, next : numpy.ndarray of int64, shape (size,)
        The slot of the step before and after; its own where an episode begins, ends, goes on later,
        or where the row before was overwritten.
    env_of : numpy.ndarray of int64, shape (size,)
        The environment of each row.
    done : numpy.ndarray of bool, shape (size,)
        Whether an episode ended with it.
    last, start : numpy.ndarray of int64, shape (n_envs,)
        Of each environment, the last row, and the first one of its running episode; -1 for none,
        and where that was overwritten.
    """

    def __init__(self, size: int, n_envs: int) -> None:
        self.prev, self.next = np.arange(size), np.arange(size)
        self.env_of, self.done = np.zeros(size, np.int64), np.zeros(size, np.bool_)
        self.last, self.start = np.full(n_envs, -1), np.full(n_envs, -1)

    def add(self, slots: Slots, envs: Slots, done: Flags) -> Slots:
        """Put rows behind the last ones of their environments; unlink what they replace.

        Returns
        -------
        numpy.ndarray of int64
            Where the episode of each row begins.
        """
        after = self.next[slots]
        after = after[self.prev[after] == slots]
        self.prev[after] = after
        self.last[np.isin(self.last, slots)] = -1
        self.start[np.isin(self.start, slots)] = -1
        before = self.last[envs]
        goes_on = (before >= 0) & ~self.done[before]
        self.prev[slots] = np.where(goes_on, before, slots)
        self.next[slots] = slots
        self.next[before[goes_on]] = slots[goes_on]
        self.last[envs], self.env_of[slots], self.done[slots] = slots, envs, done
        begins = self.start[envs] < 0
        self.start[envs[begins]] = slots[begins]
        starts: Slots = self.start[envs]
        self.start[envs[done]] = -1
        return starts

    def unfinished(self) -> Slots:
        """Return the last rows of running episodes."""
        last = self.last[self.last >= 0]
        running: Slots = last[~self.done[last]]
        return running

    def back_to(self, start: int, last: int) -> Slots:
        """Return the rows of an episode from `start`, or from the first one left, to `last`."""
        found = [last]
        while found[-1] != start and self.prev[found[-1]] != found[-1]:
            found.append(int(self.prev[found[-1]]))
        return np.array(found[::-1])

    def in_order(self, slots: Any) -> Slots:
        """Return slots, which are given by age, with those of each environment together."""
        ordered: Slots = slots[np.argsort(self.env_of[slots], kind="stable")]
        return ordered
