"""Which process: told from a later one that got the same pid."""

from __future__ import annotations

import os
from typing import NamedTuple

__all__ = ["ProcessIdentity", "pidfd_of"]


class ProcessIdentity(NamedTuple):
    """A process, told from a later one with the same pid by when it started (clock ticks)."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """Who has this pid; None if nobody, or a zombie. Raises OSError if that cannot be read."""
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                stat = file.read()
        except (FileNotFoundError, ProcessLookupError):
            return None
        state, *others = stat.rpartition(b")")[2].split()
        return None if state in b"ZX" else cls(pid, int(others[18]))

    def is_alive(self) -> bool:
        """Whether it still runs; a zombie does not.

        Where that cannot be read (there are no descriptors), whoever has its pid is taken for it.
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
    """Return a descriptor that is readable once the process has ended; None if there is none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
