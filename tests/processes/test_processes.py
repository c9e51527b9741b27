"""Many processes on one buffer: rows, counts and priorities; and how long a segment lives."""

import contextlib
import importlib
import multiprocessing
import os
import pickle
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import explorer_processes as work
import numpy as np
import pytest
from watched_processes import (
    BufferElsewhere,
    StillRunning,
    end_process,
    join_within,
    killed_at_the_end,
    python_started,
    receive_within,
    run_python,
    wait_for_child,
)

import mpbuffer
from mpbuffer import PrioritizedReplayBuffer, ReplayBuffer
from mpbuffer.inspect.inspection import inspect

SHARED_MEMORY = Path("/dev/shm")
EXPLORERS = 8
ALPHA, EPS = 0.6, 1e-4

slow = [pytest.mark.slow, pytest.mark.timeout(900)]


def leaf_of(priorities):
    return (np.asarray(priorities, np.float64) + EPS) ** ALPHA


def close_to(leaves, priorities):
    return np.isclose(leaves, leaf_of(priorities), rtol=1e-6, atol=0)


# Explorers and a learner


class Learner:
    """Samples and updates while rows come in, and keeps account of what it aimed at which row.

    Every second batch is answered only when at least a whole ring of rows was added since.
    """

    def __init__(self, buffer, rows_each):
        self.buffer = buffer
        self.rows_each = rows_each
        self.held = []
        self.aimed_at = []
        self.stale = 0
        self.cycles = 0

    def cycle(self):
        buffer = self.buffer
        sample = buffer.sample(512)
        work.assert_rows_are_whole(
            {name: sample[name] for name in work.FIELDS}, EXPLORERS, self.rows_each
        )
        rows = work.identity(sample["explorer"], sample["counter"])
        self.cycles += 1
        if self.cycles % 2:
            self.held.append((buffer.rows_added(), sample["indexes"], rows))
        else:
            self.answer(sample["indexes"], rows)
        while self.held and self.held[0][0] + buffer.get_buffer_size() <= buffer.rows_added():
            _, indexes, rows = self.held.pop(0)
            self.answer(indexes, rows)

    def answer(self, indexes, rows):
        stale = self.buffer.update_priorities(indexes, work.priority_updated(rows))
        self.stale += stale
        self.aimed_at.append(rows)
        return stale


NEVER_FULL, MANY_LAPS = 2**20, 8192


@pytest.mark.parametrize(
    ("start_method", "capacity", "total"),
    [
        ("fork", NEVER_FULL, 100_000),
        ("fork", MANY_LAPS, 100_000),
        ("spawn", MANY_LAPS, 100_000),
        ("forkserver", NEVER_FULL, 100_000),
        *(
            pytest.param(start_method, capacity, 1_000_000, marks=slow)
            for start_method in ("fork", "spawn", "forkserver")
            for capacity in (NEVER_FULL, MANY_LAPS)
        ),
    ],
    indirect=["start_method"],
)
def test_explorers_and_a_learner(context, capacity, total):
    rows_each = total // EXPLORERS
    least_stale = total // 100 if capacity < total // 2 else 0
    buffer = PrioritizedReplayBuffer(capacity, work.FIELDS, alpha=ALPHA, eps=EPS, seed=1)
    learner = Learner(buffer, rows_each)
    begin, go_on, done = context.Event(), context.Event(), context.Event()

    def start(target, *arguments):
        ours, theirs = context.Pipe()
        process = context.Process(target=target, args=(buffer, *arguments, theirs))
        process.start()
        theirs.close()
        return process, ours

    started = [start(work.explore, number, rows_each, begin, go_on) for number in range(EXPLORERS)]
    started.append(start(work.look_on, EXPLORERS, rows_each, begin, done))
    with killed_at_the_end([process for process, _ in started]):
        for _, connection in started:
            assert receive_within(connection) == "ready"
        assert buffer.get_stored_size() == 0
        begin.set()
        explorers = started[:EXPLORERS]
        deadline = time.monotonic() + (800 if total > 100_000 else 100)
        sizes = [0]
        while any(process.is_alive() for process, _ in explorers):
            if time.monotonic() > deadline:
                raise StillRunning(f"explorers had added {buffer.rows_added()} rows")
            if not go_on.is_set() and 512 * (len(learner.held) - 2) >= least_stale:
                go_on.set()
            sizes.append(buffer.get_stored_size())
            if sizes[-1]:
                learner.cycle()
            if learner.cycles % 400 == 50:
                work.assert_rows_are_whole(buffer.get_all_transitions(), EXPLORERS, rows_each)
        done.set()
        lines = [receive_within(connection) for _, connection in explorers]
        assert receive_within(started[-1][1]) > 0, "the onlooker has seen rows"
        assert [join_within(process) for process, _ in started] == [0] * len(started)

    # The counts are exact.
    assert sizes == sorted(sizes)
    assert buffer.get_stored_size() == len(buffer) == min(capacity, total)
    assert buffer.rows_added() == total
    assert [line.rows for line in lines] == [rows_each] * EXPLORERS
    assert [line.pid for line in buffer.processes()] == [os.getpid()]
    skips = sum(line.skips for line in lines)
    assert buffer.get_next_index() == (total + skips) % capacity
    if capacity > total:
        assert skips == 0

    # Every row is there once, or the last ones are.
    rows = buffer.get_all_transitions()
    work.assert_rows_are_whole(rows, EXPLORERS, rows_each)
    present = work.identity(rows["explorer"], rows["counter"])
    assert len(np.unique(present)) == len(present) == min(capacity, total)

    # Updates still in flight: with nobody adding, it is known which are stale.
    buffer.sample(1)
    for _, indexes, drawn in learner.held:
        assert learner.answer(indexes, drawn) == (present[indexes] != drawn).sum()

    # No row has a priority that was meant for another.
    leaves = buffer._leaves()[: len(present)]
    assert (buffer._leaves()[len(present) :] == 0).all()
    aimed_at = np.isin(present, np.concatenate(learner.aimed_at))
    as_given = close_to(leaves, work.priority_given(present))
    as_updated = close_to(leaves, work.priority_updated(present)) & aimed_at
    assert (as_given | as_updated).all()
    assert as_updated.any()
    status = buffer.learner_status()
    assert status.stale == learner.stale
    assert abs(buffer._tree_total() - leaves.astype("f8").sum()) <= 1e-9 * buffer._tree_total()
    if capacity > total:
        assert learner.stale == 0
        assert (as_updated == aimed_at).all()
    else:
        assert learner.stale >= least_stale


def test_clear_while_explorers_add(context):
    """Rows come whole or not at all; in the end counts, rows and leaves agree with one another."""
    rows_each = 5_000
    buffer = PrioritizedReplayBuffer(700, work.FIELDS, alpha=ALPHA, eps=EPS, seed=1)
    begin, go_on = context.Event(), context.Event()
    started = []
    for number in range(3):
        ours, theirs = context.Pipe()
        process = context.Process(
            target=work.explore, args=(buffer, number, rows_each, begin, go_on, theirs)
        )
        process.start()
        started.append((process, ours))
    clears = 0
    with killed_at_the_end([process for process, _ in started]):
        for _, connection in started:
            assert receive_within(connection) == "ready"
        begin.set()
        deadline = time.monotonic() + 60
        while any(process.is_alive() for process, _ in started):
            assert time.monotonic() < deadline
            with contextlib.suppress(mpbuffer.EmptyBuffer):
                sample = buffer.sample(64)
                rows = {name: sample[name] for name in work.FIELDS}
                work.assert_rows_are_whole(rows, 3, rows_each)
                drawn = work.identity(rows["explorer"], rows["counter"])
                buffer.update_priorities(sample["indexes"], work.priority_updated(drawn))
            buffer.clear()
            clears += 1
            assert 0 <= buffer.get_stored_size() <= 700
            if clears == 20:
                go_on.set()
        assert [join_within(process) for process, _ in started] == [0, 0, 0]
    assert clears >= 20
    assert buffer.rows_added() == 3 * rows_each
    buffer.add(**work.rows_of(0, np.arange(1)), priorities=work.priority_given(np.zeros(1)))
    rows = buffer.get_all_transitions()
    work.assert_rows_are_whole(rows, 3, rows_each)
    present = work.identity(rows["explorer"], rows["counter"])
    assert buffer.get_stored_size() == len(present)
    assert np.unique(present[1:]).size == len(present) - 1
    buffer.sample(1)
    leaves = buffer._leaves()
    leaves = leaves[leaves > 0]
    assert len(leaves) == len(present) == buffer.learner_status().sampleable
    as_given = close_to(leaves, work.priority_given(present))
    as_updated = close_to(leaves, work.priority_updated(present))
    assert (as_given | as_updated).all()
    buffer.clear()
    assert buffer.get_stored_size() == 0
    assert buffer.add(**work.rows_of(0, np.arange(5))) == 0
    assert buffer.get_stored_size() == 5


READS = {
    "sample": lambda buffer: buffer.sample(3),
    "sample_uniform": lambda buffer: buffer.sample_uniform(3),
    "get_all_transitions": lambda buffer: buffer.get_all_transitions(),
    "_encode_sample": lambda buffer: buffer._encode_sample([0, 1]),
}


@pytest.mark.parametrize("read", READS)
def test_rows_overwritten_while_they_are_read(read):
    """A ring of four large rows, and a writer who goes round it while a row is being copied."""
    context = multiprocessing.get_context("fork")
    buffer = PrioritizedReplayBuffer(4, {"a": {"shape": work.LARGE_ROW, "dtype": "f8"}})
    done = context.Event()
    ours, theirs = context.Pipe()
    process = context.Process(target=work.overwrite_until, args=(buffer, done, theirs))
    process.start()
    with killed_at_the_end([process]):
        assert receive_within(ours) == "ready"
        whole = 0
        deadline = time.monotonic() + 30
        while whole < 20_000 and time.monotonic() < deadline:
            try:
                rows = READS[read](buffer)["a"]
            except (mpbuffer.EmptyBuffer, IndexError):
                continue  # nothing there yet, or nothing that holds still
            assert (rows == rows[:, :1]).all(), "a row is of two"
            whole += len(rows)
        done.set()
        assert join_within(process) == 0
    assert whole >= 500
    assert buffer.rows_added() > 100


# How a buffer comes to another process


@pytest.mark.parametrize("library", ["multiprocessing", "multiprocess"])
@pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplayBuffer])
def test_as_an_argument(start_method, library, cls):
    context = pytest.importorskip(library).get_context(start_method)
    buffer = cls(10, {"a": {}})
    buffer.add(a=1)
    ours, theirs = context.Pipe()
    process = context.Process(target=work.add_to_each, args=(buffer, 2, theirs))
    process.start()
    with killed_at_the_end([process]):
        assert receive_within(ours) == [(cls.__name__, buffer.name, 2)]
        assert join_within(process) == 0
    assert buffer.get_all_transitions()["a"].ravel().tolist() == [1, 2]


@pytest.mark.parametrize("library", ["multiprocessing", "multiprocess"])
def test_within_containers(start_method, library):
    context = pytest.importorskip(library).get_context(start_method)
    buffers = [cls(10, {"a": {}}) for cls in (ReplayBuffer, PrioritizedReplayBuffer) * 3]
    container = [
        buffers[0],
        {"second": buffers[1], "more": (buffers[2],)},
        work.Carrier("carried", buffers[3], {"deep": [buffers[4], {"deeper": buffers[5]}]}),
        buffers[0],
    ]
    ours, theirs = context.Pipe()
    process = context.Process(
        target=work.add_to_each, kwargs=dict(container=container, number=3, connection=theirs)
    )
    process.start()
    with killed_at_the_end([process]):
        told = receive_within(ours)
        assert join_within(process) == 0
    assert [entry[:2] for entry in told] == [
        (type(buffer).__name__, buffer.name) for buffer in [*buffers, buffers[0]]
    ]
    assert [len(buffer) for buffer in buffers] == [2, 1, 1, 1, 1, 1]


def test_to_a_grandchild(start_method, context):
    buffer = ReplayBuffer(10, {"a": {}})
    ours, theirs = context.Pipe()
    process = context.Process(target=work.pass_on, args=(start_method, buffer, 5, theirs))
    process.start()
    with killed_at_the_end([process]):
        assert receive_within(ours) == 0
        assert join_within(process) == 0
    assert buffer.get_all_transitions()["a"].ravel().tolist() == [5, 6]


def test_to_the_processes_of_a_pool(context):
    buffer = ReplayBuffer(1000, {"a": {}})
    with context.Pool(2) as pool:
        work_done = pool.starmap_async(work.add_to_each, [(buffer, i) for i in range(40)])
        work_done.get(60)
        pool.close()
        pool.join()
    assert sorted(buffer.get_all_transitions()["a"].ravel()) == list(range(40))


def test_through_a_pipe_to_a_running_process(context):
    ours, theirs = context.Pipe()
    first = ReplayBuffer(10, {"a": {}})
    with BufferElsewhere(context, first) as other:
        second = PrioritizedReplayBuffer(10, {"a": {}})
        other.run(receive_and_add, second)
        assert len(second) == 1
    ours.close()
    theirs.close()


def receive_and_add(_own, received):
    received.add(a=1)


@pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplayBuffer])
def test_pickle_to_an_unrelated_process(cls):
    buffer = cls(10, {"a": {"shape": 2, "dtype": "f8"}})
    buffer.add(a=[1, 2])
    script = """
import pickle, sys
buffer = pickle.load(sys.stdin.buffer)
buffer.add(a=[[3, 4], [5, 6]])
print(type(buffer).__name__, buffer.name, len(buffer), buffer.sample(1)["a"].dtype)
"""
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        ended = run_python(script=script, stdin=pickle.dumps(buffer, protocol))
        assert ended.returncode == 0, ended.stderr.decode()
        told = ended.stdout.decode().split()
        assert told == [cls.__name__, buffer.name, str(len(buffer)), "float64"]
    assert buffer.get_all_transitions()["a"][:3].tolist() == [[1, 2], [3, 4], [5, 6]]


def test_a_plain_pickle_carries_the_name_and_little_else():
    buffer = ReplayBuffer(1e6, work.FIELDS)
    data = pickle.dumps(buffer)
    assert len(data) < 1000
    again = pickle.loads(data)
    again.add(**work.rows_of(0, np.arange(3)))
    assert len(buffer) == 3
    again.close()
    assert len(buffer) == 3
    buffer.close()
    with pytest.raises(mpbuffer.SegmentNotFound, match=buffer.name):
        pickle.loads(data)


def test_attach_gives_the_class_and_the_settings():
    uniform = ReplayBuffer(
        10,
        {"a": {}, "b": {"shape": (2, 3), "dtype": "u1"}},
        default_dtype="f8",
        name="uniform.test",
    )
    other = mpbuffer.attach("uniform.test")
    assert type(other) is ReplayBuffer
    assert other.name == "uniform.test"
    assert other.get_buffer_size() == 10
    other.add(a=0.1, b=np.ones((2, 3)))
    row = uniform.sample(1)
    assert row["a"].dtype == np.float64
    assert row["a"].item() == 0.1
    assert row["b"].dtype == np.uint8
    for name, array in other.sample(1).items():
        assert (array.dtype, array.shape) == (row[name].dtype, row[name].shape)

    prioritized = PrioritizedReplayBuffer(10, {"a": {}}, alpha=0.9, eps=0.01)
    other = mpbuffer.attach(prioritized.name)
    assert type(other) is PrioritizedReplayBuffer
    other.add(a=[1, 2], priorities=[3.0, 0.5])
    other.sample(1)
    np.testing.assert_allclose(other._leaves()[:2], [3.01**0.9, 0.51**0.9], rtol=1e-6)


def test_attach_keeps_strict():
    buffer = ReplayBuffer(10, {"a": {}}, strict=True)
    with pytest.raises(TypeError, match="extra"):
        mpbuffer.attach(buffer.name).add(a=1, extra=2)


def test_subclasses_and_pickle():
    """A user's subclass adds methods; it comes back as itself, or at least as the base."""
    buffer = Subclassed(10, {"a": {}})
    again = pickle.loads(pickle.dumps(buffer))
    again.add(a=3)
    assert isinstance(again, ReplayBuffer)
    assert len(buffer) == 1


class Subclassed(ReplayBuffer):
    def doubled(self):
        return 2 * len(self)


def test_attach_to_what_is_not_there():
    with pytest.raises(mpbuffer.SegmentNotFound, match="no-such-buffer"):
        mpbuffer.attach("no-such-buffer")
    for name in ("", "a/b", "../../etc/passwd", "x" * 129):
        with pytest.raises((ValueError, FileNotFoundError)):
            mpbuffer.attach(name)


def test_a_name_in_use(context):
    buffer = ReplayBuffer(10, {"a": {}}, name="taken.test")
    buffer.add(a=1)
    with pytest.raises(mpbuffer.SegmentExists, match=r"taken\.test"):
        ReplayBuffer(10, {"a": {}}, name="taken.test")
    assert buffer.get_all_transitions()["a"].item() == 1
    assert len(mpbuffer.attach("taken.test")) == 1
    with BufferElsewhere(context, buffer):
        buffer.close()
        with pytest.raises(mpbuffer.SegmentExists):
            ReplayBuffer(10, {"a": {}}, name="taken.test")
    assert len(ReplayBuffer(10, {"a": {}}, name="taken.test")) == 0


# Files that are no segment of ours


@contextlib.contextmanager
def file_in_shared_memory(path, content=b"", mode=0o600):
    path.write_bytes(content)
    path.chmod(mode)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("content", [b"", b"x", b"not a segment" * 1000, bytes(1 << 20)])
def test_attach_to_a_foreign_file(segment_file, content):
    with (
        file_in_shared_memory(segment_file("foreign.test"), content),
        pytest.raises(mpbuffer.SegmentMismatch, match=r"foreign\.test"),
    ):
        mpbuffer.attach("foreign.test")


def test_attach_to_a_damaged_segment(segment_file):
    buffer = PrioritizedReplayBuffer(100, {"a": {"shape": 4}}, name="whole.test")
    content = segment_file(buffer.name).read_bytes()
    damaged = segment_file("damaged.test")
    for length in (1, 63, 64, 4095, 4096, len(content) // 2, len(content) - 1):
        with (
            file_in_shared_memory(damaged, content[:length]),
            pytest.raises(mpbuffer.SegmentMismatch),
        ):
            mpbuffer.attach("damaged.test")
    meaningful = [at for at in range(256) if content[at]]
    assert len(meaningful) > 16
    for at in meaningful[:48]:
        changed = bytearray(content)
        changed[at] ^= 0x55
        with (
            file_in_shared_memory(damaged, changed),
            pytest.raises((mpbuffer.SegmentMismatch, mpbuffer.SegmentNotFound)),
        ):
            mpbuffer.attach("damaged.test").close()
            pytest.fail(f"attached though byte {at} was changed")


def test_attach_follows_no_link(segment_file):
    buffer = ReplayBuffer(10, {"a": {}}, name="file.test")
    link = segment_file("link.test")
    link.symlink_to(segment_file(buffer.name))
    try:
        with pytest.raises((mpbuffer.MpbufferError, OSError)):
            mpbuffer.attach("link.test")
    finally:
        link.unlink(missing_ok=True)
    assert segment_file(buffer.name).exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_attach_to_a_segment_of_another_user(segment_file):
    buffer = ReplayBuffer(10, {"a": {}}, name="file.test")
    content = segment_file(buffer.name).read_bytes()
    with file_in_shared_memory(segment_file("theirs.test"), content) as path:
        os.chown(path, 12345, 12345)
        with pytest.raises((mpbuffer.MpbufferError, PermissionError)):
            mpbuffer.attach("theirs.test")
        ReplayBuffer(10, {"a": {}})
        assert path.exists(), "a sweep removes nothing of other users"


# How long a segment lives


def started_with(context, buffer):
    """A process that holds the buffer, adds a row when told to, and then ends."""
    told = context.Event()
    ours, theirs = context.Pipe()
    process = context.Process(target=work.add_once_told, args=(buffer, told, 7, theirs))
    process.start()
    return process, told, ours


@pytest.mark.parametrize("library", ["multiprocessing", "multiprocess"])
@pytest.mark.parametrize("how", ["del", "close"])
def test_parent_drops_its_object_right_after_start(start_method, library, how, segment_file):
    context = pytest.importorskip(library).get_context(start_method)
    buffer = ReplayBuffer(10, {"a": {}}, name="file.test")
    buffer.add(a=1)
    path = segment_file(buffer.name)
    process, told, connection = started_with(context, buffer)
    if how == "close":
        buffer.close()
    del buffer
    with killed_at_the_end([process]):
        told.set()
        assert receive_within(connection) == (2, [1, 7])
        assert join_within(process) == 0
    assert not path.exists(), "the child was the last one out"


def test_the_last_one_out_removes_the_segment(context, segment_file):
    buffer = ReplayBuffer(10, {"a": {}}, name="file.test")
    path = segment_file(buffer.name)
    first, second = started_with(context, buffer), started_with(context, buffer)
    with killed_at_the_end([first[0], second[0]]):
        buffer.close()
        assert path.exists()
        first[1].set()
        assert receive_within(first[2]) == (1, [7])
        assert join_within(first[0]) == 0
        assert path.exists()
        second[1].set()
        assert receive_within(second[2]) == (2, [7, 7])
        assert join_within(second[0]) == 0
    assert not path.exists()


def test_a_process_that_leaves_takes_nothing_from_those_that_stay(context, segment_file):
    buffer = PrioritizedReplayBuffer(10, {"a": {}}, name="file.test")
    buffer.add(a=1)
    for number in range(3):
        with BufferElsewhere(context, buffer.name) as other:
            other.add(a=number)
    assert len(buffer) == 4
    assert segment_file(buffer.name).exists()
    buffer.sample(1)
    with BufferElsewhere(context, buffer.name) as other, pytest.raises(mpbuffer.LearnerBusy):
        other.sample(1)


def test_handles_in_one_process(segment_file):
    first = ReplayBuffer(10, {"a": {}}, name="file.test")
    path = segment_file(first.name)
    second = mpbuffer.attach(first.name)
    third = pickle.loads(pickle.dumps(first))
    first.add(a=1)
    second.add(a=2)
    first.close()
    third.add(a=3)
    assert path.exists()
    assert len(second) == 3
    second.close()
    assert third.get_all_transitions()["a"].ravel().tolist() == [1, 2, 3]
    third.close()
    assert not path.exists()


@pytest.mark.parametrize("name", ["killed.test", "killed.next"])
def test_what_a_killed_creator_leaves_the_next_creation_removes(context, name, segment_file):
    ours, theirs = context.Pipe()
    creator = context.Process(target=work.create_and_wait, args=("killed.test", theirs))
    creator.start()
    with killed_at_the_end([creator]):
        left = segment_file(receive_within(ours))
        with ReplayBuffer(10, {"a": {}}):
            assert left.exists(), "its creator lives"
        assert len(mpbuffer.attach(left.name.split("-", 2)[2])) == 1
        creator.kill()
        assert join_within(creator) == -signal.SIGKILL
    assert left.exists()
    with ReplayBuffer(10, {"a": {}}, name=name) as buffer:
        assert len(buffer) == 0
        assert left.exists() == (name == "killed.test")
    assert not left.exists()


def test_a_killed_creator_is_outlived_by_its_children(segment_file):
    """The children go on; the last of them removes the segment."""
    script = """
import os, sys, multiprocessing, mpbuffer
import explorer_processes as work
if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    buffer = mpbuffer.ReplayBuffer(10, {"a": {}}, name="file.test")
    ours, theirs = context.Pipe()
    child = context.Process(target=work.add_to_each, args=(buffer, 1, theirs))
    child.start()
    assert ours.poll(30), "the child has not added its row"
    ours.recv()
    grandchild = os.fork()
    if grandchild == 0:
        sys.stdin.readline()
        buffer.add(a=2)
        print(len(buffer), flush=True)
        buffer.close()
        os._exit(0)
    print(buffer.name, flush=True)
    os.kill(os.getpid(), 9)
"""
    with python_started(script=script, text=True) as creator:
        name = creator.stdout.readline().strip()
        assert creator.wait(30) == -signal.SIGKILL
        with ReplayBuffer(10, {"a": {}}):
            pass  # sweeps
        assert segment_file(name).exists()
        with mpbuffer.attach(name) as buffer:
            assert len(buffer) == 1
        assert segment_file(name).exists()
        creator.stdin.write("\n")
        creator.stdin.flush()
        assert creator.stdout.readline() == "2\n"
        assert creator.stdout.read() == ""
    assert not segment_file(name).exists()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_nobody_else_may_read(umask, segment_file):
    before = os.umask(umask)
    try:
        buffer = ReplayBuffer(10, {"a": {}}, name="file.test")
        about = segment_file(buffer.name).stat()
    finally:
        os.umask(before)
    assert stat.S_IMODE(about.st_mode) == 0o600
    assert about.st_uid == os.getuid()
    buffer.close()


def test_descriptors_are_given_back():
    def held():
        maps = Path("/proc/self/maps").read_text()
        return len(os.listdir("/proc/self/fd")), maps.count("mpbuffer-")

    ReplayBuffer(10, {"a": {}}).close()
    before = held()
    for number in range(50):
        buffer = PrioritizedReplayBuffer(10, {"a": {}}, name="given.back" if number % 2 else None)
        buffer.add(a=1)
        buffer.sample(1)
        mpbuffer.attach(buffer.name).close()
        pickle.loads(pickle.dumps(buffer)).add(a=2)
        if number % 2:
            with pytest.raises(mpbuffer.SegmentExists):
                ReplayBuffer(10, {"a": {}}, name=buffer.name)
        for nothing in ("no-such-buffer", "1-0123456789ab"):
            with pytest.raises(mpbuffer.SegmentNotFound):
                mpbuffer.attach(nothing)
        buffer.close()
    assert held() == before


INHERITED = """
import os, sys
for number in os.listdir("/proc/self/fd"):
    try:
        target = os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        continue
    if target.startswith(("/dev/shm", "/memfd:mpbuffer")):
        sys.exit(f"inherited {target}")
"""


def test_descriptors_do_not_pass_to_programs_that_are_run():
    with ReplayBuffer(10, {"a": {}}) as buffer:
        buffer.add(a=1)
        ended = subprocess.run(
            [sys.executable, "-I", "-c", INHERITED],
            close_fds=False,
            capture_output=True,
            timeout=30,
        )
    assert ended.stderr.decode() == ""


# Nothing is said that users would have to explain away


QUIET = """
import multiprocessing, sys
import explorer_processes as work
import mpbuffer

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    buffer = mpbuffer.PrioritizedReplayBuffer(1000, {"a": {}})
    dropped = mpbuffer.ReplayBuffer(1000, {"a": {}})
    processes = [
        context.Process(target=work.add_to_each, args=([buffer, dropped], n)) for n in range(3)
    ]
    for process in processes:
        process.start()
    del dropped
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(buffer) == 3
    buffer.update_priorities(buffer.sample(2)["indexes"], 1.0)
    never_closed = mpbuffer.ReplayBuffer(10, {"a": {}})
    sys.stdout.write("done")
"""


def test_nothing_is_said_on_stderr(start_method, tmp_path):
    """No resource tracker's warning, no exception ignored, in development mode too."""
    program = tmp_path / "program.py"
    program.write_text(QUIET)
    for options in ([], ["-X", "dev"]):
        ended = run_python(*options, str(program), start_method)
        assert ended.stderr.decode() == ""
        assert ended.returncode == 0
        assert ended.stdout == b"done"


@pytest.mark.parametrize("end", ["sys.exit(3)", "os._exit(3)", "1 / 0", "os.kill(os.getpid(), 15)"])
def test_however_a_program_ends_the_next_creation_finds_a_clean_house(end, segment_file):
    script = f"""
import os, sys, mpbuffer
buffer = mpbuffer.PrioritizedReplayBuffer(1000, {{"a": {{}}}}, name="ended.test")
buffer.add(a=1)
sample = buffer.sample(1)
print(buffer.name, flush=True)
{end}
"""
    ended = run_python(script=script)
    assert ended.returncode in (3, 1, -15)
    if "_exit" in end or "kill" in end:
        ReplayBuffer(10, {"a": {}}).close()
    assert not segment_file(ended.stdout.decode().strip()).exists()
    said = ended.stderr.decode()
    assert ("ZeroDivisionError" in said) == (end == "1 / 0")
    assert "mpbuffer" not in said
    assert "resource_tracker" not in said


# Fork


def in_a_forked_child(function):
    """Run it in a child of os.fork(); an assertion that fails there fails here."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)
    assert wait_for_child(child) == 0


def test_use_after_fork_in_the_child():
    buffer = PrioritizedReplayBuffer(10, {"a": {}})
    buffer.add(a=[1, 2])

    def child():
        assert len(buffer) == 2
        assert buffer.add(a=3) == 2
        assert buffer.sample_uniform(5)["a"].shape == (5, 1)
        assert buffer.sample(5)["a"].shape == (5, 1)  # the role is free
        assert buffer.update_priorities([0], [5.0]) == 0

    in_a_forked_child(child)
    assert buffer.get_all_transitions()["a"].ravel().tolist() == [1, 2, 3]
    buffer.add(a=4)
    assert buffer.get_max_priority() == 5.0
    in_a_forked_child(lambda: buffer.add(a=5))
    (myself,) = buffer.processes()  # the children have ended
    assert (myself.pid, myself.rows) == (os.getpid(), 3)
    assert buffer.rows_added() == 5
    assert buffer.sample(5)["a"].shape == (5, 1)


def test_a_child_forked_while_a_thread_creates_a_buffer_does_not_keep_its_name(
    monkeypatch, segment_file
):
    halfway, forked = threading.Event(), threading.Event()

    def progress(_, done):
        halfway.set()
        assert forked.wait(30)

    def create_and_close(name):
        with ReplayBuffer(1000, {"a": {"shape": 1000}}, name=name) as buffer:
            buffer.add(a=np.ones(1000))

    monkeypatch.setattr("mpbuffer.buffer.creation.CreationLog.__call__", progress)
    children = []
    try:
        for name in ("halfway.0", "halfway.1", "halfway.2"):
            halfway.clear()
            forked.clear()
            creating = threading.Thread(target=create_and_close, args=(name,))
            creating.start()
            assert halfway.wait(30)
            here, there = os.pipe()
            child = os.fork()
            if child == 0:
                os.write(there, b"!")  # what runs in a child straight after fork has run
                time.sleep(60)
                os._exit(0)
            children.append(child)
            assert os.read(here, 1) == b"!"
            os.close(here)
            os.close(there)
            forked.set()
            creating.join(30)
            assert not creating.is_alive()
            assert not segment_file(name).exists()
            create_and_close(name)
            assert not segment_file(name).exists()
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_a_child_forked_by_the_progress_of_a_creation_gets_an_error(monkeypatch):
    parent, children = os.getpid(), []

    def progress(_, done):
        if not children:
            children.append(os.fork())

    monkeypatch.setattr("mpbuffer.buffer.creation.CreationLog.__call__", progress)
    said = None
    try:
        buffer = ReplayBuffer(1000, {"a": {"shape": 1000}})
    except mpbuffer.BufferClosed as error:
        said = str(error)
    finally:
        if os.getpid() != parent:
            os._exit(0 if said and "forked in the middle of it" in said else 1)
    assert wait_for_child(children[0]) == 0
    assert buffer.add(a=np.ones(1000)) == 0
    buffer.close()


def test_a_child_that_never_used_the_buffer_changes_nothing():
    buffer = PrioritizedReplayBuffer(10, {"a": {}})
    buffer.add(a=1)
    buffer.sample(1)
    in_a_forked_child(lambda: None)
    in_a_forked_child(lambda: buffer.close())
    assert buffer.add(a=2) == 1
    assert buffer.sample(1)["a"].shape == (1, 1)
    assert len(mpbuffer.attach(buffer.name)) == 2


def test_use_in_the_parent_while_the_child_uses_it():
    buffer = ReplayBuffer(100_000, work.FIELDS)
    begin = multiprocessing.get_context("fork").Event()

    def add_many(explorer):
        assert begin.wait(30)
        for counter in range(0, 10_000, 20):
            buffer.add(**work.rows_of(explorer, np.arange(counter, counter + 20)))

    children = []
    for explorer in range(3):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                add_many(explorer)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    begin.set()
    add_many(3)
    assert [wait_for_child(child) for child in children] == [0, 0, 0]
    rows = buffer.get_all_transitions()
    work.assert_rows_are_whole(rows, 4, 10_000)
    assert len(np.unique(work.identity(rows["explorer"], rows["counter"]))) == 40_000
    assert len(buffer) == 40_000


def test_the_parent_may_leave_before_the_child(segment_file):
    buffer = ReplayBuffer(10, {"a": {}}, name="file.test")
    path = segment_file(buffer.name)
    told = multiprocessing.get_context("fork").Event()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert told.wait(30)
            buffer.add(a=1)
            code = 0 if len(buffer) == 1 and path.exists() else 2
            buffer.close()
            if path.exists():
                code = 3
        finally:
            os._exit(code)
    buffer.close()
    assert path.exists()
    told.set()
    assert wait_for_child(child) == 0
    assert not path.exists()


def test_a_buffer_made_in_the_child(segment_file):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    creator = context.Process(target=work.create_and_wait, args=("child.test", theirs))
    creator.start()
    with killed_at_the_end([creator]):
        buffer = mpbuffer.attach(receive_within(ours))
        ours.send("end")
        assert join_within(creator) == 0
        assert segment_file(buffer.name).exists()
        assert buffer.sample(3)["a"].ravel().tolist() == [1, 1, 1]


def test_child_of_a_child():
    buffer = PrioritizedReplayBuffer(10, {"a": {}})
    buffer.add(a=1)
    buffer.sample(1)

    def child():
        buffer.add(a=2)
        in_a_forked_child(lambda: buffer.add(a=3))
        buffer.add(a=4)

    in_a_forked_child(child)
    buffer.add(a=5)
    assert buffer.get_all_transitions()["a"].ravel().tolist() == [1, 2, 3, 4, 5]
    assert [process.rows for process in buffer.processes()] == [2]
    assert buffer.rows_added() == 5


def test_parent_and_child_draw_differently():
    buffer = ReplayBuffer(10_000, {"a": {"dtype": "i8"}}, seed=5)
    buffer.add(a=np.arange(10_000))
    read, write = os.pipe()

    def child():
        os.write(write, buffer.sample(100)["a"].tobytes())

    in_a_forked_child(child)
    in_a_forked_child(child)
    mine = buffer.sample(100)["a"].ravel()
    first, second = np.frombuffer(os.read(read, 4096), np.int64).reshape(2, 100)
    os.close(read)
    os.close(write)
    for one, other in [(mine, first), (mine, second), (first, second)]:
        assert (one == other).sum() < 5


FORK_WHILE_ADDING = """
import os, sys, threading, time
import numpy as np
import mpbuffer

learns = sys.argv[1] == "learns"
buffer = mpbuffer.PrioritizedReplayBuffer(500, {"a": {"dtype": "i8"}, "b": {"shape": 2000}})
row = np.zeros(2000, np.float32)
buffer.add(a=0, b=row)
if learns:
    buffer.sample(1)
ended = threading.Event()
failures = []

def watched(function):
    try:
        while not ended.is_set():
            function()
    except BaseException as error:
        failures.append(error)

def adds():
    buffer.add(a=np.arange(50), b=np.broadcast_to(row, (50, 2000)))

def samples():
    sample = buffer.sample(64)  # long enough to be in the core, without the GIL, at the fork
    buffer.update_priorities(sample["indexes"], np.ones(64))

def child():
    signal_after(20)
    for number in range(5):
        buffer.add(a=number, b=row)
    assert buffer.sample_uniform(8)["b"].shape == (8, 2000)
    assert buffer.get_stored_size() <= 500
    if learns:
        try:
            buffer.sample(1)
        except mpbuffer.LearnerBusy:
            pass
        else:
            raise AssertionError("the child took its parent's role")

def signal_after(seconds):
    import faulthandler
    faulthandler.dump_traceback_later(seconds, exit=True)

threads = [threading.Thread(target=watched, args=(adds,))]
if learns:
    threads.append(threading.Thread(target=watched, args=(samples,)))
for thread in threads:
    thread.start()
for _ in range(50):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child()
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + 30
    while True:
        gone, status = os.waitpid(pid, os.WNOHANG)
        if gone:
            break
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            raise SystemExit("a child hangs")
        time.sleep(0.0005)
    if status:
        failures.append(f"a child ended with {status}")
        break
ended.set()
for thread in threads:
    thread.join()
if failures:
    raise SystemExit(repr(failures))
(status,) = buffer.processes()
assert status.rows + 50 * 5 == buffer.rows_added()
print("done")
"""


@pytest.mark.parametrize("role", ["adds", "learns"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork_while_another_thread_uses_the_buffer(role, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(FORK_WHILE_ADDING)
    ended = run_python("-W", "ignore::DeprecationWarning", str(program), role, seconds=90)
    assert ended.returncode == 0, ended.stderr.decode()
    assert ended.stdout == b"done\n"


# Numbers of handles; exec; other pid namespaces


def test_short_lived_handles_leave_no_lines_behind():
    with ReplayBuffer(100, {"a": {}}) as buffer:
        for number in range(1100):
            with mpbuffer.attach(buffer.name) as other:
                other.add(a=number)
                assert [line.number for line in other.processes()] == [1, 2]
        assert [line.number for line in buffer.processes()] == [1]
        assert buffer.rows_added() == 1100


EXPLORES_AND_EXECS = """
import os, sys
import mpbuffer
name, left = sys.argv[-2], int(sys.argv[-1])
buffer = mpbuffer.attach(name)
other = mpbuffer.attach(name)
buffer.add(a=left)
mine = [line for line in buffer.processes() if line.pid == os.getpid()]
assert sorted(line.number for line in mine) == [2, 3], mine
if left:
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:-1], str(left - 1)])
print("done", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("execs", [12, pytest.param(1100, marks=slow)])
def test_a_program_that_execs_itself_leaves_no_handles(execs, tmp_path):
    script = tmp_path / "explorer.py"
    script.write_text(EXPLORES_AND_EXECS)
    with ReplayBuffer(2000, {"a": {}}) as buffer:
        with python_started(str(script), buffer.name, str(execs)) as process:
            assert process.stdout.readline() == b"done\n"
            assert [line.number for line in buffer.processes()] == [1, 2, 3]
            assert buffer.rows_added() == len(buffer) == execs + 1
            process.communicate()
        assert [line.number for line in buffer.processes()] == [1]


ADDS_AND_EXECS = """
import os, sys, threading, time
import numpy as np
import mpbuffer
buffer = mpbuffer.attach(sys.argv[-1])
rows = np.ones((1, 2**22))
def add():
    while True:
        buffer.add(a=rows)
threading.Thread(target=add, daemon=True).start()
while len(buffer) < 2:
    time.sleep(0.001)
os.execv(sys.executable, [sys.executable, "-c", "print('replaced', flush=True); input()"])
"""


def test_a_claim_in_flight_at_an_exec_is_taken_over(tmp_path):
    script = tmp_path / "explorer.py"
    script.write_text(ADDS_AND_EXECS)
    for _ in range(10):
        with (
            PrioritizedReplayBuffer(3, {"a": {"shape": 2**22, "dtype": "f8"}}) as buffer,
            python_started(str(script), buffer.name) as process,
        ):
            assert process.stdout.readline() == b"replaced\n"
            abandoned = inspect(buffer.name)["abandoned_claims"]
            for number in range(2, 5):
                buffer.add(a=np.full(2**22, number))
            assert sorted(buffer.get_all_transitions()["a"][:, -1]) == [2, 3, 4]
            (line,) = buffer.processes()
            assert (line.pid, line.skips) == (os.getpid(), 0)
            assert process.poll() is None
        if abandoned:
            return
    pytest.fail("no claim was in flight at any exec")


EXPLORES_ELSEWHERE = """
import os, sys
import mpbuffer
with mpbuffer.attach(sys.argv[-1]) as buffer:
    buffer.add(a=1)
    states = {line.number: line.state for line in buffer.processes()}
    assert states == {1: "?", 2: "R"}, states
    print(os.getpid(), flush=True)
    sys.stdin.readline()
    buffer.add(a=2)
"""


def test_an_explorer_in_another_pid_namespace(tmp_path):
    script = tmp_path / "explorer.py"
    script.write_text(EXPLORES_ELSEWHERE)
    elsewhere = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*elsewhere, "true"], capture_output=True).returncode != 0:
        pytest.skip("no right to make a pid namespace")
    with ReplayBuffer(10, {"a": {}}) as buffer:
        for killed in (False, True):
            with python_started(str(script), buffer.name, prefix=elsewhere) as process:
                assert process.stdout.readline() == b"1\n"
                assert [(line.pid, line.state) for line in buffer.processes()[1:]] == [(1, "?")]
                if killed:
                    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
                    end_process(int(children.read_text()))
                else:
                    process.communicate(b"\n")
                    assert process.returncode == 0
                    assert len(buffer.processes()) == 1  # it has closed its handle
        # Whether one of there was killed cannot be told from here.
        assert [(line.pid, line.state) for line in buffer.processes()[1:]] == [(1, "?")]
        buffer.add(a=[4, 5])
        assert sorted(buffer.get_all_transitions()["a"].ravel()) == [1, 1, 2, 4, 5]


# Too little room


def can_mount():
    tried = subprocess.run(
        ["unshare", "-m", "sh", "-c", "mount -t tmpfs -o size=64m tmpfs /dev/shm"],
        capture_output=True,
        timeout=30,
    )
    return tried.returncode == 0


TOO_LITTLE_ROOM = """
import os, re
import numpy as np
import mpbuffer

def entries():
    return sorted(os.listdir("/dev/shm"))

total = os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize
assert total == 64 << 20, total
for cls in (mpbuffer.ReplayBuffer, mpbuffer.PrioritizedReplayBuffer):
    for size in (1_000_000, 70_000, 10**9):
        try:
            cls(size, {"obs": {"shape": 250}}, name="large")
        except mpbuffer.NotEnoughMemory as error:
            assert isinstance(error, MemoryError)
            said = str(error)
            assert "/dev/shm" in said and "--shm-size" in said, said
            assert len(re.findall(r"\\d+(?:[.,]\\d+)*", said)) >= 2, said
            print(said)
        else:
            raise AssertionError("created a buffer larger than /dev/shm")
        assert entries() == []

first = mpbuffer.ReplayBuffer(40_000, {"obs": {"shape": 250}}, name="first")  # about 41 MB
first.add(obs=np.full((40_000, 250), 7.0))
try:
    mpbuffer.ReplayBuffer(40_000, {"obs": {"shape": 250}}, name="second")
except mpbuffer.NotEnoughMemory as error:
    print(error)
else:
    raise AssertionError("created two buffers where there is room for one")
assert len(entries()) == 1, entries()
assert (first.get_all_transitions()["obs"] == 7).all()
first.close()
for _ in range(5):
    with mpbuffer.ReplayBuffer(40_000, {"obs": {"shape": 250}}, name="again") as again:
        again.add(obs=np.ones((40_000, 250)))
assert entries() == []
"""


def test_a_small_shared_memory(tmp_path):
    if not can_mount():
        pytest.skip("may not mount a file system of its own over /dev/shm here")
    program = tmp_path / "program.py"
    program.write_text(TOO_LITTLE_ROOM)
    mount = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
    ended = run_python(str(program), prefix=["unshare", "-m", "sh", "-c", mount, "sh"])
    assert ended.returncode == 0, ended.stderr.decode() + ended.stdout.decode()


def with_files_instead(files, script, tmp_path):
    """Run a script that sees these files in place of the system's own; skips if not allowed.

    Keys of `files` are paths under /proc or /sys/fs/cgroup; the latter is replaced as a whole.
    """
    steps = []
    for number, (path, content) in enumerate(files.items()):
        if path.startswith("/sys/fs/cgroup/"):
            replacement = tmp_path / "cgroup" / path.removeprefix("/sys/fs/cgroup/")
            replacement.parent.mkdir(parents=True, exist_ok=True)
        else:
            replacement = tmp_path / str(number)
            steps.append(f"mount --bind {replacement} {path.replace('self', '$$')}")
        replacement.write_text(content)
    if (tmp_path / "cgroup").exists():
        steps.append(f"mount --bind {tmp_path / 'cgroup'} /sys/fs/cgroup")
    steps = " && ".join(steps)
    tried = subprocess.run(["unshare", "-m", "sh", "-c", steps], capture_output=True, timeout=30)
    if tried.returncode != 0:
        pytest.skip(f"may not mount files of its own here: {tried.stderr.decode().strip()}")
    prefix = ["unshare", "-m", "sh", "-c", f'{steps} && exec "$@"', "sh"]
    ended = run_python(script=script, prefix=prefix)
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout.decode()


LIMITED_TO_300_MB = """
import mpbuffer
try:
    mpbuffer.ReplayBuffer(1_000_000, {"obs": {"shape": 100}})  # about 400 MB
except mpbuffer.NotEnoughMemory as error:
    print(error)
else:
    raise AssertionError("created more than is allowed")
mpbuffer.ReplayBuffer(10_000, {"obs": {"shape": 100}}).close()
"""


@pytest.mark.parametrize("limited", ["inner", "outer"])
def test_a_cgroup_limit(limited, tmp_path):
    """Of whichever ancestor; what is used already counts against it, what is cache does not."""
    inner = "/sys/fs/cgroup/outer/inner"
    folder = inner if limited == "inner" else "/sys/fs/cgroup/outer"
    files = {
        "/proc/self/cgroup": "0::/outer/inner\n",
        f"{inner}/memory.max": "max\n",
        f"{inner}/memory.current": "0\n",
        f"{folder}/memory.max": f"{500 << 20}\n",
        f"{folder}/memory.current": f"{300 << 20}\n",
        f"{folder}/memory.stat": f"inactive_file {100 << 20}\n",
    }
    assert "cgroup" in with_files_instead(files, LIMITED_TO_300_MB, tmp_path)


def test_a_cgroup_limit_of_version_1(tmp_path):
    folder = "/sys/fs/cgroup/memory/outer"
    files = {
        "/proc/self/cgroup": "7:pids:/\n4:memory:/outer/inner\n0::/\n",
        f"{folder}/inner/memory.limit_in_bytes": f"{2**63 - 4096}\n",
        f"{folder}/inner/memory.usage_in_bytes": "0\n",
        f"{folder}/memory.limit_in_bytes": f"{300 << 20}\n",
        f"{folder}/memory.usage_in_bytes": "0\n",
    }
    assert "cgroup" in with_files_instead(files, LIMITED_TO_300_MB, tmp_path)


def test_free_memory(tmp_path):
    free = 300 << 10
    meminfo = f"MemTotal: {free * 8} kB\nMemFree: {free // 2} kB\nMemAvailable: {free} kB\n"
    said = with_files_instead({"/proc/meminfo": meminfo}, LIMITED_TO_300_MB, tmp_path)
    assert "MemAvailable" in said


def test_more_than_the_machine_has():
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with pytest.raises(mpbuffer.NotEnoughMemory):
        ReplayBuffer(available // 400, {"obs": {"shape": 125}})


@pytest.fixture
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096
    if hard not in (resource.RLIM_INFINITY,) and hard < wanted:
        pytest.skip(f"only {hard} descriptors here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_process_table_has_an_end(many_descriptors):
    """1022 handles may hold one buffer; the next is told so, and can come when one has left."""
    buffer = ReplayBuffer(10, {"a": {}}, max_handles=1022)
    buffer.add(a=1)
    handles = [buffer]
    try:
        with pytest.raises(mpbuffer.ProcessTableFull, match="1022"):
            for _ in range(1100):
                handle = mpbuffer.attach(buffer.name)
                handles.append(handle)
                handle.add(a=2)
        assert buffer.rows_added() == 1022
        handles[500].close()
        with mpbuffer.attach(buffer.name) as handle:
            handle.add(a=3)
        assert buffer.rows_added() == 1023
    finally:
        for handle in handles:
            handle.close()


def test_import_asks_for_nothing():
    """No torch, no gymnasium, no multiprocess is imported by importing the package."""
    script = (
        "import sys, mpbuffer\n"
        "print(sorted({'torch', 'gymnasium', 'scipy', 'multiprocess'} & set(sys.modules)))"
    )
    assert run_python(script=script).stdout == b"[]\n"
    assert importlib.import_module("mpbuffer").__version__
