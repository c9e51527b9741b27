"""What explorers, learners and other processes of the tests do, and rows that can be recognised.

Every field of a row follows from the explorer and its counter, so a reader can tell for each row
whether it is whole and who wrote it. Light to import: each spawned process imports it.
"""

import dataclasses
import os
import time

import numpy as np

FIELDS = {
    "explorer": {"shape": (), "dtype": "i4"},
    "counter": {"shape": (), "dtype": "i8"},
    "state": {"shape": 7, "dtype": "f8"},
    "action": {"shape": 3, "dtype": "i2"},
    "pixels": {"shape": 11, "dtype": "u1"},
    "checksum": {"shape": (), "dtype": "u8"},
}
COUNTER_BITS = 40
LARGE_ROW = 8000  # float64 values: long enough to be overwritten while it is read


def scrambled(numbers):
    """The splitmix64 of each number."""
    z = np.asarray(numbers, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def identity(explorer, counter):
    """One number for the row that this explorer adds with this counter."""
    return (np.asarray(explorer, np.int64) << COUNTER_BITS) + np.asarray(counter, np.int64)


def checksum(rows):
    n = len(rows["counter"])
    parts = [
        np.ascontiguousarray(rows[name]).reshape(n, -1).view(np.uint8)
        for name in FIELDS
        if name != "checksum"
    ]
    width = sum(part.shape[1] for part in parts)
    parts.append(np.zeros((n, -width % 8), np.uint8))
    words = np.concatenate(parts, axis=1).view(np.uint64)
    places = np.arange(1, words.shape[1] + 1, dtype=np.uint64) << np.uint64(8)
    return np.bitwise_xor.reduce(scrambled(words ^ places), axis=1)


def rows_of(explorer, counter):
    """The rows with these identities: dict of arrays of one length."""
    explorer, counter = np.broadcast_arrays(explorer, counter)
    seeds = scrambled(identity(explorer, counter))
    many = scrambled(seeds[:, None] + np.arange(11, dtype=np.uint64))
    rows = {
        "explorer": explorer.astype(np.int32),
        "counter": counter.astype(np.int64),
        "state": (many[:, :7] >> np.uint64(11)) * 2.0**-53,
        "action": many[:, 2:5].astype(np.uint16).view(np.int16),
        "pixels": (many >> np.uint64(23)).astype(np.uint8),
    }
    rows["checksum"] = checksum(rows)
    return rows


def assert_rows_are_whole(rows, explorers, rows_each):
    """Each row is one that one of the explorers adds, in every byte."""
    __tracebackhide__ = True
    assert (checksum(rows) == rows["checksum"]).all(), "a row is torn"
    assert ((rows["explorer"] >= 0) & (rows["explorer"] < explorers)).all()
    assert ((rows["counter"] >= 0) & (rows["counter"] < rows_each)).all()
    for name, expected in rows_of(rows["explorer"], rows["counter"]).items():
        assert (rows[name] == expected).all(), f"{name} is not what its explorer wrote"


def _unit(identities, salt):
    return (scrambled(identities.astype(np.uint64) ^ np.uint64(salt)) >> np.uint64(11)) * 2.0**-53


def priority_given(identities):
    """With which priority the row is added: in [0.5, 1.5)."""
    return 0.5 + _unit(identities, 0x5EED)


def priority_updated(identities):
    """The priority that an update gives the row: in [10, 11)."""
    return 10 + _unit(identities, 0xDA7E)


def explore(buffer, explorer, count, begin, go_on, connection):
    """Add `count` rows, in batches of 1 to 40, pausing half way; report the own line."""
    random = np.random.default_rng(explorer)
    connection.send("ready")
    if not begin.wait(60):
        raise TimeoutError("was never told to begin")
    counter = 0
    while counter < count:
        if counter >= count // 2 and not go_on.wait(60):
            raise TimeoutError("was never told to go on")
        n = min(count - counter, int(random.integers(1, 41)))
        rows = rows_of(explorer, np.arange(counter, counter + n))
        priorities = priority_given(identity(rows["explorer"], rows["counter"]))
        if n == 1:
            rows = {name: array[0] for name, array in rows.items()}
            priorities = priorities[0]
        buffer.add(**rows, priorities=priorities)
        counter += n
    connection.send(next(line for line in buffer.processes() if line.pid == os.getpid()))


def overwrite_until(buffer, done, connection):
    """Add large rows, each of one number throughout, as fast as they go."""
    numbered = [np.full(LARGE_ROW, number) for number in range(16)]
    connection.send("ready")
    deadline = time.monotonic() + 60
    while not done.is_set() and time.monotonic() < deadline:
        for row in numbered:
            buffer.add(a=row)


def look_on(buffer, explorers, rows_each, begin, done, connection):
    """Sample uniformly beside the learner; every row must be whole."""
    connection.send("ready")
    if not begin.wait(60):
        raise TimeoutError("was never told to begin")
    deadline = time.monotonic() + 600
    batches = 0
    while (batches == 0 or not done.is_set()) and time.monotonic() < deadline:
        if buffer.get_stored_size() == 0:
            continue
        rows = buffer.sample_uniform(256)
        assert_rows_are_whole(rows, explorers, rows_each)
        batches += 1
    connection.send(batches)


@dataclasses.dataclass
class Carrier:
    """Containers in which a buffer goes to a process."""

    label: str
    buffer: object
    more: dict = dataclasses.field(default_factory=dict)


def buffers_within(value):
    if isinstance(value, Carrier):
        return [value.buffer, *buffers_within(value.more)]
    if isinstance(value, dict):
        return [found for item in value.values() for found in buffers_within(item)]
    if isinstance(value, (list, tuple)):
        return [found for item in value for found in buffers_within(item)]
    return [value]


def add_to_each(container, number, connection=None):
    """Add one row `a=number` to each buffer in the container, and tell what they are."""
    buffers = buffers_within(container)
    for buffer in buffers:
        buffer.add(a=number)
    if connection is not None:
        connection.send([(type(buffer).__name__, buffer.name, len(buffer)) for buffer in buffers])


def add_once_told(buffer, told, number, connection):
    """Wait for the event, then add one row and tell how many there are."""
    if not told.wait(60):
        raise TimeoutError("was never told")
    buffer.add(a=number)
    connection.send((len(buffer), buffer.get_all_transitions()["a"].ravel().tolist()))


def create_and_wait(name, connection):
    """Create a buffer, tell its name, then wait until told to go on, or to be killed."""
    import mpbuffer

    buffer = mpbuffer.PrioritizedReplayBuffer(1000, {"a": {}}, name=name)
    buffer.add(a=1)
    buffer.sample(1)
    connection.send(buffer.name)
    connection.recv()


def pass_on(context_name, buffer, number, connection):
    """As a child, give the buffer to a child of one's own."""
    import multiprocessing

    context = multiprocessing.get_context(context_name)
    grandchild = context.Process(target=add_to_each, args=(buffer, number))
    grandchild.start()
    grandchild.join(30)
    if grandchild.is_alive():
        grandchild.kill()
    buffer.add(a=number + 1)
    connection.send(grandchild.exitcode)
