"""Python code that runs inside a call: handlers of signals, conversions, functions given to us.

Whatever it does (close, fork, clear, call again, raise, collect garbage), the call ends. Each
program runs in a process of its own, under a watchdog.
"""

import pytest
from watched_processes import run_python

# `inside(action)` takes batches until a handler has run the action in a call of next(): while it
# waits or, less often, just after it; then `refused` and `outcomes_in_child` try again.
WAITING = """
import gc, os, signal, sys, time
import numpy as np, mpbuffer

kind, prefetch, rows = mpbuffer.{kind}, {prefetch}, 500_000


def open_both():
    global buffer, batches
    buffer = kind(4, {{"x": {{}}}})
    buffer.add(x=np.arange(4.0))
    batches = buffer.batches(rows, prefetch=prefetch)


open_both()
took = 0
while took < 0.2:
    rows *= 2
    start = time.monotonic()
    buffer.sample(rows)
    took = time.monotonic() - start
open_both()


def inside(action):
    ran = []

    def handler(number, frame):
        if frame.f_code.co_name != "__next__" or ran:
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        ran.append(True)
        action()
        junk.extend(bytes([255]) * size for size in range(64, 600) for _ in range(20))

    junk = []
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        while not ran:
            batch = next(batches)
        return batch
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def refused(error, words):
    for _ in range(20):
        try:
            inside(action)
        except error as refusal:
            assert words in str(refusal), refusal
            return
        open_both()
    raise SystemExit("the call returned")


def outcomes_in_child(refusal):
    "Let the handler fork; the child ends by `refusal()` if it is refused its parent's batch."
    for _ in range(20):
        children = []
        try:
            right(inside(lambda: children.append(os.fork())))
        except RuntimeError as error:
            assert children == [0] and "forked child" in str(error), error
            return refusal()
        if children == [0]:
            os._exit(7)
        status = os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1])
        assert status in (0, 7), status
        right(next(batches))
        if status == 0:
            return
    raise SystemExit("the child got a batch")


def right(batch):
    assert len(batch["x"]) == rows and set(np.unique(batch["x"])) <= {{0.0, 1.0, 2.0, 3.0}}

{program}
"""

# What a handler does, and how the call that it interrupts ends.
ENDINGS = {
    "closes the batches": """
action = batches.close
refused(mpbuffer.BufferClosed, "batches were closed")
""",
    "closes the batches and drops them": """
def action():
    batches.close()
    globals().pop("batches")

refused(mpbuffer.BufferClosed, "batches were closed")
""",
    "closes the buffer": """
action = buffer.close
refused(mpbuffer.BufferClosed, buffer.name)
batches.close()
""",
    "closes both and collects garbage": """
def action():
    buffer.close()
    batches.close()
    gc.collect()

refused(mpbuffer.BufferClosed, "batches were closed")
""",
    "raises": """
def action():
    raise TimeoutError("too late")

refused(TimeoutError, "too late")
right(next(batches))
""",
    "takes batches": """
def action():
    for _ in range(prefetch + 2):
        right(next(batches))

right(inside(action))
right(next(batches))
""",
    "takes batches and closes": """
def action():
    right(next(batches))
    batches.close()

refused(mpbuffer.BufferClosed, "batches were closed")
""",
    "clears the buffer": """
action = buffer.clear
try:
    right(inside(action))
    for _ in range(prefetch):
        right(next(batches))
    next(batches)
except mpbuffer.EmptyBuffer:
    buffer.add(x=[1.0])
    right(next(batches))
else:
    raise SystemExit("the buffer was empty")
""",
    "uses the buffer": """
def action():
    buffer.add(x=[3.0])
    buffer.sample(5)
    assert len(buffer) == 4 and len(buffer.get_all_transitions()["x"]) == 4
    gc.collect()

right(inside(action))
""",
    "gives the role up": """
def action():
    if kind is mpbuffer.PrioritizedReplayBuffer:
        buffer.release_learner()
        assert buffer.learner_status().process == 0

right(inside(action))
""",
    "opens other batches": """
def action():
    with buffer.batches(3, prefetch=2) as others:
        assert len(next(others)["x"]) == 3

right(inside(action))
""",
    "forks": """
def refusal():
    batches.close()
    os._exit(0)

outcomes_in_child(refusal)
""",
    "forks, and the child goes on": """
def refusal():
    global batches
    del batches
    gc.collect()
    with kind(8, {"x": {}}) as other:
        other.add(x=np.arange(8))
        assert len(next(other.batches(2, prefetch=1))["x"]) == 2
    sys.exit(0)

outcomes_in_child(refusal)
""",
}


def each_with_one_buffer():
    """Each ending with either buffer, in the fast form with one of them in turn."""
    buffers = (("ReplayBuffer", 1), ("PrioritizedReplayBuffer", 3))
    for i, what in enumerate(ENDINGS):
        for j, (kind, prefetch) in enumerate(buffers):
            marks = [] if i % 2 == j else [pytest.mark.slow]
            yield pytest.param(what, kind, prefetch, marks=marks)


@pytest.mark.parametrize(("what", "kind", "prefetch"), list(each_with_one_buffer()))
def test_a_handler_that_runs_while_a_batch_is_awaited(what, kind, prefetch):
    script = WAITING.format(kind=kind, prefetch=prefetch, program=ENDINGS[what])
    done = run_python(script=script)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


# Values whose conversion runs code, and what is right after it.
VALUES = """
import gc
import numpy as np, mpbuffer


class Value:
    '''As an array, an index, a truth value, a key: it first does something else.'''

    def __init__(self, value, action):
        self.value, self.action = value, action

    def __array__(self, dtype=None, copy=None):
        self.action()
        return np.asarray(self.value)

    def __index__(self):
        self.action()
        return self.value

    def __bool__(self):
        self.action()
        return bool(self.value)

    def __float__(self):
        self.action()
        return float(self.value)


class Key(str):
    def __eq__(self, other):
        self.action()
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def refused(error, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except error as refusal:
        return str(refusal)
    raise SystemExit(f"{call} returned")


def made(**options):
    buffer = mpbuffer.PrioritizedReplayBuffer(8, {"x": {}, "done": {}}, **options)
    buffer.add(x=np.arange(8), done=np.zeros(8))
    return buffer

closed = mpbuffer.BufferClosed
"""

CONVERSIONS = {
    "sample's arguments close the buffer": """
for name, value in ("batch_size", 4), ("beta", 1.0):
    buffer = made()
    refused(closed, buffer.sample, **{"batch_size": 2, name: Value(value, buffer.close)})
buffer = made()
refused(closed, buffer.sample_uniform, 4, return_indexes=Value(1, buffer.close))
""",
    "sample's arguments take samples": """
buffer = made()
assert len(buffer.sample(Value(4, lambda: buffer.sample(100)))["x"]) == 4
""",
    "the keys of out are changed": """
buffer = made()
out = buffer.sample(4)
key = Key("x")
key.action = lambda: None
out[key] = out.pop("x")
key.action = out.clear
refused(KeyError, buffer.sample, 4, out=out)
assert out == {}
""",
    "the keys of out close the buffer": """
buffer = made()
out = buffer.sample(4)
key = Key("weights")
key.action = lambda: None
out[key] = out.pop("weights")
key.action = buffer.close
refused(closed, buffer.sample, 4, out=out)
""",
    "the removal of stale weights is refused": """
buffer = made()
out = buffer.sample(4)
key = Key("weights")
key.action = lambda: None
out[key] = out.pop("weights")

def fail():
    raise LookupError("no comparison")

key.action = fail
refused(LookupError, buffer.sample_uniform, 4, out=out)
""",
    "priorities of an update take samples of the same indexes": """
buffer = made(alpha=1.0, eps=0.0)
batch = buffer.sample(8)
indexes = batch["indexes"]
old = indexes.copy()

def meddle():
    buffer.add(x=np.arange(8, 16), done=np.zeros(8), priorities=np.full(8, 5.0))
    buffer.sample(8, out=batch)

assert buffer.update_priorities(indexes, Value(np.full(8, 3.0), meddle)) == 8
assert (buffer._leaves() == 5.0).all()
""",
    "an update's arguments close the buffer": """
for place in range(3):
    buffer = made()
    arguments = [np.arange(4), np.ones(4), np.arange(8, 12)]
    arguments[place] = Value(arguments[place], buffer.close)
    refused(closed, buffer.update_priorities, *arguments)
""",
    "reads by indexes that close the buffer": """
for read in "_encode_sample", "get_generations", "get_priorities":
    buffer = made()
    refused(closed, getattr(buffer, read), Value(np.arange(4), buffer.close))
""",
    "a warning closes the buffer": """
import warnings
buffer = made()
warnings.showwarning = lambda *_, **__: buffer.close()
warnings.simplefilter("always")
refused(closed, buffer.add, x=1, done=0, unknown=2)
""",
    "a step's value closes the buffer": """
nstep = {"size": 3, "rew": "x", "gamma": 0.5}
for name in "x", "priorities":
    buffer = made(Nstep=nstep)
    values = {"x": 1.0, "done": 0, "priorities": 1.0}
    values[name] = Value([1.0], buffer.close)
    refused(closed, buffer.add, **values)
""",
    "a staged step's value closes the writer or the buffer": """
for name in "x", "priorities", "envs":
    for what in "writer", "buffer":
        buffer = made()
        writer = buffer.writer()
        close = {"writer": writer, "buffer": buffer}[what].close
        values = {"x": 1.0, "done": 0, "priorities": 1.0, "envs": [0]}
        values[name] = Value(values[name] if name == "envs" else [1.0], close)
        refused(closed, writer.add, **values)
        assert writer.steps == 0, (name, what, writer.steps)
        writer.close()
""",
    "the environments whose episodes end close the writer or the buffer": """
for what in "writer", "buffer":
    buffer = made()
    writer = buffer.writer()
    writer.add(x=1.0, done=0)
    close = {"writer": writer, "buffer": buffer}[what].close
    refused(closed, writer.on_episode_end, Value([0], close))
""",
    "beta closes the batches": """
buffer = made()
for prefetch in 0, 2:
    batches = buffer.batches(4, prefetch=prefetch)
    next(batches)
    batches.beta = Value(0.5, batches.close)
    refused(closed, next, batches)
""",
}


@pytest.mark.parametrize("what", CONVERSIONS)
def test_values_that_run_code_while_they_are_read(what):
    done = run_python(script=VALUES + CONVERSIONS[what])
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


# What the function that a writer asks for priorities does while rows are on their way.
PRIORITIES = {
    "closes the writer": """
writer = staged(lambda rows: writer.close())
add_all(writer)
assert writer.closed and len(buffer) == writer.rows_written == writer.steps == 4, len(buffer)
""",
    "closes the buffer": """
writer = staged(lambda rows: buffer.close())
refused(closed, add_all, writer)
assert writer.rows_staged == 4
refused(closed, writer.close)
assert writer.closed
""",
    "adds more steps": """
def more(rows):
    if writer.steps < 40:
        add_all(writer)

writer = staged(more)
add_all(writer)
writer.close()
assert len(buffer) == writer.rows_written == writer.steps >= 40
""",
    "flushes and ends episodes": """
def flush(rows):
    writer.flush()
    writer.on_episode_end()

writer = staged(flush)
add_all(writer)
assert len(buffer) == writer.rows_written == 4 and writer.rows_staged == 0
""",
    "raises, with the writer closed": """
def fail(rows):
    writer.close()
    raise LookupError("no priorities")

writer = staged(fail)
refused(LookupError, add_all, writer)
assert writer.closed and len(buffer) == 0
del writer
gc.collect()
""",
    "clears the buffer": """
writer = staged(lambda rows: buffer.clear())
buffer.add(x=9, done=0)
add_all(writer)
assert len(buffer) == 4
""",
    "drops the writer": """
def drop(rows):
    globals().pop("writer", None)
    gc.collect()

writer = staged(drop)
add_all(writer)
gc.collect()
assert len(buffer) == 4
""",
    "closes the writer, whose window has more": """
def close(rows):
    writer.close()

nstep = {"size": 3, "rew": "x", "gamma": 0.5}
buffer = mpbuffer.PrioritizedReplayBuffer(64, {"x": {}, "done": {}}, Nstep=nstep)
writer = staged(close)
for _ in range(3):
    add_all(writer) if not writer.closed else None
assert writer.closed and len(buffer) == writer.rows_written == writer.steps, len(buffer)
""",
}

STAGED = (
    VALUES
    + """
buffer = mpbuffer.PrioritizedReplayBuffer(64, {"x": {}, "done": {}})


def staged(action):
    def priorities(rows):
        action(rows)
        return np.ones(len(rows["x"]))

    return buffer.writer(flush_every=4, priorities=priorities)


def add_all(writer):
    writer.add(x=np.arange(4), done=np.zeros(4))

"""
)


@pytest.mark.parametrize("what", PRIORITIES)
def test_a_function_for_priorities_that_interferes(what):
    done = run_python(script=STAGED + PRIORITIES[what])
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
