"""Ctrl-C, and signals with handlers of the program, while a call runs.

SIGINT comes from another process: a call that holds the interpreter's lock has to see it as well.
"""

import contextlib
import os
import signal
import struct
import time

import pytest
from watched_processes import DEADLINE, python_started, run_python

import mpbuffer
from mpbuffer import PrioritizedReplayBuffer, ReplayBuffer, SegmentNotFound

both_classes = pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplayBuffer])

FIELDS = {"a": {"shape": ()}}
META_OFFSET = 184  # in the header, as cpp/core/layout.hpp draws it
PROMPTLY = 5.0  # on a busy machine; each call's own bound is 1 s or less


def hold_every_slot(buffer, segment_file, capacity):
    """Claims of this process, number 1, in every slot: to others, of a living owner."""
    with open(segment_file(buffer.name), "r+b") as file:
        (meta,) = struct.unpack_from("<Q", file.read(300), META_OFFSET)
        for slot in range(capacity):
            file.seek(meta + 16 * slot)
            file.write(struct.pack("<Q", (capacity + slot) << 16 | 1 << 6 | 1 << 1 | 1))


def lines_of(process):
    for line in process.stdout:
        yield line.decode().strip()


@contextlib.contextmanager
def killed_after(process, seconds):
    """No wait for the script's next line lasts for ever."""
    old = signal.signal(signal.SIGALRM, lambda *_: process.kill())
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def heed_interrupts():
    """A shell starts what it puts into the background with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupt(script, after=0.05):
    """Run the script, which says "ready", send SIGINT, and let it tell how the calls ended."""
    with (
        python_started(script=script, preexec_fn=heed_interrupts) as process,
        killed_after(process, DEADLINE),
    ):
        lines = lines_of(process)
        assert next(lines, "nothing") == "ready"
        time.sleep(after)
        os.kill(process.pid, signal.SIGINT)
        begun = time.monotonic()
        outcome = next(lines, "nothing")
        if outcome == "too little room":
            pytest.skip(outcome)
        assert outcome == "interrupted"
        assert time.monotonic() - begun < PROMPTLY
        assert next(lines, "nothing") == "usable"
        assert process.wait() == 0


LOOP = """
import mpbuffer
buffer = mpbuffer.attach({name!r})
try:
    print("ready", flush=True)
    while True:
        try:
            {call}
        except (mpbuffer.EmptyBuffer, mpbuffer.SlotsHeld):
            pass
except KeyboardInterrupt:
    print("interrupted", flush=True)
buffer.processes(), buffer.get_stored_size(), buffer.get_next_index()
if not {held}:
    buffer.add(a=1)
    buffer.sample(4)
    assert len(buffer) > 0
buffer.close()
print("usable", flush=True)
"""

CALLS = {
    "add": "buffer.add(a=1)",
    "sample": "buffer.sample(4)",
    "sample_uniform": "getattr(buffer, 'sample_uniform', buffer.sample)(4)",
    "batches": "next(buffer.batches(4, prefetch=2))",
    "update_priorities": "buffer.update_priorities([0], [1.0])",
    "get_all_transitions": "buffer.get_all_transitions(shuffle=True)",
    "get_stored_size": "buffer.clear(); buffer.get_stored_size()",
    "attach": "mpbuffer.attach(buffer.name).close()",
    "take_over": "buffer.sample(1); buffer.release_learner()",
}
OF_THE_LEARNER = {"update_priorities", "take_over"}
BIG = {"get_all_transitions", "get_stored_size", "attach", "take_over"}


@pytest.mark.parametrize("call", CALLS)
@both_classes
def test_ctrl_c(cls, call):
    if call in OF_THE_LEARNER and cls is ReplayBuffer:
        pytest.skip("no learner")
    capacity = 300_000 if call in BIG else 100
    with cls(capacity, FIELDS) as buffer:
        buffer.add(a=[1.0] * capacity)
        interrupt(LOOP.format(name=buffer.name, call=CALLS[call], held=False))
        buffer.add(a=2)
        assert 2 in buffer.get_all_transitions()["a"]
        assert len(buffer.sample(8)["a"]) == 8


@pytest.mark.parametrize(
    "call", ["add", "sample", "sample_uniform", "batches", "update_priorities"]
)
@both_classes
def test_ctrl_c_while_others_hold_every_slot(cls, call, segment_file):
    if call in OF_THE_LEARNER and cls is ReplayBuffer:
        pytest.skip("no learner")
    with cls(4, FIELDS) as buffer:
        hold_every_slot(buffer, segment_file, 4)
        interrupt(LOOP.format(name=buffer.name, call=CALLS[call], held=True))
        buffer.add(a=[1, 2, 3, 4])
        assert len(buffer) == 4 == len(buffer.sample(4)["a"])


@both_classes
def test_ctrl_c_ends_the_wait_of_an_add(cls, segment_file):
    """The wait itself, not the next call, and not only when SlotsHeld would have come."""
    with cls(4, FIELDS) as buffer:
        hold_every_slot(buffer, segment_file, 4)
        script = f"""
import time
import mpbuffer
buffer = mpbuffer.attach({buffer.name!r})
print("ready", flush=True)
time.sleep(0.05)
try:
    for _ in range(100):
        try:
            buffer.add(a=[1, 2])
        except mpbuffer.SlotsHeld:
            pass
except KeyboardInterrupt as interrupt:
    assert interrupt.__context__ is None, "it came after SlotsHeld"
    print("interrupted", flush=True)
assert len(buffer) == 0
buffer.close()
print("usable", flush=True)
"""
        interrupt(script, after=0.3)


@both_classes
def test_ctrl_c_while_gigabytes_are_allocated(cls, segment_file):
    with cls(10, FIELDS) as small:
        script = f"""
import mpbuffer
print("ready", flush=True)
try:
    while True:
        mpbuffer.{cls.__name__}(2**25, {FIELDS}, name="signals.large").close()
except KeyboardInterrupt:
    print("interrupted", flush=True)
except mpbuffer.NotEnoughMemory:
    print("too little room", flush=True)
    raise SystemExit from None
with mpbuffer.{cls.__name__}(10, {FIELDS}, name="signals.large") as buffer:
    buffer.add(a=1)
    buffer.sample(1)
print("usable", flush=True)
"""
        room = os.statvfs("/dev/shm")
        if room.f_bavail * room.f_frsize < 2**32:
            pytest.skip("too little room in /dev/shm")
        interrupt(script, after=0.02)
        small.add(a=1)
    with pytest.raises(SegmentNotFound):
        mpbuffer.attach("signals.large")


HANDLED = """
import signal, time
import mpbuffer

buffer = mpbuffer.attach({name!r})
handled = 0

def handle(*_):
    global handled
    handled += 1
    {handler}

signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
try:
    {call}
    outcome = "returned"
except Exception as error:
    outcome = type(error).__name__
signal.setitimer(signal.ITIMER_REAL, 0)
print(outcome, handled)
buffer.close()
"""


def outcome_with_handler(name, call, handler):
    done = run_python(script=HANDLED.format(name=name, call=call, handler=handler))
    assert done.returncode == 0, done.stderr.decode()
    outcome, handled = done.stdout.decode().split()
    return outcome, int(handled)


# One handler's call may run before a call and one after it, whatever the call does.
SURELY_INSIDE = 3


@both_classes
def test_handlers_run_while_all_rows_are_read(cls):
    """Also one that uses the same handle."""
    capacity = 1_500_000
    with cls(capacity, FIELDS) as buffer:
        buffer.add(a=[1.0] * capacity)
        call = "assert len(buffer.get_all_transitions()['a']) > 1_000_000"
        outcome, handled = outcome_with_handler(buffer.name, call, "buffer.add(a=2), len(buffer)")
        assert outcome == "returned"
        assert handled >= SURELY_INSIDE
        outcome, _ = outcome_with_handler(buffer.name, call, "buffer.close()")
        assert outcome == "BufferClosed"
        assert len(buffer) == capacity


@both_classes
def test_handlers_run_while_an_add_waits(cls, segment_file):
    """Also one that uses the same handle, whose mutex the waiting add has taken."""
    with cls(4, FIELDS) as buffer:
        hold_every_slot(buffer, segment_file, 4)
        call = "buffer.add(a=1)"
        outcome, handled = outcome_with_handler(buffer.name, call, "buffer.clear(), len(buffer)")
        assert outcome == "SlotsHeld"
        assert handled >= SURELY_INSIDE
        outcome, _ = outcome_with_handler(buffer.name, call, "buffer.close()")
        assert outcome == "BufferClosed"
        buffer.add(a=[1, 2])
        assert len(buffer) == 2
