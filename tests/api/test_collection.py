"""Circles of references through the core's objects: Python's collector finds and ends them."""

import ctypes
import gc
import os
import weakref

import numpy as np
import pytest

import mpbuffer
from mpbuffer import BufferClosed, PrioritizedReplayBuffer, ReplayBuffer, _core

FIELDS = {"x": {"shape": 100}, "done": {}}
TP_CLEAR = 51  # Py_tp_clear of CPython's typeslots.h


def row(x):
    return {"x": np.full(100, x), "done": 0}


def threads():
    return len(os.listdir("/proc/self/task"))


class Agent:
    """As users write it: the function of the writer is a method of what holds the writer."""

    def __init__(self, buffer):
        self.writer = buffer.writer(flush_every=10, priorities=self.priorities)
        self.scale = 2

    def priorities(self, rows):
        return self.scale * rows["x"][:, 0]


def test_an_agent_and_its_writer_are_collected_and_the_rows_written():
    with PrioritizedReplayBuffer(10, FIELDS, alpha=1, eps=0) as buffer:
        agent = Agent(buffer)
        writer = weakref.ref(agent.writer)
        agent.writer.add(**row(3))
        agent.writer.add(**row(4))
        del agent
        gc.collect()
        assert writer() is None
        buffer.sample(1)
        assert buffer._leaves()[:2].tolist() == [6, 8]


def test_an_agent_that_owns_the_buffer_is_collected_with_it(segment_file):
    """The rows are written, since no handle is closed before the writer."""
    agent = Agent(PrioritizedReplayBuffer(10, FIELDS, name="collected.agent", alpha=1, eps=0))
    agent.buffer = mpbuffer.attach("collected.agent")
    with mpbuffer.attach("collected.agent") as other:
        agent.buffer.agent = agent
        agent.writer.add(**row(5))
        del agent
        gc.collect()
        assert other.get_all_transitions()["x"][:, 0].tolist() == [5]
        assert [line.pid for line in other.processes()] == [os.getpid()]
    assert not segment_file("collected.agent").exists()


def test_a_function_that_raises_while_it_is_collected(monkeypatch):
    told = []
    monkeypatch.setattr("sys.unraisablehook", lambda error: told.append(error.exc_type))
    with PrioritizedReplayBuffer(10, FIELDS) as buffer:
        held = []
        writer = buffer.writer(priorities=lambda rows, held=held: 1 / held[0].rows_written)
        held.append(writer)
        writer.add(**row(1))
        gone = weakref.ref(writer)
        del held, writer
        gc.collect()
        assert gone() is None and len(buffer) == 0
    assert told == [ZeroDivisionError]


@pytest.mark.parametrize("kind", [ReplayBuffer, PrioritizedReplayBuffer])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_buffer_that_holds_its_own_batches_is_collected(kind, prefetch, segment_file):
    before = threads()
    buffer = kind(10, FIELDS)
    path = segment_file(buffer.name)
    buffer.add(**row(1))
    buffer.loader = buffer.batches(2, prefetch=prefetch)
    batch = next(buffer.loader)
    assert threads() == before + (prefetch > 0)
    gone = weakref.ref(buffer)
    del buffer
    gc.collect()
    assert gone() is None and threads() == before
    assert not path.exists()
    assert (batch["x"] == 1).all()


def test_circles_cost_no_memory():
    """Ten buffers with a batch of 8 MB each would be 80 MB."""

    def resident():
        return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def circles(n):
        for _ in range(n):
            buffer = ReplayBuffer(10, FIELDS)
            buffer.add(**row(1))
            buffer.loader = buffer.batches(20_000, prefetch=1)
            next(buffer.loader)
            del buffer
            gc.collect()

    circles(3)
    before = resident()
    circles(10)
    assert resident() - before < 40e6


def clear(object, type):
    """Do what the collector does to garbage, which Python code can still come to see."""
    slot = ctypes.pythonapi.PyType_GetSlot
    slot.argtypes, slot.restype = [ctypes.py_object, ctypes.c_int], ctypes.c_void_p
    of_object = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object)(slot(type, TP_CLEAR))
    assert of_object(object) == 0


def test_what_was_cleared_raises():
    with PrioritizedReplayBuffer(10, FIELDS) as buffer:
        writer = buffer.writer(priorities=lambda rows: rows["x"][:, 0])
        writer.add(**row(1))
        references = len(gc.get_referrers(buffer))
        for _ in range(2):
            clear(writer, _core.StepWriter)
            assert len(gc.get_referrers(buffer)) == references - 1
            for call in (
                lambda: writer.add(**row(1)),
                writer.flush,
                writer.on_episode_end,
                lambda: writer.on_episode_end([0]),
            ):
                with pytest.raises(BufferClosed, match="cannot use this writer"):
                    call()
        assert (writer.closed, writer.steps, writer.rows_staged) == (True, 0, 0)
        assert "closed" in repr(writer)
        writer.close()
        assert len(buffer) == 0

        buffer.add(**row(2))
        before = threads()
        gatherer = _core.BatchGatherer(buffer, 4, 1, True, 1.0, None)
        assert len(gatherer.next()["x"]) == 4
        assert threads() == before + 1
        for _ in range(2):
            clear(gatherer, _core.BatchGatherer)
            assert threads() == before
            gatherer.close()
            with pytest.raises(BufferClosed, match="cannot take a batch"):
                gatherer.next()
        unmade = _core.BatchGatherer.__new__(_core.BatchGatherer)
        clear(unmade, _core.BatchGatherer)
        assert gc.get_referents(unmade) == [_core.BatchGatherer]
