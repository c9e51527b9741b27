"""Signals to explorers: schedulers and terminals send theirs to a whole group of processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import explorers_processes
import pytest
from explorers_processes import FIELDS
from watched_processes import DEADLINE, python_started

import mpbuffer
from mpbuffer import Explorers

pytestmark = pytest.mark.timeout(120)

OBSTINATE = ["play_staged_deaf", "play_staged_in_a_call", "play_staged_and_catch_all"]
GROUP_SIGNALS = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT]


@pytest.fixture
def buffer():
    with mpbuffer.ReplayBuffer(1000, FIELDS) as buffer:
        yield buffer


def until(condition, explorers):
    deadline = time.monotonic() + DEADLINE
    while not (value := condition()):
        explorers.check()
        assert time.monotonic() < deadline, explorers
        time.sleep(0.005)
    return value


def draws(buffer):
    return buffer.get_all_transitions()["draw"].ravel().tolist()


def started(buffer, function, start_method="fork", **how):
    """Explorers, of which one has added a row."""
    explorers = Explorers(function, 1, buffer, start_method=start_method, backoff=0.001, **how)
    explorers.start()
    until(lambda: len(buffer) > 0, explorers)
    return explorers


LEARNER = """
import os, signal, sys, time
import explorers_processes, mpbuffer

def remember(number, frame):
    with open(sys.argv[2], "a") as file:
        file.write(f"{os.getpid()} {number}\\n")

def main():
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, remember)
    with mpbuffer.ReplayBuffer(1000, explorers_processes.FIELDS) as buffer:
        with mpbuffer.Explorers(
            explorers_processes.play_staged, 2, buffer, start_method=sys.argv[1], max_restarts=0
        ) as explorers:
            while len(buffer) < 2:
                explorers.check()
            print(os.getpid(), flush=True)
            input()
            explorers.check()
            print([each.state for each in explorers.status()], flush=True)
        print([each.state for each in explorers.status()], len(buffer))

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("last", [None, signal.SIGTERM])
def test_signals_to_the_group_are_the_learners_and_no_staged_row_is_lost(
    start_method, last, tmp_path
):
    program, handled = tmp_path / "learner.py", tmp_path / "handled"
    program.write_text(LEARNER)
    with python_started(
        str(program), start_method, str(handled), stderr=subprocess.PIPE
    ) as process:
        learner = int(process.stdout.readline())
        for number in GROUP_SIGNALS:
            os.killpg(learner, number)
            time.sleep(0.05)
        if last is not None:
            os.killpg(learner, last)
        out, err = process.communicate(b"\n", timeout=DEADLINE)
    lines = out.decode().splitlines()
    if last is None:
        assert lines[0] == "['running', 'running']" and err == b""
        assert lines[1] == "['finished', 'finished'] 4"
    else:
        # A fork server that the signal ends with them takes their exit codes along.
        ended = b"was killed by SIGTERM" in err or b"unknown exit code" in err
        assert ended or (lines and lines[-1].endswith(" 4")), err.decode()
    by = [line.split() for line in handled.read_text().splitlines()]
    expected = [*GROUP_SIGNALS, *([] if last is None else [last])]
    assert by == [[str(learner), str(int(number))] for number in expected]


def test_no_handler_of_the_learner_runs_in_a_forked_explorer_however_soon(buffer, tmp_path):
    """Signals are sent to each new process all the time, from before it sets its own handlers."""
    learner = os.getpid()
    strangers = tmp_path / "strangers"

    def remember(number, frame):
        if os.getpid() != learner:
            strangers.write_text(f"handler of {number} ran")

    children = Path(f"/proc/{learner}/task/{learner}/children")
    others = set(map(int, children.read_text().split()))
    before = signal.signal(signal.SIGUSR1, remember)
    script = f"""
import os, signal
while os.getppid() == {learner}:
    with open("{children}") as file:
        for child in map(int, file.read().split()):
            if child not in {others or "()"} and child != os.getpid():
                try:
                    os.kill(child, signal.SIGUSR1)
                except ProcessLookupError:
                    pass
"""
    with subprocess.Popen([sys.executable, "-c", script]) as sender:
        try:
            for _ in range(10):
                with Explorers(
                    explorers_processes.tell, 3, buffer, start_method="fork"
                ) as explorers:
                    assert explorers.join(DEADLINE)
        finally:
            sender.kill()
            signal.signal(signal.SIGUSR1, before)
    assert not strangers.exists()
    assert len(buffer) == 30 and {each.restarts for each in explorers.status()} == {0}


def test_signals_that_the_learner_wakes_up_by_do_not_reach_it_from_explorers(buffer):
    """As asyncio has it: a byte for each signal, in a pipe that a fork copies."""
    readable, written = os.pipe()
    os.set_blocking(written, False)
    os.set_blocking(readable, False)
    before = signal.set_wakeup_fd(written)
    try:
        explorers = started(buffer, explorers_processes.play_staged)
        os.kill(explorers.status()[0].pid, signal.SIGTERM)
        until(lambda: explorers.status()[0].restarts == 1, explorers)
        explorers.stop()
        with pytest.raises(BlockingIOError):
            os.read(readable, 10)
    finally:
        signal.set_wakeup_fd(before)
        os.close(readable)
        os.close(written)


@pytest.mark.parametrize(
    "function", ["play_staged", *(pytest.param(each, marks=pytest.mark.slow) for each in OBSTINATE)]
)
def test_sigterm_ends_an_explorer_once_its_staged_rows_are_written(
    buffer, start_method, function, caplog
):
    explorers = started(
        buffer, getattr(explorers_processes, function), start_method, stop_timeout=0.1
    )
    assert draws(buffer) == [0]
    os.kill(explorers.status()[0].pid, signal.SIGTERM)
    until(lambda: explorers.status()[0].restarts == 1, explorers)
    assert "explorer 0 was killed by SIGTERM; restarting it" in caplog.text
    assert draws(buffer)[:2] == [0, 1]
    until(lambda: len(buffer) == 3, explorers)
    explorers.stop()


@pytest.mark.parametrize("function", OBSTINATE)
def test_an_explorer_that_does_not_stop_in_time_has_its_staged_rows_written(buffer, function):
    explorers = started(buffer, getattr(explorers_processes, function), stop_timeout=0.1)
    explorers.stop()
    assert draws(buffer) == [0, 1]
    (status,) = explorers.status()
    assert (status.state, status.exit_code) == ("stopped", -signal.SIGTERM)


def test_a_function_has_a_while_to_return_after_sigterm(buffer):
    explorers = started(buffer, explorers_processes.finish_what_was_begun)
    os.kill(explorers.status()[0].pid, signal.SIGTERM)
    until(lambda: explorers.status()[0].restarts == 1, explorers)
    assert draws(buffer)[:2] == [0, 0.5], "it was not cut off"
    explorers.stop()


def test_an_explorer_killed_by_sigterm_ends_the_run_if_asked(buffer):
    explorers = started(buffer, explorers_processes.play_staged, on_death="raise")
    os.kill(explorers.status()[0].pid, signal.SIGTERM)
    with pytest.raises(mpbuffer.ExplorerFailed, match="was killed by SIGTERM"):
        until(lambda: False, explorers)
    assert draws(buffer) == [0, 1]
    explorers.stop()


def test_a_function_keeps_its_own_handlers(buffer):
    explorers = started(buffer, explorers_processes.count_signals, stop_timeout=5)
    pid = explorers.status()[0].pid
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
        os.kill(pid, number)
        time.sleep(0.3)
    time.sleep(1.5)
    explorers.check()
    assert explorers.status()[0].state == "running"
    explorers.stop()
    assert draws(buffer) == [0, signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM]
    assert explorers.status()[0].state == "finished"


@pytest.mark.parametrize("package", ["os", "multiprocessing", "multiprocess"])
def test_sigterm_to_a_child_of_an_explorer_ends_that_child_alone(buffer, package):
    explorers = started(buffer, explorers_processes.terminate_children, args=(package,))
    assert explorers.join(DEADLINE)
    (status,) = explorers.status()
    assert (status.state, status.restarts) == ("finished", 0)
    assert draws(buffer) == [0, *[-signal.SIGTERM] * explorers_processes.TERMINATED_CHILDREN]


REAPED = """
import explorers_processes, os, signal, threading, time, mpbuffer

def reap():
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            time.sleep(0.001)

def show(explorers):
    assert explorers.alive == 0
    print(*[f"{each.state} {each.restarts}" for each in explorers.status()], flush=True)

def main():
    with mpbuffer.ReplayBuffer(1000, explorers_processes.FIELDS) as buffer:
        how = {"backoff": 0.01, "start_method": METHOD}
        with mpbuffer.Explorers(explorers_processes.tell, 2, buffer, **how) as explorers:
            explorers.join(60)
        show(explorers)
        fail = explorers_processes.raise_from_depth
        try:
            with mpbuffer.Explorers(fail, 2, buffer, args=(0,), **how) as explorers:
                explorers.join(60)
        except mpbuffer.ExplorerFailed as error:
            print(str(error).splitlines()[-1], flush=True)
        buffer.clear()
        with mpbuffer.Explorers(explorers_processes.play_staged, 2, buffer, **how) as explorers:
            while len(buffer) < 2:
                explorers.check()
            assert explorers.alive == 2
            os.kill(explorers.status()[0].pid, signal.SIGKILL)
            while explorers.alive == 2:
                time.sleep(0.01)
            while explorers.status()[0].restarts == 0:
                explorers.check()
        show(explorers)

if __name__ == "__main__":
    PRELUDE
    main()
"""


@pytest.mark.parametrize(
    "prelude",
    [
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        "threading.Thread(target=reap, daemon=True).start()",
    ],
    ids=["kernel", "thread"],
)
def test_explorers_that_somebody_else_reaps(start_method, prelude, tmp_path):
    program = tmp_path / "learner.py"
    program.write_text(REAPED.replace("METHOD", repr(start_method)).replace("PRELUDE", prelude))
    with python_started(str(program), stderr=subprocess.PIPE) as process:
        out, err = process.communicate(timeout=DEADLINE)
    lines = out.decode().splitlines()
    assert lines[:2] == ["finished 0 finished 0", "LookupError: no way out of 0"], err.decode()
    assert lines[2].split()[1::2] == ["1", "0"], err.decode()
    assert b"Error" not in err and b"Traceback" not in err


def test_an_explorer_whose_server_was_killed_is_still_ended(buffer):
    """Its end is known, and its exit code is not."""
    from multiprocess import forkserver

    explorers = started(buffer, explorers_processes.play_staged, "forkserver")
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    time.sleep(0.1)
    explorers.check()
    assert explorers.alive == 1 and explorers.status()[0].state == "running"
    explorers.stop()
    assert (explorers.alive, explorers.status()[0].state) == (0, "finished")
    assert explorers.status()[0].exit_code is None
    forkserver._forkserver._stop()
    assert draws(buffer) == [0, 1]
