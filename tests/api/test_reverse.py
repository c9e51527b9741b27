"""Reverse experience replay: the walk, by hand and against a slow model; many processes."""

import doctest
import importlib
import multiprocessing
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watched_processes import join_within, receive_within

import mpbuffer
from mpbuffer import ReverseReplayBuffer


def filled(rows, size=None, **kwargs):
    buffer = ReverseReplayBuffer(size or rows, {"obs": {}}, **kwargs)
    buffer.add(obs=np.arange(rows))
    return buffer


def batch(buffer, rows=1):
    return buffer.sample(rows)["obs"].ravel().tolist()


def test_examples():
    tested = doctest.testmod(importlib.import_module("mpbuffer.replay.reverse"))
    assert tested.attempted > 0 and tested.failed == 0


def test_batches_walk_back_and_start_again_two_strides_behind():
    with filled(20, stride=3) as buffer:
        walk = [batch(buffer, 3) for _ in range(8)]
        assert walk == [[t, t - 3, t - 6] for t in (19, 18, 17, 16, 15, 14, 19, 18)]


def test_a_walk_starts_at_the_newest_row_of_a_full_ring():
    with filled(20, stride=300) as buffer:
        buffer.add(obs=[20, 21, 22])
        assert batch(buffer) == [22]  # cpprb starts in its last slot, which has row 19


def test_new_rows_bring_the_walk_back_to_the_newest():
    with filled(10, size=30, stride=4) as buffer:
        assert [batch(buffer) for _ in range(3)] == [[9], [8], [7]]
        buffer.add(obs=np.arange(10, 14))
        assert batch(buffer) == [6]  # 8 rows behind row 13 with itself: not yet
        buffer.add(obs=14)
        assert [batch(buffer) for _ in range(2)] == [[14], [13]]


def test_clear_starts_the_walk_again():
    with filled(20, stride=5) as buffer:
        batch(buffer)
        buffer.clear()
        with pytest.raises(mpbuffer.EmptyBuffer):
            buffer.sample(1)
        buffer.add(obs=[7, 8])
        assert [batch(buffer) for _ in range(3)] == [[8], [7], [8]]


def test_indexes_are_the_slots():
    with filled(20, stride=5) as buffer:
        rows = buffer.sample(4, return_indexes=True)
        assert rows["indexes"].dtype == np.int64
        assert rows["indexes"].tolist() == rows["obs"].ravel().tolist() == [19, 14, 9, 4]


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 30),
    stride=st.integers(1, 12),
    calls=st.lists(st.one_of(st.integers(1, 9), st.just("sample")), max_size=40),
    rows=st.integers(1, 7),
)
def test_the_walk_is_that_of_a_slow_model(size, stride, calls, rows):
    """The model has the list of the rows that are left, newest first, and a place in it."""
    with ReverseReplayBuffer(size, {"obs": {}}, stride=stride) as buffer:
        added, lag = 0, None
        for call in calls:
            if call != "sample":
                count = min(call, size)
                buffer.add(obs=np.arange(added, added + count))
                added += count
                lag = None if lag is None else lag + count
                continue
            if added == 0:
                with pytest.raises(mpbuffer.EmptyBuffer):
                    buffer.sample(rows)
                continue
            there = [added - 1 - back for back in range(min(added, size))]
            if lag is not None:
                lag %= len(there)  # its slot may have a newer row now
            lag = 0 if lag is None or lag + 1 >= 2 * stride else (lag + 1) % len(there)
            expected = [there[(lag + i * stride) % len(there)] for i in range(rows)]
            assert batch(buffer, rows) == expected


def walk_elsewhere(buffer, connection):
    buffer.add(obs=[20.0])
    connection.send([batch(buffer, 2), batch(buffer, 2), type(buffer).__name__])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_walks_for_itself(method):
    context = multiprocessing.get_context(method)
    with filled(20, size=30, stride=9) as buffer:
        assert batch(buffer) == [19]
        ours, theirs = context.Pipe()
        process = context.Process(target=walk_elsewhere, args=(buffer, theirs))
        process.start()
        assert receive_within(ours) == [[18, 9], [17, 8], "ReverseReplayBuffer"]
        assert join_within(process) == 0
        assert batch(buffer) == [18]


def test_it_is_opened_by_name():
    name = f"walk-{os.getpid()}"
    with filled(20, name=name, stride=9) as buffer:
        assert batch(buffer) == [19]
        with mpbuffer.attach(name) as rows:
            assert type(rows) is mpbuffer.ReplayBuffer and len(rows) == 20
        with ReverseReplayBuffer.attach(name, stride=4) as other:
            assert batch(other, 3) == [19, 15, 11]
            assert batch(other) == [18]
    with mpbuffer.PrioritizedReplayBuffer(10, {"obs": {}}, name=name):
        with pytest.raises(ValueError, match="it is prioritized, expected a ReplayBuffer"):
            ReverseReplayBuffer.attach(name)
        with pytest.raises(ValueError, match="stride must be"):
            ReverseReplayBuffer.attach(name, stride=0)
    with pytest.raises(mpbuffer.SegmentNotFound):
        ReverseReplayBuffer.attach(name)


class SomeRowsUnfinished(ReverseReplayBuffer):
    """As if other processes were just writing these slots."""

    unfinished = ()

    def _rows_at(self, indexes):
        if set(self.unfinished) & set(indexes.tolist()):
            raise IndexError("it holds no complete row")
        return super()._rows_at(indexes)


def test_a_row_that_is_being_written_is_passed_over():
    with SomeRowsUnfinished(20, {"obs": {}}, stride=5) as buffer:
        buffer.add(obs=np.arange(20))
        buffer.unfinished = [19, 13]
        assert [batch(buffer, 3) for _ in range(2)] == [[17, 12, 7], [16, 11, 6]]
        buffer.unfinished = range(20)
        with pytest.raises(mpbuffer.EmptyBuffer, match="it holds no complete row"):
            buffer.sample(1)
        buffer.unfinished = []
        assert batch(buffer) == [15]


def test_bad_arguments():
    for stride, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="stride must be"):
            ReverseReplayBuffer(10, {"obs": {}}, stride=stride)
    with filled(5) as buffer:
        for rows, error in ((0, ValueError), (1.5, TypeError)):
            with pytest.raises(error, match="batch_size must be"):
                buffer.sample(rows)
        with pytest.raises(TypeError, match=r"batches\(\) draws uniformly; call sample\(\)"):
            buffer.batches(4)
    with pytest.raises(mpbuffer.BufferClosed):
        buffer.sample(1)
