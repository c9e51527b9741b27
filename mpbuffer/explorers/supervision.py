"""The explorers' processes: starts, messages, deaths, restarts and the end."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from typing import NamedTuple

from mpbuffer import _core
from mpbuffer._segment.process_identity import ProcessIdentity, readable
from mpbuffer.errors import ExplorerFailed
from mpbuffer.explorers.launch import start_process
from mpbuffer.explorers.place import Place
from mpbuffer.explorers.process import STOP, TERMINATE, CommonOrders, Orders
from mpbuffer.explorers.task import Task

__all__ = ["Restarts", "Supervision", "signals_deferred"]

_SECONDS_BETWEEN_CHECKS = 0.05  # for changes by a handler or another thread
_SECONDS_BETWEEN_LAUNCH_CHECKS = 0.001

_log = logging.getLogger("mpbuffer")
signals_deferred = _core.SignalsDeferred()


class Restarts(NamedTuple):
    """Whether and when explorers whose process died are restarted.

    Attributes
    ----------
    wanted : bool
        If False, a death is a failure.
    most : float
        Restarts of each explorer.
    first_delay, longest_delay : float
        Seconds before a restart; they double after each death in succession.
    """

    wanted: bool
    most: float
    first_delay: float
    longest_delay: float


class Supervision:
    """The processes of all explorers, and their states.

    All changes are made with signals deferred and the lock held, because a signal handler or
    another thread may call any method.

    Parameters
    ----------
    task : Task
        What each process does.
    orders : CommonOrders
        The orders that all processes share; the rest comes from their places.
    places : list of Place
        One for each explorer.
    start_method : str
        Of multiprocess.
    restarts : Restarts
        What follows a death.
    """

    def __init__(
        self,
        task: Task,
        orders: CommonOrders,
        places: list[Place],
        start_method: str,
        restarts: Restarts,
    ) -> None:
        self.places = places
        self._task, self._orders = task, orders
        self._start_method, self._restarts = start_method, restarts
        self._owner: ProcessIdentity | None = None
        self._lock = threading.RLock()
        self._failures: list[BaseException] = []
        self._descriptors: list[int] = []  # of all living processes
        self._stopping = False

    @property
    def is_own(self) -> bool:
        """Whether this process started the explorers."""
        return self._owner is not None and self._owner.pid == os.getpid()

    def begin(self) -> None:
        """Make this process the explorers' learner; once only.

        Raises
        ------
        RuntimeError
            If it was called before.
        """
        if self._owner is not None:
            raise RuntimeError("cannot start explorers: they were started before")
        self._owner = ProcessIdentity.of(os.getpid())

    @property
    def alive(self) -> int:
        """How many explorers have a running process."""
        with signals_deferred, self._lock:
            return sum(place.is_alive for place in self.places)

    def raise_failure(self) -> None:
        """Raise the oldest failure that was not raised yet, if any."""
        if not self._failures:  # as at nearly every step of the learner
            return
        with signals_deferred, self._lock:
            if self._failures:
                raise self._failures.pop(0)

    def _living(self) -> list[Place]:
        return [place for place in self.places if place.process is not None]

    # Starting

    def launch(self, place: Place) -> None:
        """Start a process, unless one was started or stop() was called meanwhile.

        The calling thread forks, because it is in no library's code. The other start methods may
        wait for the new interpreter, too long to defer signals. They run in a thread, where no
        handler runs. If a handler raises here, the thread goes on.
        """
        with signals_deferred, self._lock:
            if self._stopping or place.state not in ("new", "waiting"):
                return
            place.launch()
            if self._start_method == "fork":
                self._start_process(place)
            else:
                try:
                    threading.Thread(target=self._start_process, args=(place,), daemon=True).start()
                except RuntimeError as error:
                    why = (
                        f"cannot start the process of explorer {place.index}: the learner cannot"
                        f" start a thread ({error}); raise the limit (ulimit -u, a container's pids"
                        " limit), or use start_method='fork'"
                    )
                    self._not_started(place, RuntimeError(why))
        while place.is_launching:
            time.sleep(_SECONDS_BETWEEN_LAUNCH_CHECKS)

    def _start_process(self, place: Place) -> None:
        assert self._owner is not None
        orders = Orders(
            **vars(self._orders),
            index=place.index,
            epsilon=place.epsilon,
            restart=place.restarts,
            learner=self._owner,
            cores=place.cores,
        )
        try:
            process, connection = start_process(self._start_method, orders, self._task)
        except BaseException as error:
            with signals_deferred, self._lock:
                self._not_started(place, error)
            return
        with signals_deferred, self._lock:
            place.take(process, connection, is_child=self._start_method != "forkserver")
            self._descriptors = [*self._descriptors, *place.descriptors]
            if self._stopping:  # it started so late that stop() no longer waits for it
                place.signal(signal.SIGTERM)

    def _not_started(self, place: Place, error: BaseException) -> None:
        place.is_launching = False
        if place.restarts > 0 and isinstance(error, (OSError, RuntimeError)):
            self._restart_later(place, f"could not be restarted ({error})", 0.0)
        else:
            place.state = "failed"
            self._failures.append(error)

    # Messages and deaths

    def wait(self, seconds: float) -> None:
        """Wait for a message or an exit of an explorer, but only a short while."""
        readable(self._descriptors, min(max(seconds, 0.0), _SECONDS_BETWEEN_CHECKS))

    def hear(self) -> None:
        """Read the explorers' messages, and reap those that have exited."""
        if not readable(self._descriptors, 0.0):
            return
        with signals_deferred, self._lock:
            ready = set(readable(self._descriptors, 0.0))  # again, under the lock
            for place in self._living():
                end, *connection = place.descriptors
                if end in ready or ready.intersection(connection):
                    place.hear()
                if end in ready:
                    self._reap(place)
            self._descriptors = [each for place in self._living() for each in place.descriptors]

    def _reap(self, place: Place) -> None:
        """Reap the process, and decide whether its explorer has finished, failed or restarts."""
        lived = place.reap()
        how = place.how_it_ended()
        if place.remote_traceback is not None:
            self._fail(place, "raised an exception")
        elif place.has_returned:
            place.state = "finished"
        elif self._stopping:
            place.state = "stopped"
        elif place.state == "starting" and (place.exit_code or 0) >= 0:
            self._fail(place, f"{how} before its function was called; see its standard error")
        elif not self._restarts.wanted:
            self._fail(place, how)
        else:
            self._restart_later(place, how, lived)

    def _restart_later(self, place: Place, why: str, lived: float) -> None:
        if place.restarts >= self._restarts.most:
            self._fail(place, f"{why} after {place.restarts} restarts")
            return
        delay = place.seconds_to_restart(
            lived, self._restarts.first_delay, self._restarts.longest_delay
        )
        place.state, place.restart_at = "waiting", time.monotonic() + delay
        _log.warning("explorer %d %s; restarting it in %g s", place.index, why, delay)

    def _fail(self, place: Place, why: str) -> None:
        place.state = "failed"
        self._failures.append(
            ExplorerFailed(
                f"explorer {place.index} (pid {place.pid}) {why}",
                place.index,
                place.exit_code,
                place.remote_traceback or "",
            )
        )

    # Ending

    def ask_to_stop(self) -> None:
        """Ask all functions to return, and start no more processes."""
        with signals_deferred, self._lock:
            self._stopping = True
            for place in self.places:
                place.restart_at = math.inf
                if place.state in ("new", "waiting"):
                    place.state = "stopped"
            self.hear()
            for place in self._living():
                if place.state == "starting" and self._start_method != "fork":
                    place.signal(signal.SIGTERM)  # it may still import for long, and has no rows
                place.tell(STOP)

    def wait_for_end(self, seconds: float) -> None:
        """Wait until all processes have ended, for at most so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            self.hear()
            left = deadline - time.monotonic()
            if left <= 0 or not any(place.is_launching or place.process for place in self.places):
                return
            self.wait(left)

    def terminate(self, stop_timeout: float) -> None:
        """Terminate the processes that have not ended."""
        with signals_deferred, self._lock:
            for place in self._living():
                if not place.has_returned:
                    _log.warning(
                        "explorer %d did not return within %g s; terminating it",
                        place.index,
                        stop_timeout,
                    )
                place.tell(TERMINATE)
                place.signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the processes that have not ended."""
        with signals_deferred, self._lock:
            for place in self._living():
                place.signal(signal.SIGKILL)
