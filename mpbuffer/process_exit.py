"""Closing what is open when a process ends, however Python ends it.

Children of multiprocessing and multiprocess leave by ``os._exit`` after they have run those
packages' own finalizers, so the buffers are closed there: after a parent has waited for its
children, and in every child too. A process that leaves by a bare ``os._exit`` closes nothing, as
one that is killed; the next creation removes what it left.
"""

from __future__ import annotations

import os
import sys
import traceback
import weakref
from multiprocessing import util as _multiprocessing_util
from typing import Any, Protocol

__all__ = ["close_at_exit", "close_buffers"]


class _Closable(Protocol):
    def close(self) -> None: ...


class _Watch:
    """Stands for this module in the packages' registries, which hold their keys weakly."""


_AFTER_WAITING_FOR_CHILDREN = -100

_open: weakref.WeakSet[Any] = weakref.WeakSet()
_open_on_others: weakref.WeakSet[Any] = weakref.WeakSet()
_watches: dict[str, _Watch] = {}


def close_at_exit(buffer: _Closable, *, uses_others: bool = False) -> None:
    """Have `buffer` closed when this process ends, or a child that is forked from it.

    With `uses_others`, before those without; an exception is told on stderr and keeps nothing open.
    """
    (_open_on_others if uses_others else _open).add(buffer)
    _watch_packages()


def _close_all() -> None:
    """Close what is open now, as at the end of the process."""
    for user in list(_open_on_others):
        try:
            user.close()
        except Exception:
            traceback.print_exc()
    close_buffers()


def close_buffers() -> None:
    """Close the buffers and no more: that any thread may do, whatever the others are at."""
    for buffer in list(_open):
        buffer.close()


def _watch_packages() -> None:
    for util in (_multiprocessing_util, sys.modules.get("multiprocess.util")):
        if util is None or util.__name__ in _watches:
            continue
        watch = _watches[util.__name__] = _Watch()
        _finalize_in(util)
        util.register_after_fork(watch, lambda _, util=util: _finalize_in(util))


def _finalize_in(util: Any) -> None:
    util.Finalize(None, _close_all, exitpriority=_AFTER_WAITING_FOR_CHILDREN)


os.register_at_fork(before=_watch_packages)
