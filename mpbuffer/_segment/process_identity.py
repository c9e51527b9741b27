"""Processes, distinguished from later ones with the same pid."""

from __future__ import annotations

import math
import os
import select
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["ProcessIdentity", "pidfd_of", "readable"]


class ProcessIdentity(NamedTuple):
    """A process, identified by its pid and its start time (in clock ticks)."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """Return the process with this pid; None if there is none, or a zombie.

        Raises
        ------
        OSError
            If /proc cannot be read.
        """
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                stat = file.read()
        except (FileNotFoundError, ProcessLookupError):
            return None
        state, *others = stat.rpartition(b")")[2].split()
        return None if state in b"ZX" else cls(pid, int(others[18]))

    def is_alive(self) -> bool:
        """Whether it still runs; a zombie does not.

        If that cannot be read (out of descriptors), any process with its pid counts.
        """
        try:
            return ProcessIdentity.of(self.pid) == self
        except OSError:
            return _has_process(self.pid)


def _has_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def pidfd_of(pid: int) -> int | None:
    """Return a descriptor that becomes readable when the process ends; None without pidfds."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def readable(descriptors: Iterable[int], seconds: float = 0.0) -> list[int]:
    """Wait until a descriptor is readable or closed; return all that are.

    Each wait has its own poll object: a signal handler may wait inside another wait.
    """
    poll = select.poll()  # select() knows no descriptors above 1023
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    timeout = None if seconds == math.inf else math.ceil(1000 * max(0.0, seconds))
    return [descriptor for descriptor, _ in poll.poll(timeout)]
