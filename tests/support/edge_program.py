"""One program at the interpreter's edge: eight threads call every public method at random.

    python tests/support/edge_program.py KIND --seed S --calls N --prefix NAME --watch FILE

Meanwhile, by KIND: `threads`, the collector comes and other threads close; `handlers`, signals come
to the main thread, whose handlers close, clear, re-enter, fork and raise; `forks`, any thread
forks; `kept`, every thread keeps what it was given, of pinned memory too; `exits`, daemon threads
are inside calls when the interpreter ends. edge_campaign.py starts and watches it. Ends with
status 0 and a line of JSON; at the first fault with status 1 and its traceback. FILE, of 72 zero
bytes, is where each thread counts its calls.
"""

import argparse
import collections
import contextlib
import ctypes
import faulthandler
import gc
import json
import logging
import mmap
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
import weakref
from itertools import accumulate
from pathlib import Path

import numpy as np

THREADS = 8
KINDS = ("threads", "handlers", "forks", "kept", "exits")
DRAWING = (".sample", ".sample_uniform", ".update_priorities", "__len__", ".__next__")
ENDED = 2**63  # in the place of a thread's count
CHILD_PATIENCE = 60.0
MOST_CHILDREN = 10


class PinnedTensor:
    """As much of a torch.Tensor of pinned bytes as gives NumPy its memory."""

    def __init__(self, nbytes):
        self.memory = np.full(nbytes, 0xEE, np.uint8)
        weakref.finalize(self, self.memory.fill, 0xDD)  # who still looks at it will see

    def numpy(self):
        return np.asarray(self)

    @property
    def __array_interface__(self):
        return self.memory.__array_interface__

    def data_ptr(self):
        return self.memory.ctypes.data


class PinnedTorch:
    """Stands in for torch with a GPU: allocates, and has always copied what it was asked to."""

    uint8 = np.uint8
    Tensor = PinnedTensor

    class cuda:
        @staticmethod
        def is_available():
            return True

        class Event:
            def record(self, stream=None):
                pass

            def query(self):
                return True

            def synchronize(self):
                pass

    @staticmethod
    def empty(nbytes, *, dtype, pin_memory):
        assert pin_memory and dtype is np.uint8
        return PinnedTensor(int(nbytes))


class Collections:
    """Whether a thread is in the middle of a garbage collection."""

    def __init__(self):
        self.one_runs = False
        gc.callbacks.append(self.note)

    def note(self, phase, info):
        self.one_runs = phase == "start"


def is_amid_locks(frame):
    """Whether what is raised there may leave a lock, or a note, as it was for good."""
    while frame is not None:
        if frame.f_code.co_filename in (logging.__file__, threading.__file__):
            return True
        if frame.f_code is Collections.note.__code__:
            return True
        frame = frame.f_back
    return False


class LeaveChild(BaseException):
    """Takes a child up to the end of main(), through every call that it was forked in."""


class Program:
    def __init__(self, options):
        from edge_recipes import EXPECTED, RECIPES, Raised, Scene, World

        self.options, self.Raised, self.expected = options, Raised, EXPECTED
        self.kind = options.kind
        self.over = False
        self.faults = []
        with open(options.watch, "r+b") as file:
            self.progress = np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint64)
        self.world = World(options.prefix, options.seed, forks=self.kind in ("forks", "handlers"))
        self.world.fork = self.fork
        self.world.others_close_batches = not options.leave_batches
        self.scenes = [Scene(self.world, number) for number in range(THREADS + 1)]
        self.counts = [collections.Counter() for _ in self.scenes]
        self.handled = self.forked = 0
        self.reaping = threading.Lock()
        self.may_leave = False
        self.collections = Collections()
        weights = {name: weight for name, (_, weight) in RECIPES.items()}
        elsewhere = {"ReplayBuffer.", "PrioritizedReplayBuffer."} - {self.world.focus.cls + "."}
        for name in weights:
            weights[name] *= 0.2 if name.startswith(tuple(elsewhere)) else 1
        if options.seed % 2 == 0:  # a crowd before one buffer's mutexes
            for name in weights:
                weights[name] *= 15 if name.endswith(DRAWING) else 0.3
        if self.kind == "kept":
            for name in weights:
                weights[name] *= 20 if name == "Batches.__next__" else 0.3
            for scene in self.scenes:
                scene.pin_memory = scene.number % 2 == 0
        if self.kind in ("handlers", "forks", "exits"):  # a process each
            weights = {name: weights[name] * ("keep_after" not in name) for name in weights}
        self.names, self.weights = list(weights), list(accumulate(weights.values()))

    # Threads

    def work(self, scene):
        number = scene.number
        try:
            while not self.over and self.progress[number] < self.options.calls:
                self.call(scene)
        except BaseException:
            if not self.world.is_child:
                self.fault(f"thread {number}:\n{traceback.format_exc()}")
        finally:
            self.progress[number] = ENDED

    def call(self, scene):
        name = scene.step(self.names, self.weights)
        self.counts[scene.number][name] += 1
        self.progress[scene.number] += 1
        if self.kind == "forks" and scene.rng.random() < 0.01:
            self.fork(scene)
        elif self.kind == "handlers" and scene.rng.random() < 0.1:
            os.kill(os.getpid(), signal.SIGUSR1)
        may_raise, scene.may_raise = scene.may_raise, False  # not amid the books of this program
        self.reap()
        scene.may_raise = may_raise

    def fault(self, what):
        self.faults.append(what)
        self.over = True
        print(f"{self.kind}, seed {self.options.seed}: {what}", file=sys.stderr, flush=True)

    def unraisable(self, what):
        """A destructor may meet what other threads did; nothing else."""
        if not isinstance(what.exc_value, (self.Raised, LeaveChild, *self.expected)):
            self.fault(f"unraisable: {what.exc_value!r} in {what.object!r}")

    def run(self):
        sys.unraisablehook = self.unraisable
        threads = [threading.Thread(target=self.work, args=(each,)) for each in self.scenes[:-1]]
        if self.kind == "handlers":
            self.heed_signals()
        for thread in threads:
            thread.start()
        try:
            if self.kind == "handlers":
                self.take_signals(threads)
            elif self.kind == "forks":
                self.work_in_main(threads)
        except BaseException as error:
            if self.world.is_child:  # whatever the call that it was forked in ended with
                raise LeaveChild from error
            self.fault(f"the main thread:\n{traceback.format_exc()}")
        if self.world.is_child:  # what it was to leave by was raised in a destructor
            raise LeaveChild
        for thread in threads:
            thread.join()
        self.over = self.world.quiet = True
        self.progress[THREADS] = ENDED
        while self.world.children and not self.faults:
            self.reap()
            time.sleep(0.005)

    def work_in_main(self, threads):
        while not self.over and any(thread.is_alive() for thread in threads):
            self.call(self.scenes[-1])

    # Signals

    def heed_signals(self):
        scene = self.scenes[-1]
        rng = random.Random(f"{self.options.seed}.handlers")

        ours = str(Path(__file__).parent), str(Path(sys.modules["mpbuffer"].__file__).parent)

        def may_raise_in(frame):
            return frame.f_code.co_filename.startswith(ours) and not is_amid_locks(frame)

        def handle(number, frame):
            self.handled += 1
            signal.setitimer(signal.ITIMER_REAL, rng.choice((0.0003, 0.001, 0.01)))
            if rng.random() < 0.5:
                return
            may_raise, scene.may_raise = scene.may_raise, False
            self.may_leave = may_raise_in(frame)
            try:
                scene.mischief()
            finally:
                scene.may_raise = may_raise

        def interrupted(number, frame):
            self.handled += 1
            if scene.may_raise and may_raise_in(frame):
                raise self.Raised

        signal.signal(signal.SIGALRM, handle)
        signal.signal(signal.SIGUSR1, interrupted)
        signal.setitimer(signal.ITIMER_REAL, 0.001)

    def take_signals(self, threads):
        scene = self.scenes[-1]
        slow = SlowBatches(self.world)
        try:
            while not self.over and any(thread.is_alive() for thread in threads):
                with contextlib.suppress(self.Raised, *self.expected):
                    try:
                        scene.may_raise = True
                        if scene.rng.random() < 0.005:
                            slow.take(scene)
                        else:
                            self.call(scene)
                    finally:
                        scene.may_raise = False
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for each in (signal.SIGALRM, signal.SIGUSR1):
                signal.signal(each, signal.SIG_IGN)
            slow.close()

    # Forks

    def fork(self, scene):
        if len(self.world.children) >= MOST_CHILDREN or self.over or self.world.is_child:
            return
        in_main = threading.current_thread() is threading.main_thread()
        leaves_by_return = in_main and self.may_leave and scene.rng.random() < 0.3
        seed = scene.rng.random()
        pid = os.fork()
        if pid != 0:
            self.forked += 1
            self.world.children.append((pid, time.monotonic()))
            return
        try:
            self.live_as_child(scene, random.Random(seed))
            if leaves_by_return:
                raise LeaveChild
            status = 0
        except LeaveChild:
            raise
        except BaseException:
            print(f"a child of fork: {traceback.format_exc()}", file=sys.stderr, flush=True)
            status = 4
        os._exit(status)

    def live_as_child(self, scene, rng):
        self.world.is_child, self.over, self.world.forks = True, True, False
        self.progress = np.zeros(len(self.progress), np.uint64)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        scene.may_raise = False
        # What another thread was about to free is no thread's any more, and stays till the end.
        if not self.collections.one_runs:
            check_that_nothing_is_pinned(self.options.prefix)
        if rng.random() < 0.2:
            time.sleep(rng.uniform(0.05, 0.6))
            return
        for batches, *_ in scene.batches:
            with contextlib.suppress(RuntimeError, *self.expected):
                next(batches)
        scene.batches = []
        for _ in range(rng.randrange(6)):
            scene.step(self.names, self.weights)

    def reap(self):
        if not self.world.children or self.world.is_child:
            return
        if not self.reaping.acquire(blocking=False):
            return  # also where a handler comes in the middle of this
        try:
            for entry in list(self.world.children):
                pid, begun = entry
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.world.children.remove(entry)
                    if (code := os.waitstatus_to_exitcode(status)) != 0:
                        self.fault(f"child {pid} of fork ended by {code}")
                elif time.monotonic() - begun > CHILD_PATIENCE:
                    os.kill(pid, signal.SIGUSR2)  # its stacks go to the watched file too
                    time.sleep(0.5)
                    os.kill(pid, signal.SIGKILL)
                    self.fault(f"child {pid} of fork froze")
        finally:
            self.reaping.release()


class SlowBatches:
    """Batches so large that a signal comes while one is waited for."""

    def __init__(self, world):
        from edge_recipes import Slot

        self.slot = Slot(world, "slow", "ReplayBuffer", 511, 2_000)
        self.batches = None

    def take(self, scene):
        self.batches = self.slot.buffer.batches(20_000, prefetch=1)
        scene.batches = [(self.batches, self.slot, self.slot.buffer)]  # where handlers close them
        try:
            batch = next(self.batches)
            if (batch["body"][:, 0] - batch["id"] != batch["body"][0, 0] - batch["id"][0]).any():
                raise AssertionError("rows of a large batch are not whole")
        finally:
            self.batches = None
            scene.batches = []

    def close(self):
        self.slot.buffer.close()


def mapped_segments(prefix):
    """Names that this process has mapped or opened; those of removed files as well."""
    named = f"/dev/shm/mpbuffer-{os.getuid()}-{prefix}."
    nameless = f"/memfd:mpbuffer-{os.getuid()}-"
    found = [line.split(maxsplit=5)[5] for line in Path("/proc/self/maps").read_text().splitlines()
             if named in line or nameless in line]  # fmt: skip
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return {
        path.removeprefix(kind).split()[0]
        for path in found
        for kind in (named, nameless)
        if path.startswith(kind)
    }


def check_that_nothing_is_pinned(prefix):
    """In a fork's child: every buffer mapped is one that the parent had open when it forked.

    Of weights that cannot be told: their handle is there before the object that has it.
    """
    from edge_recipes import WEIGHTS

    import mpbuffer

    handles = set()
    for each in gc.get_objects():
        if isinstance(each, mpbuffer.ReplayBuffer):
            with contextlib.suppress(mpbuffer.BufferClosed):
                handles.add(each.name.removeprefix(prefix + "."))
    pinned = {name for name in mapped_segments(prefix) - handles if not name.endswith(WEIGHTS)}
    if pinned:
        raise AssertionError(f"a fork pinned segments that nobody had opened: {sorted(pinned)}")


def descriptors():
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of this listing
            found[number] = os.readlink(f"/proc/self/fd/{number}")
    return found


def resources(prefix):
    """What a program that has closed everything has no more of than before."""
    from mpbuffer import _core

    gc.collect()
    _core.sweep()  # children that left by os._exit have closed nothing
    ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text().split()
    rss = int(status[status.index("RssAnon:") + 1])
    return {
        "descriptors": len(descriptors()),
        "threads": len(os.listdir("/proc/self/task")),
        # AddressSanitizer keeps what was freed.
        "MB": 0 if "asan" in os.environ.get("LD_PRELOAD", "") else rss >> 10,
        "segments": sum(f"-{prefix}." in name for name in os.listdir("/dev/shm")),
        "mappings": len(mapped_segments(prefix)),
    }


MB_OF_ARENAS = 200  # what malloc keeps for threads, and NumPy for small arrays


def check_leaks(before, after):
    before["MB"] += MB_OF_ARENAS
    more = {name: (before[name], after[name]) for name in after if after[name] > before[name]}
    if more:
        raise AssertionError(f"left over, before and after: {more}; {descriptors()}")


def check_priorities(world):
    """With nobody there any more: each leaf is that of the row in its slot."""
    from edge_rows import Wrong, priorities_of, ranked

    for slot in world.slots:
        if slot.prioritized and len(slot.buffer) > 0:
            batch = slot.buffer.sample(4 * slot.size, 1.0)
            leaves = slot.buffer._leaves()[batch["indexes"]]
            known = ranked(batch["id"])
            wrong = leaves[known] != priorities_of(batch["id"][known]).astype(np.float32)
            if wrong.any():
                which = np.unique(batch["indexes"][known][wrong], return_index=True)
                seen = [
                    (int(index), hex(batch["id"][known][wrong][i]), float(leaves[known][wrong][i]))
                    for index, i in zip(*which, strict=True)
                ]
                raise Wrong(
                    f"{int(wrong.sum())} of {len(wrong)} leaves of {slot.label!r} are another "
                    f"row's; {len(seen)} rows, among them (slot, id, leaf) {seen[:3]} to "
                    f"{seen[-3:]}; {slot.buffer!r}, {slot.buffer.rows_added()} rows added"
                )


def settle(threads):
    """Let threads of the core end: a moment after their batches, or the call that they were for."""
    gc.collect()
    deadline = time.monotonic() + 10
    while len(os.listdir("/proc/self/task")) > threads and time.monotonic() < deadline:
        time.sleep(0.01)


def live(options):
    threads = len(os.listdir("/proc/self/task"))  # NumPy has some
    program = Program(options)  # the first: modules load, pools fill
    program.world.close()
    del program
    settle(threads)
    before = resources(options.prefix)
    program = Program(options)
    program.may_leave = options.kind == "forks"
    program.run()
    if program.world.is_child:
        return  # some destructor swallowed LeaveChild
    if program.faults:
        os._exit(1)
    check_priorities(program.world)
    report = {
        "calls": sum(program.counts, collections.Counter()),
        "signals": program.handled,
        "forks": program.forked,
    }
    program.world.close()
    program.world.fork = None
    sys.unraisablehook = sys.__unraisablehook__
    del program
    settle(threads)
    check_leaks(before, resources(options.prefix))
    print(json.dumps(report))


def end_with_daemons_inside(options):
    """The interpreter ends while daemon threads are in calls; how is chosen by the seed."""
    program = Program(options)
    sys.unraisablehook = program.unraisable
    threads = [
        threading.Thread(target=program.work, args=(each,), daemon=True)
        for each in program.scenes[:-1]
    ]
    for thread in threads:
        thread.start()
    rng = random.Random(options.seed)
    while not all(program.progress[:THREADS]):
        time.sleep(0.001)
    time.sleep(rng.random() * 0.05)
    if program.faults:
        os._exit(1)
    way = rng.choice(("return", "exit", "raise"))
    if way == "exit":
        sys.exit(7)
    if way == "raise":
        raise SystemExit(7)
    sys.exit(0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--calls", type=int, default=2_000, help="of each thread")
    parser.add_argument("--prefix", required=True, help="of the names of all segments")
    parser.add_argument("--watch", required=True)
    parser.add_argument(
        "--leave-batches", action="store_true", help="batches are closed by their own thread only"
    )
    options = parser.parse_args()
    tempfile.tempdir = str(Path(options.watch).parent)  # goes with the campaign
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    sys.setswitchinterval(1e-4)
    gc.freeze()
    warnings.simplefilter("ignore")  # handles are pickled here as they should not be
    if options.kind == "kept":
        sys.modules["torch"] = PinnedTorch
    gc.set_threshold(300, 5, 5)
    if options.kind == "exits":
        end_with_daemons_inside(options)
    else:
        live(options)


if __name__ == "__main__":
    with contextlib.suppress(LeaveChild):
        main()
