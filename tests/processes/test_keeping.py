"""A buffer's rows stay while the process that wrote them is replaced."""

import multiprocessing.spawn
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
from watched_processes import DEADLINE, end_process, run_python

import mpbuffer
from mpbuffer._segment.process_identity import ProcessIdentity

LEARNER = """
import os, signal, mpbuffer
buffer = mpbuffer.PrioritizedReplayBuffer(8, {{"x": {{}}}})
buffer.add(x=[1, 2, 3], priorities=[4, 5, 6])
print(buffer.keep_after_exit({seconds}), buffer.name, flush=True)
{end}
"""
ENDS = {
    "close": "buffer.close()",
    "return": "",
    "exception": "raise SystemExit(3)",
    "interrupt": "os.killpg(0, signal.SIGINT)",
    "kill": "os.kill(os.getpid(), signal.SIGKILL)",
}


def wait_until(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_attachable(name):
    try:
        mpbuffer.attach(name).close()
    except mpbuffer.SegmentNotFound:
        return False
    return True


@pytest.fixture
def keeper_of():
    """What runs a learner to its end; returns its keeper's identity and its buffer's name."""
    keepers = []

    def run(end, seconds):
        ended = run_python(script=LEARNER.format(end=ENDS[end], seconds=seconds))
        pid, name = ended.stdout.decode().split()
        keepers.append(ProcessIdentity.of(int(pid)))
        return keepers[-1], name

    yield run
    for keeper in filter(None, keepers):
        if keeper.is_alive():  # else its number may be another's by now
            end_process(keeper.pid)
    mpbuffer.ReplayBuffer(1, {"x": {}}).close()  # removes what nobody was left to close


@pytest.mark.parametrize("end", ENDS)
def test_rows_stay_however_the_learner_ends(end, keeper_of):
    keeper, name = keeper_of(end, seconds=1000)
    assert keeper is not None and os.getsid(keeper.pid) != os.getsid(0)
    with mpbuffer.attach(name) as buffer:
        assert buffer.get_all_transitions()["x"].ravel().tolist() == [1, 2, 3]
        assert buffer.get_max_priority() == 6
        end_process(keeper.pid)
        buffer.add(x=4)
        assert len(buffer) == 4
    assert not is_attachable(name)


def test_rows_go_when_the_time_is_over(keeper_of):
    begun = time.monotonic()
    keeper, name = keeper_of("kill", seconds=0.3)
    wait_until(lambda: not is_attachable(name))
    assert time.monotonic() - begun >= 0.3
    wait_until(lambda: keeper is None or not keeper.is_alive())


def test_rows_stay_for_as_long_as_their_learner_lives():
    with mpbuffer.ReplayBuffer(8, {"x": {}}) as buffer:
        keeper = ProcessIdentity.of(buffer.keep_after_exit(0))
        time.sleep(0.1)
        assert keeper.is_alive()
        end_process(keeper.pid)
        assert [line.pid for line in buffer.processes()] == [os.getpid()]


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 1e10, "soon", None])
def test_other_times_are_refused(seconds):
    with mpbuffer.ReplayBuffer(8, {"x": {}}) as buffer:
        with pytest.raises((TypeError, ValueError)):
            buffer.keep_after_exit(seconds)
        assert len(buffer.processes()) == 1


def test_a_closed_buffer_keeps_nothing():
    buffer = mpbuffer.ReplayBuffer(8, {"x": {}})
    buffer.close()
    with pytest.raises(mpbuffer.BufferClosed):
        buffer.keep_after_exit(1)


def test_a_keeper_that_does_not_start_is_an_error_with_its_words(monkeypatch, tmp_path):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho no such luck\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    with (
        mpbuffer.ReplayBuffer(8, {"x": {}}, name="mine") as buffer,
        pytest.raises(RuntimeError, match=r"cannot keep 'mine'.*no such luck"),
    ):
        buffer.keep_after_exit(1)


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ({"frozen": True}, "this program is frozen"),
        ({"executable": ""}, "sys.executable is empty"),
        ({"executable": None}, "sys.executable is empty"),
        ({"executable": "/usr/sbin/uwsgi"}, "'/usr/sbin/uwsgi', which is not named"),
    ],
)
def test_no_program_is_started_in_place_of_an_interpreter(monkeypatch, attributes, why):
    for attribute, value in attributes.items():
        monkeypatch.setattr(sys, attribute, value, raising=False)
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", os.fsencode(sys.executable or ""))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("it was started"))
    with (
        mpbuffer.ReplayBuffer(8, {"x": {}}, name="mine") as buffer,
        pytest.raises(RuntimeError, match=rf"cannot keep 'mine'.*{why}.*set_executable"),
    ):
        buffer.keep_after_exit(1)


def test_a_frozen_program_names_an_interpreter(monkeypatch):
    python = sys.executable
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", "/nowhere/program")
    monkeypatch.setattr(multiprocessing.spawn, "_python_exe", os.fsencode(python))
    with mpbuffer.ReplayBuffer(8, {"x": {}}) as buffer:
        end_process(buffer.keep_after_exit(0))


def test_a_keeper_needs_no_shell_and_no_working_directory(tmp_path, monkeypatch):
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    monkeypatch.chdir(nowhere)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    nowhere.rmdir()
    with mpbuffer.ReplayBuffer(8, {"x": {}}) as buffer:
        keeper = buffer.keep_after_exit(0)
        with open(f"/proc/{keeper}/status") as status:
            lines = {
                key: value.strip() for key, _, value in (each.partition(":") for each in status)
            }
        assert lines["Name"].startswith("python") and int(lines["PPid"]) != os.getpid()
        assert int(lines["SigIgn"], 16) >> (signal.SIGINT - 1) & 1
        end_process(keeper)


def test_without_descriptors_the_error_tells_so():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with mpbuffer.ReplayBuffer(8, {"x": {}}, name="mine") as buffer:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            with pytest.raises(OSError, match=r"cannot keep 'mine'.*Too many open files.*ulimit"):
                buffer.keep_after_exit(1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
