"""The process that keeps a buffer's memory while a learner is restarted."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable

from mpbuffer import _core
from mpbuffer._segment.process_identity import ProcessIdentity, pidfd_of, readable

__all__ = ["keep_after_exit"]

_LONGEST = 1e9
_WAIT_AT_MOST = 60.0
_POLL = 0.2
# It forks, so that the caller is not its parent and no zombie stays.
_PROGRAM = "import os; os.fork() and os._exit(0); from mpbuffer._segment.keeper import keep; keep()"


def keep_after_exit(name: str, seconds: float) -> int:
    """Start a segment's keeper; return its pid. See ReplayBuffer.keep_after_exit()."""
    seconds = float(seconds)
    if not 0.0 <= seconds <= _LONGEST:
        raise ValueError(f"cannot keep '{name}' for {seconds} s: expected 0 to {_LONGEST:g}")
    python = _python_for(name)
    try:
        owner = ProcessIdentity.of(os.getpid())
        if owner is None:
            raise RuntimeError(
                f"cannot keep '{name}': /proc does not tell when this process started"
            )
        starting = subprocess.Popen(
            [python, "-c", _PROGRAM, name, str(owner.pid), str(owner.started), str(seconds)],
            cwd="/",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(_absolute(sys.path))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot keep '{name}': cannot start its keeper with {python!r}:"
            f" {error.strerror}{_REMEDIES.get(error.errno or 0, '')}",
            error.filename,
        ) from error
    with starting:
        assert starting.stdout is not None
        try:
            return _pid_once_attached(name, starting.stdout.fileno())
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(starting.pid, signal.SIGKILL)
            raise


_REMEDIES = {
    errno.EMFILE: "; raise the limit of open files (ulimit -n), or close some",
    errno.ENFILE: "; the system's limit of open files is reached",
    errno.EAGAIN: "; the limit of processes is reached: raise it (ulimit -u, a container's)",
}


def _python_for(name: str) -> str:
    """Return an interpreter for the keeper, and never a program that would start itself again."""
    from multiprocessing.spawn import get_executable

    own, chosen = sys.executable or "", os.fsdecode(get_executable() or "")
    if not own:
        why = "sys.executable is empty"
    elif getattr(sys, "frozen", False):
        why = f"this program is frozen, so {own!r} would start it again"
    elif not re.search("python|pypy", os.path.basename(own), re.IGNORECASE):
        why = f"sys.executable is {own!r}, which is not named like a Python interpreter"
    else:
        return own
    if chosen not in ("", own):
        return chosen
    raise RuntimeError(
        f"cannot keep '{name}': {why}; name a Python interpreter that can import mpbuffer by"
        " multiprocessing.set_executable()"
    )


def _absolute(paths: Iterable[str]) -> list[str]:
    """Make them absolute; drop relative ones if the working directory was deleted."""
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found.append(os.path.abspath(path))
    return found


def _pid_once_attached(name: str, pipe: int) -> int:
    said, deadline = b"", time.monotonic() + _WAIT_AT_MOST
    while not said.endswith(b" attached\n"):
        part = os.read(pipe, 65536) if readable([pipe], deadline - time.monotonic()) else b""
        if not part:
            why = said.decode(errors="replace").strip() or "it printed nothing"
            raise RuntimeError(f"cannot keep '{name}': its keeper did not attach: {why}")
        said += part
    return int(said.split()[-2])


def keep() -> None:
    """Keep a segment open until some seconds after a process has ended: the keeper's program."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    name, pid, started, seconds = sys.argv[1:]
    buffer = _core.ReplayBuffer()
    buffer._attach(name, -1)
    print(os.getpid(), "attached", flush=True)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    _wait_for_end(ProcessIdentity(int(pid), int(started)))
    time.sleep(float(seconds))
    buffer.close()


def _wait_for_end(process: ProcessIdentity) -> None:
    ended = pidfd_of(process.pid)
    while process.is_alive():
        if ended is None:
            time.sleep(_POLL)
        else:
            readable([ended], math.inf)
