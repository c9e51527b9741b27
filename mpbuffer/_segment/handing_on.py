"""Handles on their way from one process to another: by descriptor, or by name."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from mpbuffer import _core
from mpbuffer.errors import SegmentNotFound

__all__ = ["NotCopied", "descriptor_for_child", "names_of", "opened_copy", "opened_once_there"]

Opened = TypeVar("Opened")

_SECONDS_BETWEEN_LOOKS = 0.02
_has_warned = False


class NotCopied:
    """Base of handles, which copy.copy() and copy.deepcopy() refuse to copy."""

    def __copy__(self) -> NoReturn:
        raise TypeError(
            f"cannot copy {self!r}: the copy would be a second handle on the same memory; pass "
            "this one on, or call attach() for a second one; to copy the data, read or sample them"
        )

    def __deepcopy__(self, memo: Any) -> NoReturn:
        self.__copy__()


def names_of(name: str | None, overwrite: bool) -> tuple[str, bool]:
    """Return a new segment's name, and whether the user gave none."""
    if name is None:
        if overwrite:
            raise ValueError("overwrite=True needs a name=")
        return _core.generate_name(), True
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, got {name!r}")
    if not name.isprintable():
        raise ValueError(f"name must be 1 to 128 of [A-Za-z0-9._-], got {name!r}")
    return name, False


def descriptor_for_child(descriptor: int, name: str) -> Any:
    """Return an object that carries `descriptor` to the process being spawned.

    None if no process is being spawned: then a pickle holds only the name. That is warned of once
    in this process, at the caller's caller.
    """
    global _has_warned
    for package in ("multiprocessing", "multiprocess"):
        context = sys.modules.get(f"{package}.context")
        if context is not None and context.get_spawning_popen() is not None:
            return sys.modules[f"{package}.reduction"].DupFd(descriptor)
    if not _has_warned:
        _has_warned = True
        warnings.warn(
            f"{name!r} was pickled while no process was being started: the pickle holds its name, "
            "not its data, and can be loaded only while a process has it open; pass it to "
            "processes as an argument, or let them attach() by name; to save the data, call "
            "save_transitions(), or save what read() returns",
            stacklevel=3,
        )
    return None


def opened_copy(cls: Any, name: str, source: Any) -> Any:
    """Open a pickled handle, by the descriptor that came with it, or by name."""
    if source is None:
        return cls._opened(name, -1)
    descriptor = source.detach()
    try:
        return cls._opened(name, descriptor)
    finally:
        os.close(descriptor)


def opened_once_there(opened: Callable[[str, int], Opened], name: str, timeout: float) -> Opened:
    """Open by name; wait for the name for at most `timeout` seconds."""
    seconds = float(timeout)
    if not seconds >= 0:
        raise ValueError(f"timeout must be at least 0 seconds, got {timeout!r}")
    deadline = None
    while True:
        try:
            return opened(name, -1)
        except SegmentNotFound:
            now = time.monotonic()
            deadline = now + seconds if deadline is None else deadline
            if now >= deadline:
                raise
        time.sleep(min(deadline - now, _SECONDS_BETWEEN_LOOKS))
