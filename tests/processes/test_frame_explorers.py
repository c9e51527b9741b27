"""Explorers of several processes add rows that share frames; some are killed at any moment."""

import os
import random
import signal
import time

import multiprocess
import numpy as np
import pytest

from mpbuffer import PrioritizedReplayBuffer, ReplayBuffer
from mpbuffer.inspect.inspection import inspect

FRAMES, SIDE = 4, 24
FIELDS = {
    "obs": {"shape": (FRAMES, SIDE, SIDE), "dtype": np.uint8},
    "id": {"shape": (), "dtype": np.int64},
    "done": {"dtype": bool},
}
BOTH = {"next_of": "obs", "stack_compress": "obs"}


def frames_of(numbers):
    """The frames with these numbers: every byte follows from the number."""
    numbers = np.asarray(numbers, np.uint64)[..., None]
    mixed = (numbers + np.arange(1, SIDE * SIDE + 1, dtype=np.uint64)) * np.uint64(
        0x9E3779B97F4A7C15
    )
    return (mixed >> np.uint64(40)).astype(np.uint8).reshape(*numbers.shape[:-1], SIDE, SIDE)


def rows_of(ids):
    """The row with a number has the frames from this number on, and the next from the next on."""
    ids = np.asarray(ids, np.int64)
    ahead = np.arange(FRAMES)
    return {
        "obs": frames_of(ids[:, None] + ahead),
        "next_obs": frames_of(ids[:, None] + ahead + 1),
        "id": ids,
        "done": np.zeros(len(ids), bool),
    }


def assert_rows_are_whole(rows):
    __tracebackhide__ = True
    expected = rows_of(np.ravel(rows["id"]))
    for name in ("obs", "next_obs"):
        assert (rows[name] == expected[name]).all(), f"{name} has another's frame"


def explore(buffer, explorer, how, rows):
    rng = random.Random(explorer)
    number = explorer << 32
    for _ in range(rows):
        number += 1 if rng.random() < 0.98 else 7
        buffer.add(**{k: v[0] for k, v in rows_of([number]).items()})
        if how == "pauses" and rng.random() < 0.001:
            time.sleep(0.2)


def explore_by_writer(buffer, explorer, how, rows):
    with buffer.writer(flush_every=20) as writer:
        for i in range(rows):
            writer.add(**{k: v[0] for k, v in rows_of([(explorer << 32) + i]).items()})


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplayBuffer])
def test_explorers_of_every_start_method(cls, method):
    ctx = multiprocess.get_context(method)
    with cls(700, FIELDS, **BOTH) as buffer:
        buffer.add(**rows_of([5]))
        jobs = [
            ctx.Process(target=explore if i % 2 else explore_by_writer, args=(buffer, i, "", 900))
            for i in (1, 2, 3, 4)
        ]
        for job in jobs:
            job.start()
        while any(job.is_alive() for job in jobs):
            assert_rows_are_whole(buffer.sample(64))
        for job in jobs:
            job.join()
            assert job.exitcode == 0
        assert buffer.rows_added() == 3601
        assert len(buffer) == 700
        rows = buffer.get_all_transitions()
        assert len(set(np.ravel(rows["id"]))) == 700
        assert_rows_are_whole(rows)


def explore_then_count(buffer, explorer, barrier, rounds, rows, results):
    for played in range(1, rounds + 1):
        for _ in range(rows):
            explorer += 10
            buffer.add(**{k: v[0] for k, v in rows_of([explorer]).items()})
        barrier.wait(60)
        len(buffer)
        barrier.wait(60)
        figures = buffer.stats()
        results.put((played, figures["fill"], figures["early"], figures["rows_added"]))
        barrier.wait(60)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_early_rows_are_counted_exactly_by_processes_that_retire_at_once(method):
    ctx = multiprocess.get_context(method)
    barrier, results = ctx.Barrier(3), ctx.Queue()
    with ReplayBuffer(5000, FIELDS, **BOTH, sources=400) as buffer:
        jobs = [
            ctx.Process(target=explore_then_count, args=(buffer, i << 32, barrier, 5, 100, results))
            for i in (1, 2, 3)
        ]
        for job in jobs:
            job.start()
        told = [results.get(timeout=60) for _ in range(15)]
        for job in jobs:
            job.join(60)
            assert job.exitcode == 0
        for played, fill, early, added in told:
            assert added == 300 * played
            assert early == added - fill > 0
        figures = buffer.stats()
        assert figures["fill"] == len(buffer) == len(buffer.get_all_transitions()["id"])
        assert figures["early"] == 1500 - len(buffer)
        assert figures["handles"] == 1
        assert figures["sources"] == 400


@pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplayBuffer])
def test_a_forked_child_goes_on_where_its_parent_was(cls):
    with cls(100, FIELDS, **BOTH) as buffer:
        buffer.add(**rows_of(np.arange(20)))
        pid = os.fork()
        if pid == 0:
            buffer.add(**rows_of(np.arange(20, 40)))
            os._exit(0)
        os.waitpid(pid, 0)
        buffer.add(**rows_of(np.arange(40, 60)))
        rows = buffer.get_all_transitions()
        assert sorted(np.ravel(rows["id"])) == list(range(60))
        assert_rows_are_whole(rows)


@pytest.mark.parametrize("sources", [None, 500])
def test_killed_and_stopped_explorers_leave_no_wrong_frame(sources):
    ctx = multiprocess.get_context("fork")
    rng = random.Random(1)
    with PrioritizedReplayBuffer(400, FIELDS, **BOTH, sources=sources) as buffer:
        buffer.add(**rows_of([5]))
        started, jobs, killed = 0, [], 0
        deadline = time.monotonic() + 60
        while killed < 25:
            assert time.monotonic() < deadline
            while len(jobs) < 4:
                started += 1
                jobs.append(ctx.Process(target=explore, args=(buffer, started, "pauses", 10**6)))
                jobs[-1].start()
            time.sleep(rng.random() * 0.02)
            sample = buffer.sample(64)
            assert_rows_are_whole(sample)
            assert inspect(buffer.name, every_slot=started % 4 == 0)["damage"] == []
            buffer.update_priorities(sample["indexes"], np.ones(64))
            victim = jobs[rng.randrange(4)]
            if rng.random() < 0.3:
                os.kill(victim.pid, signal.SIGSTOP)
                for _ in range(5):
                    assert_rows_are_whole(buffer.sample(32))
                    time.sleep(0.005)
                os.kill(victim.pid, signal.SIGCONT)
            else:
                victim.kill()
                victim.join()
                jobs.remove(victim)
                killed += 1
            if rng.random() < 0.03:
                buffer.clear()
                buffer.add(**rows_of([5]))
        for job in jobs:
            job.kill()
            job.join()
        assert inspect(buffer.name)["damage"] == []
        size = len(buffer)
        rows = buffer.get_all_transitions()
        assert len(rows["id"]) == size
        assert_rows_are_whole(rows)
        for i in range(1000, 1800):
            buffer.add(**{k: v[0] for k, v in rows_of([i]).items()})
        assert len(buffer) == (400 if sources is None else len(buffer.get_all_transitions()["id"]))
        assert_rows_are_whole(buffer.sample(256))
