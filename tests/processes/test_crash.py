"""Processes killed and stopped at random moments, seen from outside the installed package.

Each row tells from its identity what all its bytes and its priority must be; each explorer notes in
shared memory what was acknowledged to it, and the learner which priorities it has set. After a
round nobody runs, the dead are zombies still, and a successor compares buffer and notes.

The fast forms run always. Under ``-m slow`` the environment variables MPBUFFER_KILLS,
MPBUFFER_STOPS, MPBUFFER_FORKS, MPBUFFER_SPAWNED_KILLS and MPBUFFER_SPAWNED_STOPS say how many;
``mpbuffer_stops --chaos`` of the C++ build goes through many more.
"""

import collections
import contextlib
import mmap
import multiprocessing
import os
import select
import signal
import struct
import sys
import threading
import time

import numpy as np
import pytest
from explorer_processes import scrambled
from watched_processes import DEADLINE, join_within

import mpbuffer

SEATS = 256
MOST_SLOTS = 4096
VERSIONS = 20
CALL_SECONDS = 3.0  # add may take its second when all slots are held; the rest is a loaded machine
ADDING, SAMPLING, UPDATING = 1, 2, 3


class Notes:
    """What was told to whom; in memory that outlives the processes.

    With a file, for those who are spawned; without one for those who are forked.
    """

    def __init__(self, file=None):
        fields = {
            "acknowledged": SEATS,  # how many rows of the seat's process
            "batch": SEATS,  # rows of its last acknowledged call
            "position": SEATS,  # where the learner had got to before that call
            "activity": SEATS,
            "wrong": SEATS,
            "ready": SEATS,
            "quit": 1,
            "updated_row": MOST_SLOTS,  # the generation that the two versions are of
            "begun": MOST_SLOTS,
            "ended": MOST_SLOTS,
        }
        length = 8 * sum(fields.values())
        if file is None:
            self.memory = mmap.mmap(-1, length)
        else:
            with open(file, "r+b") as opened:
                opened.truncate(length)
                self.memory = mmap.mmap(opened.fileno(), length)
        everything = np.frombuffer(self.memory, np.int64)
        start = 0
        for name, count in fields.items():
            setattr(self, name, everything[start : start + count])
            start += count


def identity(seat, counters):
    return (np.int64(seat) << 40) + np.asarray(counters, np.int64)


def checksum(rows):
    return scrambled(rows["identity"].astype(np.uint64) ^ rows["body"].sum(axis=1))


def rows_of(identities, words):
    seeds = scrambled(identities.astype(np.uint64))
    with np.errstate(over="ignore"):
        body = seeds[:, None] * (2 * np.arange(words, dtype=np.uint64) + 1)
    rows = {"identity": identities, "body": body}
    rows["checksum"] = checksum(rows)
    return rows


def priorities_of(identities, version):
    """In [2^version, 2^(version + 1)), and exact in float32: whose it is can be read from it."""
    mantissa = (scrambled(identities.astype(np.uint64)) >> np.uint64(41)).astype(np.float64)
    return (1 + mantissa * 2.0**-23) * 2.0 ** np.asarray(version, np.float64)


def torn_rows(rows, words):
    expected = rows_of(rows["identity"].ravel(), words)
    whole = (rows["body"].reshape(-1, words) == expected["body"]).all(axis=1)
    whole &= rows["checksum"].ravel() == expected["checksum"]
    return int((~whole).sum())


def explore(buffer, notes, seat, words, batch, threads=1):
    lock = threading.Lock()
    prepared = []  # batches made ahead, so that most of the time is spent inside add
    counter = 0

    def add_on():
        nonlocal counter
        while not notes.quit[0]:
            with lock if threads > 1 else contextlib.nullcontext():
                if not prepared:
                    ahead = rows_of(identity(seat, np.arange(counter, counter + 20 * batch)), words)
                    for start in range(19 * batch, -1, -batch):
                        part = {
                            name: values[start : start + batch] for name, values in ahead.items()
                        }
                        prepared.append((part, priorities_of(part["identity"], 0)))
                rows, priorities = prepared.pop()
                first, counter = counter, counter + batch
                try:
                    position = buffer.learner_status().folded
                except mpbuffer.LearnerBusy:  # it was stopped while it published
                    position = 0
                notes.activity[seat] = ADDING
                try:
                    buffer.add(**rows, priorities=priorities)
                except mpbuffer.SlotsHeld:
                    # Some of its rows may be there; none was promised. A later row's notes must
                    # not promise them.
                    notes.wrong[seat] |= 4
                    return
                finally:
                    notes.activity[seat] = 0
                notes.batch[seat] = batch
                notes.position[seat] = position
                notes.acknowledged[seat] = first + batch
            if threads > 1:
                with contextlib.suppress(mpbuffer.EmptyBuffer):
                    notes.wrong[seat] |= torn_rows(buffer.sample_uniform(2), words) != 0

    others = [threading.Thread(target=add_on) for _ in range(threads - 1)]
    for thread in others:
        thread.start()
    add_on()
    for thread in others:
        thread.join()


def learn(buffer, notes, seat, words):
    while not notes.quit[0]:
        notes.activity[seat] = SAMPLING
        try:
            sampled = buffer.sample(32)
        except mpbuffer.EmptyBuffer:
            continue
        finally:
            notes.activity[seat] = 0
        if torn_rows(sampled, words):
            notes.wrong[seat] |= 1
        generations = buffer.get_generations(sampled["indexes"])
        slots, first = np.unique(sampled["indexes"], return_index=True)
        generations = generations[first].astype(np.int64)
        new = notes.updated_row[slots] != generations
        notes.updated_row[slots[new]] = 0
        notes.begun[slots[new]] = notes.ended[slots[new]] = 0
        notes.updated_row[slots[new]] = generations[new]
        open_ = (notes.begun[slots] == notes.ended[slots]) & (notes.ended[slots] < VERSIONS)
        slots, first, generations = slots[open_], first[open_], generations[open_]
        if len(slots) == 0:
            continue
        notes.begun[slots] += 1
        identities = sampled["identity"].ravel()[first]
        priorities = priorities_of(identities, notes.begun[slots])
        notes.activity[seat] = UPDATING
        stale = buffer.update_priorities(slots, priorities, generations.astype(np.uint64))
        notes.activity[seat] = 0
        if stale == 0:
            notes.ended[slots] = notes.begun[slots]


def take_seat(buffer, notes, seat, words, batch, threads, learner):
    """What each process of a campaign does."""
    signal.alarm(int(5 * DEADLINE))
    notes.ready[seat] = 1
    if learner:
        learn(buffer, notes, seat, words)
    else:
        explore(buffer, notes, seat, words, batch, threads)


def take_seat_after_spawn(buffer, notes_file, *rest):
    take_seat(buffer, Notes(notes_file), *rest)


def explore_after_spawn(buffer, seat, words, batch, quit_event, connection):
    """In a spawned process: what was acknowledged goes through the connection."""
    counter = 0
    while not quit_event.is_set():
        for _ in range(20):
            rows = rows_of(identity(seat, np.arange(counter, counter + batch)), words)
            buffer.add(**rows, priorities=priorities_of(rows["identity"], 0))
            counter += batch
        connection.send(counter)


class Campaign:
    """Explorers and a learner under fire, and the counts.

    They are forked; or spawned, where `notes_file` is a file for what they note.
    """

    def __init__(self, kills, stops, seed=0, notes_file=None):
        self.kills, self.stops = kills, stops
        self.notes_file = notes_file
        self.most_seats = 40 if notes_file is None else 10
        self.random = np.random.default_rng(seed)
        self.counts = collections.Counter()
        self.children, self.spawned = [], []

    def run(self):
        shapes = [(5, 30), (300, 20), (7500, 4)]  # words and rows of a call: 56 bytes to 60 KB
        while self.counts["kills"] < self.kills or self.counts["stops"] < self.stops:
            words, batch = shapes[self.counts["rounds"] % len(shapes)]
            size = int(self.random.choice([batch, 2 * batch, 64, 1000 if words < 1000 else 128]))
            self.play(max(size, batch), words, batch)
            self.counts["rounds"] += 1

    def play(self, size, words, batch):
        fields = {"identity": {"dtype": "i8"}, "body": {"shape": words, "dtype": "u8"}}
        fields["checksum"] = {"dtype": "u8"}
        buffer = mpbuffer.PrioritizedReplayBuffer(size, fields, alpha=1.0, eps=0.0)
        if self.notes_file is not None:
            self.notes_file.write_bytes(b"")
        notes = Notes(self.notes_file)
        self.next_seat, self.running = 0, {}
        try:
            self.start(buffer, notes, words, batch, learner=True)
            for _ in range(self.random.integers(1, 4)):
                self.start(buffer, notes, words, batch, learner=False)
            actions = 0
            while self.next_seat < self.most_seats and actions < 120:
                time.sleep(self.random.uniform(0, 0.003))
                if not any(notes.ready[each["seat"]] for each in self.running.values()):
                    continue
                actions += 1
                self.act(buffer, notes, words, batch)
                self.call_from_outside(buffer, words)
                if self.counts["kills"] >= self.kills and self.counts["stops"] >= self.stops:
                    break
            for pid in self.running:
                os.kill(pid, signal.SIGCONT)
            self.wait_for_rows(notes)
            notes.quit[0] = 1
            for pid in list(self.running):
                self.wait_for_end(pid)
            self.verify(buffer, notes, words, size)
        finally:
            for pid in self.children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            self.children.clear()
            for process in self.spawned:
                process.kill()
                process.join(DEADLINE)
            self.spawned.clear()
            buffer.close()

    def start(self, buffer, notes, words, batch, *, learner):
        seat, self.next_seat = self.next_seat, self.next_seat + 1
        threads = 2 if self.random.integers(4) == 0 else 1
        work = (seat, words, batch, threads, learner)
        if self.notes_file is not None:
            process = multiprocessing.get_context("spawn").Process(
                target=take_seat_after_spawn, args=(buffer, self.notes_file, *work)
            )
            process.start()
            self.spawned.append(process)
            pid = process.pid
        else:
            pid = os.fork()
        if pid == 0:
            status = 1
            try:
                take_seat(buffer, notes, *work)
                status = 0
            except BaseException as error:
                print(f"in a forked process: {error!r}", file=sys.stderr, flush=True)
            finally:
                os._exit(status)
        if self.notes_file is None:
            self.children.append(pid)
        self.running[pid] = {"seat": seat, "learner": learner, "stopped": False}

    def act(self, buffer, notes, words, batch):
        ready = [pid for pid, each in self.running.items() if notes.ready[each["seat"]]]
        pid = int(self.random.choice(ready))
        process = self.running[pid]
        standing = sum(each["stopped"] for each in self.running.values())
        if process["stopped"] and self.random.integers(2):
            os.kill(pid, signal.SIGCONT)
            process["stopped"] = False
        elif not process["stopped"] and self.random.integers(3) == 0:
            if standing + 1 < min(len(self.running), buffer.get_buffer_size()):
                os.kill(pid, signal.SIGSTOP)
                process["stopped"] = True
                self.counts["stops"] += 1
        else:
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            self.counts["kills"] += 1
            if process["learner"]:
                self.counts["learner killed"] += 1
                inside = notes.activity[process["seat"]] > ADDING
                self.counts["in sample or update"] += int(inside)
            del self.running[pid]
            self.start(buffer, notes, words, batch, learner=process["learner"])

    def call_from_outside(self, buffer, words):
        start = time.monotonic()
        with contextlib.suppress(mpbuffer.EmptyBuffer):
            assert torn_rows(buffer.sample_uniform(4), words) == 0, "a row is torn"
        assert buffer.get_stored_size() <= buffer.get_buffer_size()
        assert time.monotonic() - start < CALL_SECONDS, "a call waited for another process"

    def wait_for_rows(self, notes):
        """Until an explorer has some to account for: those just started may have none yet."""
        explorers = [each["seat"] for each in self.running.values() if not each["learner"]]
        deadline = time.monotonic() + DEADLINE
        while not notes.acknowledged[explorers].any():
            assert time.monotonic() < deadline, "no explorer adds"
            time.sleep(0.0005)

    def wait_for_end(self, pid):
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if ended is not None:
                assert (ended.si_code, ended.si_status) == (os.CLD_EXITED, 0)
                return
            time.sleep(0.0005)
        raise AssertionError(f"process {pid} hangs")

    def verify(self, buffer, notes, words, size):
        assert not (notes.wrong & 1).any(), "a row is torn"
        assert not (notes.wrong & 4).any(), "every slot was held, though most processes ran"
        if buffer.get_stored_size() == 0:
            return
        buffer.sample(1)  # takes the role over and folds
        leaves = buffer._leaves()
        assert buffer._tree_total() == leaves.sum(dtype=np.float64)
        slots = np.flatnonzero(leaves > 0)
        assert len(slots) == buffer.get_stored_size()
        rows = buffer._encode_sample(slots)
        assert torn_rows(rows, words) == 0, "a row is torn"
        identities = rows["identity"].ravel()
        generations = buffer.get_generations(slots).astype(np.int64)
        assert (generations % size == slots).all()

        same = notes.updated_row[slots] == generations
        ended = np.where(same, notes.ended[slots], 0)
        begun = np.where(same, notes.begun[slots], 0)
        right = leaves[slots] == priorities_of(identities, ended).astype(np.float32)
        right |= leaves[slots] == priorities_of(identities, begun).astype(np.float32)
        assert right.all(), "a priority belongs to another row, or to no update that was begun"

        # A slot's next claim comes a lap later: rows from `safe` on cannot have been overwritten.
        safe = buffer.learner_status().folded - size
        for seat in range(self.next_seat):
            mine = np.flatnonzero(identities >> 40 == seat)
            counters = identities[mine] & ((1 << 40) - 1)
            acknowledged = int(notes.acknowledged[seat])
            recent = counters[generations[mine] >= safe]
            if len(recent):
                first = int(recent.min())
            elif notes.position[seat] >= safe and acknowledged:
                first = acknowledged - int(notes.batch[seat])
            else:
                continue
            missing = set(range(first, acknowledged)) - set(counters.tolist())
            assert not missing, f"{len(missing)} acknowledged rows of process {seat} are missing"
            self.counts["rows accounted for"] += max(0, acknowledged - first)
        # A lap later each claim that the dead had left is taken over, and nothing reminds of them.
        for start in range(0, size + 16, 8):
            rows = rows_of(identity(SEATS, np.arange(start, start + min(8, size))), words)
            buffer.add(**rows, priorities=priorities_of(rows["identity"], 0))
        buffer.sample(1)
        leaves = buffer._leaves()
        assert (leaves > 0).all() and buffer.get_stored_size() == size
        assert buffer._tree_total() == leaves.sum(dtype=np.float64)
        self.counts["left a claim"] += sum(each.steals for each in buffer.processes())


def numbers_asked_for(name, default):
    return int(os.environ.get(name, default))


def test_killed_and_stopped_at_random():
    campaign = Campaign(kills=60, stops=20)
    campaign.run()
    assert campaign.counts["rows accounted for"] > 0


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_and_stopped_at_random_many_times():
    kills = numbers_asked_for("MPBUFFER_KILLS", 10_000)
    campaign = Campaign(kills, numbers_asked_for("MPBUFFER_STOPS", 3_000), seed=1)
    campaign.run()
    print(dict(campaign.counts))
    assert campaign.counts["rows accounted for"] > 0


def test_spawned_ones_killed_and_stopped_at_random(tmp_path):
    campaign = Campaign(kills=5, stops=2, seed=2, notes_file=tmp_path / "notes")
    campaign.run()
    assert campaign.counts["rows accounted for"] > 0


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_spawned_ones_killed_and_stopped_at_random_many_times(tmp_path):
    kills = numbers_asked_for("MPBUFFER_SPAWNED_KILLS", 300)
    stops = numbers_asked_for("MPBUFFER_SPAWNED_STOPS", 100)
    campaign = Campaign(kills, stops, seed=3, notes_file=tmp_path / "notes")
    campaign.run()
    print(dict(campaign.counts))
    assert campaign.counts["rows accounted for"] > 0


def test_spawned_explorers_killed_and_stopped():
    context = multiprocessing.get_context("spawn")
    fields = {"identity": {"dtype": "i8"}, "body": {"shape": 20, "dtype": "u8"}}
    fields["checksum"] = {"dtype": "u8"}
    with mpbuffer.PrioritizedReplayBuffer(100_000, fields, alpha=1.0, eps=0.0) as buffer:
        quit_event = context.Event()
        processes, connections = [], []
        for seat in range(3):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=explore_after_spawn,
                args=(buffer, seat, 20, 4, quit_event, theirs),
                daemon=True,
            )
            process.start()
            theirs.close()
            processes.append(process)
            connections.append(ours)
        try:
            told = [connection.recv() for connection in connections]
            os.kill(processes[1].pid, signal.SIGSTOP)
            for _ in range(20):
                assert torn_rows(buffer.sample(16), 20) == 0
                time.sleep(0.002)
            processes[0].kill()
            os.waitid(os.P_PID, processes[0].pid, os.WEXITED | os.WNOWAIT)
            assert torn_rows(buffer.sample(64), 20) == 0
            os.kill(processes[1].pid, signal.SIGCONT)
            quit_event.set()
            assert join_within(processes[1]) == 0
            assert join_within(processes[2]) == 0
        finally:
            for process in processes:
                process.kill()
                process.join(DEADLINE)
        for seat, connection in enumerate(connections):
            with contextlib.suppress(EOFError):
                while connection.poll():
                    told[seat] = connection.recv()
        rows = buffer.get_all_transitions()
        assert torn_rows(rows, 20) == 0
        if buffer.rows_added() < buffer.get_buffer_size():
            present = set(rows["identity"].ravel().tolist())
            for seat, count in enumerate(told):
                assert present.issuperset(identity(seat, np.arange(count)).tolist())


def fork_beside_adds(forks):
    """Threads of this process are inside add at each fork; the children add, or die doing so."""
    fields = {"identity": {"dtype": "i8"}, "body": {"shape": 2000, "dtype": "u8"}}
    fields["checksum"] = {"dtype": "u8"}
    buffer = mpbuffer.PrioritizedReplayBuffer(64, fields, alpha=1.0, eps=0.0)
    stop = threading.Event()

    def add_on(seat):
        rows = rows_of(identity(seat, np.arange(32)), 2000)
        while not stop.is_set():
            buffer.add(**rows, priorities=priorities_of(rows["identity"], 0))

    threads = [threading.Thread(target=add_on, args=(seat,)) for seat in range(2)]
    children, killed = [], set()
    try:
        for thread in threads:
            thread.start()
        while buffer.get_stored_size() == 0:
            time.sleep(0.001)
        for number in range(forks):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    signal.alarm(int(DEADLINE))
                    rows = rows_of(identity(2 + number, np.arange(4)), 2000)
                    for _ in range(3):
                        buffer.add(**rows, priorities=priorities_of(rows["identity"], 0))
                    status = 2 * torn_rows(buffer.sample_uniform(8), 2000)
                finally:
                    os._exit(status)
            children.append(pid)
            if number % 4 == 0:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            for pid in children[:-20]:
                children.remove(pid)
                ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                assert ended == 0 or pid in killed, f"a child of the fork ended with {ended}"
    finally:
        stop.set()
        for thread in threads:
            thread.join(DEADLINE)
        endings = [(pid, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])) for pid in children]
    assert all(ended == 0 or pid in killed for pid, ended in endings), endings
    # The last child killed may have left a claim, whose slot holds no row until the next lap.
    for _ in range(4):
        rows = rows_of(identity(0, np.arange(32)), 2000)
        buffer.add(**rows, priorities=priorities_of(rows["identity"], 0))
    buffer.sample(1)
    assert len(buffer) == buffer.get_buffer_size()
    assert torn_rows(buffer.get_all_transitions(), 2000) == 0
    leaves = buffer._leaves()
    assert (leaves > 0).all() and buffer._tree_total() == leaves.sum(dtype=np.float64)
    identities = buffer._encode_sample(np.arange(64))["identity"].ravel()
    assert (leaves == priorities_of(identities, 0).astype(np.float32)).all()
    buffer.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork_while_another_thread_is_inside_add():
    fork_beside_adds(25)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork_while_another_thread_is_inside_add_many_times():
    fork_beside_adds(numbers_asked_for("MPBUFFER_FORKS", 1000))


def touched_kilobytes(path):
    """How much of the file this process has touched, through all its mappings."""
    touched, ours = 0, False
    with open("/proc/self/smaps") as maps:
        for line in maps:
            if line.startswith("Rss:"):
                touched += ours * int(line.split()[1])
            elif "-" in line.split()[0]:  # a range of addresses begins the next mapping
                ours = line.rstrip().endswith(str(path))
    return touched


def test_a_clear_that_died_after_its_store_costs_no_scan(segment_file):
    capacity = 200_000  # 3 MB of slot words
    with mpbuffer.PrioritizedReplayBuffer(capacity, {"a": {}}, name="crash.cleared") as learner:
        learner.add(a=np.arange(10))
        learner.sample(4)
        folded = learner.learner_status().rows_folded
        path = segment_file("crash.cleared")
        with open(path, "r+b") as file:
            file.seek(128 + 48)  # the offset of the ring's counters, in its entry of the header
            (counters,) = struct.unpack("<Q", file.read(8))
            file.seek(counters + 64)  # clear_before: the only store of a clear
            file.write(struct.pack("<Q", 2 * capacity))
        with mpbuffer.attach("crash.cleared") as explorer:
            assert explorer.get_next_index() == 0
            with pytest.raises(mpbuffer.EmptyBuffer):
                explorer.sample_uniform(1)
            with pytest.raises(mpbuffer.EmptyBuffer):
                learner.sample(1)
            assert explorer.add(a=77) == 0
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            with mpbuffer.attach("crash.cleared") as reader:
                before = touched_kilobytes(path)
                right = all((reader.sample_uniform(8)["a"] == 77).all() for _ in range(100))
                touched = touched_kilobytes(path) - before
                os.write(write, b"%d %d" % (right, touched))
            os._exit(0)
        os.close(write)
        assert select.select([read], [], [], DEADLINE)[0]
        right, touched = map(int, os.read(read, 100).split())
        os.close(read)
        os.waitpid(child, 0)
        assert right
        assert touched < 1000
        assert (learner.sample(8)["a"] == 77).all()
        assert learner.learner_status().rows_folded == folded + 1
        assert learner.get_stored_size() == 1
