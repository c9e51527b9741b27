"""A long call, and one that waits for a long one, lets the program's threads run meanwhile."""

import contextlib
import functools
import itertools
import sys
import threading
import time

import edge_recipes
import numpy as np
import pytest
from edge_recipes import RECIPES, Scene, Slot, World
from watched_processes import DEADLINE

import mpbuffer

ROWS = 1_000_000
NOTICED = 0.01  # seconds: a call this long has waited for somebody
ENOUGH = 0.1  # seconds of waiting, in all, that tell something
# Calls that start a process, or make and fill a million rows, tell nothing of waiting.
NOT_FOR_WAITING = ("keep_after_exit", "__init__", "__enter__", "__exit__", "SharedWeights.close")


class Large(World):
    """One buffer of a million short rows, of which a call may take long."""

    def __init__(self, prefix):
        super().__init__(prefix, 0)
        for slot in self.slots:
            if slot is not self.still:
                slot.buffer.close()
        self.focus = Slot(self, "large", "PrioritizedReplayBuffer", 1, ROWS)
        self.slots = [
            self.focus,
            Slot(self, "large uniform", "ReplayBuffer", 1, ROWS),
            Slot(self, "small uniform", "ReplayBuffer", 1, 10),
            self.still,
        ]
        self.many_rows = self.focus.rows(ROWS // 2, unranked=True)

    def long_calls(self, buffer):
        """What takes long, under each mutex and under none; a recipe may clear the buffer."""
        with contextlib.suppress(mpbuffer.EmptyBuffer):
            buffer.add(**self.many_rows)
            if hasattr(buffer, "release_learner"):
                buffer.release_learner()
                buffer.sample(32)
            buffer.sample(300_000)
            buffer.get_all_transitions()


class Background:
    """A thread that repeats a step until the end; its exceptions come at the end."""

    def __init__(self, step):
        self.steps, self.over, self.error = 0, False, None
        self.step = step
        self.thread = threading.Thread(target=self.run)

    def run(self):
        try:
            while not self.over:
                self.step()
                self.steps += 1
        except BaseException as error:
            self.error = error

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over = True
        self.thread.join(DEADLINE)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error


@pytest.fixture(scope="module")
def large():
    world = Large("gil_rule")
    yield world
    world.close()


@pytest.fixture(autouse=True)
def threads_take_turns_often():
    """Else a thread that only computes holds up the others as long as a short call does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


functions = {}
for _name, (_function, _) in RECIPES.items():
    if not _name.endswith(NOT_FOR_WAITING):
        functions.setdefault(_function, _name)


class Counted:
    """Seconds, and ticks of another thread in them."""

    def __init__(self, ticker):
        self.ticker, self.seconds, self.ticks = ticker, 0.0, 0

    def during(self, call, at_least=0.0):
        ticks, start = self.ticker.steps, time.monotonic()
        call()
        seconds = time.monotonic() - start
        if seconds >= at_least:
            self.seconds += seconds
            self.ticks += self.ticker.steps - ticks

    @property
    def rate(self):
        return self.ticks / self.seconds


def spin(seconds=0.01):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


@pytest.mark.parametrize("name", sorted(functions.values()))
def test_threads_run_while_a_call_waits_for_a_long_one(large, name):
    """As often as beside pure Python, or at least a fifth of it."""
    scene = Scene(large, len(large.scenes))

    def call():
        with contextlib.suppress(*edge_recipes.EXPECTED):
            RECIPES[name][0](scene)

    with contextlib.ExitStack() as stack:
        for slot in large.slots[:2]:
            step = functools.partial(large.long_calls, slot.buffer)
            stack.enter_context(Background(step))
        ticker = stack.enter_context(Background(lambda: time.sleep(0.0005)))
        waiting, python = Counted(ticker), Counted(ticker)
        deadline = time.monotonic() + 0.2
        while time.monotonic() < deadline and waiting.seconds < 2 * ENOUGH:
            waiting.during(call, NOTICED)
            python.during(spin)
    scene.drop()
    large.scenes.remove(scene)
    if waiting.seconds > ENOUGH:
        assert waiting.rate > python.rate / 5


def after_new_rows(large, buffer):
    buffer.add(**large.many_rows)
    return lambda: buffer.sample(32)


def after_release(large, buffer):
    buffer.release_learner()
    return lambda: buffer.sample(32)


def after_clear(large, buffer):
    buffer.clear()
    buffer.add(**large.many_rows)
    return lambda: len(buffer)


def of_many_indexes(large, buffer):
    indexes = buffer.sample(300_000)["indexes"]
    return lambda: buffer.update_priorities(indexes, np.ones(len(indexes)))


@pytest.mark.parametrize(
    "prepare",
    [
        after_new_rows,
        after_release,
        after_clear,
        of_many_indexes,
        lambda large, buffer: lambda: buffer.sample(300_000),
        lambda large, buffer: buffer.get_all_transitions,
        lambda large, buffer: lambda: buffer.add(**large.many_rows),
    ],
    ids=["fold", "take_over", "recount", "update", "sample", "all_rows", "add"],
)
def test_threads_run_during_a_long_call(large, prepare):
    buffer = large.slots[0].buffer
    buffer.add(**large.many_rows)
    with Background(lambda: time.sleep(0.0005)) as ticker:
        running, python = Counted(ticker), Counted(ticker)
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline and running.seconds < 2 * ENOUGH:
            running.during(prepare(large, buffer), NOTICED)
            python.during(spin)
    if running.seconds > ENOUGH:
        assert running.rate > python.rate / 5


def test_a_call_that_held_the_gil_would_be_noticed():
    with Background(lambda: time.sleep(0.0005)) as ticker:
        holding, python = Counted(ticker), Counted(ticker)
        for _ in range(5):
            holding.during(lambda: sum(itertools.repeat(1, 3_000_000)))
            python.during(spin)
    assert holding.rate < python.rate / 5
