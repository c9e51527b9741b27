"""The process that keeps a buffer's rows while the one that wrote them is replaced."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

from mpbuffer import _core
from mpbuffer.process_identity import ProcessIdentity, pidfd_of

__all__ = ["keep_after_exit"]

_LONGEST = 1e9
_WAIT_AT_MOST = 60.0
_POLL = 0.2
# A shell's background job: it ignores Ctrl-C, and who asked for it is not its parent.
_IN_BACKGROUND = ["/bin/sh", "-c", '"$@" &', "sh"]


def keep_after_exit(name: str, seconds: float) -> int:
    """Start the keeper of that segment; return its pid. See ReplayBuffer.keep_after_exit()."""
    seconds = float(seconds)
    if not 0.0 <= seconds <= _LONGEST:
        raise ValueError(f"cannot keep '{name}' for {seconds} s: expected 0 to {_LONGEST:g}")
    owner = ProcessIdentity.of(os.getpid())
    if owner is None:
        raise RuntimeError(f"cannot keep '{name}': /proc does not tell when this process started")
    keeper = [sys.executable, "-c", "from mpbuffer.keeping import keep; keep()"]
    path = os.pathsep.join(os.path.abspath(each) for each in sys.path)
    with subprocess.Popen(
        [*_IN_BACKGROUND, *keeper, name, str(owner.pid), str(owner.started), str(seconds)],
        cwd="/",
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as starting:
        assert starting.stdout is not None
        try:
            return _pid_once_attached(name, starting.stdout.fileno())
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(starting.pid, signal.SIGKILL)
            raise


def _pid_once_attached(name: str, pipe: int) -> int:
    said, deadline = b"", time.monotonic() + _WAIT_AT_MOST
    while not said.endswith(b" attached\n"):
        part = os.read(pipe, 65536) if _is_readable(pipe, deadline - time.monotonic()) else b""
        if not part:
            why = said.decode(errors="replace").strip() or "it said nothing"
            raise RuntimeError(f"cannot keep '{name}': its keeper did not attach: {why}")
        said += part
    return int(said.split()[-2])


def keep() -> None:
    """Keep a segment until so many seconds after a process: all that the keeper does."""
    name, pid, started, seconds = sys.argv[1:]
    buffer = _core.ReplayBuffer()
    _core.attach(buffer, name)
    print(os.getpid(), "attached", flush=True)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    _wait_for_end(ProcessIdentity(int(pid), int(started)))
    time.sleep(float(seconds))
    _core.close(buffer)


def _is_readable(descriptor: int, seconds: float | None) -> bool:
    looking = select.poll()  # select() knows no descriptors above 1023
    looking.register(descriptor, select.POLLIN)
    return bool(looking.poll(None if seconds is None else max(0.0, seconds) * 1000))


def _wait_for_end(process: ProcessIdentity) -> None:
    ended = pidfd_of(process.pid)
    while process.is_alive():
        if ended is None:
            time.sleep(_POLL)
        else:
            _is_readable(ended, None)
