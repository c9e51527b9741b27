"""Explorers: processes that collect transitions, which the learner starts and ends."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from mpbuffer._arguments.integers import whole_number
from mpbuffer.buffer.replay_buffer import ReplayBuffer
from mpbuffer.explorers.launch import START_METHODS
from mpbuffer.explorers.place import ExplorerStatus, Place
from mpbuffer.explorers.process import CommonOrders, Explorer
from mpbuffer.explorers.supervision import Restarts, Supervision, signals_deferred
from mpbuffer.explorers.task import Task

__all__ = ["Explorer", "ExplorerStatus", "Explorers"]

_SECONDS_TO_TERMINATE = 1.0
_SECONDS_TO_KILL = 5.0


class Explorers:
    """Processes that each call a function with the buffer, until the learner ends them.

    They start when the ``with`` block is entered. When it is left they are asked to return,
    terminated after `stop_timeout`, then killed. The learner calls check() at every step, which
    raises explorers' failures and restarts killed explorers::

        with mpbuffer.Explorers(explore, 4, buffer) as explorers:
            while training:
                explorers.check()
                ...

    An explorer ends within 2 seconds of the learner's death by any signal, whatever it does: also
    while it holds the GIL, and while its interpreter ends. Only a stopped (SIGSTOP) explorer stays.
    A killed explorer may lose rows that it had staged; rows that it added are whole. An explorer
    may start processes: it joins those of multiprocessing at its end, and must end others itself.

    A terminal or a scheduler sends SIGINT (Ctrl-C), SIGHUP, SIGUSR1 and SIGUSR2 to the whole group.
    Explorers ignore them: they are for the learner, whose handlers run in no explorer. SIGTERM ends
    an explorer in order. should_stop() becomes true. If the function does not return within a
    second, an exception is raised in it; if it stays in a call, the explorer ends without it. In
    each case staged rows are written. The learner restarts the explorer, as after any other death.
    A function that holds the GIL must be killed. Handlers that the function sets itself are kept.

    Only the learner's process may call these methods. A signal handler may call any of them, and
    may raise, at any time. Inside these methods handlers run while they block, or at their end; an
    exception of a handler leaves no process untracked, and stop() ends all that run then.

    Parameters
    ----------
    function : callable
        Called as ``function(explorer, *args, **kwargs)`` with an Explorer, in a process of its own.
        It may be a lambda, a closure or a notebook's function. A function that no import finds is
        passed by value, with the globals that it uses. Functions and classes of a program's main
        module are imported: they must not be inside ``if __name__ == "__main__"``.
    n : int
        How many explorers, at least 1, and fewer than ``buffer.max_handles``.
    buffer : ReplayBuffer or PrioritizedReplayBuffer
        Each explorer gets its own handle.
    args, kwargs : tuple, mapping
        Further arguments. Queues, locks, pipes, values, arrays and managers of multiprocessing and
        of multiprocess stay shared; under "spawn" and "forkserver" make them with
        ``get_context(start_method)``. Tensors of torch stay shared if they are in shared memory
        (``share_memory()``) or on a GPU; else they are copied.
    seed : int or sequence of int, optional
        Each explorer's random stream follows from it, the index and the number of restarts.
        Random if not given.
    epsilon, alpha : float
        Explorer i of n acts at random with probability ``epsilon ** (1 + alpha * i / (n - 1))``,
        a single one with `epsilon`. Horgan et al., 2018, section 4, has 0.4 and 7.
    start_method : {"spawn", "fork", "forkserver"}
        "spawn" works beside CUDA and beside libraries that have started threads; a fork would copy
        their locks in any state. In a frozen program use "fork": the others would start the program
        again.
    on_death : {"restart", "raise"}
        What happens when an explorer is killed or calls ``os._exit``: it is restarted with the same
        index and epsilon and a new random stream, or check() raises.
    max_restarts : int, optional
        Restarts of each explorer, after which a death makes check() raise. None for no limit.
    backoff, max_backoff : float
        Seconds before a restart. They double after each death in succession, up to `max_backoff`,
        and start again at `backoff` after a process that ran longer than `max_backoff`.
    pin : bool or sequence of int
        Cores, one for each explorer in turn. True takes the cores that the learner may use, the
        first one last.
    nice : int
        Added to the explorers' niceness, 0 to 19.
    threads : int, optional
        Threads of numerical libraries in an explorer; None does not set them. Environment variables
        that are set win: ``OMP_NUM_THREADS`` for all libraries, others such as ``MKL_NUM_THREADS``
        for their own. Under "forkserver", libraries that the server has loaded see them only if the
        server was not running before.
    seed_globals : bool
        Whether to seed the global generators of ``random``, NumPy and torch in each explorer, from
        streams that follow from the seed; torch's only if torch is loaded before the function runs.
        If False, forked explorers draw the same numbers from NumPy and torch.
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
        if not buffer.closed and not buffer.shared:
            raise ValueError(
                f"cannot start explorers with {buffer!r}: it is private to this process, and they "
                "would add to copies; leave shared=False away where it is created"
            )
        if not buffer.closed and self._n >= buffer.max_handles:
            raise ValueError(
                f"cannot start {self._n} explorers: {buffer!r} may be open in "
                f"{buffer.max_handles} handles at once, and this process has one, got n={self._n}, "
                f"expected at most {buffer.max_handles - 1}; create the buffer with "
                f"max_handles={self._n + 1} or more"
            )
        _one_of("start_method", start_method, START_METHODS)
        _one_of("on_death", on_death, ("restart", "raise"))
        restarts = Restarts(
            on_death == "restart",
            math.inf if max_restarts is None else whole_number("max_restarts", max_restarts, 0),
            _seconds("backoff", backoff),
            _seconds("max_backoff", max_backoff),
        )
        self._stop_timeout = _seconds("stop_timeout", stop_timeout)
        if not isinstance(seed_globals, (bool, np.bool_)):
            raise TypeError(f"seed_globals must be a bool, got {seed_globals!r}")
        with signals_deferred:  # else numpy.random, if imported here, swallows KeyboardInterrupt
            entropy = np.random.SeedSequence(seed).entropy
        assert entropy is not None
        self._seed = entropy
        orders = CommonOrders(
            n=self._n,
            entropy=entropy,
            nice=whole_number("nice", nice, 0, 19),
            threads=None if threads is None else whole_number("threads", threads, 1),
            seed_globals=bool(seed_globals),
            is_forked=start_method == "fork",
        )
        cores = _cores(pin, self._n)
        places = [
            Place(index, _epsilon_of(index, self._n, epsilon, alpha), cores[index])
            for index in range(self._n)
        ]
        task = Task(function, buffer, tuple(args), dict(kwargs or {}))
        self._supervision = Supervision(task, orders, places, start_method, restarts)

    def start(self) -> None:
        """Start the processes, as entering the ``with`` block does. Once only.

        Blocks for some milliseconds per explorer, and under "forkserver" until the server has
        imported the main module. Ctrl-C interrupts it.

        Raises
        ------
        RuntimeError
            If it was called before.
        OSError, RuntimeError
            If a process cannot be started: a limit of processes, threads or open files is reached,
            or the working directory was deleted and the start method is not "fork". If an argument
            was made for forked processes only.
        Exception
            If the function or an argument cannot be pickled.
        """
        self.__enter__()

    def check(self) -> None:
        """Reap explorers that have exited, and restart those that are due. Call it at every step.

        Takes a few microseconds if nothing has happened. A restart blocks as start() does. If the
        system cannot start a process, that counts as another death.

        Raises
        ------
        ExplorerFailed
            If an explorer's function raised; the message ends with its traceback. If an explorer
            died and is not restarted. Raised once for each; the others go on.
        """
        now = time.monotonic()  # explorers that are reaped now restart later
        self._supervision.hear()
        for place in self._supervision.places:
            if place.restart_at <= now:
                self._supervision.launch(place)
        self._supervision.raise_failure()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all explorers have finished, and call check() meanwhile.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most; None for no limit.

        Returns
        -------
        bool
            Whether all have finished.

        Raises
        ------
        ExplorerFailed
            As check() does.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            self.check()
            places = self._supervision.places
            if all(place.is_over for place in places):
                return True
            now = time.monotonic()
            if now >= deadline:
                return False
            self._supervision.wait(min([deadline, *(place.restart_at for place in places)]) - now)

    def stop(self) -> None:
        """End all explorers and wait for their processes, as leaving the block does.

        Blocks for at most `stop_timeout` and two seconds. An exception of a signal handler ends the
        wait and kills the processes. The next check(), or leaving the block, raises the failures
        found. Does nothing in a forked child.
        """
        processes = self._supervision
        if not processes.is_own:
            return
        try:
            processes.ask_to_stop()
            processes.wait_for_end(self._stop_timeout)
            processes.terminate(self._stop_timeout)
            processes.wait_for_end(_SECONDS_TO_TERMINATE)
        finally:
            processes.kill()
            processes.wait_for_end(_SECONDS_TO_KILL)

    @property
    def seed(self) -> int | Sequence[int]:
        """The seed of all random streams: the argument, or the random one."""
        return self._seed

    @property
    def alive(self) -> int:
        """How many explorers have a running process."""
        return self._supervision.alive

    def status(self) -> list[ExplorerStatus]:
        """Return each explorer's status, by index, as of the last check().

        Returns
        -------
        list of ExplorerStatus
        """
        return [place.status for place in self._supervision.places]

    def __enter__(self) -> Explorers:
        self._supervision.begin()
        try:
            for place in self._supervision.places:
                self._supervision.launch(place)
                self._supervision.raise_failure()
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
            self._supervision.raise_failure()

    def __len__(self) -> int:
        return self._n

    def __repr__(self) -> str:
        states = [place.state for place in self._supervision.places]
        counts = ", ".join(f"{states.count(each)} {each}" for each in dict.fromkeys(states))
        return f"<Explorers: {counts}>"


def _epsilon_of(index: int, n: int, epsilon: float, alpha: float) -> float:
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon must be in [0, 1], got {epsilon!r}")
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha must be a finite number of at least 0, got {alpha!r}")
    return float(epsilon ** (1 + alpha * index / (n - 1))) if n > 1 else float(epsilon)


def _cores(pin: bool | Sequence[int], n: int) -> list[frozenset[int] | None]:
    """Return each explorer's cores; None for all."""
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
