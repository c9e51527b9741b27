"""Ctrl-C, and signals with handlers of the program, while a call runs.

SIGINT comes from another process: a call that holds the interpreter's lock has to see it as well.
"""

import _thread
import asyncio
import contextlib
import ctypes
import os
import signal
import struct
import threading
import time

import pytest
from segment_places import Places
from watched_processes import DEADLINE, python_started, run_python, wait_for_child

import mpbuffer
from mpbuffer import PrioritizedReplayBuffer, ReplayBuffer, SegmentNotFound, _core

both_classes = pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplayBuffer])

FIELDS = {"a": {"shape": ()}}
PROMPTLY = 5.0  # on a busy machine; each call's own bound is 1 s or less


def hold_every_slot(buffer, segment_file, capacity):
    """Claims of this process, number 1, in every slot: to others, of a living owner."""
    with open(segment_file(buffer.name), "r+b") as file:
        places = Places(file.read(300))
        for slot in range(capacity):
            file.seek(places.word(slot))
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
    with cls(4, FIELDS, name="signals.file") as buffer:
        hold_every_slot(buffer, segment_file, 4)
        interrupt(LOOP.format(name=buffer.name, call=CALLS[call], held=True))
        buffer.add(a=[1, 2, 3, 4])
        assert len(buffer) == 4 == len(buffer.sample(4)["a"])


@both_classes
def test_ctrl_c_ends_the_wait_of_an_add(cls, segment_file):
    """The wait itself, not the next call, and not only when SlotsHeld would have come."""
    with cls(4, FIELDS, name="signals.file") as buffer:
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
    with cls(4, FIELDS, name="signals.file") as buffer:
        hold_every_slot(buffer, segment_file, 4)
        call = "buffer.add(a=1)"
        outcome, handled = outcome_with_handler(buffer.name, call, "buffer.clear(), len(buffer)")
        assert outcome == "SlotsHeld"
        assert handled >= SURELY_INSIDE
        outcome, _ = outcome_with_handler(buffer.name, call, "buffer.close()")
        assert outcome == "BufferClosed"
        buffer.add(a=[1, 2])
        assert len(buffer) == 2


# Sections with signals deferred


@pytest.fixture
def handled():
    """Set handlers of signals by signal.signal() until the test ends."""
    with contextlib.ExitStack() as stack:

        def set_handler(number, handler):
            stack.callback(signal.signal, number, signal.signal(number, handler))
            return handler

        yield set_handler


@pytest.mark.parametrize(
    "send",
    [lambda number: os.kill(os.getpid(), number), signal.raise_signal, _thread.interrupt_main],
    ids=["kill", "raise", "interrupt_main"],
)
def test_a_handler_runs_once_at_the_end_of_a_section(handled, send):
    calls, steps = [], []

    def raising(number, frame):
        calls.append((number, frame.f_code.co_name))
        raise TimeoutError

    def work():
        with _core.SignalsDeferred():
            for step in range(3):
                send(signal.SIGUSR1)
                steps.append(step)
            assert not calls

    handled(signal.SIGUSR1, raising)
    with pytest.raises(TimeoutError):
        work()
    assert steps == [0, 1, 2]
    assert calls == [(signal.SIGUSR1, "work")]
    assert signal.getsignal(signal.SIGUSR1) is raising


def test_every_handler_that_is_due_runs_whatever_the_others_raise(handled):
    errors = {number: TimeoutError(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}

    def raising(number, _):
        raise errors[number]

    for number in errors:
        handled(number, raising)
    with pytest.raises(TimeoutError) as caught, _core.SignalsDeferred():
        for number in errors:
            signal.raise_signal(number)
        raise KeyError
    first, last = errors.values()
    assert caught.value is last and last.__context__ is first
    assert isinstance(first.__context__, KeyError)


def test_a_handler_may_have_sections_of_its_own(handled):
    calls = []

    def handler(number, _):
        with _core.SignalsDeferred():
            if number == signal.SIGUSR1:
                signal.raise_signal(signal.SIGUSR2)
            calls.append(number)

    for number in (signal.SIGUSR1, signal.SIGUSR2):
        handled(number, handler)
    with _core.SignalsDeferred(), _core.SignalsDeferred():
        signal.raise_signal(signal.SIGUSR1)
    assert calls == [signal.SIGUSR1, signal.SIGUSR2]
    assert signal.getsignal(signal.SIGUSR1) is handler is signal.getsignal(signal.SIGUSR2)


def test_what_a_handler_sets_at_the_end_of_a_section_stays(handled):
    handled(signal.SIGUSR2, lambda *_: None)
    handled(signal.SIGUSR1, lambda number, _: signal.signal(number, signal.SIG_IGN))
    with _core.SignalsDeferred():
        signal.raise_signal(signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    with _core.SignalsDeferred():
        signal.raise_signal(signal.SIGUSR1)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN


def test_asyncio_hears_of_a_deferred_signal_once():
    async def count():
        calls = []
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, calls.append, 1)
        try:
            with _core.SignalsDeferred():
                os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.sleep(0.05)
            return len(calls)
        finally:
            loop.remove_signal_handler(signal.SIGUSR1)

    assert asyncio.run(count()) == 1


def test_system_calls_are_restarted_after_a_section_as_before(handled):
    def flags():
        sigaction = ctypes.create_string_buffer(256)
        assert ctypes.CDLL(None).sigaction(signal.SIGUSR1, None, sigaction) == 0
        return struct.unpack_from("i", sigaction, 8 + 128)  # behind sa_handler and sa_mask

    handled(signal.SIGUSR1, lambda *_: None)
    interrupting = flags()
    signal.siginterrupt(signal.SIGUSR1, False)
    restarting = flags()
    with _core.SignalsDeferred():
        assert flags() == restarting
    assert flags() == restarting != interrupting


def test_a_section_in_another_thread_changes_nothing(handled):
    calls = []
    handler = handled(signal.SIGUSR1, lambda *_: calls.append(1))

    def work():
        with _core.SignalsDeferred():
            assert signal.getsignal(signal.SIGUSR1) is handler

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(DEADLINE)
    signal.raise_signal(signal.SIGUSR1)
    assert calls == [1]


@pytest.mark.parametrize("in_thread", [False, True], ids=["main", "thread"])
def test_a_child_that_is_forked_in_a_section_has_its_handlers(handled, in_thread):
    calls = []
    handler = handled(signal.SIGUSR1, lambda *_: calls.append(1))
    codes = []

    def fork():
        pid = os.fork()
        if pid == 0:
            has_it = signal.getsignal(signal.SIGUSR1) is handler
            signal.raise_signal(signal.SIGUSR1)
            os._exit(0 if has_it and calls == [1] else 1)
        codes.append(wait_for_child(pid))

    with _core.SignalsDeferred():
        signal.raise_signal(signal.SIGUSR1)  # the parent's alone
        if in_thread:
            thread = threading.Thread(target=fork)
            thread.start()
            thread.join(DEADLINE)
        else:
            fork()
    assert (codes, calls) == ([0], [1])


def test_sections_run_whole_under_a_storm_of_signals(handled):
    """A handler that raises whenever it may, every 50 us."""
    begun, ended, armed = 0, 0, False

    def raising(*_):
        if armed:
            raise TimeoutError

    def work():
        nonlocal begun, ended, armed
        with section:
            armed = True
            begun += 1
            sum(range(200))
            ended += 1

    section, interrupted = _core.SignalsDeferred(), 0
    handled(signal.SIGALRM, raising)
    signal.setitimer(signal.ITIMER_REAL, 5e-5, 5e-5)
    try:
        deadline = time.monotonic() + DEADLINE
        while interrupted < 500 and time.monotonic() < deadline:
            try:
                work()
            except TimeoutError:
                armed = False
                interrupted += 1
            armed = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert interrupted == 500
    assert begun == ended >= 500
