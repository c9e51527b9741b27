"""Starting an explorer's process, by each of multiprocess's start methods."""

from __future__ import annotations

import signal
import threading
from typing import Any

from mpbuffer.explorer_process import (
    Orders,
    Task,
    WatchedName,
    run_explorer,
    thread_variables_set,
)

__all__ = ["START_METHODS", "start_process"]

START_METHODS = ("fork", "spawn", "forkserver")

_environment_lock = threading.Lock()  # held by whoever changes os.environ for a child


def start_process(start_method: str, orders: Orders, task: Task) -> tuple[Any, Any]:
    """Start the process; return it and our end of a connection to it.

    No signal's handler may run meanwhile: if it raised, the process might be left unknown.
    """
    import multiprocess

    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    if start_method != "fork":
        _start_servers(start_method, orders.threads)
    context = multiprocess.get_context(start_method)
    name = WatchedName(f"explorer-{orders.index}")
    name.learner = orders.learner
    ours, theirs = context.Pipe()
    try:
        process = context.Process(
            target=run_explorer, args=(orders, task, theirs), name=name, daemon=True
        )
        # Inherited until the process ignores the one, and ends by the other. What takes long to
        # import has to end by it sooner.
        signals = {signal.SIGINT, signal.SIGTERM} if start_method == "fork" else {signal.SIGINT}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        with _environment_lock, thread_variables_set(orders.threads):
            process.start()
        # Else a forked child of the learner that ends would terminate it, as one of its own.
        multiprocess.process._children.discard(process)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return process, ours


def _start_servers(start_method: str, threads: int | None) -> None:
    """Start the package's servers first: that unblocks the signals of the calling thread."""
    from multiprocess import forkserver, resource_tracker

    resource_tracker.ensure_running()
    if start_method == "forkserver":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        with _environment_lock, thread_variables_set(threads):
            forkserver.ensure_running()
