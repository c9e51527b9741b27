"""Explorers: processes that play, started, supervised and ended by the learner."""

from __future__ import annotations

import logging
import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from mpbuffer import _core
from mpbuffer._arguments.integers import whole_number
from mpbuffer._segment.process_identity import ProcessIdentity
from mpbuffer.buffer.replay_buffer import ReplayBuffer
from mpbuffer.errors import ExplorerFailed
from mpbuffer.explorers.launch import START_METHODS, start_process
from mpbuffer.explorers.place import ExplorerStatus, Place
from mpbuffer.explorers.process import STOP, TERMINATE, Explorer, Orders
from mpbuffer.explorers.task import Task

__all__ = ["Explorer", "ExplorerStatus", "Explorers"]

_SECONDS_TO_TERMINATE = 1.0
_SECONDS_TO_KILL = 5.0
_SECONDS_BETWEEN_LOOKS = 0.05  # at what a handler, or a thread, may have changed meanwhile
_SECONDS_OF_A_LAUNCH = 0.001  # between looks whether it is done

_log = logging.getLogger("mpbuffer")
_signals_deferred = _core.SignalsDeferred()


class Explorers:
    """Processes that each call a function with the buffer, until the learner has had enough.

    They start on entering the ``with`` block and are ended on leaving it: asked to return, after
    `stop_timeout` terminated, then killed. The learner calls check() at every step; that is where
    it hears of failures, and where killed explorers are started again::

        with mpbuffer.Explorers(explore, 4, buffer) as explorers:
            while training:
                explorers.check()
                ...

    An explorer ends, whatever it is doing, within 2 seconds of the learner's death by any signal,
    unless it is stopped by a signal: also while it holds the GIL, and while its interpreter ends.
    One that is killed may have left rows of its own unsent; rows it added are whole. An explorer
    may start processes: those of multiprocessing are joined at its end, others are its own to end.

    Explorers ignore SIGINT (Ctrl-C), SIGHUP, SIGUSR1 and SIGUSR2, which a terminal or a scheduler
    sends to the whole group: they are for the learner, whose handlers run in no explorer. SIGTERM
    ends an explorer in order: should_stop() becomes true; a function that has not returned after a
    second gets an exception; one that stays in a call is left; staged rows are written each time.
    The learner restarts it, as after any other death. A function that holds the GIL has to be
    killed. Handlers that the function sets itself stay.

    Nothing here but `explorer` methods may be called in another process than the learner's. A
    signal's handler may call any method, and raise, whatever the program is at: inside the methods
    here handlers run while those wait, or at their end, and what they raise leaves everything known
    and in order. stop() ends what runs then.

    Parameters
    ----------
    function : callable
        Called as ``function(explorer, *args, **kwargs)`` with an Explorer, in a process of its own;
        may be a lambda, a closure or a notebook's function. What an import would not find goes
        along by value, with the globals that it refers to. Functions and classes of a program's
        main module are found by its import: they must not be inside ``if __name__ == "__main__"``.
    n : int
        How many explorers, at least 1.
    buffer : ReplayBuffer or PrioritizedReplayBuffer
        Each explorer gets its own handle.
    args, kwargs : tuple, mapping
        Further arguments. Queues, locks, pipes, values, arrays and managers of multiprocessing and
        of multiprocess stay shared; under "spawn" and "forkserver" make them with
        ``get_context(start_method)``. torch's tensors stay shared if they are in shared memory
        (``share_memory()``) or on a GPU, and are copied otherwise.
    seed : int or sequence of int, optional
        Each explorer's random stream follows from it, the index and the number of restarts.
        Chosen if not given.
    epsilon, alpha : float
        Explorer i of n acts at random with probability ``epsilon ** (1 + alpha * i / (n - 1))``,
        a single one with `epsilon`. Horgan et al., 2018, section 4, has 0.4 and 7.
    start_method : {"spawn", "fork", "forkserver"}
        "spawn" is what works beside CUDA and beside libraries that have started threads, whose
        locks a fork copies in whatever state they are. In a frozen program use "fork": the others
        would start the program again.
    on_death : {"restart", "raise"}
        What becomes of an explorer that was killed, or left by ``os._exit``: it is started again
        with the same index and epsilon and another random stream, or check() raises.
    max_restarts : int, optional
        Of each explorer; its next death makes check() raise. None for no limit.
    backoff, max_backoff : float
        Seconds before a restart: twice as many after each death in succession, at most
        `max_backoff`. A process that ran longer than `max_backoff` begins anew.
    pin : bool or sequence of int
        Cores, one for each explorer in turn. True takes those that the learner may use, its first
        one last.
    nice : int
        Added to the explorers' niceness, 0 to 19.
    threads : int, optional
        How many threads numerical libraries use in an explorer; None leaves them alone. Environment
        variables that are set already win: ``OMP_NUM_THREADS`` for all of them, others such as
        ``MKL_NUM_THREADS`` for their library. Under "forkserver" they
        reach libraries that the server has loaded only if it was not running before.
    seed_globals : bool
        Seed the global generators of ``random``, NumPy and torch, each explorer's from streams of
        its own that follow from the seed; torch's if torch is loaded before the function runs.
        False leaves them alone: forked explorers then draw the same numbers from NumPy and torch.
    stop_timeout : float
        Seconds that explorers have to return.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.
    """

    def __init__(
        self,
        function: Callable[..., object],
        n: int,
        buffer: ReplayBuffer,
        *,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        seed: int | Sequence[int] | None = None,
        epsilon: float = 0.4,
        alpha: float = 7.0,
        start_method: str = "spawn",
        on_death: str = "restart",
        max_restarts: int | None = 100,
        backoff: float = 0.25,
        max_backoff: float = 10.0,
        pin: bool | Sequence[int] = False,
        nice: int = 0,
        threads: int | None = 1,
        seed_globals: bool = True,
        stop_timeout: float = 5.0,
    ) -> None:
        if not callable(function):
            raise TypeError(f"function must be callable, got {function!r}")
        if not isinstance(buffer, ReplayBuffer):
            raise TypeError(f"buffer must be a replay buffer, got {buffer!r}")
        self._n = whole_number("n", n, 1)
        _one_of("start_method", start_method, START_METHODS)
        _one_of("on_death", on_death, ("restart", "raise"))
        self._max_restarts = (
            math.inf if max_restarts is None else whole_number("max_restarts", max_restarts, 0)
        )
        self._restarts_wanted = on_death == "restart"
        self._backoff = _seconds("backoff", backoff)
        self._max_backoff = _seconds("max_backoff", max_backoff)
        self._stop_timeout = _seconds("stop_timeout", stop_timeout)
        self._nice = whole_number("nice", nice, 0, 19)
        self._threads = None if threads is None else whole_number("threads", threads, 1)
        if not isinstance(seed_globals, (bool, np.bool_)):
            raise TypeError(f"seed_globals must be a bool, got {seed_globals!r}")
        self._seed_globals = bool(seed_globals)
        with _signals_deferred:  # else numpy.random, if imported here, swallows KeyboardInterrupt
            entropy = np.random.SeedSequence(seed).entropy
        assert entropy is not None
        self._seed = entropy
        self._task = Task(function, buffer, tuple(args), dict(kwargs or {}))
        cores = _cores(pin, self._n)
        self._places = [
            Place(index, _epsilon_of(index, self._n, epsilon, alpha), cores[index])
            for index in range(self._n)
        ]
        self._start_method = start_method
        self._owner: ProcessIdentity | None = None
        # All that follows, and what the places know, changes with signals deferred and this held.
        self._lock = threading.RLock()
        self._failures: list[BaseException] = []
        self._descriptors: list[int] = []  # of all living processes
        self._stopping = False

    def start(self) -> None:
        """Start the processes; entering the ``with`` block does it. Once only.

        Blocks for some milliseconds per explorer, and under "forkserver" until the server has
        imported the main module; Ctrl-C interrupts it.

        Raises
        ------
        RuntimeError
            If it was called before.
        OSError, RuntimeError
            If a process cannot be started: there can be no more processes, threads or open files,
            or the working directory was deleted and the start method is not "fork". If an argument
            was made for forked processes only.
        Exception
            What the pickling of the function or of an argument raises.
        """
        self.__enter__()

    def check(self) -> None:
        """Look after the explorers; to be called at every step of the learner.

        Takes a few microseconds if nothing has happened. Otherwise takes note of explorers that
        have ended, and restarts those whose time has come, which blocks as start() does; if the
        system cannot start a process now, that counts as another death.

        Raises
        ------
        ExplorerFailed
            If an explorer's function raised: the message ends with its traceback. If an explorer
            died and is not to be restarted. Once for each; the others go on meanwhile.
        """
        now = time.monotonic()  # before the deaths heard of here: their restarts come later
        self._take_note()
        for place in self._places:
            if place.restart_at <= now:
                self._launch(place)
        if self._failures:
            self._raise_failure()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all have ended by themselves, looking after them as check() does.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most; None waits as long as it takes.

        Returns
        -------
        bool
            Whether all have ended.

        Raises
        ------
        ExplorerFailed
            As check() does.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            self.check()
            if all(place.is_over for place in self._places):
                return True
            now = time.monotonic()
            if now >= deadline:
                return False
            self._wait(min([deadline, *(place.restart_at for place in self._places)]) - now)

    def stop(self) -> None:
        """End all explorers and wait for their processes; leaving the block does it.

        Blocks for `stop_timeout` and a second or two at most; an exception of a signal's handler
        ends the waiting, and kills. Failures that it finds are raised by the next check(), or on
        leaving the block. Without effect in a forked child.
        """
        if self._owner is None or self._owner.pid != os.getpid():
            return
        try:
            self._ask_to_stop()
            self._wait_for_end(self._stop_timeout)
            self._terminate()
            self._wait_for_end(_SECONDS_TO_TERMINATE)
        finally:
            with _signals_deferred, self._lock:
                for place in self._living():
                    place.signal(signal.SIGKILL)
            self._wait_for_end(_SECONDS_TO_KILL)

    @property
    def seed(self) -> int | Sequence[int]:
        """What all random streams follow from: the argument, or what was chosen."""
        return self._seed

    @property
    def alive(self) -> int:
        """How many explorers have a running process now."""
        with _signals_deferred, self._lock:
            return sum(place.is_alive for place in self._places)

    def status(self) -> list[ExplorerStatus]:
        """Tell about each explorer, by index, as of the last check().

        Returns
        -------
        list of ExplorerStatus
        """
        return [place.status for place in self._places]

    def __enter__(self) -> Explorers:
        if self._owner is not None:
            raise RuntimeError("cannot start explorers: they were started before")
        self._owner = ProcessIdentity.of(os.getpid())
        try:
            for place in self._places:
                self._launch(place)
                self._raise_failure()
            return self
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.stop()
        if error is None:
            self._raise_failure()

    def __len__(self) -> int:
        return self._n

    def __repr__(self) -> str:
        states = [place.state for place in self._places]
        counts = ", ".join(f"{states.count(each)} {each}" for each in dict.fromkeys(states))
        return f"<Explorers: {counts}>"

    def _living(self) -> list[Place]:
        return [place for place in self._places if place.process is not None]

    def _raise_failure(self) -> None:
        with _signals_deferred, self._lock:
            if self._failures:
                raise self._failures.pop(0)

    # Starting

    def _launch(self, place: Place) -> None:
        """Start a process, unless one was started or stop() called meanwhile.

        A fork is made by the calling thread, which then is in no library's code. The other methods
        may have to wait for the new interpreter, too long for signals to be deferred, and do so in
        a thread, where no handler runs. If one raises here, the thread goes on.
        """
        with _signals_deferred, self._lock:
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
                        f"cannot start the process of explorer {place.index}: the learner can start"
                        f" no more threads ({error}); raise the limit (ulimit -u, a container's"
                        " pids limit), or use start_method='fork'"
                    )
                    self._not_started(place, RuntimeError(why))
        while place.is_launching:
            time.sleep(_SECONDS_OF_A_LAUNCH)

    def _start_process(self, place: Place) -> None:
        assert self._owner is not None
        orders = Orders(
            index=place.index,
            n=self._n,
            epsilon=place.epsilon,
            entropy=self._seed,
            restart=place.restarts,
            learner=self._owner,
            cores=place.cores,
            nice=self._nice,
            threads=self._threads,
            seed_globals=self._seed_globals,
            is_forked=self._start_method == "fork",
        )
        try:
            process, connection = start_process(self._start_method, orders, self._task)
        except BaseException as error:
            with _signals_deferred, self._lock:
                self._not_started(place, error)
            return
        with _signals_deferred, self._lock:
            place.take(process, connection, is_child=self._start_method != "forkserver")
            self._descriptors = [*self._descriptors, *place.descriptors]
            if self._stopping:  # it took so long to start that stop() has given it up
                place.signal(signal.SIGTERM)

    def _not_started(self, place: Place, error: BaseException) -> None:
        place.is_launching = False
        if place.restarts > 0 and isinstance(error, (OSError, RuntimeError)):
            self._restart_later(place, f"could not be restarted ({error})", 0.0)
        else:
            place.state = "failed"
            self._failures.append(error)

    # Taking note of what happened

    def _wait(self, seconds: float) -> None:
        """Wait until an explorer has something to say, but look up now and then."""
        _readable(self._descriptors, min(max(seconds, 0.0), _SECONDS_BETWEEN_LOOKS))

    def _take_note(self) -> None:
        """Hear the explorers' messages and ends."""
        if not _readable(self._descriptors, 0.0):
            return
        with _signals_deferred, self._lock:
            ready = set(_readable(self._descriptors, 0.0))  # of what there is now
            for place in self._living():
                end, *connection = place.descriptors
                if end in ready or ready.intersection(connection):
                    place.hear()
                if end in ready:
                    self._bury(place)
            self._descriptors = [each for place in self._living() for each in place.descriptors]

    def _bury(self, place: Place) -> None:
        """Reap the process, and decide what becomes of its explorer."""
        lived = place.bury()
        how = place.how_it_ended()
        if place.remote_traceback is not None:
            self._fail(place, "raised an exception")
        elif place.has_returned:
            place.state = "finished"
        elif self._stopping:
            place.state = "stopped"
        elif place.state == "starting" and (place.exit_code or 0) >= 0:
            self._fail(place, f"{how} before its function was called; its standard error tells why")
        elif not self._restarts_wanted:
            self._fail(place, how)
        else:
            self._restart_later(place, how, lived)

    def _restart_later(self, place: Place, why: str, lived: float) -> None:
        if place.restarts >= self._max_restarts:
            self._fail(place, f"{why} after {place.restarts} restarts")
            return
        delay = place.seconds_to_restart(lived, self._backoff, self._max_backoff)
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

    def _ask_to_stop(self) -> None:
        with _signals_deferred, self._lock:
            self._stopping = True
            for place in self._places:
                place.restart_at = math.inf
                if place.state in ("new", "waiting"):
                    place.state = "stopped"
            self._take_note()
            for place in self._living():
                if place.state == "starting" and self._start_method != "fork":
                    place.signal(signal.SIGTERM)  # it may have a long import before it, and no rows
                place.tell(STOP)

    def _wait_for_end(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            self._take_note()
            left = deadline - time.monotonic()
            if left <= 0 or not any(place.is_launching or place.process for place in self._places):
                return
            self._wait(left)

    def _terminate(self) -> None:
        with _signals_deferred, self._lock:
            for place in self._living():
                if not place.has_returned:
                    _log.warning(
                        "explorer %d did not return within %g s of being asked to; terminating it",
                        place.index,
                        self._stop_timeout,
                    )
                place.tell(TERMINATE)
                place.signal(signal.SIGTERM)


def _readable(descriptors: Iterable[int], seconds: float) -> list[int]:
    """Wait for one of them to be; also tells of those that were closed meanwhile.

    Each wait is an object of its own: a handler of a signal may wait inside of another wait.
    """
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(math.ceil(1000 * seconds))]


def _epsilon_of(index: int, n: int, epsilon: float, alpha: float) -> float:
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon must be in [0, 1], got {epsilon!r}")
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha must be a finite number of at least 0, got {alpha!r}")
    return float(epsilon ** (1 + alpha * index / (n - 1))) if n > 1 else float(epsilon)


def _cores(pin: bool | Sequence[int], n: int) -> list[frozenset[int] | None]:
    """Each explorer's cores; None for all."""
    if pin is False:
        return [None] * n
    usable = sorted(os.sched_getaffinity(0))
    chosen = (
        usable[1:] + usable[:1] if pin is True else [whole_number("pin", core, 0) for core in pin]
    )
    if not chosen or not set(chosen) <= set(usable):
        raise ValueError(f"pin must name cores of {usable}, got {pin!r}")
    return [frozenset([chosen[index % len(chosen)]]) for index in range(n)]


def _seconds(name: str, value: float) -> float:
    seconds = float(value)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{name} must be a finite number of seconds, got {value!r}")
    return seconds


def _one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
