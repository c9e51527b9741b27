"""One explorer as the learner sees it: a succession of processes."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import time
from typing import Any

from mpbuffer._segment.process_identity import pidfd_of, readable
from mpbuffer.explorers.process import FAILED, FINISHED, STARTED

__all__ = ["ExplorerStatus", "Place"]

_MOST_DOUBLINGS = 100  # of the back-off: a float holds that many
_SECONDS_OF_THE_SERVER = 1.0  # for the server to reap a process that has ended


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
        Probability of a random action.
    restarts : int
        How often its process was restarted.
    state : str
        ``"new"``; ``"starting"`` until its function is called, then ``"running"``; ``"waiting"``
        for a restart; ``"finished"`` if the function returned; ``"failed"``; ``"stopped"``.
    exit_code : int or None
        Its last process's exit code: minus the signal's number if one killed it. None while it
        runs, and if somebody else reaped it, as the kernel does where SIGCHLD is ignored.
    """

    index: int
    pid: int
    epsilon: float
    restarts: int
    state: str
    exit_code: int | None


class Place:
    """One explorer's process and state. Signals must be deferred while it changes."""

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
        self._is_child = True
        self._started_at = 0.0
        self._deaths = 0  # in succession

    @property
    def is_over(self) -> bool:
        """Whether it runs no more, and is not to be restarted."""
        return self.state not in ("starting", "running", "waiting")

    @property
    def descriptors(self) -> list[int]:
        """Readable at its process's end, and, while it is connected, at its messages."""
        return [self._end] if self._connection.closed else [self._end, self._connection.fileno()]

    @property
    def _end(self) -> int:
        """Readable once the process has ended, whoever reaped it."""
        return int(self.process.sentinel) if self._pidfd is None else self._pidfd

    @property
    def status(self) -> ExplorerStatus:
        """Its public status."""
        return ExplorerStatus(
            self.index, self.pid, self.epsilon, self.restarts, self.state, self.exit_code
        )

    def launch(self) -> None:
        """Record that a process is being started."""
        if self.state == "waiting":
            self.restarts += 1
        self.state, self.restart_at, self.is_launching = "starting", math.inf, True

    @property
    def is_alive(self) -> bool:
        """Whether it has a running process now."""
        return self.process is not None and not readable([self._end])

    def take(self, process: Any, connection: Any, *, is_child: bool) -> None:
        """Record the process that was started; multiprocess's server did it unless `is_child`."""
        self.process, self._connection, self.pid = process, connection, process.pid
        self.is_launching, self.exit_code = False, None
        self.has_returned, self.remote_traceback = False, None
        self._started_at = time.monotonic()
        self._is_child = is_child
        self._pidfd = pidfd_of(self.pid)
        if self._pidfd is not None and not is_child and readable([process.sentinel]):
            os.close(self._pidfd)  # perhaps another process's: the server has reaped this one
            self._pidfd = None

    def hear(self) -> None:
        """Read all pending messages, each of which fits into a socket."""
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
        """Send a message, unless the process no longer listens."""
        with contextlib.suppress(OSError):
            self._connection.send_bytes(message)

    def signal(self, number: int) -> None:
        """Send its process a signal, never a later process with the same pid."""
        if not self.is_alive:
            return
        with contextlib.suppress(ProcessLookupError):
            if self._pidfd is None:
                os.kill(self.pid, number)
            else:
                signal.pidfd_send_signal(self._pidfd, number)

    def reap(self) -> float:
        """Reap the process, which has ended; return how many seconds it lived."""
        self.exit_code = self._wait_for_code()
        self._connection.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
        self.process = self._pidfd = None
        return time.monotonic() - self._started_at

    def _wait_for_code(self) -> int | None:
        """Return the exit code; None if somebody else has reaped the process."""
        if not self._is_child:
            return _code_from_server(self.process.sentinel)
        try:
            if self._pidfd is None:
                return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            ended = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        except ChildProcessError:
            return None
        assert ended is not None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def seconds_to_restart(self, lived: float, first: float, most: float) -> float:
        """Record a death after `lived` seconds; return the delay of the restart."""
        self._deaths = 1 if lived > most else self._deaths + 1
        return min(most, first * 2.0 ** min(self._deaths - 1, _MOST_DOUBLINGS))

    def how_it_ended(self) -> str:
        """Describe its exit code in words."""
        if self.exit_code is None:
            return "ended with an unknown exit code"
        if self.exit_code >= 0:
            return f"ended with exit code {self.exit_code}"
        try:
            return f"was killed by {signal.Signals(-self.exit_code).name}"
        except ValueError:
            return f"was killed by signal {-self.exit_code}"


def _code_from_server(pipe: int) -> int | None:
    """Return the exit code from multiprocess's server; None if the server has ended too."""
    from multiprocess.forkserver import read_signed

    try:
        return int(read_signed(pipe)) if readable([pipe], _SECONDS_OF_THE_SERVER) else None
    except (EOFError, OSError):
        return None
