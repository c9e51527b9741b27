"""Where the system starts no more threads: in a container, or past a user's limit."""

import textwrap

import pytest
from watched_processes import run_python

pytestmark = pytest.mark.timeout(90)

LIMITED = """
import os, resource, signal, sys, threading
import numpy as np, mpbuffer
import multiprocess.connection, multiprocess.forkserver, multiprocess.popen_fork
import numpy.random
import explorers_processes  # all of it before the user changes, who may not read it

if os.getuid() == 0:
    os.setuid(65534)  # the limit does not bind root
before, most = resource.getrlimit(resource.RLIMIT_NPROC)

def limit():
    resource.setrlimit(resource.RLIMIT_NPROC, (1, most))

def give_back():
    resource.setrlimit(resource.RLIMIT_NPROC, (before, most))
"""


def output_of(script):
    ended = run_python(script=LIMITED + textwrap.dedent(script))
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout.decode().splitlines()


def test_large_buffers_are_made():
    lines = output_of("""
        limit()
        for rows in (3_000, 5_000, 20_000):
            with mpbuffer.ReplayBuffer(rows, {"a": {"shape": 4000}}) as buffer:
                buffer.add(a=np.ones((rows, 4000)))
                print(len(buffer))
    """)
    assert lines == ["3000", "5000", "20000"]


@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
def test_explorers_that_cannot_start_tell_of_threads(start_method):
    lines = output_of(f"""
        limit()
        with mpbuffer.ReplayBuffer(10, explorers_processes.FIELDS) as buffer:
            explorers = mpbuffer.Explorers(
                explorers_processes.play, 2, buffer, start_method={start_method!r}
            )
            try:
                explorers.start()
            except (OSError, RuntimeError) as error:
                print(error)
            print(explorers.alive)
    """)
    assert "cannot start the process of explorer 0" in lines[0]
    assert "thread" in lines[0] and "raise" in lines[0]
    assert lines[1:] == ["0"]


def test_an_explorer_that_can_start_no_thread_tells_so():
    """Its process is there; then threads are what is missing."""
    lines = output_of("""
        def start_limited(self):
            limit()
            return start(self)

        def explore(explorer):
            pass

        start = threading.Thread.start
        threading.Thread.start = start_limited  # in the forked explorer
        with mpbuffer.ReplayBuffer(10, {"a": {}}) as buffer:
            try:
                with mpbuffer.Explorers(explore, 1, buffer, start_method="fork") as explorers:
                    explorers.join(30)
            except mpbuffer.ExplorerFailed as error:
                print(str(error).splitlines()[-1])
    """)
    assert "cannot start a thread" in lines[0] and "raise the limit" in lines[0]
