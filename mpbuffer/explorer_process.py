"""What runs in an explorer's process: the function, under a watch on the learner."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import os
import select
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from mpbuffer import _core
from mpbuffer.buffer import ReplayBuffer
from mpbuffer.process_exit import close_buffers
from mpbuffer.process_identity import ProcessIdentity, pidfd_of

__all__ = ["Explorer"]

FAILED, FINISHED, STARTED, STOP = b"failed", b"finished", b"started", b"stop"
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

_LONGEST_MESSAGE = 16_000  # bytes: room for it in any socket, so that sending never waits
_LEARNER_GONE = 1  # exit status
_SECONDS_TO_RETURN = 0.3  # once the learner is gone
_SECONDS_TO_CLOSE = 0.3  # the buffers, after that
_SECONDS_TO_END = 1.0  # where no thread of Python's can do any of this
_SECONDS_BETWEEN_LOOKS = 0.25  # at a learner of whom the kernel does not tell by itself


class Task(NamedTuple):
    """What an explorer is to do. It travels as bytes, so that what is wrong with it is told."""

    function: Callable[..., object]
    buffer: ReplayBuffer
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def unpacked(self) -> Task:
        """Itself: it was inherited."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by value whatever an import in the other process would not find."""
        return PickledTask, (_pickled(tuple(self)),)


def _pickled(task: tuple[Any, ...]) -> bytes:
    from multiprocess.reduction import ForkingPickler

    class TaskPickler(ForkingPickler):  # type: ignore[misc]
        """Takes modules by name, and what the main module has: dill takes all that is in them."""

        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, types.ModuleType) and _can_be_imported(value.__name__):
                return importlib.import_module, (value.__name__,)
            return _name_in_main_module(value) or NotImplemented

    return bytes(TaskPickler.dumps(task, recurse=True))


def _can_be_imported(module: str) -> bool:
    if module == "__main__":
        return False
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _name_in_main_module(value: Any) -> str | None:
    """Return what to look a function or class up by in the main module, if that is imported there.

    It is if it is a program's, as multiprocess has it; not what was typed at a prompt.
    """
    if not isinstance(value, (type, types.FunctionType)) or value.__module__ != "__main__":
        return None
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if name is not None:
        is_imported = name.rpartition(".")[2] != "__main__"
    else:
        is_imported = getattr(main, "__file__", None) is not None and not hasattr(sys, "ps1")
    found: Any = main
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return value.__qualname__ if is_imported and found is value else None


class PickledTask(NamedTuple):
    """A task in another process than it was made in."""

    pickled: bytes

    def unpacked(self) -> Task:
        """Import what it needs, and open its handle of the buffer."""
        from multiprocess.reduction import ForkingPickler

        return Task(*ForkingPickler.loads(self.pickled))


@dataclasses.dataclass(frozen=True)
class Orders:
    """What an explorer's process is told beside its task."""

    index: int
    n: int
    epsilon: float
    entropy: int | Sequence[int]
    restart: int
    learner: ProcessIdentity
    cores: frozenset[int] | None
    nice: int
    threads: int | None


class Explorer:
    """What an explorer's function gets as its first argument.

    Attributes
    ----------
    buffer : ReplayBuffer or PrioritizedReplayBuffer
        The process's own handle; closed when the process ends.
    index : int
        Which explorer: 0 to n - 1.
    n : int
        How many there are.
    epsilon : float
        Share of random actions: ``epsilon ** (1 + alpha * index / (n - 1))``; Horgan et al.,
        "Distributed Prioritized Experience Replay", 2018, section 4.
    restart : int
        How often this explorer's process was started again before.
    seed_sequence : numpy.random.SeedSequence
        A stream that follows from the seed, `index` and `restart`, and is no other explorer's.
    rng : numpy.random.Generator
        Made from `seed_sequence`.
    stopping : threading.Event
        Set when the explorer is to return; ``stopping.wait(seconds)`` is a sleep that ends then.
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
        """Tell whether to return: the learner asks for it, or is gone. Never blocks.

        A function that does not return is ended: after the learner's `stop_timeout`, or within 2
        seconds of the learner's death.
        """
        return self.stopping.is_set()

    def __repr__(self) -> str:
        return f"<Explorer {self.index} of {self.n}: epsilon {self.epsilon:.4g}>"


class LearnerWatch:
    """A thread that hears of the learner's wishes, and ends this process with the learner's.

    Three signs tell of its end, since each alone may be missing: the connection, unless another
    process inherited its other end, as forked explorers do; a pidfd, where the kernel grants one;
    /proc, now and then, where it does not.

    Where a thread cannot run, because another one keeps the GIL or the interpreter is ending, a
    thread of the core does no more than end the process.
    """

    def __init__(self, learner: ProcessIdentity) -> None:
        self.pid = os.getpid()
        self.stopping = threading.Event()
        self.learner_is_gone = False
        _core.end_with_learner(*learner, grace=_SECONDS_TO_END, status=_LEARNER_GONE)
        self._learner = learner
        self._connection: Any = None
        self._ready = select.epoll()
        self._pidfd = pidfd_of(learner.pid)
        if self._pidfd is not None and not learner.is_alive():
            os.close(self._pidfd)  # of another process, perhaps
            self._pidfd = None
        if self._pidfd is not None:
            self._ready.register(self._pidfd, select.EPOLLIN)
        threading.Thread(target=self._watch, name="mpbuffer learner watch", daemon=True).start()

    def listen_to(self, connection: Any) -> None:
        """Hear from now on what the learner says through the connection."""
        self._connection = connection
        self._ready.register(connection.fileno(), select.EPOLLIN)

    def _watch(self) -> None:
        timeout = _SECONDS_BETWEEN_LOOKS if self._pidfd is None else None
        while True:
            ready = [descriptor for descriptor, _ in self._ready.poll(timeout)]
            if self._pidfd not in ready and ready and self._is_told_to_stop():
                self.stopping.set()
            elif ready or not self._learner.is_alive():
                self._end()

    def _is_told_to_stop(self) -> bool:
        try:
            return bool(self._connection.recv_bytes() == STOP)
        except (EOFError, OSError):
            return False

    def _end(self) -> NoReturn:
        self.learner_is_gone = True
        self.stopping.set()
        time.sleep(_SECONDS_TO_RETURN)
        closing = threading.Thread(target=close_buffers, daemon=True)
        closing.start()
        closing.join(_SECONDS_TO_CLOSE)
        os._exit(_LEARNER_GONE)


_watch: LearnerWatch | None = None


def watch_over(learner: ProcessIdentity) -> LearnerWatch:
    """Start this process's watch, if it has none yet."""
    global _watch
    if _watch is None or _watch.pid != os.getpid():
        _watch = LearnerWatch(learner)
    return _watch


class WatchedName(str):
    """A process's name, which starts the watch where it is unpickled.

    It is the first thing that the process gets, before it imports the learner's main module: that
    may take seconds, in which the learner may die.
    """

    learner: ProcessIdentity

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as an expression, since ``sys.path`` is not yet that of the learner.

        The working directory comes first there, and may hold another package of this name.
        """
        known = {"paths": sys.path, "name": str(self), "learner": tuple(self.learner)}
        return eval, (_NAME_EXPRESSION, known)


_NAME_EXPRESSION = (
    "__import__('sys').path.__setitem__(slice(None), paths) or"
    f" __import__({__name__!r}, fromlist=['']).named_and_watched(name, learner)"
)


def named_and_watched(name: str, learner: tuple[int, int]) -> str:
    """Return the name, and start the watch."""
    watch_over(ProcessIdentity(*learner))
    return name


@contextlib.contextmanager
def thread_variables_set(threads: int | None) -> Iterator[None]:
    """Limit numerical libraries of processes that are started here, unless the user did so."""
    new = [] if threads is None else [each for each in THREAD_VARIABLES if each not in os.environ]
    for variable in new:
        os.environ[variable] = str(threads)
    try:
        yield
    finally:
        for variable in new:
            os.environ.pop(variable, None)


def _limit_threads(threads: int | None, loaded: Mapping[str, Any] = sys.modules) -> None:
    """Limit the libraries that are loaded: by variables alone those that came with a fork do not.

    threadpoolctl is used for the linear algebra behind NumPy and SciPy if it is installed.
    """
    if threads is None:
        return
    for variable in THREAD_VARIABLES:
        os.environ.setdefault(variable, str(threads))
    if "torch" in loaded:
        loaded["torch"].set_num_threads(threads)
    with contextlib.suppress(ImportError):
        importlib.import_module("threadpoolctl").threadpool_limits(threads)


def _each_thread() -> list[int]:
    return [int(each) for each in os.listdir("/proc/self/task")]


def _take_place(orders: Orders) -> None:
    """Pin and lower the priority of all threads there are; later ones inherit it."""
    for thread in _each_thread():
        with contextlib.suppress(ProcessLookupError):
            if orders.cores is not None:
                os.sched_setaffinity(thread, orders.cores)
            if orders.nice != 0:
                os.setpriority(
                    os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + orders.nice
                )


def _leave_signals_to_learner() -> None:
    """Ignore Ctrl-C, which reaches the learner too; end at once on SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})


def _traceback_text(error: BaseException) -> str:
    """Without this module's own frames; of a long one the end."""
    here, frames = __file__, error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == here:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))


def _tell(connection: Any, what: bytes, text: str = "") -> None:
    with contextlib.suppress(OSError):  # nobody listens: the watch knows why
        connection.send_bytes(what + text.encode(errors="replace")[-_LONGEST_MESSAGE:])


def run_explorer(orders: Orders, task: Task | PickledTask, connection: Any) -> None:
    """Be the explorer: the main function of its process."""
    _leave_signals_to_learner()
    watch = watch_over(orders.learner)
    watch.listen_to(connection)
    exit_code = 0
    try:
        _take_place(orders)
        function, buffer, args, kwargs = task.unpacked()
        _limit_threads(orders.threads)
        _tell(connection, STARTED)
        if not watch.stopping.is_set():
            function(Explorer(buffer, orders, watch.stopping), *args, **kwargs)
        _tell(connection, FINISHED)
    except BaseException as error:
        if isinstance(error, SystemExit) and error.code in (None, 0):
            _tell(connection, FINISHED)
        else:
            _tell(connection, FAILED, _traceback_text(error))
            exit_code = 1
    while watch.learner_is_gone:  # the watch ends it, as orderly as can be
        time.sleep(_SECONDS_TO_RETURN)
    sys.exit(exit_code)
