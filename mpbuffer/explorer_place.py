"""An explorer as the learner sees it: one process after another."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import time
from typing import Any

from mpbuffer.explorer_process import FAILED, FINISHED, STARTED
from mpbuffer.process_identity import pidfd_of

__all__ = ["ExplorerStatus", "Place"]

_MOST_DOUBLINGS = 100  # of the back-off: a float holds that many


@dataclasses.dataclass(frozen=True)
class ExplorerStatus:
    """One explorer, as the learner last knew it.

    Attributes
    ----------
    index : int
        0 to n - 1.
    pid : int
        Its last process; 0 if there was none yet.
    epsilon : float
        Its share of random actions.
    restarts : int
        How often its process was started again.
    state : str
        ``"new"``; ``"starting"`` until its function is called, ``"running"`` then; ``"waiting"`` to
        be restarted; ``"finished"`` if the function returned; ``"failed"``; ``"stopped"``.
    exit_code : int or None
        Of its last process: minus the signal's number if one killed it; None while it runs.
    """

    index: int
    pid: int
    epsilon: float
    restarts: int
    state: str
    exit_code: int | None


class Place:
    """What is known of an explorer. No signal's handler may run while it changes."""

    def __init__(self, index: int, epsilon: float, cores: frozenset[int] | None) -> None:
        self.index, self.epsilon, self.cores = index, epsilon, cores
        self.state, self.pid, self.restarts = "new", 0, 0
        self.exit_code: int | None = None
        self.is_launching = False
        self.process: Any = None
        self.has_returned = False
        self.remote_traceback: str | None = None  # once its function has raised
        self.restart_at = math.inf
        self._connection: Any = None
        self._pidfd: int | None = None
        self._started_at = 0.0
        self._deaths = 0  # in succession

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of it."""
        return self.state not in ("starting", "running", "waiting")

    @property
    def descriptors(self) -> list[int]:
        """What tells of its process's end, and, as long as there is one, what it says."""
        end = self.process.sentinel if self._pidfd is None else self._pidfd
        return [end] if self._connection.closed else [end, self._connection.fileno()]

    @property
    def status(self) -> ExplorerStatus:
        """What a program is told of it."""
        return ExplorerStatus(
            self.index, self.pid, self.epsilon, self.restarts, self.state, self.exit_code
        )

    def launch(self) -> None:
        """Note that a process is being started."""
        if self.state == "waiting":
            self.restarts += 1
        self.state, self.restart_at, self.is_launching = "starting", math.inf, True

    def take(self, process: Any, connection: Any, *, is_child: bool) -> None:
        """Note the process that was started, by another one if it is no child."""
        self.process, self._connection, self.pid = process, connection, process.pid
        self.is_launching, self.exit_code = False, None
        self.has_returned, self.remote_traceback = False, None
        self._started_at = time.monotonic()
        self._pidfd = pidfd_of(self.pid) if is_child else None

    def hear(self) -> None:
        """Read the messages there are, none of which is longer than a socket holds."""
        try:
            while self._connection.poll():
                message = self._connection.recv_bytes()
                if message == STARTED:
                    self.state = "running"
                elif message == FINISHED:
                    self.has_returned = True
                elif message.startswith(FAILED):
                    self.remote_traceback = message[len(FAILED) :].decode(errors="replace")
        except (EOFError, OSError):
            self._connection.close()

    def tell(self, message: bytes) -> None:
        """Say it, unless the process no longer listens."""
        with contextlib.suppress(OSError):
            self._connection.send_bytes(message)

    def bury(self) -> float:
        """Reap the process, which has ended; return how many seconds it lived."""
        process, self.process = self.process, None
        pidfd, self._pidfd = self._pidfd, None
        self._connection.close()
        if pidfd is not None:
            os.close(pidfd)
        process.join()
        self.exit_code = process.exitcode
        if self.exit_code is not None:  # else somebody else has reaped it
            process.close()
        return time.monotonic() - self._started_at

    def seconds_to_restart(self, lived: float, first: float, most: float) -> float:
        """Note a death after `lived` seconds; return how long to wait after it."""
        self._deaths = 1 if lived > most else self._deaths + 1
        return min(most, first * 2.0 ** min(self._deaths - 1, _MOST_DOUBLINGS))

    def how_it_ended(self) -> str:
        """In words, by the exit code."""
        if self.exit_code is None:
            return "ended with an unknown exit code"
        if self.exit_code >= 0:
            return f"ended with exit code {self.exit_code}"
        try:
            return f"was killed by {signal.Signals(-self.exit_code).name}"
        except ValueError:
            return f"was killed by signal {-self.exit_code}"
