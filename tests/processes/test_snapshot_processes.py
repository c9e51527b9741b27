"""Snapshots beside explorers at full speed, and processes that are killed while they save."""

import multiprocessing
import os
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from explorer_processes import (
    FIELDS,
    assert_rows_are_whole,
    identity,
    priority_given,
    rows_of,
)

import mpbuffer

context = multiprocessing.get_context("fork")
MOST_ROWS = 10**9


@pytest.fixture
def tmp_path():
    """A directory in memory, where syncing takes no time."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of a few hundred rows, so that the buffers below have many."""
    monkeypatch.setattr("mpbuffer.buffer.stored_arrays._LEAST_BYTES", 30_000)


def add_until(buffer, explorer, stop, added):
    counter, batch = 0, 32
    many = rows_of(explorer, np.arange(50_000))
    priorities = priority_given(identity(many["explorer"], many["counter"]))
    while not stop.is_set():
        first = counter % (50_000 - batch)
        some = slice(first, first + batch)
        buffer.add(**{name: each[some] for name, each in many.items()}, priorities=priorities[some])
        counter += batch
        added.value = counter


class Explorers:
    def __init__(self, buffer, count=2, work=add_until):
        self.stop = context.Event()
        self.added = [context.Value("q", lock=False) for _ in range(count)]
        self.processes = [
            context.Process(target=work, args=(buffer, i, self.stop, self.added[i]), daemon=True)
            for i in range(count)
        ]

    def __enter__(self):
        for process in self.processes:
            process.start()
        deadline = time.monotonic() + 60
        while not all(each.value for each in self.added):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.stop.set()
        for process in self.processes:
            process.join(60)
            assert process.exitcode == 0


def check_rows_and_priorities(buffer):
    rows, _, priorities = buffer._marked_rows()
    assert_rows_are_whole(rows, 2, MOST_ROWS)
    given = priority_given(identity(rows["explorer"], rows["counter"]))
    np.testing.assert_allclose(priorities, given, rtol=1e-4)
    return len(priorities)


@pytest.mark.usefixtures("small_chunks")
def test_rows_saved_by_an_outsider_while_explorers_add_are_whole(tmp_path):
    name = f"beside-{os.getpid()}"
    with (
        mpbuffer.PrioritizedReplayBuffer(20_000, FIELDS, name=name) as buffer,
        mpbuffer.attach(name) as outsider,
        Explorers(buffer) as explorers,
    ):
        for _ in range(4):
            before = sum(each.value for each in explorers.added)
            outsider.snapshot(tmp_path)
            assert sum(each.value for each in explorers.added) > before
            with mpbuffer.restore(tmp_path) as again:
                stored = check_rows_and_priorities(again)
                assert stored > 19_000 or before < 20_000
                again.sample(64)
                assert again.add(**rows_of(0, [1])) is not None
            with mpbuffer.restore(tmp_path, size=5_000) as smaller:
                check_rows_and_priorities(smaller)


@pytest.mark.usefixtures("small_chunks")
def test_a_learner_saves_between_samples_while_explorers_add(tmp_path):
    with (
        mpbuffer.PrioritizedReplayBuffer(20_000, FIELDS) as buffer,
        Explorers(buffer),
    ):
        for _ in range(4):
            for _ in range(20):
                batch = buffer.sample(64)
                given = identity(batch["explorer"], batch["counter"])
                buffer.update_priorities(batch["indexes"], priority_given(given))
            buffer.snapshot(tmp_path, keep=2)
        with mpbuffer.restore(tmp_path) as again:
            check_rows_and_priorities(again)
            assert again.sample(64)["weights"].max() <= 1


def add_frames_until(buffer, explorer, stop, added):
    frames = np.random.default_rng(explorer).integers(0, 256, (1_003, 12, 12), np.uint8)
    step = 0
    while not stop.is_set():
        at = step % 1_000
        buffer.add(obs=frames[at : at + 4], explorer=explorer, at=at)
        step += 1
        added.value = step
        if step % 20 == 0:
            time.sleep(0.001)  # a lap takes longer than a snapshot


@pytest.mark.usefixtures("small_chunks")
def test_frames_saved_while_explorers_add_are_those_of_their_rows(tmp_path):
    env = {"obs": {"shape": (4, 12, 12), "dtype": np.uint8}, "explorer": {"dtype": int}}
    env |= {"at": {"dtype": int}}
    frames = [
        np.random.default_rng(explorer).integers(0, 256, (1_003, 12, 12), np.uint8)
        for explorer in range(2)
    ]
    with (
        mpbuffer.ReplayBuffer(3_000, env, stack_compress={"obs": 0}) as buffer,
        Explorers(buffer, work=add_frames_until),
    ):
        while len(buffer) < 3_000:
            time.sleep(0.01)
        for _ in range(4):
            buffer.snapshot(tmp_path)
            for size in (None, 500):
                with mpbuffer.restore(tmp_path, size=size) as again:
                    rows = again.get_all_transitions()
                    assert len(rows["at"]) > (size or 1_000) / 2
                    for i, stack in enumerate(rows["obs"]):
                        at = int(rows["at"][i, 0])
                        expected = frames[int(rows["explorer"][i, 0])][at : at + 4]
                        np.testing.assert_array_equal(stack, expected)


# Kills


def save_for_ever(path, seed, connection):
    """Tell each snapshot that is complete; each one's rows are of its own number."""
    size = 400
    with mpbuffer.PrioritizedReplayBuffer(size, FIELDS, seed=seed) as buffer:
        for counter in range(0, 10**6, 7):
            rows = rows_of(0, np.arange(counter, counter + 7))
            buffer.add(**rows, priorities=priority_given(identity(0, rows["counter"])))
            buffer.sample(8)
            buffer.snapshot(path, keep=1 + seed % 3)
            connection.send(counter + 7)


def kill_many(path, kills):
    rng = random.Random(5)
    for kill in range(kills):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=save_for_ever, args=(path, kill, there), daemon=True)
        process.start()
        there.close()
        assert here.poll(60)
        newest = 0  # the rows begin anew
        wait = time.monotonic() + rng.uniform(0, 0.15)
        while time.monotonic() < wait and process.is_alive():
            if here.poll(0.001):
                newest = here.recv()
        process.kill()
        process.join()
        while True:
            try:
                newest = here.recv()
            except EOFError:
                break
        with mpbuffer.restore(path) as again:
            stored = check_rows_and_priorities(again)
            counters = again.get_all_transitions()["counter"]
            assert counters.max() + 1 >= newest, "a complete snapshot is gone"
            assert stored == min(counters.max() + 1, 400)


@pytest.mark.usefixtures("small_chunks")
def test_a_killed_process_leaves_the_last_snapshot_whole(tmp_path):
    kill_many(tmp_path, 20)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.usefixtures("small_chunks")
def test_many_killed_processes_leave_the_last_snapshot_whole(tmp_path):
    kill_many(tmp_path, int(os.environ.get("MPBUFFER_KILLS", 1_000)))
