"""Explorers while signals' handlers run, at any point of their methods, and raise or call them.

A signal is raised at one opcode after the other of a learner's life. Handlers of real signals run
at some of these only.
"""

import contextlib
import os
import signal
import sys
import threading
import time

import explorers_processes
import pytest
from explorers_processes import FIELDS
from watched_processes import DEADLINE, run_python

import mpbuffer
from mpbuffer import Explorers
from mpbuffer._segment import process_identity
from mpbuffer.explorers import explorers, launch, place, supervision

pytestmark = pytest.mark.timeout(90)

TRACED = {module.__file__ for module in (explorers, launch, place, supervision, process_identity)}
POINTS = 12  # of some 1,500


class Interrupted(Exception):
    """What a handler raises."""


@pytest.fixture
def buffer():
    with mpbuffer.ReplayBuffer(100, FIELDS) as buffer:
        yield buffer


@contextlib.contextmanager
def handled(number, handler):
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        assert signal.getsignal(number) is handler
        signal.signal(number, before)


class SignalAt:
    """Raises SIGUSR1 at the n-th point of the traced code, counting each once in each stage."""

    def __init__(self, n):
        self.n, self.stage, self.passed, self.where = n, "", set(), None

    def __call__(self, frame, event, arg):
        if frame.f_code.co_filename not in TRACED:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self.in_frame

    def in_frame(self, frame, event, arg):
        point = (self.stage, frame.f_code, frame.f_lasti)
        if event == "opcode" and point not in self.passed:
            self.passed.add(point)
            if len(self.passed) == self.n:
                self.where = f"in {frame.f_code.co_name}, line {frame.f_lineno}, {self.stage}"
                signal.raise_signal(signal.SIGUSR1)
        return self.in_frame

    @contextlib.contextmanager
    def installed(self):
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(before)


def children():
    """Zombies too, but for multiprocess's servers."""
    found = set()
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/children") as file:
            found |= set(map(int, file.read().split()))
    return {pid for pid in found if not is_server(pid)}


def is_server(pid):
    with open(f"/proc/{pid}/cmdline") as file:
        command = file.read()
    return "resource_tracker" in command or "forkserver" in command


def descriptors():
    return set(os.listdir("/proc/self/fd"))


def until(condition, learner):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"did not come to pass: {learner!r}"
        learner.check()
        time.sleep(0.001)


def all_run(learner):
    return all(each.state == "running" for each in learner.status())


def is_stopped(learner):
    return any(each.state in ("stopped", "finished") for each in learner.status())


def live(learner, point):
    """Start two explorers, kill one, wait until it is back, and stop them."""
    point.stage = "starting"
    learner.start()
    point.stage = "playing"
    until(lambda: all_run(learner) or is_stopped(learner), learner)
    if not is_stopped(learner):
        with contextlib.suppress(ProcessLookupError):
            os.kill(learner.status()[0].pid, signal.SIGKILL)
    until(
        lambda: is_stopped(learner) or (learner.status()[0].restarts == 1 and all_run(learner)),
        learner,
    )
    learner.join(0.001)
    learner.alive  # noqa: B018
    point.stage = "stopping"
    learner.stop()
    point.stage = "stopped"


def live_with_signal_at(n, buffer, act, start_method):
    """Return whether there is an n-th point."""
    buffer.clear()
    learner = Explorers(
        explorers_processes.play_staged, 2, buffer, start_method=start_method, backoff=0.001
    )
    point = SignalAt(n)
    left, interrupted = descriptors(), False
    with handled(signal.SIGUSR1, lambda *_: act(learner)):
        try:
            with point.installed():
                live(learner, point)
        except Interrupted:
            interrupted = True
    if interrupted and point.stage == "playing":  # what goes on goes on
        until(lambda: all_run(learner), learner)
        assert learner.alive == 2, point.where
    if interrupted and point.stage == "starting" and learner.status()[0].state == "new":
        assert not children(), point.where
        return True
    learner.stop()
    assert learner.join(DEADLINE), point.where
    assert not children() and learner.alive == 0, point.where
    assert descriptors() == left, point.where
    assert_rows_are_there(learner, buffer, point, interrupted)
    return len(point.passed) >= n


def assert_rows_are_there(learner, buffer, point, interrupted):
    """No explorer lost what it had staged, but the one that was killed on purpose, or at once."""
    rows = {name: values.ravel() for name, values in buffer.get_all_transitions().items()}
    pids = [set(rows["pid"][rows["draw"] == draw]) for draw in (0, 1)]
    for each in learner.status():
        was_killed = each.exit_code == -signal.SIGKILL and each.index == each.restarts == 0
        ended_early = each.pid == 0 or each.exit_code == -signal.SIGTERM
        if each.state == "finished":
            assert (each.pid in pids[0]) == (each.pid in pids[1]), point.where
        elif not (interrupted and point.stage == "stopping"):
            assert each.state == "stopped" and (was_killed or ended_early), (point.where, each)


def interrupt(learner):
    raise Interrupted


def look(learner):
    learner.check()
    learner.join(0.001)
    learner.status()
    learner.alive  # noqa: B018


@pytest.mark.parametrize("act", [interrupt, Explorers.stop, look], ids=["raises", "stops", "looks"])
@pytest.mark.parametrize(
    ("start_method", "points"),
    [
        ("fork", POINTS),
        pytest.param("fork", 400, marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
        pytest.param("spawn", 5, marks=pytest.mark.slow),
        pytest.param("forkserver", 10, marks=pytest.mark.slow),
    ],
)
def test_a_handler_at_any_point_leaves_explorers_in_order(buffer, act, start_method, points):
    last = SignalAt(0)
    learner = Explorers(
        explorers_processes.play_staged, 2, buffer, start_method=start_method, backoff=0.001
    )
    with last.installed():
        live(learner, last)
    stride = max(1, len(last.passed) // points)
    for n in range(1 + os.getpid() % stride, len(last.passed), stride):
        live_with_signal_at(n, buffer, act, start_method)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_stop_in_a_handler_while_join_waits_ends_both(buffer, start_method):
    learner = Explorers(explorers_processes.play_staged, 2, buffer, start_method=start_method)
    with handled(signal.SIGUSR1, lambda *_: learner.stop()):
        learner.start()
        until(lambda: all_run(learner) and len(buffer) == 2, learner)
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        assert learner.join(DEADLINE)
        timer.join()
    assert [(each.state, each.exit_code) for each in learner.status()] == [("finished", 0)] * 2
    assert len(buffer) == 4


def test_failures_that_a_handler_interrupts_are_raised_by_the_next_check(buffer):
    """Or are the context of what the handler raised."""

    def fail(explorer):
        raise LookupError

    told = 0
    with handled(signal.SIGALRM, lambda *_: interrupt(None)):
        learner = Explorers(fail, 2, buffer, start_method="fork")
        learner.start()
        time.sleep(0.2)
        for delay in [1e-6 * 5**i for i in range(6)] * 20:
            try:
                signal.setitimer(signal.ITIMER_REAL, delay)
                learner.check()
                time.sleep(0.01)
            except (Interrupted, mpbuffer.ExplorerFailed) as error:
                told += isinstance(error, mpbuffer.ExplorerFailed)
                told += isinstance(error.__context__, mpbuffer.ExplorerFailed)
        learner.stop()
    assert told == 2


def test_a_forked_child_that_ends_leaves_the_explorers_be():
    script = """
import os, sys, time
import explorers_processes, mpbuffer

with mpbuffer.ReplayBuffer(10, explorers_processes.FIELDS) as buffer:
    how = {"start_method": "fork", "on_death": "raise"}
    with mpbuffer.Explorers(explorers_processes.play_staged, 2, buffer, **how) as explorers:
        while len(buffer) < 2:
            explorers.check()
        if os.fork() == 0:
            sys.exit()
        os.wait()
        time.sleep(0.1)
        explorers.check()
    print(len(buffer))
"""
    ended = run_python(script=script)
    assert (ended.stdout, ended.stderr) == (b"4\n", b"")
