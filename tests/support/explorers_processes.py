"""What explorers of the tests do, and learners that are to be killed. Light to import."""

import atexit
import contextlib
import ctypes
import importlib
import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

FIELDS = {
    "index": {"dtype": "i8"},
    "pid": {"dtype": "i8"},
    "restart": {"dtype": "i8"},
    "epsilon": {"dtype": "f8"},
    "draw": {"dtype": "f8"},
}


def tell(explorer, draw=0.0):
    """Add a row that says who one is."""
    explorer.buffer.add(
        index=explorer.index,
        pid=os.getpid(),
        restart=explorer.restart,
        epsilon=explorer.epsilon,
        draw=draw,
    )


def play(explorer):
    """Tell who one is, with one's first random number, again and again until told to stop."""
    draw = explorer.rng.random()
    while not explorer.should_stop():
        tell(explorer, draw)
        explorer.stopping.wait(0.01)


def play_staged(explorer):
    """Add a row, then stage one, whose draw is 1, until told to stop."""
    tell(explorer)
    with explorer.buffer.writer(flush_every=1000) as writer:
        writer.add(
            index=explorer.index, pid=os.getpid(), restart=explorer.restart, epsilon=0.0, draw=1.0
        )
        explorer.stopping.wait()


def stage_one(explorer, do):
    """Add a row, stage one whose draw is 1, and do something for ever."""
    tell(explorer)
    with explorer.buffer.writer(flush_every=1000) as writer:
        writer.add(index=0, pid=os.getpid(), restart=explorer.restart, epsilon=0.0, draw=1.0)
        while True:
            do()


def play_staged_deaf(explorer):
    stage_one(explorer, lambda: time.sleep(0.01))


def play_staged_in_a_call(explorer):
    """Never come back from a call, into which no signal breaks."""
    mutex, library = ctypes.create_string_buffer(128), ctypes.CDLL(None)
    library.pthread_mutex_lock(mutex)
    stage_one(explorer, lambda: library.pthread_mutex_lock(mutex))


def play_staged_and_catch_all(explorer):
    def sleep():
        with contextlib.suppress(BaseException):
            time.sleep(0.01)

    stage_one(explorer, sleep)


def finish_what_was_begun(explorer):
    tell(explorer)
    explorer.stopping.wait()
    time.sleep(0.4)
    tell(explorer, 0.5)


def count_signals(explorer):
    """Have handlers of one's own, that add a row for each signal."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: tell(explorer, number))
    tell(explorer)
    while not explorer.should_stop():
        time.sleep(0.01)


TERMINATED_CHILDREN = 30


def terminate_children(explorer, package):
    """Terminate a child as soon as it is there, and add a row with its exit code."""
    tell(explorer)
    for _ in range(TERMINATED_CHILDREN):
        if package == "os":
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
                os._exit(0)
            os.kill(pid, signal.SIGTERM)
            tell(explorer, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        else:
            context = importlib.import_module(package).get_context("fork")
            child = context.Process(target=time.sleep, args=(60,))
            child.start()
            child.terminate()
            child.join(60)
            tell(explorer, child.exitcode)
    time.sleep(0.1)


def play_deaf(explorer):
    """Play, and never look at what the learner wants."""
    while True:
        tell(explorer)
        time.sleep(0.01)


class Slow:
    """Takes long to go, as the interpreter ends and no other thread can run any more."""

    def __del__(self, sleep=time.sleep):
        sleep(30)


slow = None


def play_and_end_slowly(explorer):
    """Play, and return when told to, of a process that then takes long to end."""
    global slow
    slow = Slow()
    play(explorer)


def be_stuck(write=os.write, sleep=time.sleep):
    write(1, b"stuck\n")
    while True:
        sleep(60)


class Stuck:
    """Stays for ever, when no other thread of Python's can run any more."""

    def __del__(self, be_stuck=be_stuck):
        be_stuck()


def end_stuck(explorer):
    """Return, and never end."""
    global slow
    tell(explorer)
    if explorer.index == 0:
        slow = Stuck()
    elif explorer.index == 1:
        atexit.register(be_stuck)
    else:
        threading.Thread(target=be_stuck).start()


def play_stuck(explorer):
    """Neither play nor end: keep all other threads of Python's from running, or just stay."""
    tell(explorer)
    if explorer.index == 0:
        say("stuck")
        ctypes.PyDLL(None).pause()
    else:
        threading.Thread(target=be_stuck).start()


def play_and_ignore_signals(explorer):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    play_deaf(explorer)


def raise_from_depth(explorer, index):
    if explorer.index == index:
        raise LookupError(f"no way out of {index}")
    play(explorer)


def leave_at_once(explorer, code):
    os._exit(code)


def tell_of_place(explorer, path):
    """Write down on which cores each thread runs, how nice, and what limits there are."""
    from mpbuffer.explorers.process import THREAD_VARIABLES

    threads = [int(each) for each in os.listdir("/proc/self/task")]
    place = {
        "cores": [sorted(os.sched_getaffinity(each)) for each in threads],
        "nice": [os.getpriority(os.PRIO_PROCESS, each) for each in threads],
        "variables": [os.environ.get(each) for each in THREAD_VARIABLES],
        "at_exec": dict(
            entry.split("=", 1)
            for entry in Path("/proc/self/environ").read_text().split("\0")
            if "_NUM_THREADS" in entry
        ),
        "interrupt": str(signal.getsignal(signal.SIGINT)),
        "blocked": signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()),
    }
    Path(path.format(explorer.index)).write_text(json.dumps(place))


def use_all(explorer, queue, simple, joinable, event, lock, condition, semaphore, barrier, pipe):
    """Use each of them; what is still in a queue's thread is sent at the end."""
    assert event.wait(60)
    with lock, condition:
        assert semaphore.acquire(timeout=60)
    pipe.send(pipe.recv() + 1)
    barrier.wait(60)
    simple.put("simple")
    joinable.put("joinable")
    for number in range(1000):
        queue.put(number)


def change_all(explorer, value, array, raw, dictionary, numbers, queue):
    with value.get_lock():
        value.value += 1
    array[1], raw[1] = 5, 7
    dictionary["from"] = "explorer"
    numbers.append(1)
    queue.put("queued")


def write_to(explorer, memory, number):
    memory.buf[number] = number


def wait_for_weights(explorer, net, part, whole):
    """Tell that one is there, in shared memory, and what one sees once all has come."""
    whole[0, 0] = 1
    until = time.monotonic() + 60
    while (net[1].weight[0, 0] != 7 or part[1] != 9) and time.monotonic() < until:
        time.sleep(0.005)
    for seen in (net[1].weight[0, 0], part[1], whole[1, 1]):
        tell(explorer, seen.item())


def fill_tensor(explorer, tensor, sparse):
    tensor.fill_(1)
    tell(explorer, (tensor.sum() + sparse.to_dense()[1, 1]).item())


def add_from_child(buffer, number):
    buffer.add(index=0, pid=os.getpid(), restart=0, epsilon=0.0, draw=number)


def have_children(explorer, package):
    """Start one that is not waited for here, and a daemon that never ends."""
    for method in ("fork", "spawn"):
        context = importlib.import_module(package).get_context(method)
        number = 1.0 if method == "fork" else 2.0
        context.Process(target=add_from_child, args=(explorer.buffer, number)).start()
    context.Process(target=time.sleep, args=(1000,), daemon=True).start()


def play_without_descriptors(explorer):
    tell(explorer)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    time.sleep(2.5)  # longer than an orphan lives
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    tell(explorer, 1.0)


def draw_globally(explorer):
    """Tell one number of each generator that there is."""
    import random

    import numpy as np

    numbers = [random.random(), np.random.random()]
    if "torch" in sys.modules:
        numbers.append(sys.modules["torch"].rand((), dtype=sys.modules["torch"].double).item())
    for number in [*numbers, explorer.rng.random()]:
        tell(explorer, number)


def have_explorers(explorer, start_method):
    import mpbuffer

    with mpbuffer.Explorers(tell, 2, explorer.buffer, start_method=start_method) as explorers:
        explorers.join(60)
    tell(explorer, 1.0)


def tell_threads_of_torch(explorer):
    torch = importlib.import_module("torch")
    tell(explorer, torch.get_num_threads())


def say(*words):
    """Write a line at once, whole, whoever else writes to the same pipe."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def learn(start_method, function, n=2):
    """Be a learner: say when the explorers start and when all play; say how it ended."""
    import mpbuffer

    interrupts = []
    with mpbuffer.PrioritizedReplayBuffer(1000, FIELDS) as buffer:
        try:
            say("starting")
            with mpbuffer.Explorers(
                globals()[function], n, buffer, start_method=start_method, stop_timeout=1
            ) as explorers:
                while len(set(buffer.get_all_transitions()["index"].ravel())) < n:
                    explorers.check()
                    time.sleep(0.01)
                say("playing", *(each.pid for each in explorers.status()))
                while True:
                    explorers.check()
                    time.sleep(0.01)
        except KeyboardInterrupt:
            interrupts.append(1)
        time.sleep(0.2)  # for a second one to come, were there one
    say("interrupted", len(interrupts))


if __name__ == "__main__":
    learn(*sys.argv[1:3], *map(int, sys.argv[3:]))
