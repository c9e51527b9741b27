"""The program of an explorer's process: the function, and a watch on the learner."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
import operator
import os
import random
import select
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from mpbuffer import _core
from mpbuffer._segment.exit import close_all, close_buffers
from mpbuffer._segment.process_identity import ProcessIdentity, pidfd_of
from mpbuffer.buffer.replay_buffer import ReplayBuffer
from mpbuffer.explorers.signals import Terminated, Termination, leave_signals_to_learner
from mpbuffer.explorers.standard_multiprocessing import be_child
from mpbuffer.explorers.task import PickledTask, Task

__all__ = ["Explorer"]

FAILED, FINISHED, STARTED = b"failed", b"finished", b"started"  # to the learner
STOP, TERMINATE = b"stop", b"terminate"  # from the learner
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_VARIABLES_OF_LIBRARIES = {  # by threadpoolctl's names
    "openmp": "OMP_NUM_THREADS",
    "openblas": "OPENBLAS_NUM_THREADS",
    "mkl": "MKL_NUM_THREADS",
    "blis": "BLIS_NUM_THREADS",
}

_SEEDS_OF_GLOBALS = 2**32 - 1  # in keys of seed sequences; no explorer has this index
_LONGEST_MESSAGE = 16_000  # bytes: fits into any socket, so that sending never blocks
_LEARNER_GONE = 1  # exit status
_SECONDS_TO_RETURN = 0.3  # once the learner is gone
_SECONDS_TO_CLOSE = 0.3  # the buffers, after that
_SECONDS_AFTER_SIGTERM = 1.0  # to return
_SECONDS_TO_END = 1.0  # if no Python thread can run to do this
_SECONDS_BETWEEN_CHECKS = 0.25  # of the learner, without a pidfd


@dataclasses.dataclass(frozen=True)
class CommonOrders:
    """Orders that all explorers' processes share, beside the task."""

    n: int
    entropy: int | Sequence[int]
    nice: int
    threads: int | None
    seed_globals: bool
    is_forked: bool  # by the learner, rather than by a server or not at all


@dataclasses.dataclass(frozen=True)
class Orders(CommonOrders):
    """Orders for one explorer's process, beside the task."""

    index: int
    epsilon: float
    restart: int
    learner: ProcessIdentity
    cores: frozenset[int] | None


class Explorer:
    """The first argument of an explorer's function.

    Attributes
    ----------
    buffer : ReplayBuffer or PrioritizedReplayBuffer
        The process's own handle; closed when the process ends.
    index : int
        Which explorer: 0 to n - 1.
    n : int
        Number of explorers.
    epsilon : float
        Probability of a random action: ``epsilon ** (1 + alpha * index / (n - 1))``; Horgan et al.,
        "Distributed Prioritized Experience Replay", 2018, section 4.
    restart : int
        How often this explorer's process was restarted.
    seed_sequence : numpy.random.SeedSequence
        This explorer's own stream, which follows from the seed, `index` and `restart`.
    rng : numpy.random.Generator
        Made from `seed_sequence`.
    stopping : threading.Event
        Set when the function should return; ``stopping.wait(seconds)`` is a sleep that ends then.
    """

    def __init__(self, buffer: ReplayBuffer, orders: Orders, stopping: threading.Event) -> None:
        self.buffer = buffer
        self.index, self.n = orders.index, orders.n
        self.epsilon, self.restart = orders.epsilon, orders.restart
        self.seed_sequence = np.random.SeedSequence(
            orders.entropy, spawn_key=(orders.index, orders.restart)
        )
        self.rng = np.random.default_rng(self.seed_sequence)
        self.stopping = stopping

    def should_stop(self) -> bool:
        """Return whether to stop: the learner asks for it, or is gone. Never blocks.

        A function that does not return is ended after the learner's `stop_timeout`, or within 2
        seconds of the learner's death.
        """
        return self.stopping.is_set()

    def __repr__(self) -> str:
        return f"<Explorer {self.index} of {self.n}: epsilon {self.epsilon:.4g}>"


class LearnerWatch:
    """A thread that reads the learner's messages, and ends this process when the learner ends.

    It watches three signs of the learner's end, because each can be missing: the connection, which
    stays open if another process inherited its other end, as forked explorers do; a pidfd, which
    some kernels do not have; and /proc, from time to time, without a pidfd.

    If no Python thread can run, because one holds the GIL or the interpreter is ending, a thread of
    the core just ends the process.
    """

    def __init__(self, learner: ProcessIdentity) -> None:
        self.pid = os.getpid()
        self.stopping = threading.Event()
        self.is_told_to_stop = False
        self.learner_is_gone = False
        self._learner = learner
        self._connection: Any = None
        self._termination: Termination | None = None
        self._ready = select.epoll()
        self._pidfd = pidfd_of(learner.pid)
        if self._pidfd is not None and not learner.is_alive():
            os.close(self._pidfd)  # perhaps another process's
            self._pidfd = None
        if self._pidfd is not None:
            self._ready.register(self._pidfd, select.EPOLLIN)
        try:
            _core.end_with_learner(*learner, grace=_SECONDS_TO_END, status=_LEARNER_GONE)
            threading.Thread(target=self._watch, name="mpbuffer learner watch", daemon=True).start()
        except RuntimeError as error:
            raise RuntimeError(
                f"cannot watch the learner: an explorer's process cannot start a thread ({error});"
                " raise the limit of threads (ulimit -u, a container's pids limit)"
            ) from error

    def listen_to(self, connection: Any) -> None:
        """Read the learner's messages from the connection from now on."""
        self._connection = connection
        self._ready.register(connection.fileno(), select.EPOLLIN)

    def end_on(self, termination: Termination) -> None:
        """From now on, end the process in order on SIGTERM or by the learner's order."""
        self._termination = termination
        self._ready.register(termination.fileno(), select.EPOLLIN)

    def _watch(self) -> None:
        between_looks = _SECONDS_BETWEEN_CHECKS if self._pidfd is None else math.inf
        due = math.inf  # when the function must have returned
        while True:
            timeout = min(between_looks, max(0.0, due - time.monotonic()))
            ready = [each for each, _ in self._ready.poll(None if timeout == math.inf else timeout)]
            if self._pidfd in ready or (not ready and not self._learner.is_alive()):
                self._end()
            if self._connection is not None and self._connection.fileno() in ready:
                due = min(due, self._hear())
            if self._termination is None:
                continue
            if self._termination.fileno() in ready and self._termination.has_come():
                self.stopping.set()
                due = min(due, time.monotonic() + _SECONDS_AFTER_SIGTERM)
            if due <= time.monotonic():
                self._termination.end(close_all)
                due = math.inf

    def _hear(self) -> float:
        """Obey the learner's message; return when the function must have returned."""
        try:
            message = self._connection.recv_bytes()
        except (EOFError, OSError):
            self._end()
        self.is_told_to_stop = True
        self.stopping.set()
        return time.monotonic() if message == TERMINATE else math.inf

    def _end(self) -> NoReturn:
        self.learner_is_gone = True
        self.stopping.set()
        time.sleep(_SECONDS_TO_RETURN)
        closing = threading.Thread(target=close_buffers, daemon=True)
        with contextlib.suppress(RuntimeError):  # out of threads
            closing.start()
            closing.join(_SECONDS_TO_CLOSE)
        os._exit(_LEARNER_GONE)


_watch: LearnerWatch | None = None


def watch_over(learner: ProcessIdentity) -> LearnerWatch:
    """Start this process's watch unless it has one."""
    global _watch
    if _watch is None or _watch.pid != os.getpid():
        _watch = LearnerWatch(learner)
    return _watch


class WatchedName(str):
    """A process's name, which starts the watch when it is unpickled.

    The process unpickles it before it imports the learner's main module. That import may take
    seconds, in which the learner may die.
    """

    learner: ProcessIdentity

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as calls of the standard library until ``sys.path`` is the learner's.

        The process's own path begins with the working directory, which may have another mpbuffer.
        """
        paths = _Call(getattr, _Call(importlib.import_module, "sys"), "path")
        paths_set = _Call(operator.setitem, paths, slice(None), list(sys.path))
        call = operator.methodcaller(named_and_watched.__name__, str(self), tuple(self.learner))
        named = _Call(call, _Call(importlib.import_module, __name__))
        return operator.getitem, ((paths_set, named), 1)


class _Call:
    """Unpickles to the result of a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._call = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


def named_and_watched(name: str, learner: tuple[int, int]) -> str:
    """Return the name, and start the watch."""
    watch_over(ProcessIdentity(*learner))
    return name


@contextlib.contextmanager
def thread_variables_set(threads: int | None) -> Iterator[None]:
    """Limit the threads of numerical libraries in processes started here, unless the user did."""
    new = [] if threads is None else _variables_to_set()
    for variable in new:
        os.environ[variable] = str(threads)
    try:
        yield
    finally:
        for variable in new:
            os.environ.pop(variable, None)


def _limit_threads(threads: int | None, loaded: Mapping[str, Any] = sys.modules) -> None:
    """Limit loaded libraries too: after a fork they do not read the variables again.

    The variables win. threadpoolctl, if installed, limits the linear algebra of NumPy and SciPy.
    """
    if threads is None:
        return
    for variable in _variables_to_set():
        os.environ[variable] = str(threads)
    threads = _threads_by_variable("OMP_NUM_THREADS", threads)
    if "torch" in loaded:
        loaded["torch"].set_num_threads(threads)
    with contextlib.suppress(ImportError):
        controller = importlib.import_module("threadpoolctl").ThreadpoolController()
        for library in controller.lib_controllers:
            variable = _VARIABLES_OF_LIBRARIES.get(library.internal_api, "")
            library.set_num_threads(_threads_by_variable(variable, threads))


def _variables_to_set() -> list[str]:
    """Return the variables that are not set; none if OMP_NUM_THREADS, which rules all, is set."""
    if "OMP_NUM_THREADS" in os.environ:
        return []
    return [variable for variable in THREAD_VARIABLES if variable not in os.environ]


def _threads_by_variable(variable: str, otherwise: int) -> int:
    """Return the first number of a list such as "4,2", whose others are for nested regions."""
    first = os.environ.get(variable, "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else otherwise


def _each_thread() -> list[int]:
    return [int(each) for each in os.listdir("/proc/self/task")]


def _take_place(orders: Orders) -> None:
    """Pin all threads and lower their priority; later threads inherit both."""
    for thread in _each_thread():
        with contextlib.suppress(ProcessLookupError):
            if orders.cores is not None:
                os.sched_setaffinity(thread, orders.cores)
            if orders.nice != 0:
                os.setpriority(
                    os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + orders.nice
                )


def _seed_globals(orders: Orders) -> None:
    """Seed the libraries' global generators from the seed, as `rng`.

    Else forked explorers would draw the same numbers as each other and the learner.
    """
    key = (_SEEDS_OF_GLOBALS, orders.index, orders.restart)
    words = np.random.SeedSequence(orders.entropy, spawn_key=key).generate_state(12)
    random.seed(words[:4].tobytes())
    np.random.seed(words[4:8])
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(int.from_bytes(words[8:10].tobytes(), "little"))


def _traceback_text(error: BaseException) -> str:
    """Format the traceback without this module's own frames."""
    here, frames = __file__, error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == here:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))


def _tell(connection: Any, what: bytes, text: str = "") -> None:
    with contextlib.suppress(OSError):  # the learner is gone, which the watch handles
        connection.send_bytes(what + text.encode(errors="replace")[-_LONGEST_MESSAGE:])


def run_explorer(orders: Orders, task: Task | PickledTask, connection: Any) -> None:
    """Run an explorer: the main function of its process."""
    leave_signals_to_learner()
    try:
        watch = watch_over(orders.learner)
    except (OSError, RuntimeError) as error:
        _tell(connection, FAILED, _traceback_text(error))
        sys.exit(1)
    watch.listen_to(connection)
    be_child(forked=orders.is_forked)
    termination, failure, was_cut_off = None, None, False
    try:
        _take_place(orders)
        function, buffer, args, kwargs = task.unpacked()
        _limit_threads(orders.threads)
        if orders.seed_globals:
            _seed_globals(orders)
        explorer = Explorer(buffer, orders, watch.stopping)
        termination = Termination()
        watch.end_on(termination)
        _tell(connection, STARTED)
        if not watch.stopping.is_set():
            with termination.during_function():
                function(explorer, *args, **kwargs)
    except Terminated:
        was_cut_off = True
    except BaseException as error:
        if not isinstance(error, SystemExit) or error.code not in (None, 0):
            failure = _traceback_text(error)
    is_terminated = termination is not None and termination.has_begun
    if failure is not None:
        _tell(connection, FAILED, failure)
    elif not was_cut_off and (watch.is_told_to_stop or not is_terminated):
        _tell(connection, FINISHED)
    while watch.learner_is_gone:  # the watch ends the process
        time.sleep(_SECONDS_TO_RETURN)
    if termination is not None and is_terminated:
        termination.end_at_exit()
    sys.exit(0 if failure is None else 1)
