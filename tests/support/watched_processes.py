"""Processes for tests: every wait has a deadline, and no process outlives the test.

Light to import, since each spawned process imports it.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

DEADLINE = 60.0
SUPPORT = Path(__file__).parent


class StillRunning(AssertionError):
    """A process, or its answer, did not come before the deadline."""


def join_within(process, seconds=DEADLINE):
    """Wait for a process of multiprocessing or multiprocess; returns its exit code."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join(DEADLINE)
        raise StillRunning(f"{process} had not ended after {seconds} s")
    return process.exitcode


def receive_within(connection, seconds=DEADLINE):
    if not connection.poll(seconds):
        raise StillRunning(f"no answer within {seconds} s")
    return connection.recv()


def wait_for_child(pid, seconds=DEADLINE):
    """Wait for a child of os.fork(); returns its exit code."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise StillRunning(f"child {pid} had not ended after {seconds} s")


def end_process(pid):
    """Kill a process that need not be a child; returns once it has ended with all its threads.

    Its state would not tell: a zombie's other threads may still hold its locks.
    """
    try:
        ended = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(ended, signal.SIGKILL)
        if not select.select([ended], [], [], DEADLINE)[0]:
            raise StillRunning(f"process {pid} had not ended after {DEADLINE} s")
    except ProcessLookupError:
        pass
    finally:
        os.close(ended)


@contextlib.contextmanager
def killed_at_the_end(processes):
    """On the way out, kill whichever of these processes still runs."""
    try:
        yield
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join(DEADLINE)


@contextlib.contextmanager
def python_started(*arguments, script=None, prefix=(), **options):
    """A script in an interpreter of its own, as a subprocess.Popen with pipes.

    It finds the modules of this directory, where it runs: at the root of the repository it would
    import the sources in place of the package. On the way out whatever it started is ended too.
    """
    command = [*prefix, sys.executable, *arguments]
    if script is not None:
        command += ["-c", script]
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(SUPPORT), *filter(None, [environment.get("PYTHONPATH")])]
    )
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=SUPPORT,
        env=environment,
        start_new_session=True,
        **options,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(DEADLINE)
        for pipe in filter(None, (process.stdin, process.stdout, process.stderr)):
            with contextlib.suppress(OSError):
                pipe.close()


def run_python(*arguments, script=None, stdin=b"", seconds=DEADLINE, prefix=()):
    """Run a script as above to its end; returns the CompletedProcess, bytes captured."""
    with python_started(
        *arguments, script=script, prefix=prefix, stderr=subprocess.PIPE
    ) as process:
        try:
            out, err = process.communicate(stdin, timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate(timeout=seconds)
            raise StillRunning(
                f"the script had not ended after {seconds} s\n{out.decode()}\n{err.decode()}"
            ) from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _send_outcome(connection, function, args, kwargs):
    try:
        outcome = ("returned", function(*args, **kwargs))
    except BaseException as error:
        outcome = ("raised", error)
    try:
        connection.send(outcome)
    except Exception:
        connection.send(("raised", RuntimeError(f"cannot be sent: {traceback.format_exc()}")))


def _receive_outcome(connection, seconds):
    kind, value = receive_within(connection, seconds)
    if kind == "raised":
        raise value
    return value


def _answer_calls(connection, buffer):
    """In the other process: do what is asked with the buffer until told to stop."""
    if isinstance(buffer, str):
        import mpbuffer

        buffer = mpbuffer.attach(buffer)
    connection.send(("returned", os.getpid()))
    while (call := connection.recv()) is not None:
        function, args, kwargs = call
        if isinstance(function, str):
            _send_outcome(connection, getattr(buffer, function), args, kwargs)
        else:
            _send_outcome(connection, function, (buffer, *args), kwargs)


class BufferElsewhere:
    """A buffer in another process: its methods are called here, run there, and answer here.

    The buffer comes as an object, or as the name to attach to.
    """

    def __init__(self, context, buffer):
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_answer_calls, args=(theirs, buffer))
        self.process.start()
        theirs.close()
        try:
            self.pid = _receive_outcome(self.connection, DEADLINE)
        except BaseException:
            self.process.kill()
            self.process.join(DEADLINE)
            raise

    def run(self, function, *args, **kwargs):
        """Call function(buffer, ...), or the buffer's method of that name, over there."""
        self.connection.send((function, args, kwargs))
        return _receive_outcome(self.connection, DEADLINE)

    def __getattr__(self, method):
        if method.startswith("__"):
            raise AttributeError(method)
        return lambda *args, **kwargs: self.run(method, *args, **kwargs)

    def kill(self):
        self.process.kill()
        return join_within(self.process)

    def end(self):
        """Let the process return from its function and end; returns its exit code."""
        self.connection.send(None)
        return join_within(self.process)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.process.is_alive():
            with contextlib.suppress(OSError):
                self.connection.send(None)
            self.process.join(DEADLINE if exception[0] is None else 1)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(DEADLINE)
            if exception[0] is None:
                raise StillRunning(f"{self.process} had not ended after {DEADLINE} s")
