"""Starting an explorer's process, by each of multiprocess's start methods."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from mpbuffer.explorers.process import Orders, WatchedName, run_explorer, thread_variables_set
from mpbuffer.explorers.signals import LEFT_TO_LEARNER, held_back
from mpbuffer.explorers.task import Task

__all__ = ["START_METHODS", "start_process"]

START_METHODS = ("fork", "spawn", "forkserver")

_environment_lock = threading.Lock()  # held while os.environ is changed for a child


def _unlock_in_child() -> None:
    """Let an explorer that was forked while the lock was held start explorers of its own."""
    global _environment_lock
    _environment_lock = threading.Lock()


os.register_at_fork(after_in_child=_unlock_in_child)


def start_process(start_method: str, orders: Orders, task: Task) -> tuple[Any, Any]:
    """Start the process; return it and our end of a connection to it.

    Signals must be deferred: an exception of a handler could leave the process untracked.
    """
    import multiprocess

    with _causes_in_words(orders.index):
        if start_method != "fork":
            _require_working_directory()
            _start_servers(start_method, orders.threads)
        context = multiprocess.get_context(start_method)
        name = WatchedName(f"explorer-{orders.index}")
        name.learner = orders.learner
        ours, theirs = context.Pipe()
        try:
            process = context.Process(target=run_explorer, args=(orders, task, theirs), name=name)
            # Held back until the process has set its own handlers. A spawned one, which may import
            # for long, gets SIGTERM at once.
            signals = signal.valid_signals() if start_method == "fork" else LEFT_TO_LEARNER
            with held_back(signals), _environment_lock, thread_variables_set(orders.threads):
                process.start()
            # Else multiprocess would join it when the learner, or its forked child, ends.
            multiprocess.process._children.discard(process)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
    return process, ours


def _start_servers(start_method: str, threads: int | None) -> None:
    """Start multiprocess's servers first: starting them unblocks signals in this thread."""
    from multiprocess import forkserver, resource_tracker

    with held_back(LEFT_TO_LEARNER):
        resource_tracker.ensure_running()
    if start_method == "forkserver":
        with held_back(LEFT_TO_LEARNER), _environment_lock, thread_variables_set(threads):
            try:
                forkserver.ensure_running()
            except ChildProcessError:  # it has ended, and somebody else reaped it
                os.close(forkserver._forkserver._forkserver_alive_fd)
                forkserver._forkserver._forkserver_pid = None
                forkserver.ensure_running()


def _require_working_directory() -> None:
    """Raise the error that multiprocess would, which passes the directory to the process."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            errno.ENOENT,
            "the working directory of this program was deleted; change to one that exists"
            " (os.chdir), or use start_method='fork'",
        ) from error


@contextlib.contextmanager
def _causes_in_words(index: int) -> Iterator[None]:
    """Add to system errors what was tried and what to do."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        if error.errno == errno.EAGAIN:
            cause += (
                ": the limit of processes and threads is reached; raise it (ulimit -u, a"
                " container's pids limit), or start fewer explorers"
            )
        elif error.errno in (errno.EMFILE, errno.ENFILE):
            cause += "; raise the limit of open files (ulimit -n), or close some"
        message = f"cannot start the process of explorer {index}: {cause}"
        raise OSError(error.errno, message, error.filename) from error
    except ValueError as error:
        if str(error) != "too many fds":
            raise
        raise ValueError(
            f"cannot start the process of explorer {index}: its arguments have more descriptors"
            " (pipes, tensors in shared memory) than the 250 that start_method='forkserver' passes"
            " on; use 'spawn', or torch.multiprocessing.set_sharing_strategy('file_system')"
        ) from error
