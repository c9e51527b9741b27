"""Closes handles when a process ends, however Python ends it.

Finalizers of multiprocessing and multiprocess do it. They run when the interpreter exits, and in
those packages' own children, which call ``os._exit`` afterwards. A finalizer runs only in the
process that registered it, so every forked child registers its own. A child that a thread forked
ends with that thread, without the interpreter's exit: there the destruction of the thread's
variables does it.

Writers close first. Buffers close after the process has waited for its children, which may be
about to attach. A process that calls ``os._exit`` itself, or is killed, closes nothing; the next
creation removes what it left.
"""

from __future__ import annotations

import collections
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from multiprocessing import util as _multiprocessing_util
from typing import Any, Protocol

__all__ = ["close_all", "close_at_exit", "close_buffers"]


class _Closable(Protocol):
    def close(self) -> None: ...


class _Watch:
    """Stands for this module in the packages' registries, which hold their keys weakly."""


_BEFORE_WAITING_FOR_CHILDREN = 0
_AFTER_WAITING_FOR_CHILDREN = -100

# In the order of opening. Listing a dict's keys runs no Python code, so nothing can change it then;
# a WeakSet must not grow while it is listed.
_OpenOnes = dict[weakref.ref[Any], None]
_open: _OpenOnes = {}
_open_on_others: _OpenOnes = {}
_watches: dict[str, _Watch] = {}
_thread_variables = threading.local()
_wait_for_threads: Callable[[], None] = getattr(threading, "_shutdown", lambda: None)


def close_at_exit(buffer: _Closable, *, uses_others: bool = False) -> None:
    """Close `buffer` when this process ends, or a child that is forked from it.

    Those with `uses_others` are closed first. Exceptions go to ``sys.unraisablehook``; the others
    are closed all the same.
    """
    open_ones = _open_on_others if uses_others else _open
    # The reference's end runs no Python code either, amid which another thread might fork.
    open_ones[weakref.ref(buffer, open_ones.__delitem__)] = None
    _watch_packages()


def close_buffers() -> None:
    """Close only the buffers. Any thread may call it, whatever the other threads do."""
    for buffer in _living(_open):
        buffer.close()


def _living(open_ones: _OpenOnes) -> list[Any]:
    return [one for reference in list(open_ones) if (one := reference()) is not None]


def _close_users() -> None:
    """Close what uses buffers, after the threads that the process waits for have ended.

    The interpreter waits for them before its exit, the packages' children only after finalizers.
    """
    try:
        _wait_for_threads()
    finally:
        _close_each(_living(_open_on_others))


def close_all() -> None:
    """Close all, whatever the threads do. Staged rows are written."""
    _close_each([*_living(_open_on_others), *_living(_open)])


class _Closing(tuple[_Closable]):
    """Closes on destruction: exceptions go to ``sys.unraisablehook``."""

    def __del__(self) -> None:
        self[0].close()


def _close_each(closables: Iterable[_Closable]) -> None:
    """Close all in one call of the interpreter, in which no signal handler runs."""
    collections.deque(map(_Closing, zip(closables)), maxlen=0)


def _watch_packages() -> None:
    for util in (_multiprocessing_util, sys.modules.get("multiprocess.util")):
        if util is None or util.__name__ in _watches:
            continue
        watch = _watches[util.__name__] = _Watch()
        _finalize_in(util)
        util.register_after_fork(watch, lambda _, util=util: _finalize_in(util))


def _finalize_in(util: Any) -> None:
    util.Finalize(None, _close_users, exitpriority=_BEFORE_WAITING_FOR_CHILDREN)
    util.Finalize(None, close_all, exitpriority=_AFTER_WAITING_FOR_CHILDREN)


class _ThreadEnd:
    """A variable of the thread that forked, in the child."""

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not is_finalizing():
            _close_users()
            close_all()


def _finalize_in_child() -> None:
    """Register in a forked child. The packages' own children clear this and register again."""
    for name in _watches:
        _finalize_in(sys.modules[name])
    if not hasattr(_thread_variables, "end"):
        _thread_variables.end = _ThreadEnd()


os.register_at_fork(before=_watch_packages, after_in_child=_finalize_in_child)
