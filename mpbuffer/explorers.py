"""Explorers: processes that play, started, supervised and ended by the learner."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import operator
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any

import numpy as np

from mpbuffer.buffer import ReplayBuffer
from mpbuffer.errors import ExplorerFailed
from mpbuffer.explorer_process import (
    FAILED,
    FINISHED,
    STARTED,
    STOP,
    Explorer,
    Orders,
    Task,
    WatchedName,
    run_explorer,
    thread_variables_set,
)
from mpbuffer.process_identity import ProcessIdentity, pidfd_of

__all__ = ["Explorer", "ExplorerStatus", "Explorers"]

_START_METHODS = ("fork", "spawn", "forkserver")
_SECONDS_TO_TERMINATE = 1.0
_SECONDS_TO_KILL = 5.0
_LONGEST_WAIT = 1e6  # seconds: what poll() takes
_MOST_DOUBLINGS = 100  # of the back-off: a float holds that many

_log = logging.getLogger("mpbuffer")
_environment_lock = threading.Lock()  # held by whoever changes os.environ for a child


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


class _Place:
    """An explorer as the learner sees it: one process after another."""

    def __init__(self, index: int, epsilon: float, cores: frozenset[int] | None) -> None:
        self.index, self.epsilon, self.cores = index, epsilon, cores
        self.state, self.pid, self.restarts = "new", 0, 0
        self.exit_code: int | None = None
        self.process: Any = None
        self.pidfd: int | None = None
        self.connection: Any = None
        self.started_at = 0.0
        self.restart_at = math.inf
        self.deaths = 0  # in succession
        self.has_returned = False
        self.remote_traceback: str | None = None  # once its function has raised

    def seconds_to_restart(self, lived: float, first: float, most: float) -> float:
        """Note a death after `lived` seconds; return how long to wait after it."""
        self.deaths = 1 if lived > most else self.deaths + 1
        return min(most, first * 2.0 ** min(self.deaths - 1, _MOST_DOUBLINGS))

    @property
    def descriptors(self) -> tuple[int, int]:
        """What tells of its end, and what it says."""
        end = self.process.sentinel if self.pidfd is None else self.pidfd
        return end, self.connection.fileno()

    @property
    def status(self) -> ExplorerStatus:
        return ExplorerStatus(
            self.index, self.pid, self.epsilon, self.restarts, self.state, self.exit_code
        )


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
    Ctrl-C is the learner's alone: explorers ignore it. One that is killed may have left rows of its
    own unsent; rows it added are whole. Processes that an explorer starts are its own to end.

    Nothing here but `explorer` methods may be called in another process than the learner's, nor by
    two threads at a time.

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
        Further arguments.
    seed : int or sequence of int, optional
        Each explorer's random stream follows from it, the index and the number of restarts.
        Chosen if not given.
    epsilon, alpha : float
        Explorer i of n acts at random with probability ``epsilon ** (1 + alpha * i / (n - 1))``,
        a single one with `epsilon`. Horgan et al., 2018, section 4, has 0.4 and 7.
    start_method : {"spawn", "fork", "forkserver"}
        "spawn" is what works beside CUDA and beside libraries that have started threads, whose
        locks a fork copies in whatever state they are.
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
        variables such as ``OMP_NUM_THREADS`` that are set already win. Under "forkserver" they
        reach libraries that the server has loaded only if it was not running before.
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
        stop_timeout: float = 5.0,
    ) -> None:
        if not callable(function):
            raise TypeError(f"function must be callable, got {function!r}")
        if not isinstance(buffer, ReplayBuffer):
            raise TypeError(f"buffer must be a replay buffer, got {buffer!r}")
        self._n = _whole("n", n, 1)
        _one_of("start_method", start_method, _START_METHODS)
        _one_of("on_death", on_death, ("restart", "raise"))
        self._max_restarts = (
            math.inf if max_restarts is None else _whole("max_restarts", max_restarts, 0)
        )
        self._restarts_wanted = on_death == "restart"
        self._backoff = _seconds("backoff", backoff)
        self._max_backoff = _seconds("max_backoff", max_backoff)
        self._stop_timeout = _seconds("stop_timeout", stop_timeout)
        self._nice = _whole("nice", nice, 0, 19)
        self._threads = None if threads is None else _whole("threads", threads, 1)
        with _SignalsPutOff():  # else numpy.random, if imported here, swallows KeyboardInterrupt
            entropy = np.random.SeedSequence(seed).entropy
        assert entropy is not None
        self._seed = entropy
        self._task = Task(function, buffer, tuple(args), dict(kwargs or {}))
        cores = _cores(pin, self._n)
        self._places = [
            _Place(index, _epsilon_of(index, self._n, epsilon, alpha), cores[index])
            for index in range(self._n)
        ]
        self._start_method = start_method
        self._failures: list[ExplorerFailed] = []
        self._poll = select.poll()
        self._place_of: dict[int, _Place] = {}  # by descriptor: a sentinel or a connection
        self._launch: threading.Thread | None = None
        self._owner: ProcessIdentity | None = None
        self._stopping = False

    def start(self) -> None:
        """Start the processes; entering the ``with`` block does it. Once only.

        Blocks for some milliseconds per explorer, and under "forkserver" until the server has
        imported the main module; Ctrl-C interrupts it.

        Raises
        ------
        RuntimeError
            If it was called before.
        Exception
            What the pickling of the function or of an argument raises.
        """
        if self._owner is not None:
            raise RuntimeError("cannot start explorers: they were started before")
        self._owner = ProcessIdentity.of(os.getpid())
        try:
            for place in self._places:
                self._start(place)
        except BaseException:
            self.stop()
            raise

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
        self._take_note(0)
        if not self._stopping:
            for place in self._places:
                if place.restart_at <= now:
                    self._restart(place)
        if self._failures:
            raise self._failures.pop(0)

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
            if not any(place.state in ("starting", "running", "waiting") for place in self._places):
                return True
            now = time.monotonic()
            if now >= deadline:
                return False
            next_event = min([deadline, *(place.restart_at for place in self._places)])
            self._take_note(max(0.0, next_event - now))

    def stop(self) -> None:
        """End all explorers and wait for their processes; leaving the block does it.

        Blocks for `stop_timeout` and a second or two at most. Failures that it finds are raised by
        the next check(), or on leaving the block. Without effect in a forked child.
        """
        if self._owner is None or self._owner.pid != os.getpid():
            return
        self._stopping = True
        try:
            self._ask_to_stop()
            self._wait_for_end(self._stop_timeout)
            for place in self._living():
                if not place.has_returned:
                    _log.warning(
                        "explorer %d did not return within %g s of being asked to; terminating it",
                        place.index,
                        self._stop_timeout,
                    )
                place.process.terminate()
            self._wait_for_end(_SECONDS_TO_TERMINATE)
        finally:
            for place in self._living():
                place.process.kill()
            self._wait_for_end(_SECONDS_TO_KILL)

    @property
    def seed(self) -> int | Sequence[int]:
        """What all random streams follow from: the argument, or what was chosen."""
        return self._seed

    @property
    def alive(self) -> int:
        """How many explorers have a running process now."""
        return sum(place.process.is_alive() for place in self._living())

    def status(self) -> list[ExplorerStatus]:
        """Tell about each explorer, by index, as of the last check().

        Returns
        -------
        list of ExplorerStatus
        """
        return [place.status for place in self._places]

    def __enter__(self) -> Explorers:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.stop()
        if error is None and self._failures:
            raise self._failures.pop(0)

    def __len__(self) -> int:
        return self._n

    def __repr__(self) -> str:
        states = [place.state for place in self._places]
        counts = ", ".join(f"{states.count(each)} {each}" for each in dict.fromkeys(states))
        return f"<Explorers: {counts}>"

    def _living(self) -> list[_Place]:
        return [place for place in self._places if place.process is not None]

    # Starting

    def _start(self, place: _Place) -> None:
        """Start a process where no KeyboardInterrupt can come between it and our taking note.

        A fork is made by the calling thread, which then is in no library's code, while Ctrl-C is
        put off. The other methods may have to wait for the new interpreter, too long for Ctrl-C to
        be put off, and do so in a thread, where there is none.
        """
        if self._start_method == "fork":
            with _SignalsPutOff():
                self._launch_process(place)
            return
        errors: list[BaseException] = []
        launch = threading.Thread(target=self._launch_in_thread, args=(place, errors), daemon=True)
        with _SignalsPutOff():
            launch.start()
            self._launch = launch
        launch.join()
        if errors:
            raise errors[0]

    def _restart(self, place: _Place) -> None:
        place.restart_at = math.inf
        place.restarts += 1
        try:
            self._start(place)
        except (OSError, RuntimeError) as error:  # the latter if there can be no more threads
            self._restart_later(place, f"could not be restarted ({error})", 0.0)
        except Exception:
            place.state = "failed"
            raise

    def _launch_in_thread(self, place: _Place, errors: list[BaseException]) -> None:
        try:
            self._prepare_start_method()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited until ignored
            self._launch_process(place)
        except BaseException as error:
            errors.append(error)

    def _prepare_start_method(self) -> None:
        """Start the package's servers first: that unblocks the signals of the calling thread."""
        from multiprocess import forkserver, resource_tracker

        resource_tracker.ensure_running()
        if self._start_method == "forkserver":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            with _environment_lock, thread_variables_set(self._threads):
                forkserver.ensure_running()

    def _launch_process(self, place: _Place) -> None:
        import multiprocess

        assert self._owner is not None
        context = multiprocess.get_context(self._start_method)
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
        )
        ours, theirs = context.Pipe()
        name = WatchedName(f"explorer-{place.index}")
        name.learner = self._owner
        process = context.Process(
            target=run_explorer,
            args=(orders, self._task, theirs),
            name=name,
            daemon=True,
        )
        try:
            with _environment_lock, thread_variables_set(self._threads):
                process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        place.connection, place.process, place.pid = ours, process, process.pid
        place.state, place.exit_code = "starting", None
        place.has_returned, place.remote_traceback = False, None
        place.started_at = time.monotonic()
        if self._start_method != "forkserver":  # whose children are not ours to wait for
            place.pidfd = pidfd_of(place.pid)
        for descriptor in place.descriptors:
            self._place_of[descriptor] = place
            self._poll.register(descriptor, select.POLLIN)
        if self._stopping:  # it took so long to start that stop() has given it up
            process.terminate()

    # Taking note of what happened

    def _take_note(self, timeout: float) -> None:
        """Hear the explorers' messages and ends, waiting for the first at most so many seconds."""
        milliseconds = math.ceil(1000 * min(timeout, _LONGEST_WAIT))
        ready = [descriptor for descriptor, _ in self._poll.poll(milliseconds)]
        if not ready:
            return
        with _SignalsPutOff():  # half a message read, or a process half buried, would be lost
            for descriptor in ready:
                place = self._place_of.get(descriptor)
                if place is None or place.process is None:
                    continue
                self._hear(place)
                if descriptor == place.descriptors[0]:
                    self._bury(place)

    def _hear(self, place: _Place) -> None:
        """Read the messages there are, none of which is longer than a socket holds."""
        try:
            while place.connection.poll():
                message = place.connection.recv_bytes()
                if message == STARTED:
                    place.state = "running"
                elif message == FINISHED:
                    place.has_returned = True
                elif message.startswith(FAILED):
                    place.remote_traceback = message[len(FAILED) :].decode(errors="replace")
        except (EOFError, OSError):
            self._forget(place.connection.fileno())

    def _forget(self, descriptor: int) -> None:
        if self._place_of.pop(descriptor, None):
            self._poll.unregister(descriptor)

    def _bury(self, place: _Place) -> None:
        """Reap the process, and decide what becomes of its explorer."""
        for descriptor in place.descriptors:
            self._forget(descriptor)
        process, place.process = place.process, None
        pidfd, place.pidfd = place.pidfd, None
        process.join()
        place.exit_code = process.exitcode
        place.connection.close()
        process.close()
        if pidfd is not None:
            os.close(pidfd)
        lived = time.monotonic() - place.started_at
        how = _how_it_ended(place.exit_code)
        if place.remote_traceback is not None:
            self._fail(place, "raised an exception")
        elif place.has_returned:
            place.state = "finished"
        elif self._stopping:
            place.state = "stopped"
        elif place.state == "starting" and place.exit_code >= 0:
            self._fail(place, f"{how} before its function was called; its standard error tells why")
        elif not self._restarts_wanted:
            self._fail(place, how)
        else:
            self._restart_later(place, how, lived)

    def _restart_later(self, place: _Place, why: str, lived: float) -> None:
        if place.restarts >= self._max_restarts:
            self._fail(place, f"{why} after {place.restarts} restarts")
            return
        delay = place.seconds_to_restart(lived, self._backoff, self._max_backoff)
        place.state, place.restart_at = "waiting", time.monotonic() + delay
        _log.warning("explorer %d %s; restarting it in %g s", place.index, why, delay)

    def _fail(self, place: _Place, why: str) -> None:
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
        for place in self._places:
            place.restart_at = math.inf
            if place.state in ("new", "waiting"):
                place.state = "stopped"
        if self._launch is not None:
            self._launch.join(self._stop_timeout)
        self._take_note(0)
        for place in self._living():
            if place.state == "starting" and self._start_method != "fork":
                place.process.terminate()  # it may have a long import before it, and no rows yet
            with contextlib.suppress(OSError):  # it has ended, as its sentinel will tell
                place.connection.send_bytes(STOP)

    def _wait_for_end(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._living() and (left := deadline - time.monotonic()) > 0:
            self._take_note(left)


class _SignalsPutOff:
    """While this block runs, what answers Ctrl-C and SIGTERM waits, so that no exception comes.

    In a child that is forked there Ctrl-C waits, too.
    """

    def __init__(self) -> None:
        self._noted: list[int] = []
        self._restore = contextlib.ExitStack()

    def __enter__(self) -> None:
        with contextlib.ExitStack() as restore:
            if threading.current_thread() is threading.main_thread():
                for number in (signal.SIGINT, signal.SIGTERM):
                    if callable(answer := signal.getsignal(number)):
                        restore.callback(signal.signal, number, answer)
                        signal.signal(number, self._note)
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            restore.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
            self._restore = restore.pop_all()

    def _note(self, number: int, _: FrameType | None) -> None:
        self._noted.append(number)

    def __exit__(self, *_: object) -> None:
        self._restore.close()
        for number in dict.fromkeys(self._noted):
            signal.raise_signal(number)


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
    chosen = usable[1:] + usable[:1] if pin is True else [_whole("pin", core, 0) for core in pin]
    if not chosen or not set(chosen) <= set(usable):
        raise ValueError(f"pin must name cores of {usable}, got {pin!r}")
    return [frozenset([chosen[index % len(chosen)]]) for index in range(n)]


def _whole(name: str, value: Any, least: int, most: float = math.inf) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if not least <= number <= most:
        up_to = "at least" if most == math.inf else f"at most {most} and at least"
        raise ValueError(f"{name} must be {up_to} {least}, got {value!r}")
    return number


def _seconds(name: str, value: float) -> float:
    seconds = float(value)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{name} must be a finite number of seconds, got {value!r}")
    return seconds


def _one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        return f"was killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was killed by signal {-exit_code}"
