"""A recipe for every public method: how a thread calls it at random, and what must hold then.

`without_recipe()` names the public methods that have none. A recipe gets the Scene of its thread.
It raises Wrong if a result is, and what the buffers say to a user who closes, clears and competes:
one of EXPECTED. Anything else is a fault.
"""

import collections
import contextlib
import copy
import gc
import io
import itertools
import logging
import os
import pickle
import random
import select
import signal
import tempfile
import time

import numpy as np
from edge_rows import (
    NSTEP,
    STEP_FIELDS,
    UNRANKED,
    Wrong,
    check_weights,
    check_whole,
    digest,
    fields,
    priorities_of,
    rows,
)

import mpbuffer

CLASSES = {
    "ReplayBuffer": mpbuffer.ReplayBuffer,
    "PrioritizedReplayBuffer": mpbuffer.PrioritizedReplayBuffer,
    "Batches": mpbuffer.Batches,
    "StepWriter": mpbuffer.StepWriter,
    "SharedWeights": mpbuffer.SharedWeights,
}
_PYTHON_OWN = {"__module__", "__doc__", "__dict__", "__weakref__", "__new__", "__qualname__"}
_PYTHON_OWN |= {"__parameters__", "__orig_bases__", "__abstractmethods__", "__annotations__"}
_PYTHON_OWN |= {"__static_attributes__", "__firstlineno__", "__annotations_cache__"}
_PYTHON_OWN |= {"__annotate__", "__annotate_func__", "__annotationsets__"}


class Raised(BaseException):
    """What a handler, or a callback, raises."""


EXPECTED = (mpbuffer.BufferClosed, mpbuffer.EmptyBuffer, mpbuffer.RoleBusy)

RECIPES = {}  # "Class.method" to (function, weight)


def public_methods():
    """Every name of the classes' own that does not begin with a single underscore."""
    found = set()
    for name, cls in CLASSES.items():
        own = {key for base in cls.__mro__ if "mpbuffer" in base.__module__ for key in vars(base)}
        for key in own - _PYTHON_OWN:
            if not key.startswith("_") or (key.startswith("__") and key.endswith("__")):
                found.add(f"{name}.{key}")
    return found


def without_recipe():
    return sorted(public_methods() - RECIPES.keys())


def without_method():
    return sorted(RECIPES.keys() - public_methods() - {"attach"})


def recipe(*names, weight=1.0):
    def register(function):
        for name in names:
            assert name not in RECIPES, name
            RECIPES[name] = function, weight
        return function

    return register


def on_buffers(*names, weight=1.0):
    """The same recipe for both classes of buffers; it is told which."""

    def register(function):
        for cls in ("ReplayBuffer", "PrioritizedReplayBuffer"):

            def of_class(scene, cls=cls):
                return function(scene, scene.slot(cls))

            for name in names:
                recipe(f"{cls}.{name}", weight=weight)(of_class)
        return function

    return register


class Slot:
    """A place for a buffer. Whoever closes the buffer puts another one there."""

    def __init__(self, world, label, cls, width, size, *, closable=False, Nstep=None):
        self.world, self.label, self.cls = world, label, cls
        self.width, self.size, self.closable, self.Nstep = width, size, closable, Nstep
        self.prioritized = cls == "PrioritizedReplayBuffer"
        self.row_bytes = 8 * (width + 1)
        self.buffer = self.open()

    def open(self, name=None, **options):
        more = {"alpha": 1.0, "eps": 0.0} if self.prioritized else {}
        described = fields(self.width) | (STEP_FIELDS if self.Nstep else {})
        buffer = CLASSES[self.cls](
            self.size,
            described,
            name=name or self.world.some_name(),
            Nstep=self.Nstep,
            **more,
            **options,
        )
        if not self.Nstep:
            buffer.add(**self.rows(self.size // 2))
        return buffer

    def rows(self, n, *, unranked=False):
        """Fresh rows, with the priorities that are theirs."""
        ids = np.uint64(next(self.world.ids) << 20) + np.arange(n, dtype=np.uint64)
        if unranked:
            ids |= UNRANKED
        made = rows(ids, self.width)
        if self.Nstep:
            made |= {"rew": np.ones(n, np.float32), "done": ids % np.uint64(50) == 49}
        if self.prioritized and not unranked:
            made["priorities"] = priorities_of(ids)
        return made

    def replace(self):
        """Close the buffer; calls in other threads, and the caller's own, go on or say so."""
        if self.closable:
            old, self.buffer = self.buffer, self.open()
            old.close()


WEIGHTS = ".weights"  # how the names of their segments end


class World:
    """What the threads of one program share."""

    def __init__(self, prefix, seed, *, forks=False):
        self.prefix, self.seed, self.forks = prefix, seed, forks
        self.numbers, self.ids = itertools.count(), itertools.count(1)
        self.counts = collections.Counter()
        self.scenes = []
        self.children = []
        self.is_child = self.quiet = False
        self.others_close_batches = True
        prioritized, uniform = "PrioritizedReplayBuffer", "ReplayBuffer"
        self.slots = [
            Slot(self, "small", prioritized, 6, 1_000),
            Slot(self, "large", prioritized, 511, 1_100),
            Slot(self, "steps", prioritized, 6, 1_000, Nstep=NSTEP),
            Slot(self, "closing", prioritized, 62, 400, closable=True),
            Slot(self, "uniform", uniform, 6, 1_000),
            Slot(self, "uniform large", uniform, 511, 1_100),
            Slot(self, "uniform closing", uniform, 62, 400, closable=True),
        ]
        # Nobody adds to it or clears it: slot and id of a row are the same for good.
        self.still = Slot(self, "still", prioritized, 6, 512)
        self.still.buffer.clear()
        ids = np.arange(512)
        self.still.buffer.add(**rows(ids, 6), priorities=priorities_of(ids.astype(np.uint64)))
        self.slots.append(self.still)
        # Where threads meet most: a race needs some of them in one place.
        self.focus = random.Random(f"{seed}.focus").choice(self.slots)
        self.weights = [self.new_weights(), self.new_weights()]  # the second one is closed at times

    def new_name(self):
        return f"{self.prefix}.{os.getpid()}.{next(self.numbers)}"

    def some_name(self):
        """A name, or None: for memory without one."""
        return self.new_name() if next(self.numbers) % 3 else None

    def new_weights(self):
        return mpbuffer.SharedWeights(weights_of(0.0), name=self.new_name() + WEIGHTS)

    def close(self):
        for scene in self.scenes:
            scene.drop()
        for slot in self.slots:
            slot.buffer.close()
        for weights in self.weights:
            weights.close()


_MOST_KEPT = 4
_WAYS_TO_KEEP = (
    lambda a: a,
    lambda a: a[len(a) // 3 :],
    lambda a: a.reshape(-1)[::2],
    lambda a: a.view(np.uint8),
    lambda a: a.T,
    lambda a: np.asarray(memoryview(a)),
    lambda a: a[1:].view()[..., None][1:],
)


class Scene:
    """What one thread has for itself; others may close it."""

    def __init__(self, world, number):
        self.world, self.number = world, number
        self.rng = random.Random(f"{world.seed}.{number}")
        self.batches = []  # of (Batches, its slot, its buffer)
        self.writer = None  # a StepWriter, its slot, and whether a function gives priorities
        self.drawn = {}  # by slot, the last batch: its indexes and ids
        self.kept = collections.deque()
        self.last_version = 0
        self.may_raise = False
        self.pin_memory = False
        self.mischief_depth = 0
        world.scenes.append(self)

    def slot(self, cls):
        focus = self.world.focus
        if focus.cls == cls and self.rng.random() < 0.8:
            return focus
        return self.rng.choice([slot for slot in self.world.slots if slot.cls == cls])

    def moving_slot(self, *, prioritized=None):
        return self.rng.choice(
            [
                slot
                for slot in self.world.slots
                if slot is not self.world.still
                and (prioritized is None or slot.prioritized == prioritized)
            ]
        )

    def batch_rows(self, slot):
        """Below 64 KB, around it, up to 1 MB, and what several threads copy."""
        most = self.rng.choices((2_000, 60_000, 70_000, 600_000, 1_500_000, 5_000_000),
                                (40, 30, 10, 12, 5, 1.5))[0]  # fmt: skip
        return max(1, min(self.rng.randint(most // 2, most), 4_500_000) // slot.row_bytes)

    def check(self, slot, batch, what, *, beta=None):
        check_whole(batch, f"{what} of {slot.label!r}")
        if beta is not None:
            check_weights(batch, beta, f"{what} of {slot.label!r}")
        if slot is self.world.still and "indexes" in batch:
            differs = batch["indexes"].astype(np.uint64) != batch["id"]
            if differs.any():
                raise Wrong(f"{what}: {int(differs.sum())} indexes are not those of their rows")

    def look_at(self, slot, buffer, batch):
        """Use a batch as a program does: update later, keep some of it."""
        if slot.prioritized and "indexes" in batch:
            self.drawn[slot.label] = buffer, batch["indexes"], batch["id"].copy()
        if self.rng.random() < 0.2:
            self.keep(batch)

    def keep(self, batch):
        array = batch[self.rng.choice([name for name in batch if name != "indexes"])]
        view = self.rng.choice(_WAYS_TO_KEEP)(array)
        self.kept.append((view, digest(view)))
        if len(self.kept) > _MOST_KEPT:
            self.check_kept()

    def check_kept(self):
        view, was = self.kept.popleft()
        if digest(view) != was:
            raise Wrong(f"an array of {view.nbytes} bytes that was kept has changed")

    def step(self, names, weights):
        """One call, of a method chosen at random."""
        name = self.rng.choices(names, cum_weights=weights)[0]
        # Counters are each thread's own: += on one of many is no single step.
        try:
            RECIPES[name][0](self)
        except (*EXPECTED, Raised):
            pass
        return name

    def mischief(self):
        """What any code that runs inside a call may do: a handler, a callback, a destructor."""
        if self.mischief_depth > 1 or self.world.quiet:
            return
        self.mischief_depth += 1
        try:
            with contextlib.suppress(*EXPECTED):
                self._mischief()
        finally:
            self.mischief_depth -= 1

    def _mischief(self):
        what = self.rng.randrange(12)
        if what == 0:
            gc.collect(self.rng.randrange(3))
        elif what == 1:
            self.moving_slot().replace()
        elif what == 2:
            self.close_something(self)
        elif what == 3:
            self.moving_slot().buffer.clear()
        elif what == 4:
            time.sleep(self.rng.choice((0, 1e-4)))
        elif what == 5:
            RECIPES["ReplayBuffer.add"][0](self)
        elif what == 6:
            RECIPES["PrioritizedReplayBuffer.sample"][0](self)
        elif what == 7:
            len(self.moving_slot().buffer)
        elif what == 8:
            leave_cycle(self)
        elif what == 9 and self.may_raise:
            raise Raised
        elif what == 10 and self.world.forks:
            self.world.fork(self)
        elif what == 11:
            RECIPES["Batches.__next__"][0](self)

    def close_something(self, whose):
        """Batches or a writer, of any thread; a writer where there are no batches."""
        if whose.batches and (whose is self or self.world.others_close_batches):
            with contextlib.suppress(IndexError):  # its thread has just dropped them
                whose.batches[-1][0].close()
        elif (staged := whose.writer) is not None:
            staged[0].close()

    def drop(self):
        for batches, *_ in self.batches:
            batches.close()
        self.batches.clear()
        staged, self.writer = self.writer, None
        if staged is not None:
            with contextlib.suppress(mpbuffer.BufferClosed):
                staged[0].close()
        while self.kept:
            self.check_kept()
        self.drawn.clear()


class Sly:
    """An argument whose conversion runs code."""

    def __init__(self, scene, values):
        self.scene, self.values = scene, values

    def __array__(self, dtype=None, copy=None):
        self.scene.mischief()
        return np.asarray(self.values, dtype)


# Buffers


@on_buffers("add", weight=14)
def add(scene, slot):
    if slot is scene.world.still:
        slot = scene.moving_slot(prioritized=True)
    unranked = scene.rng.random() < 0.1
    n = min(scene.batch_rows(slot), slot.size)
    given = slot.rows(n, unranked=unranked)
    if n > 1 and scene.rng.random() < 0.03:
        name = scene.rng.choice(["id", "body", *(["priorities"] if "priorities" in given else [])])
        given[name] = Sly(scene, given[name])
    first = slot.buffer.add(**given)
    if first is None and slot.Nstep:
        return
    if not 0 <= first < slot.size:
        raise Wrong(f"add returned slot {first} of {slot.size}")


@recipe("ReplayBuffer.sample", weight=12)
def sample_uniformly(scene, cls="ReplayBuffer"):
    slot = scene.slot(cls)
    buffer = slot.buffer
    call = buffer.sample if cls == "ReplayBuffer" else buffer.sample_uniform
    n = scene.batch_rows(slot)
    with_indexes = scene.rng.random() < 0.5
    batch = call(n, return_indexes=with_indexes)
    if scene.rng.random() < 0.2:
        batch = call(n, return_indexes=with_indexes, out=batch)
    scene.check(slot, batch, "sample")
    scene.look_at(slot, buffer, batch)


@recipe("PrioritizedReplayBuffer.sample_uniform", weight=6)
def sample_uniform(scene):
    sample_uniformly(scene, "PrioritizedReplayBuffer")


@recipe("PrioritizedReplayBuffer.sample", weight=14)
def sample(scene):
    slot = scene.slot("PrioritizedReplayBuffer")
    buffer = slot.buffer  # another one may come into its place
    n, beta = scene.batch_rows(slot), scene.rng.choice((0.0, 0.5, 1.0))
    more = {"weight_norm": scene.rng.choice(("buffer", "batch"))}
    more["return_probabilities"] = scene.rng.random() < 0.2
    batch = buffer.sample(n, beta, **more)
    if scene.rng.random() < 0.2:
        batch = buffer.sample(n, beta, out=batch, **more)
    scene.check(slot, batch, "sample", beta=beta)
    scene.look_at(slot, buffer, batch)


@recipe("PrioritizedReplayBuffer.update_priorities", weight=14)
def update_priorities(scene):
    label = scene.slot("PrioritizedReplayBuffer").label
    if label not in scene.drawn:
        return sample(scene)
    buffer, indexes, ids = scene.drawn[label]
    every = scene.rng.choice((1, 1, 2, 3))
    indexes, priorities = indexes[::every], priorities_of(ids[::every])
    if scene.rng.random() < 0.1:
        priorities = Sly(scene, priorities)
    if scene.rng.random() < 0.2:
        generations = buffer.get_generations(indexes)
        stale = buffer.update_priorities(indexes.copy(), priorities, generations)
    else:
        stale = buffer.update_priorities(indexes, priorities)
    most = 0 if label == "still" else len(indexes)
    if not 0 <= stale <= most:
        raise Wrong(f"{stale} of {len(indexes)} updates of {label!r} were stale")


@recipe("PrioritizedReplayBuffer.get_generations", weight=3)
def get_generations(scene):
    slot = scene.slot("PrioritizedReplayBuffer")
    buffer, indexes, _ = scene.drawn.get(slot.label, (slot.buffer, np.arange(9), None))
    generations = buffer.get_generations(indexes)
    if len(generations) != len(indexes) or (slot.label in scene.drawn and not generations.all()):
        raise Wrong(f"generations {generations} of indexes {indexes}")


@recipe("PrioritizedReplayBuffer.get_priorities", weight=3)
def get_priorities(scene):
    slot = scene.slot("PrioritizedReplayBuffer")
    priorities = slot.buffer.get_priorities(np.arange(min(scene.batch_rows(slot), slot.size)))
    if ((priorities < 1) | (priorities > 8)).any():
        raise Wrong(f"priorities from {priorities.min()} to {priorities.max()}")


@on_buffers("save_transitions", "load_transitions", weight=0.2)
def save_and_load(scene, slot):
    buffer, file = slot.buffer, io.BytesIO()
    buffer.save_transitions(file)
    file.seek(0)
    if slot is not scene.world.still:
        buffer.load_transitions(file)


@on_buffers("snapshot", weight=0.1)
def snapshot_and_restore(scene, slot):
    gone = contextlib.suppress(FileNotFoundError)  # the interpreter's end removes the directory
    with gone, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as path:
        slot.buffer.snapshot(path)
        with mpbuffer.restore(path) as again:
            check_whole(again.get_all_transitions(), f"restored rows of {slot.label!r}")


@on_buffers("get_all_transitions", weight=0.5)
def get_all_transitions(scene, slot):
    everything = slot.buffer.get_all_transitions(shuffle=scene.rng.random() < 0.5)
    check_whole(everything, f"all rows of {slot.label!r}")
    if slot is scene.world.still and set(everything["id"].tolist()) != set(range(slot.size)):
        raise Wrong("rows of a buffer that nobody writes to are gone")


@on_buffers("__len__", "get_stored_size", weight=4)
def stored_size(scene, slot):
    stored = scene.rng.choice((len, type(slot.buffer).get_stored_size))(slot.buffer)
    least = slot.size if slot is scene.world.still else 0
    if not least <= stored <= slot.size:
        raise Wrong(f"{stored} rows are stored in {slot.label!r}, of {slot.size}")


@on_buffers(
    *("get_buffer_size", "get_next_index", "get_current_episode_len", "rows_added", "nbytes"),
    "max_handles",
    "shared",
    weight=1,
)
def counts(scene, slot):
    buffer = slot.buffer
    if buffer.get_buffer_size() != slot.size or not 0 <= buffer.get_next_index() < slot.size:
        raise Wrong(f"size {buffer.get_buffer_size()}, next index {buffer.get_next_index()}")
    if buffer.get_current_episode_len() < 0 or buffer.rows_added() < 0:
        raise Wrong("counts below 0")
    if not 1 <= buffer.max_handles <= 1022:
        raise Wrong(f"{buffer.max_handles} handles")
    if not buffer.shared:
        raise Wrong("a buffer that others use counts as private")
    if buffer.nbytes < slot.size:
        raise Wrong(f"{buffer.nbytes} bytes")


@on_buffers("name", "closed", "is_Nstep", "sequence", "__repr__", weight=0.7)
def described(scene, slot):
    buffer = slot.buffer
    if buffer.is_Nstep() != bool(slot.Nstep) or not (buffer.closed or buffer.name):
        raise Wrong(f"{buffer!r}")
    if buffer.sequence is not None:
        raise Wrong(f"{buffer.sequence}")
    if not repr(buffer).startswith(f"<{slot.cls}"):
        raise Wrong(repr(buffer))


@on_buffers("processes", weight=0.5)
def processes(scene, slot):
    if not any(line.pid == os.getpid() for line in slot.buffer.processes()):
        raise Wrong("this process is not among its buffer's")


@on_buffers("stats", weight=0.7)
def stats(scene, slot):
    figures = slot.buffer.stats()
    if figures["size"] != slot.size or not 0 <= figures["fill"] <= slot.size:
        raise Wrong(f"{figures} of {slot.label!r}, whose size is {slot.size}")
    if figures["handles"] < 1 or figures["early"] or figures["sources"]:
        raise Wrong(f"{figures} of {slot.label!r}, whose rows share nothing")


@recipe("PrioritizedReplayBuffer.alpha", "PrioritizedReplayBuffer.eps", weight=0.3)
def exponents(scene):
    buffer = scene.slot("PrioritizedReplayBuffer").buffer
    if (buffer.alpha, buffer.eps) != (1.0, 0.0):
        raise Wrong(f"alpha {buffer.alpha}, eps {buffer.eps}")


@recipe("PrioritizedReplayBuffer.get_max_priority", weight=0.7)
def max_priority(scene):
    if not 1.0 <= scene.slot("PrioritizedReplayBuffer").buffer.get_max_priority() <= 8.0:
        raise Wrong("the largest priority was never given")


@recipe("PrioritizedReplayBuffer.learner_status", weight=1)
def learner_status(scene):
    slot = scene.slot("PrioritizedReplayBuffer")
    status = slot.buffer.learner_status()
    if not 0 <= status.sampleable <= slot.size or status.stale < 0:
        raise Wrong(f"{status}")


@recipe("PrioritizedReplayBuffer.acquire_learner", weight=0.5)
def acquire_learner(scene):
    scene.slot("PrioritizedReplayBuffer").buffer.acquire_learner()


@recipe("PrioritizedReplayBuffer.release_learner", weight=0.5)
def release_learner(scene):
    scene.slot("PrioritizedReplayBuffer").buffer.release_learner()


@on_buffers("clear", weight=0.3)
def clear(scene, slot):
    (scene.moving_slot() if slot is scene.world.still else slot).buffer.clear()


@on_buffers("on_episode_end", weight=1)
def on_episode_end(scene, slot):
    slot.buffer.on_episode_end()


@on_buffers("close", weight=0.15)
def close(scene, slot):
    slot.replace()
    scene.close_something(scene.rng.choice(scene.world.scenes))


@on_buffers("__init__", "__enter__", "__exit__", weight=0.15)
def create(scene, slot):
    way = scene.rng.randrange(4)
    if way == 0:
        leave_cycle(scene)
    elif way == 1:
        slot.open(logger=logging.getLogger("edge"))  # dropped at once
    else:
        with slot.open() as buffer:
            if not slot.Nstep and len(buffer) != slot.size // 2:
                raise Wrong(f"{len(buffer)} rows in a buffer that was given {slot.size // 2}")


class Knot:
    """An object of a cycle: what hangs on it ends when the collector comes, wherever that is."""

    def __init__(self, *held):
        self.held, self.self = held, self


def leave_cycle(scene):
    slot = scene.moving_slot()
    buffer = slot.open()
    held = [buffer, buffer.batches(scene.rng.choice((1, 4)), prefetch=scene.rng.randrange(3))]
    if not slot.Nstep:
        next(held[1])
    if scene.rng.random() < 0.5:
        held.append(buffer.writer())
        one = slot.rows(1)
        held[2].add(**{name: values[0] for name, values in one.items()})
    Knot(*held)


def refuse_copies(handle):
    for copied in (copy.copy, copy.deepcopy):
        try:
            copied(handle)
        except TypeError:
            continue
        raise Wrong(f"{copied.__name__} made a second handle")


@on_buffers("__copy__", "__deepcopy__", weight=0.1)
def copy_buffer(scene, slot):
    refuse_copies(slot.buffer)


@recipe("SharedWeights.__copy__", "SharedWeights.__deepcopy__", weight=0.1)
def copy_weights(scene):
    refuse_copies(some_weights(scene))


@on_buffers("__reduce__", weight=0.2)
def pickled(scene, slot):
    with contextlib.suppress(mpbuffer.SegmentNotFound), pickle.loads(
        pickle.dumps(slot.buffer)
    ) as again:  # fmt: skip
        use_other_handle(scene, slot, again)


def use_other_handle(scene, slot, buffer):
    if slot.buffer is not buffer:
        check_whole(getattr(buffer, "sample_uniform", buffer.sample)(8), "another handle")
        if slot.prioritized and scene.rng.random() < 0.2:
            batch = buffer.sample(8, 1.0)
            check_weights(batch, 1.0, "another handle's sample")
            buffer.update_priorities(batch["indexes"], priorities_of(batch["id"]))
        if slot is not scene.world.still:
            buffer.add(**slot.rows(1))


@recipe("ReplayBuffer.largest_size", "PrioritizedReplayBuffer.largest_size", weight=0.1)
def largest_size(scene):
    if mpbuffer.PrioritizedReplayBuffer.largest_size(fields(6), 0.5) < 1:
        raise Wrong("no row fits")


@on_buffers("keep_after_exit", weight=0.0005)
def keep_after_exit(scene, slot):
    with slot.open() as buffer:
        pid = buffer.keep_after_exit(0)
        try:
            keeper = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            os.kill(pid, signal.SIGKILL)
            select.select([keeper], [], [], 20)
        finally:
            os.close(keeper)


@on_buffers("batches", weight=0.3)
def open_batches(scene, slot):
    """At most two at a time; those that are dropped end by themselves."""
    more = {"beta": scene.rng.choice((0.0, 1.0))} if slot.prioritized else {"return_indexes": True}
    buffer = slot.buffer
    batches = buffer.batches(
        scene.batch_rows(slot), prefetch=scene.rng.randrange(4), pin_memory=scene.pin_memory, **more
    )
    scene.batches = [*scene.batches[-1:], (batches, slot, buffer)]


@on_buffers("writer", weight=0.3)
def open_writer(scene, slot):
    if slot is scene.world.still:
        slot = scene.moving_slot()
    more = {}
    if slot.prioritized and scene.rng.random() < 0.5:

        def priorities(batch):
            scene.mischief()
            return priorities_of(batch["id"])

        more["priorities"] = priorities
    writer = slot.buffer.writer(scene.rng.choice((1, 7, 300)), **more)
    scene.writer = writer, slot, bool(more)


# Batches


def some_batches(scene):
    if not scene.batches:
        open_batches(scene, scene.slot(scene.rng.choice(("ReplayBuffer", scene.world.focus.cls))))
    return scene.rng.choice(scene.batches)


@recipe("Batches.__next__", weight=7)
def next_batch(scene):
    entry = batches, slot, buffer = some_batches(scene)
    try:
        batch = next(iter(batches))
    except mpbuffer.BufferClosed:
        scene.batches = [each for each in scene.batches if each is not entry]
        raise
    scene.check(slot, batch, "a batch")
    if slot.prioritized:
        weights = batch["weights"]
        if not ((weights > 0) & (weights <= 1)).all():
            raise Wrong(f"weights of a batch: {weights.min()} to {weights.max()}")
    scene.look_at(slot, buffer, batch)


@recipe("Batches.beta", weight=0.5)
def set_beta(scene):
    batches = some_batches(scene)[0]
    batches.beta = scene.rng.choice((0.0, 0.5, 1.0))
    if batches.beta not in (0.0, 0.5, 1.0):
        raise Wrong(f"beta {batches.beta}")


@recipe("Batches.close", "Batches.__init__", "Batches.__enter__", "Batches.__exit__", weight=0.2)
def close_batches(scene):
    batches = some_batches(scene)[0]
    with batches:
        pass


# StepWriter


def some_writer(scene):
    if scene.writer is None or scene.writer[0].closed:
        open_writer(scene, scene.moving_slot())
    return scene.writer


@recipe("StepWriter.add", weight=12)
def writer_add(scene):
    writer, slot, ranks = some_writer(scene)
    given = slot.rows(1)
    if ranks:
        given.pop("priorities", None)
    elif scene.rng.random() < 0.02:
        given["id"] = Sly(scene, given["id"])
    if writer.add(**given) < 0:
        raise Wrong("fewer than no rows were written")


@recipe("StepWriter.flush", "StepWriter.on_episode_end", weight=1)
def writer_flush(scene):
    writer = some_writer(scene)[0]
    (writer.flush if scene.rng.random() < 0.5 else writer.on_episode_end)()


@recipe(
    *(
        "StepWriter." + name
        for name in ("closed", "steps", "rows_staged", "rows_written", "__repr__")
    ),
    *("StepWriter." + name for name in ("flush_every", "n_envs")),
    weight=0.5,
)
def writer_counts(scene):
    writer = some_writer(scene)[0]
    if writer.n_envs != 1 or writer.flush_every not in (1, 7, 300):
        raise Wrong(repr(writer))
    if not writer.rows_staged >= 0 <= writer.rows_written or writer.steps < 0:
        raise Wrong(repr(writer))


@recipe(*("StepWriter." + name for name in ("close", "__enter__", "__exit__")), weight=0.3)
def writer_close(scene):
    with some_writer(scene)[0]:
        pass


@recipe("StepWriter.__init__", "StepWriter.__del__", weight=0.2)
def writer_drop(scene):
    some_writer(scene)
    scene.writer = None


@recipe("StepWriter.__reduce__", weight=0.1)
def writer_pickled(scene):
    with contextlib.suppress(TypeError):
        pickle.dumps(some_writer(scene)[0])
        raise Wrong("a writer was pickled")


# Weights


def weights_of(value):
    return {
        "bias": np.full(1_000, value),
        "layer": np.full((200, 250), value, np.float32),
        "step": np.array(int(value)),
    }


def check_version(scene, got, handle):
    value = float(got["step"])
    for name, array in got.items():
        if not (array == array.dtype.type(value)).all():
            raise Wrong(f"{name!r} of version {got.version} is not of step {value}")
    if handle is scene.world.weights[0]:
        if got.version < scene.last_version:
            raise Wrong(f"version {got.version} came after {scene.last_version}")
        scene.last_version = got.version


def some_weights(scene):
    return scene.rng.choice(scene.world.weights)


@recipe("SharedWeights.publish", weight=3)
def publish(scene):
    some_weights(scene).publish(weights_of(float(next(scene.world.ids) % 2**24)))


@recipe("SharedWeights.read", "SharedWeights.load_into", weight=3)
def read(scene):
    handle = some_weights(scene)
    way = scene.rng.randrange(3)
    if way == 0:
        check_version(scene, handle.read(), handle)
    elif way == 1:
        check_version(scene, handle.read(weights_of(0.0)), handle)
    else:
        target = weights_of(0.0)
        version = handle.load_into(target)
        check_version(scene, mpbuffer.WeightsVersion(target, version, 0.0), handle)


@recipe(
    *("SharedWeights." + name for name in ("version", "age", "name", "closed", "__repr__")),
    "SharedWeights.publisher_status",
    weight=0.5,
)
def weights_described(scene):
    handle = some_weights(scene)
    if handle.version < 1 or handle.age < 0 or not repr(handle) or not handle.name:
        raise Wrong(repr(handle))
    handle.publisher_status()


@recipe("SharedWeights.release_publisher", weight=0.3)
def release_publisher(scene):
    some_weights(scene).release_publisher()


@recipe("SharedWeights.close", "SharedWeights.__init__", weight=0.1)
def close_weights(scene):
    old, scene.world.weights[1] = scene.world.weights[1], scene.world.new_weights()
    if scene.rng.random() < 0.8:
        old.close()


@recipe(
    *("SharedWeights." + name for name in ("attach", "__reduce__", "__enter__", "__exit__")),
    weight=0.2,
)
def attach_weights(scene):
    handle = some_weights(scene)
    with contextlib.suppress(mpbuffer.SegmentNotFound):
        if scene.rng.random() < 0.5:
            again = mpbuffer.SharedWeights.attach(handle.name)
        else:
            again = pickle.loads(pickle.dumps(handle))
        with again:
            check_version(scene, again.read(), again)


@recipe("attach", weight=0.3)
def attach(scene):
    slot = scene.rng.choice(scene.world.slots)
    with contextlib.suppress(mpbuffer.SegmentNotFound), mpbuffer.attach(slot.buffer.name) as again:
        use_other_handle(scene, slot, again)
