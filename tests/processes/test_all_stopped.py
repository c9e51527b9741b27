"""Every other process stands still inside add, and together they hold every slot.

Each public call returns or raises within its own bound and a second: add tries for 1 s, a learner's
sample for 0.5 s, nothing else waits at all.
"""

import contextlib
import io
import os
import pickle
import signal
import struct
import tempfile
import time

import numpy as np
import pytest
from segment_places import Places
from watched_processes import DEADLINE, end_process, join_within, killed_at_the_end, receive_within

import mpbuffer
from mpbuffer import (
    EmptyBuffer,
    MpbufferError,
    PrioritizedReplayBuffer,
    ReplayBuffer,
    SlotsHeld,
)
from mpbuffer.inspect.inspection import inspect, list_segments, remove_dead_segments

ROW = 2**20  # float64: copying one takes most of an add's time, so that a stop mostly meets a copy
SLOTS = 2

BOUNDS = {
    "add": 1.0,
    "sample": 0.5,
    "batches": 0.5,
    "sample again": 0.5,
}  # in seconds; of the rest: 0
BESIDE_ALL_BOUNDS = 1.0


def add_for_ever(buffer, connection):
    row = np.ones(ROW)
    connection.send(os.getpid())
    while True:
        with contextlib.suppress(SlotsHeld):
            buffer.add(a=row)


def owners(path):
    """Whose claim is in each slot; 0 for none."""
    with open(path, "rb") as file:
        places = Places(file.read(300))
        words = []
        for slot in range(SLOTS):
            file.seek(places.word(slot))
            words += struct.unpack("<Q", file.read(8))
    return [word >> 6 & 1023 for word in words]


def stop(pid):
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        with open(f"/proc/{pid}/stat") as stat:
            if stat.read().rpartition(")")[2].split()[0] == "T":
                return
        time.sleep(0.0005)
    raise AssertionError(f"process {pid} does not stop")


def stop_all_inside_add(processes, path):
    """Stop and continue them until each stands inside add, and their claims fill the ring."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        for pid in processes:
            stop(pid)
        if len(set(owners(path)) - {0}) == SLOTS:
            return
        for pid in processes:
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.005)
    raise AssertionError("they never held every slot")


def save_and_remove(buffer):
    with tempfile.TemporaryDirectory() as path:
        buffer.snapshot(path)


def calls_of(buffer):
    """Each public name with a call, and the errors that it may end in."""
    row = np.zeros(ROW)
    calls = {
        "add": (lambda: buffer.add(a=row), SlotsHeld),
        "sample": (lambda: buffer.sample(4), EmptyBuffer),
        "batches": (lambda: next(buffer.batches(4, prefetch=1)), EmptyBuffer),
        "get_stored_size": (buffer.get_stored_size, ()),
        "get_buffer_size": (buffer.get_buffer_size, ()),
        "get_next_index": (buffer.get_next_index, ()),
        "get_all_transitions": (lambda: buffer.get_all_transitions(shuffle=True), ()),
        "_encode_sample": (lambda: buffer._encode_sample([0]), ()),
        "save_transitions": (lambda: buffer.save_transitions(io.BytesIO()), ()),
        "snapshot": (lambda: save_and_remove(buffer), ()),
        "load_transitions": (lambda: buffer.load_transitions(io.BytesIO(b"none")), ValueError),
        "on_episode_end": (buffer.on_episode_end, ()),
        "get_current_episode_len": (buffer.get_current_episode_len, ()),
        "is_Nstep": (buffer.is_Nstep, ()),
        "sequence": (lambda: buffer.sequence, ()),
        "writer": (lambda: buffer.writer().close(), ()),
        "rows_added": (buffer.rows_added, ()),
        "largest_size": (lambda: buffer.largest_size({"a": {}}), ()),
        "keep_after_exit": (lambda: end_process(buffer.keep_after_exit(0)), ()),
        "processes": (buffer.processes, ()),
        "stats": (buffer.stats, ()),
        "name": (lambda: buffer.name, ()),
        "nbytes": (lambda: buffer.nbytes, ()),
        "max_handles": (lambda: buffer.max_handles, ()),
        "shared": (lambda: buffer.shared, ()),
        "closed": (lambda: buffer.closed, ()),
        "repr": (lambda: repr(buffer), ()),
        "len": (lambda: len(buffer), ()),
        "pickle": (lambda: pickle.loads(pickle.dumps(buffer)).close(), ()),
        "attach": (lambda: mpbuffer.attach(buffer.name).close(), ()),
        "inspect": (lambda: inspect(buffer.name), ()),
        "list_segments": (list_segments, ()),
        "remove_dead_segments": (lambda: remove_dead_segments(dry_run=True), ()),
        "create": (lambda: type(buffer)(4, {"a": {}}).close(), ()),
        "create again": (lambda: type(buffer)(4, {"a": {}}, name=buffer.name), MpbufferError),
    }
    if isinstance(buffer, PrioritizedReplayBuffer):
        calls |= {
            "sample_uniform": (lambda: buffer.sample_uniform(4), EmptyBuffer),
            "update_priorities": (lambda: buffer.update_priorities([0, 1], [1.0, 2.0]), ()),
            "get_generations": (lambda: buffer.get_generations([0, 1]), ()),
            "learner_status": (buffer.learner_status, ()),
            "get_max_priority": (buffer.get_max_priority, ()),
            "get_priorities": (lambda: buffer.get_priorities([0, 1]), ()),
            "alpha": (lambda: buffer.alpha, ()),
            "eps": (lambda: buffer.eps, ()),
            "_leaves": (buffer._leaves, ()),
            "_tree_total": (buffer._tree_total, ()),
            "acquire_learner": (buffer.acquire_learner, ()),
            "release_learner": (buffer.release_learner, ()),
            "sample again": (lambda: buffer.sample(4), EmptyBuffer),
        }
    return calls | {"clear": (buffer.clear, ()), "close": (buffer.close, ())}


@pytest.mark.parametrize(
    ("cls", "start_method"),
    [
        (ReplayBuffer, "fork"),
        (PrioritizedReplayBuffer, "spawn"),
        pytest.param(ReplayBuffer, "spawn", marks=pytest.mark.slow),
        pytest.param(PrioritizedReplayBuffer, "fork", marks=pytest.mark.slow),
    ],
    indirect=["start_method"],
)
def test_each_call_ends(cls, context, segment_file):
    with cls(SLOTS, {"a": {"shape": ROW, "dtype": "f8"}}, name="all-stopped") as buffer:
        path = segment_file(buffer.name)
        ours, theirs = context.Pipe(duplex=False)
        explorers = [
            context.Process(target=add_for_ever, args=(buffer, theirs), daemon=True)
            for _ in range(SLOTS)
        ]
        with killed_at_the_end(explorers):
            for explorer in explorers:
                explorer.start()
            pids = [explorer.pid for explorer in explorers]
            for _ in explorers:
                assert receive_within(ours) in pids
            while buffer.rows_added() < 2 * SLOTS:
                time.sleep(0.001)
            stop_all_inside_add(pids, path)
            held = owners(path)

            with mpbuffer.attach(buffer.name) as other:
                calls = calls_of(other)
                names = {name for name in dir(cls) if not name.startswith("_")}
                assert names <= set(calls), "a public call is not tried"
                for name, (call, may_raise) in calls.items():
                    begun = time.monotonic()
                    if may_raise:
                        with pytest.raises(may_raise):
                            call()
                    else:
                        call()
                    taken = time.monotonic() - begun
                    assert taken < BOUNDS.get(name, 0) + BESIDE_ALL_BOUNDS, (name, taken)
            assert inspect(buffer.name)["damage"] == []
            assert owners(path) == held, "a living owner's claim was taken over"

            os.kill(pids[0], signal.SIGKILL)
            join_within(explorers[0])
            buffer.add(a=np.zeros(ROW))
            assert len(buffer.sample(4)["a"]) == 4
            os.kill(pids[1], signal.SIGCONT)
            before = buffer.rows_added()
            deadline = time.monotonic() + DEADLINE
            while buffer.rows_added() < before + 4:
                assert time.monotonic() < deadline, "the continued one does not go on"
                time.sleep(0.001)
