"""The standard library's multiprocessing in processes that are started by multiprocess.

The two packages do not know each other. Objects of the one (queues, locks, shared arrays, torch's
tensors in shared memory) need state that only its own children have. This module provides it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from multiprocessing import context, process, reduction, util
from typing import Any, NamedTuple

__all__ = ["Inheritance", "be_child", "passing_on", "reduction_of"]

_AFTER_WAITING_FOR_CHILDREN = -50  # and before buffers close


class Inheritance(NamedTuple):
    """State that a child inherits from its parent, where no fork copies it."""

    authentication_key: bytes
    tracker: Any  # the DupFd of the resource tracker's pipe, if there is one

    def take_over(self) -> None:
        """Set the state in this process."""
        process.current_process().authkey = self.authentication_key
        if self.tracker is not None:
            from multiprocessing import resource_tracker

            resource_tracker._resource_tracker._fd = self.tracker.detach()  # type: ignore[attr-defined]


@contextlib.contextmanager
def passing_on() -> Iterator[Inheritance]:
    """Let objects of the standard library be pickled for a process that multiprocess starts."""
    from multiprocess.context import get_spawning_popen

    popen = get_spawning_popen()
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    pipe = None if tracker is None else tracker._resource_tracker._fd
    duplicate = None if pipe is None else popen.DupFd(popen.duplicate_for_child(pipe))
    before = context.get_spawning_popen()
    context.set_spawning_popen(popen)
    try:
        yield Inheritance(bytes(process.current_process().authkey), duplicate)
    finally:
        context.set_spawning_popen(before)


def reduction_of(value: Any) -> Any:
    """Return the reduction that a library registered for `value`; None if there is none.

    A tensor outside shared memory is copied, as a fork does.
    """
    from multiprocess.reduction import ForkingPickler

    kind = type(value)
    _require_right_context(value)
    reduce = reduction.ForkingPickler._extra_reducers.get(kind)  # type: ignore[attr-defined]
    if reduce is None or kind in ForkingPickler._extra_reducers or not _is_shared(value):
        return None
    return reduce(value)


def _is_shared(value: Any) -> bool:
    try:
        return bool(getattr(value, "_untyped_storage", value).is_shared())
    except AttributeError:  # no tensor: all other kinds are shared
        return True
    except (NotImplementedError, RuntimeError):  # a tensor of another layout
        return False


def _require_right_context(value: Any) -> None:
    package, _, module = type(value).__module__.partition(".")
    if module != "synchronize" or package not in ("multiprocessing", "multiprocess"):
        return
    semaphore = getattr(value, "_semlock", None)
    if semaphore is not None and semaphore.name is None:
        popen: Any = context.get_spawning_popen()
        raise RuntimeError(
            f"cannot pass a {package} {type(value).__name__} to an explorer: it was made for forked"
            f" processes, expected one for start_method={popen.method!r}; make it, and the object"
            f" that contains it (queue, event, value), with"
            f" {package}.get_context({popen.method!r})"
        )


def be_child(*, forked: bool) -> None:
    """Make this process a child of the standard library's multiprocessing too, up to its end.

    State that a fork copied (the threads of queues, the learner's children) is dropped.
    """
    import multiprocess.util

    if forked:
        util._finalizer_registry.clear()  # type: ignore[attr-defined]
        util._run_after_forkers()  # type: ignore[attr-defined]
        process._children = set()  # type: ignore[attr-defined]
    multiprocess.util.Finalize(
        None,
        util._exit_function,  # type: ignore[attr-defined]
        exitpriority=_AFTER_WAITING_FOR_CHILDREN,
    )
