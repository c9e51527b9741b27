"""Signals in an explorer's process: it ignores the learner's, and ends in order on SIGTERM.

A scheduler or a terminal sends signals to all processes of a group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mpbuffer import _core

__all__ = ["LEFT_TO_LEARNER", "Termination", "held_back", "leave_signals_to_learner"]

LEFT_TO_LEARNER = frozenset({signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2})

_SECONDS_TO_UNWIND = 0.3  # for the function, after an exception was raised in it
_SECONDS_TO_CLOSE = 0.3  # for closing what is open, if the function did not unwind
_AFTER_ALL_ELSE = -1000  # priority among multiprocess's finalizers


@contextlib.contextmanager
def held_back(signals: Iterable[int]) -> Iterator[None]:
    """Block the signals in this thread, its forked children and the programs it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_learner() -> None:
    """Ignore the learner's signals, drop its handlers, and let SIGTERM end the process at once.

    Signals that were held back are delivered now.
    """
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if number in LEFT_TO_LEARNER:
            signal.signal(number, signal.SIG_IGN)
        elif number == signal.SIGTERM or callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


class Terminated(SystemExit):
    """Raised in a function that does not return soon after SIGTERM."""


class Termination:
    """Ends an explorer in order on SIGTERM, so that its staged rows are written.

    The function is asked to return. If it does not, an exception is raised in it after a while. If
    it stays in a call all the same, another thread closes what is open. A process in which no
    Python thread can run must be killed.

    A function that sets its own handler for SIGTERM keeps it.
    """

    def __init__(self) -> None:
        self.has_begun = False
        self._is_due = False
        self._in_function = False
        self._pipe, self._written_by_handlers = os.pipe()
        os.set_blocking(self._pipe, False)
        os.set_blocking(self._written_by_handlers, False)
        signal.signal(signal.SIGTERM, self._handle)
        # The C handler writes to it at once, even while a long call delays the Python handler.
        signal.set_wakeup_fd(self._written_by_handlers, warn_on_full_buffer=False)
        self._masks = threading.local()  # of signals, before a fork
        os.register_at_fork(
            before=self._hold_back,
            after_in_parent=self._let_come,
            after_in_child=self._forget_in_child,
        )

    def fileno(self) -> int:
        """Return the descriptor that is readable after a signal."""
        return self._pipe

    @contextlib.contextmanager
    def during_function(self) -> Iterator[None]:
        """Let Terminated be raised inside this block only."""
        self._in_function = True
        try:
            yield
        finally:
            self._in_function = False

    def has_come(self) -> bool:
        """Return whether SIGTERM has come, and the function has no own handler for it."""
        with contextlib.suppress(BlockingIOError):
            if signal.SIGTERM in os.read(self._pipe, 4096):
                self.has_begun = self.has_begun or self._is_mine()
        return self.has_begun

    def end(self, close_all: Callable[[], None]) -> None:
        """End the process within a moment, unless the function has its own handler.

        To be called by another thread than the function's.
        """
        self._is_due = True
        main = threading.main_thread().ident
        if self._in_function and self._is_mine() and main is not None:
            signal.pthread_kill(main, signal.SIGTERM)
        time.sleep(_SECONDS_TO_UNWIND)
        if not self._is_mine():
            return
        closing = threading.Thread(target=close_all, daemon=True)
        try:
            closing.start()
            closing.join(_SECONDS_TO_CLOSE)
        except RuntimeError:  # out of threads
            close_all()
        _core.end_by_signal(signal.SIGTERM)

    def end_at_exit(self) -> None:
        """Let this process, which is about to exit, end by the signal after all is closed."""
        import multiprocess.util

        def end() -> None:
            multiprocess.util._flush_std_streams()
            _core.end_by_signal(signal.SIGTERM)

        multiprocess.util.Finalize(None, end, exitpriority=_AFTER_ALL_ELSE)

    def _handle(self, number: int, frame: Any) -> None:
        """Wake the watching thread; take no lock, because the function may hold any."""
        self.has_begun = True
        with contextlib.suppress(OSError):
            os.write(self._written_by_handlers, bytes([number]))
        if self._is_due and self._in_function:
            self._in_function = False
            raise Terminated(128 + signal.SIGTERM)

    def _is_mine(self) -> bool:
        return signal.getsignal(signal.SIGTERM) == self._handle

    def _hold_back(self) -> None:
        """Let no signal come to a child while its handler would still write to the pipe."""
        self._masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    def _let_come(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._masks.before)

    def _forget_in_child(self) -> None:
        """Restore a child's signals, which the explorer does not handle."""
        with contextlib.suppress(ValueError):
            signal.set_wakeup_fd(-1)
            if self._is_mine():
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._let_come()
