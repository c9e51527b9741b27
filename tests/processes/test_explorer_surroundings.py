"""Explorers in the surroundings of real programs: few descriptors, no directory, frozen, seeds."""

import os
import resource
import subprocess
import sys

import explorers_processes
import numpy as np
import pytest
from explorers_processes import FIELDS
from watched_processes import DEADLINE, run_python

import mpbuffer
from mpbuffer import Explorers
from mpbuffer._segment.process_identity import ProcessIdentity

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def buffer():
    with mpbuffer.ReplayBuffer(1000, FIELDS) as buffer:
        yield buffer


def draws(buffer):
    return buffer.get_all_transitions()["draw"].ravel().tolist()


def run(buffer, function, n=1, **how):
    buffer.clear()
    with Explorers(function, n, buffer, **how) as explorers:
        assert explorers.join(DEADLINE)
    return draws(buffer)


@pytest.mark.parametrize("pidfds", [True, False])
def test_an_explorer_out_of_descriptors_lives_on(buffer, pidfds, monkeypatch):
    """Also where it looks its learner up in /proc, now and then, as it does without pidfds."""
    if not pidfds:
        monkeypatch.setattr(mpbuffer.explorers.process, "pidfd_of", lambda pid: None)
    explore = explorers_processes.play_without_descriptors
    with Explorers(explore, 1, buffer, start_method="fork") as explorers:
        assert explorers.join(DEADLINE)
    assert draws(buffer) == [0, 1] and explorers.status()[0].restarts == 0


def test_who_cannot_be_read_of_has_not_ended():
    own = ProcessIdentity.of(os.getpid())
    ended = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    other = ProcessIdentity.of(ended.pid)
    ended.communicate(b"\n", timeout=DEADLINE)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        assert own.is_alive() and not other.is_alive()
        with pytest.raises(OSError, match="Too many open files"):
            ProcessIdentity.of(os.getpid())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_without_descriptors_explorers_do_not_start_and_tell_so(buffer, start_method):
    explorers = Explorers(explorers_processes.tell, 1, buffer, start_method=start_method)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            explorers.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert explorers.alive == 0


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_where_the_working_directory_was_deleted_the_error_says_so(
    buffer, start_method, tmp_path, monkeypatch
):
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    monkeypatch.chdir(nowhere)
    nowhere.rmdir()
    explorers = Explorers(explorers_processes.tell, 1, buffer, start_method=start_method)
    with pytest.raises(FileNotFoundError, match=r"explorer 0: the working directory .* deleted"):
        explorers.start()
    run(buffer, explorers_processes.tell, start_method="fork")
    assert len(buffer) == 1


def test_each_explorer_has_global_generators_of_its_own_that_follow_from_the_seed(
    buffer, start_method
):
    def with_seed(seed):
        return run(
            buffer, explorers_processes.draw_globally, 2, seed=seed, start_method=start_method
        )

    first = with_seed(1)
    assert len(set(first)) == len(first) > 4
    assert sorted(with_seed(1)) == sorted(first)
    assert not set(with_seed(2)) & set(first)


def test_global_generators_are_left_alone_if_asked(buffer):
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    drawn = run(buffer, explorers_processes.draw_globally, start_method="fork", seed_globals=False)
    assert drawn[1] == expected  # Python's own generator is seeded anew by every fork
    with pytest.raises(TypeError, match="seed_globals must be a bool, got 3"):
        Explorers(print, 1, buffer, seed_globals=3)


FROZEN = """
import sys

import mpbuffer

def explore(explorer):
    explorer.buffer.add(a=1)

if __name__ == "__main__":
    sys.frozen = True
    with mpbuffer.ReplayBuffer(10, {"a": {}}) as buffer:
        with mpbuffer.Explorers(explore, 2, buffer, start_method="fork") as explorers:
            explorers.join()
        print(len(buffer))
"""


def test_a_frozen_program_has_forked_explorers():
    ended = run_python(script=FROZEN)
    assert (ended.stdout, ended.stderr) == (b"2\n", b"")
