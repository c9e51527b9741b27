"""Files that are not what their name says, and programs that break what they hold.

Each is refused with an error that tells what came and what was expected; nothing hangs, and what is
somebody else's is left alone. The core is fuzzed beside this: cpp/verify/fuzz/attach_fuzz.cpp.
"""

import contextlib
import fcntl
import io
import json
import os
import random
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from segment_places import HEADER_BYTES, OFFSETS, SEALED_BYTES, Places
from watched_processes import BufferElsewhere, run_python

import mpbuffer
from mpbuffer import (
    BufferClosed,
    PrioritizedReplayBuffer,
    ProcessTableFull,
    ReplayBuffer,
    SegmentExists,
    SegmentMismatch,
    SegmentNotFound,
)

FIELDS = {"a": {"shape": 3}, "a_name_that_makes_the_description_long": {"dtype": "i8"}}
ROW = {"a": [1, 2, 3], "a_name_that_makes_the_description_long": 4}

both_classes = pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplayBuffer])


def sealed(data):
    """The segment with its checksum made right: of the header with that 0, and the description."""
    data = bytearray(data)
    (length,) = struct.unpack_from("<Q", data, OFFSETS["description_bytes"])
    struct.pack_into("<Q", data, OFFSETS["checksum"], 0)
    value = 0xCBF29CE484222325
    for byte in data[:SEALED_BYTES] + data[HEADER_BYTES : HEADER_BYTES + length]:
        value = (value ^ byte) * 0x100000001B3 & (1 << 64) - 1
    struct.pack_into("<Q", data, OFFSETS["checksum"], value)
    return bytes(data)


def with_number(data, name, value, kind="Q"):
    data = bytearray(data)
    struct.pack_into("<" + kind, data, OFFSETS[name], value)
    return bytes(data)


def description_of(data):
    (length,) = struct.unpack_from("<Q", data, OFFSETS["description_bytes"])
    return data[HEADER_BYTES : HEADER_BYTES + length]


def with_description(data, text):
    """The segment with another description of the same length, rightly sealed."""
    length = len(description_of(data))
    text = text if isinstance(text, bytes) else text.encode()
    assert len(text) <= length, "the test needs a longer description to begin with"
    text = text.ljust(length)
    return sealed(data[:HEADER_BYTES] + text + data[HEADER_BYTES + length :])


def bytes_of_segment(cls, segment_file, rows=5, **options):
    """What the file of a closed buffer was."""
    with cls(10, FIELDS, name="hostile.bytes", **options) as buffer:
        for _ in range(rows):
            buffer.add(**ROW)
        if cls is PrioritizedReplayBuffer and rows:
            buffer.sample(2)
        return segment_file(buffer.name).read_bytes()


PRESENCE_BYTE = 2**40 + 1088


def hold_presence(file):
    """Make the file one that is in use: no sweep, also none of another program, removes it."""
    lock = struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, PRESENCE_BYTE, 1, 0)
    fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)


@pytest.fixture
def plant(segment_file):
    """Writes a file under a buffer's name, and keeps it in use or not; removes it at the end."""
    with contextlib.ExitStack() as planted:

        def write(name, data, *, in_use=True):
            path = segment_file(name)
            path.touch(0o600)
            planted.callback(path.unlink, missing_ok=True)
            file = planted.enter_context(open(path, "r+b"))
            file.write(data)
            file.flush()
            if in_use:
                hold_presence(file)
            return path

        yield write


def assert_refused(name, *mentions, error=SegmentMismatch):
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(error) as refused:
        mpbuffer.attach(name)
    message = str(refused.value)
    for word in (name, *mentions):
        assert str(word) in message, message
    assert set(os.listdir("/proc/self/fd")) == before, "a descriptor is left open"


# What has the name is no segment


@pytest.mark.parametrize("left", [0, 1, 7, 8, 100, 4095, 4096, 40_000, -4096, -1])
@both_classes
def test_a_truncated_file(cls, left, segment_file, plant):
    """`left` bytes are left, or so many less than it had."""
    plant("hostile.cut", bytes_of_segment(cls, segment_file)[:left])
    assert_refused("hostile.cut", "bytes")


@both_classes
def test_a_file_that_is_longer_than_it_says(cls, segment_file, plant):
    whole = bytes_of_segment(cls, segment_file)
    plant("hostile.long", whole + bytes(4096))
    assert_refused("hostile.long", len(whole), len(whole) + 4096)


@pytest.mark.parametrize(
    "data",
    [b"hello", b"#!/bin/sh\n" * 1000, bytes(10_000), b"mpbuffeR" + bytes(10_000), b"\xff" * 5000],
    ids=["short", "text", "zeros", "almost", "ones"],
)
def test_a_foreign_file(data, plant):
    path = plant("hostile.foreign", data, in_use=False)
    assert_refused("hostile.foreign")
    with pytest.raises(SegmentExists, match=r"hostile\.foreign"):
        ReplayBuffer(10, FIELDS, name="hostile.foreign")
    assert path.read_bytes() == data


def make_directory(path):
    path.mkdir()
    return path.rmdir


def make_pipe(path):
    os.mkfifo(path)
    return path.unlink


def make_socket(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.close()
    return path.unlink


def make_link_to_nothing(path):
    path.symlink_to("/dev/shm/there-is-nothing-of-this-name")
    return path.unlink


def make_link_to_device(path):
    path.symlink_to("/dev/zero")
    return path.unlink


@pytest.mark.parametrize(
    "make",
    [make_directory, make_pipe, make_socket, make_link_to_nothing, make_link_to_device],
    ids=lambda make: make.__name__,
)
def test_what_is_no_file(make, segment_file):
    path = segment_file("hostile.thing")
    remove = make(path)
    try:
        kind = stat.S_IFMT(path.lstat().st_mode)
        assert_refused("hostile.thing")
        with pytest.raises(SegmentExists):
            ReplayBuffer(10, FIELDS, name="hostile.thing")
        ReplayBuffer(10, FIELDS).close()  # which sweeps
        assert stat.S_IFMT(path.lstat().st_mode) == kind
    finally:
        remove()


def test_a_link_to_a_living_buffer(segment_file):
    path = segment_file("hostile.link")
    with ReplayBuffer(10, FIELDS, name="hostile.file") as buffer:
        path.symlink_to(segment_file(buffer.name))
        try:
            assert_refused("hostile.link", "symbolic link")
            ReplayBuffer(10, FIELDS).close()
            assert path.is_symlink()
        finally:
            path.unlink()


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o606, 0o666, 0o777])
@both_classes
def test_a_file_that_others_may_open(cls, mode, segment_file):
    with cls(10, FIELDS, name="hostile.file") as buffer:
        path = segment_file(buffer.name)
        path.chmod(mode)
        assert_refused(buffer.name, f"{mode:04o}", "0600")
        path.chmod(0o600)
        mpbuffer.attach(buffer.name).close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
@both_classes
def test_a_file_of_another_user(cls, segment_file, plant):
    with cls(10, FIELDS, name="hostile.file") as buffer:
        path = segment_file(buffer.name)
        os.chown(path, 12345, -1)
        assert_refused(buffer.name, "12345", os.getuid())
        os.chown(path, os.getuid(), -1)
        whole = path.read_bytes()
    path = plant("hostile.others", whole, in_use=False)
    os.chown(path, 12345, -1)
    ReplayBuffer(10, FIELDS).close()  # which sweeps
    with pytest.raises(SegmentExists, match="no mpbuffer segment of this user"):
        ReplayBuffer(10, FIELDS, name="hostile.others")
    assert path.read_bytes() == whole


# Names that are taken


@both_classes
def test_a_name_that_is_in_use(cls):
    with cls(10, FIELDS, name="hostile.taken") as buffer:
        buffer.add(**ROW)
        for again in (ReplayBuffer, PrioritizedReplayBuffer):
            with pytest.raises(SegmentExists, match=r"hostile\.taken.* in use"):
                again(20, FIELDS, name="hostile.taken")
        assert len(buffer) == len(mpbuffer.attach("hostile.taken")) == 1


@both_classes
def test_a_name_that_is_stale(cls, segment_file, plant):
    plant("hostile.stale", bytes_of_segment(cls, segment_file), in_use=False)
    with cls(20, FIELDS, name="hostile.stale") as buffer:
        assert buffer.get_buffer_size() == 20 and len(buffer) == 0


@both_classes
def test_a_stale_buffer_can_be_attached(cls, segment_file, plant):
    path = plant("hostile.left", bytes_of_segment(cls, segment_file), in_use=False)
    with mpbuffer.attach("hostile.left") as buffer:
        assert type(buffer) is cls
        assert len(buffer) == 5
        buffer.add(**ROW)
        assert len(buffer.sample(4)["a"]) == 4
    assert not path.exists(), "the last one out removes it"


@both_classes
def test_a_damaged_stale_name_can_be_taken(cls, segment_file, plant):
    data = bytearray(bytes_of_segment(cls, segment_file))
    data[8:HEADER_BYTES] = bytes(HEADER_BYTES - 8)
    plant("hostile.ruin", data, in_use=False)
    with cls(20, FIELDS, name="hostile.ruin") as buffer:
        assert len(buffer) == 0


# Headers


HEADERS = {
    "another format": (
        "major",
        2,
        "H",
        ["replay buffer of format 2.0", "reads 1.x; use the version"],
    ),
    "another layout": ("signature", 1234567, "Q", ["another build", "use the same build"]),
    "no kind": ("kind", 0, "I", ["kind 0"]),
    "a later kind": ("kind", 9, "I", ["kind 9"]),
    "another length": ("total_bytes", 4096, "Q", ["4096"]),
    "a huge length": ("total_bytes", 2**63, "Q", [str(2**63)]),
    "a huge description": ("description_bytes", 2**40, "Q", ["description"]),
    "a description beyond the end": ("description_bytes", 2**64 - 1, "Q", ["description"]),
    "no ring": ("used", 0, "I", ["damaged"]),
    "a ring used twice": ("used", 2, "I", ["damaged"]),
    "the other kind": ("kind", 2, "I", ["another build"]),
    "half prioritized": ("prioritized", 2, "I", ["damaged"]),
    "no rows": ("capacity", 0, "Q", ["damaged"]),
    "more rows": ("capacity", 1000, "Q", ["damaged"]),
    "very many rows": ("capacity", 2**64 - 1, "Q", ["damaged"]),
    "rows of no size": ("stride", 0, "Q", ["damaged"]),
    "rows that lap over": ("stride", 8, "Q", ["damaged"]),
    "rows that wrap around": ("stride", 2**63, "Q", ["damaged"]),
    "longer rows": ("row_bytes", 128, "Q", ["damaged"]),
    "alpha of NaN": ("alpha", float("nan"), "d", ["damaged"]),
    "alpha of infinity": ("alpha", float("inf"), "d", ["damaged"]),
    "negative eps": ("eps", -1.0, "d", ["damaged"]),
    "another process table": ("process_table", 64, "Q", ["damaged"]),
    "no handles": ("max_handles", 0, "Q", ["damaged"]),
    "one more handle": ("max_handles", 63, "Q", ["damaged"]),
    "more handles than any": ("max_handles", 1023, "Q", ["damaged"]),
    "very many handles": ("max_handles", 2**64 - 1, "Q", ["damaged"]),
    "another role line": ("role_line", 2**64 - 64, "Q", ["damaged"]),
    "other counters": ("counters", 0, "Q", ["damaged"]),
    "other heads": ("heads", 2**40, "Q", ["damaged"]),
    "heads that lap over": ("head_stride", 8, "Q", ["damaged"]),
    "other records": ("records", 4096, "Q", ["damaged"]),
}


@pytest.mark.parametrize("what", HEADERS, ids=str)
@both_classes
def test_a_header_that_is_wrong(cls, what, segment_file, plant):
    name, value, kind, mentions = HEADERS[what]
    data = with_number(bytes_of_segment(cls, segment_file), name, value, kind)
    plant("hostile.header", data)
    assert_refused("hostile.header")
    if name in ("description_bytes", "total_bytes"):
        return
    plant("hostile.header", sealed(data))
    assert_refused("hostile.header", *mentions)


@both_classes
def test_a_header_with_a_flipped_bit(cls, segment_file, plant):
    whole = bytes_of_segment(cls, segment_file)
    length = len(description_of(whole))
    places = [*range(SEALED_BYTES), *range(HEADER_BYTES, HEADER_BYTES + length)]
    for place in random.Random(7).sample(places, 150):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        plant("hostile.flipped", data)
        assert_refused("hostile.flipped")


# Descriptions: the JSON text, rightly sealed


def changed(**changes):
    return lambda description: json.dumps({**description, **changes})


def with_field(**changes):
    def text(description):
        field = {**description["fields"][0], **changes}
        return json.dumps({**description, "fields": [field]})

    return text


FEW = [{"name": "a", "descr": "<f4", "shape": [1]}]


def nstep(**changes):
    """Of fields that suit it, but that none tells where an episode ends."""
    whole = {"steps": 3, "gamma": 1.0, "rew": ["a"], "next": [], "discount": ""}
    return lambda description: json.dumps(
        {**description, "fields": FEW, "nstep": {**whole, **changes}}, separators=(",", ":")
    )


def sequence(**changes):
    """Of a buffer whose rows are none."""
    whole = {"length": 3, "period": 2, "pad": True, "state": [], "burn_in": 0, "episodes": False}
    return lambda description: json.dumps(
        {**description, "fields": FEW, "sequence": {**whole, **changes}}, separators=(",", ":")
    )


DESCRIPTIONS = {
    "unknown attribute": (changed(attributes={"n_step": 3}, fields=[]), ["n_step"]),
    "unknown key": (changed(compressed=True, fields=[]), ["compressed"]),
    "not JSON": (lambda _: "{nonsense", ["damaged"]),
    "nothing": (lambda _: "", ["damaged"]),
    "no UTF-8": (lambda _: b'{"class": "\xff\xfe"}', ["damaged"]),
    "a list": (lambda _: "[1, 2]", ["damaged"]),
    "a number": (lambda _: "7", ["damaged"]),
    "null": (lambda _: "null", ["damaged"]),
    "nested deeply": (lambda _: "[" * 150, ["damaged"]),
    "no fields": (changed(fields=[]), ["damaged"]),
    "fields of no kind": (changed(fields=None), ["damaged"]),
    "fields that are numbers": (changed(fields=[1, 2]), ["damaged"]),
    "attributes of no kind": (changed(attributes=3), ["damaged"]),
    "no strictness": (lambda d: json.dumps({"class": d["class"], "fields": []}), ["damaged"]),
    "object dtype": (with_field(descr="|O"), ["Python objects"]),
    "objects within": (with_field(descr=[["x", "<f4"], ["y", "|O"]]), ["Python objects"]),
    "unknown dtype": (with_field(descr="<q77"), ["damaged"]),
    "dtype that is code": (with_field(descr="__import__('os')"), ["damaged"]),
    "dtype that is a number": (with_field(descr=4), ["damaged"]),
    "dtype with shapes": (with_field(descr="f4,(9999999999999,)f4"), []),
    "shape of text": (with_field(shape=["three"]), ["damaged"]),
    "shape below 0": (with_field(shape=[-1, -3]), ["damaged"]),
    "shape of 0": (with_field(shape=[0]), ["damaged"]),
    "huge shape": (with_field(shape=[10**30]), ["damaged"]),
    "shape that wraps around": (with_field(shape=[2**32, 2**32]), ["damaged"]),
    "fraction as shape": (with_field(shape=[1.5]), ["damaged"]),
    "no shape": (with_field(shape=None), ["damaged"]),
    "another shape": (with_field(shape=[99]), ["bytes"]),
    "another dtype": (with_field(descr="<f2"), ["bytes"]),
    "n-step of no kind": (changed(nstep=3, fields=FEW), ["damaged"]),
    "n-step without its parts": (changed(nstep={"steps": 3}, fields=FEW), ["damaged"]),
    "n-step of too many parts": (nstep(more=1), ["damaged"]),
    "n-step of 0 steps": (nstep(steps=0), ["damaged"]),
    "n-step of endless steps": (nstep(steps=2**63), ["damaged"]),
    "n-step of half a step": (nstep(steps=1.5), ["damaged"]),
    "n-step beyond gamma": (nstep(gamma=1.5), ["damaged"]),
    "n-step without gamma": (nstep(gamma=None), ["damaged"]),
    "n-step with no number as gamma": (nstep(gamma=float("nan")), ["damaged"]),
    "n-step of no field": (nstep(rew=["b"]), ["damaged"]),
    "n-step of a field that is no text": (nstep(next=[["a"]]), ["damaged"]),
    "n-step discount of no field": (nstep(discount="b"), ["damaged"]),
    "n-step discount of a list": (nstep(discount=["a"]), ["damaged"]),
    "n-step of no end": (nstep(), ["damaged"]),
    "sequence of other rows": (sequence(), ["bytes"]),
    "sequence of no kind": (changed(sequence=3, fields=FEW), ["damaged"]),
    "sequence without its parts": (changed(sequence={"length": 3}, fields=FEW), ["damaged"]),
    "sequence of too many parts": (sequence(m=1), ["damaged"]),
    "sequence of 0 steps": (sequence(length=0), ["damaged"]),
    "sequence of endless steps": (sequence(length=10**6), ["damaged"]),
    "sequence of half a step": (sequence(length=1.5), ["damaged"]),
    "sequence with gaps": (sequence(period=4), ["damaged"]),
    "sequence without a period": (sequence(period=None), ["damaged"]),
    "sequence that is all burn-in": (sequence(burn_in=3), ["damaged"]),
    "sequence padded by a number": (sequence(pad=1), ["damaged"]),
    "sequence with the state of no field": (sequence(state=["b"]), ["damaged"]),
    "sequence with no list of states": (sequence(state=None), ["damaged"]),
    "sequence of episodes that overlap": (sequence(episodes=True), ["damaged"]),
    "no name": (lambda d: json.dumps(d).replace('"name"', '"mane"'), ["damaged"]),
    "a name that is no text": (with_field(name="\udcff"), ["damaged"]),
    "one name twice": (
        lambda d: json.dumps({**d, "fields": [{**d["fields"][0], "name": "a"}] * 2}),
        ["damaged"],
    ),
}


@pytest.mark.parametrize("what", DESCRIPTIONS, ids=str)
@both_classes
def test_a_description_that_is_wrong(cls, what, segment_file, plant):
    change, mentions = DESCRIPTIONS[what]
    # Living, so that a refused attach is not the last one out, and can be tried again.
    with cls(10, FIELDS, name="hostile.file") as buffer:
        path = segment_file(buffer.name)
        whole = path.read_bytes()
        text = change(json.loads(description_of(whole)))
        end = HEADER_BYTES + len(description_of(whole))
        with open(path, "r+b") as file:
            file.write(with_description(whole, text)[:end])
        for _ in range(2):
            assert_refused(buffer.name, *mentions)
        buffer.add(**ROW)
        assert len(buffer) == 1


def test_a_description_that_is_only_written_otherwise(segment_file):
    with ReplayBuffer(10, FIELDS, name="hostile.file") as buffer:
        buffer.add(**ROW)
        path = segment_file(buffer.name)
        whole = path.read_bytes()
        text = json.dumps(json.loads(description_of(whole)), separators=(",", ":"))
        end = HEADER_BYTES + len(description_of(whole))
        with open(path, "r+b") as file:
            file.write(with_description(whole, text)[:end])
        with mpbuffer.attach(buffer.name) as other:
            np.testing.assert_array_equal(other.get_all_transitions()["a"], [[1, 2, 3]])


# Bodies: what processes write while they use the buffer


def write_noise(path, seed):
    """Into all that processes write while they use the buffer, mostly where it matters most."""
    noise = random.Random(seed)
    kinds = [bytes(8), b"\xff" * 8, struct.pack("<d", float("nan"))]
    with open(path, "r+b") as file:
        length = os.fstat(file.fileno()).st_size
        header = file.read(HEADER_BYTES)
        places = Places(header)
        for _ in range(400):
            at = noise.randrange(places.process_table, length - 8)
            if noise.random() < 0.7:
                slot = noise.randrange(10)
                likely = [places.cursor + noise.randrange(256), places.word(slot), places.lap(slot)]
                if places.leaves:
                    likely.append(places.leaf(slot))
                at = noise.choice(likely)
            file.seek(at & ~7)
            file.write(noise.choice([noise.randbytes(8), *kinds]))


@both_classes
def test_bodies_of_noise(cls, segment_file):
    """Every call ends: in a result, or in an error that is the buffer's own."""
    buffers = [cls(10, FIELDS, name=f"hostile.noise-{seed}") for seed in range(8)]
    for seed, buffer in enumerate(buffers):
        for _ in range(15):
            buffer.add(**ROW)
        if cls is PrioritizedReplayBuffer:
            buffer.sample(2)
            buffer.release_learner()
        write_noise(segment_file(buffer.name), seed)
    script = """
import sys, time
import numpy as np
import mpbuffer

def try_all(buffer):
    calls = {
        "add": lambda: buffer.add(a=np.ones((2, 3)), a_name_that_makes_the_description_long=[1, 2]),
        "sample": lambda: buffer.sample(4),
        "sample_uniform": lambda: getattr(buffer, "sample_uniform", buffer.sample)(4),
        "update": lambda: buffer.update_priorities([0, 1, 9], [1, 2, 3]),
        "size": buffer.get_stored_size,
        "all": lambda: buffer.get_all_transitions(shuffle=True),
        "next": buffer.get_next_index,
        "rows": buffer.rows_added,
        "processes": buffer.processes,
        "stats": buffer.stats,
        "learner": lambda: buffer.learner_status(),
        "leaves": lambda: buffer._leaves(),
        "largest": lambda: buffer.get_max_priority(),
        "clear": buffer.clear,
        "add again": lambda: buffer.add(a=[1, 2, 3], a_name_that_makes_the_description_long=4),
        "sample again": lambda: buffer.sample(4),
    }
    for name, call in calls.items():
        begun = time.monotonic()
        try:
            call()
            outcome = "done"
        except (mpbuffer.MpbufferError, AttributeError) as error:
            outcome = type(error).__name__
        taken = time.monotonic() - begun
        print(f"{buffer.name}, {name}: {outcome} after {taken:.2f} s", flush=True)
        assert taken < 10

for name in sys.argv[1:]:
    with mpbuffer.attach(name) as buffer:
        try_all(buffer)
"""
    names = [buffer.name for buffer in buffers]
    done = run_python("-c", script, *names)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    for name, buffer in zip(names, buffers, strict=True):
        buffer.close()
        assert not segment_file(name).exists()


# What the program itself may break

ALL_CALLS = """
import io, os, sys, tempfile, time
import numpy as np
import mpbuffer

def save_and_remove(buffer):
    with tempfile.TemporaryDirectory() as path:
        buffer.snapshot(path)

def try_all(buffer, **row):
    prioritized = isinstance(buffer, mpbuffer.PrioritizedReplayBuffer)
    calls = {
        "add": lambda: buffer.add(**row),
        "sample": lambda: buffer.sample(2),
        "get_stored_size": buffer.get_stored_size,
        "get_next_index": buffer.get_next_index,
        "get_all_transitions": buffer.get_all_transitions,
        "save_transitions": lambda: buffer.save_transitions(io.BytesIO()),
        "snapshot": lambda: save_and_remove(buffer),
        "_encode_sample": lambda: buffer._encode_sample([0]),
        "rows_added": buffer.rows_added,
        "processes": buffer.processes,
        "stats": buffer.stats,
        "repr": lambda: repr(buffer),
        "clear": buffer.clear,
    }
    if prioritized:
        calls |= {
            "sample_uniform": lambda: (buffer.add(**row), buffer.sample_uniform(2)),
            "update_priorities": lambda: buffer.update_priorities([0], [1.0]),
            "get_generations": lambda: buffer.get_generations([0]),
            "get_priorities": lambda: buffer.get_priorities([0]),
            "learner_status": buffer.learner_status,
            "get_max_priority": buffer.get_max_priority,
            "acquire_learner": buffer.acquire_learner,
            "release_learner": buffer.release_learner,
            "sample again": lambda: buffer.sample(2),
        }
    outcomes = {}
    for name, call in calls.items():
        begun = time.monotonic()
        try:
            call()
            outcomes[name] = "done"
        except Exception as error:
            outcomes[name] = f"{type(error).__name__}: {error}"
        assert time.monotonic() - begun < 5, name
        print(name, "->", outcomes[name], flush=True)
    return outcomes
"""


@pytest.mark.parametrize("learner_before", [False, True])
@both_classes
def test_descriptors_closed_by_the_program(cls, learner_before):
    """What needs no lock goes on; what needs one is an OSError that names it. Nothing hangs."""
    script = f"""{ALL_CALLS}
buffer = mpbuffer.{cls.__name__}(10, {{"a": {{}}}}, name="hostile.closed")
buffer.add(a=1)
buffer.add(a=2)
if {learner_before} and {cls is PrioritizedReplayBuffer}:
    buffer.sample(1)
os.closerange(3, 1000)
outcomes = try_all(buffer, a=3)
needs_lock = {{"sample", "sample again", "update_priorities", "get_generations"}}
needs_lock |= {{"acquire_learner", "release_learner"}}
needs_lock |= {{"processes", "stats", "learner_status"}}
for name, outcome in outcomes.items():
    if outcome != "done":
        assert name in needs_lock, (name, outcome)
        assert {cls is PrioritizedReplayBuffer} or name in ("processes", "stats"), (name, outcome)
        assert outcome.startswith("OSError: [Errno 9] cannot "), outcome
        assert "was closed by this program" in outcome, outcome
        assert "attach the buffer again" in outcome, outcome
other = mpbuffer.attach("hostile.closed")
other.add(a=4)
print("others still can", flush=True)
pid = os.fork()
if pid == 0:
    try:
        buffer.add(a=5)
    except OSError as error:
        os._exit(7 if "descriptor for locks" in str(error) else 8)
    except BaseException:
        os._exit(9)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (0, 7)
other.close()
buffer.close()
buffer.close()
assert buffer.closed
"""
    done = run_python(script=script)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    with pytest.raises(SegmentNotFound):
        mpbuffer.attach("hostile.closed")


@pytest.mark.parametrize("learner_before", [False, True])
@both_classes
def test_descriptors_whose_numbers_became_the_programs(cls, learner_before, tmp_path):
    """os.closerange, then files of its own: they stay open, whole and without our locks."""
    script = f"""{ALL_CALLS}
import fcntl, gc, struct
buffer = mpbuffer.{cls.__name__}(10, {{"a": {{}}}}, name="hostile.reused")
buffer.add(a=1)
buffer.add(a=2)
if {learner_before} and {cls is PrioritizedReplayBuffer}:
    buffer.sample(1)
ours = os.stat(f"/dev/shm/mpbuffer-{{os.getuid()}}-hostile.reused")
numbers = [fd for fd in range(3, 100) if os.path.exists(f"/proc/self/fd/{{fd}}")
           and os.path.samestat(os.fstat(fd), ours)]
assert len(numbers) == 2, numbers
os.closerange(3, 100)
files = {{}}
for number in range(3, max(numbers) + 1):
    path = f"{tmp_path}/file{{number}}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    assert fd == number, (fd, number)
    os.write(fd, b"of the program")
    files[fd] = path

def locked(path):
    with open(path, "r+b") as file:
        wanted = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, wanted)
        return struct.unpack("hhqqi", answer)[0] != fcntl.F_UNLCK

def check(when):
    for fd, path in files.items():
        assert os.path.samestat(os.fstat(fd), os.stat(path)), (when, fd)
        assert os.pread(fd, 100, 0) == b"of the program", (when, fd)
        assert not locked(path), (when, fd)

check("before")
outcomes = try_all(buffer, a=3)
check("after every call")
failed = {{name: outcome for name, outcome in outcomes.items() if outcome != "done"}}
for name, outcome in failed.items():
    assert outcome.startswith("OSError: [Errno 9] cannot "), (name, outcome)
    assert "/file" in outcome and "attach the buffer again" in outcome, (name, outcome)
if {cls is PrioritizedReplayBuffer} and not {learner_before}:
    assert "sample" in failed
assert "add" not in failed and "get_all_transitions" not in failed
other = mpbuffer.attach("hostile.reused")
other.add(a=4)
assert len(other.sample(1)["a"]) == 1
pid = os.fork()
if pid == 0:
    try:
        buffer.add(a=5)
        buffer.close()
        check("in a child")
    except BaseException as error:
        print(error, flush=True)
        os._exit(1)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
buffer.close()
check("after close")
assert len(other) > 0 and len(other.sample(1)["a"]) == 1
del buffer
gc.collect()
check("after the end")
other.close()
check("after the other's close")
"""
    done = run_python(script=script)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    with pytest.raises(SegmentNotFound):
        mpbuffer.attach("hostile.reused")


def test_a_later_handle_keeps_the_numbers_of_one_whose_descriptors_were_closed():
    """A daemon closes everything and attaches again; then the first handle is collected."""
    script = """
import os
import mpbuffer
first = mpbuffer.PrioritizedReplayBuffer(10, {"a": {}}, name="hostile.again")
first.add(a=1)
os.closerange(3, 100)
second = mpbuffer.attach("hostile.again")
second.sample(1)
del first
pid = os.fork()
if pid == 0:
    third = mpbuffer.attach("hostile.again")
    try:
        third.sample(1)
    except mpbuffer.LearnerBusy:
        os._exit(0)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the second's role was lost"
assert [each.state for each in second.processes()].count("R") == 1
second.close()
"""
    done = run_python(script=script)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    with pytest.raises(SegmentNotFound):
        mpbuffer.attach("hostile.again")


def test_claims_when_the_lock_descriptor_is_gone(context):
    """Whether another owner lives cannot be asked then: an error, and no claim is taken over."""
    with ReplayBuffer(4, {"a": {}}, name="hostile.asks") as buffer:
        path = f"/dev/shm/mpbuffer-{os.getuid()}-hostile.asks"
        with open(path, "r+b") as file:
            places = Places(file.read(300))
            for slot in range(4):  # claims of process 9, which was there once
                file.seek(places.word(slot))
                file.write(struct.pack("<Q", (4 + slot) << 16 | 9 << 6 | 1 << 1))
            file.seek(places.process_table)
            file.write(struct.pack("<Q", 9))
            file.seek(places.process(9))
            file.write(struct.pack("<Q", 1))
        script = """
import os
import mpbuffer
buffer = mpbuffer.attach("hostile.asks")
os.closerange(3, 1000)
try:
    buffer.add(a=1)
except OSError as error:
    assert "cannot ask who is alive in 'hostile.asks'" in str(error), error
    os._exit(0)
os._exit(1)
"""
        done = run_python(script=script)
        assert done.returncode == 0, done.stderr.decode()
        assert len(buffer) == 0
        buffer.add(a=[1, 2, 3, 4])  # this handle can ask, and takes them over
        assert len(buffer) == 4
        assert buffer.processes()[0].steals == 4


def test_the_process_table_is_full():
    """1022 handles are open, in one process that has room for their descriptors."""
    script = """
import resource
import mpbuffer
from mpbuffer import ProcessTableFull, ReplayBuffer
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
if soft < 2200:
    if hard != resource.RLIM_INFINITY and hard < 2200:
        print("too few descriptors")
        raise SystemExit
    resource.setrlimit(resource.RLIMIT_NOFILE, (2200, hard))
buffer = ReplayBuffer(10, {"a": {}}, name="hostile.full", max_handles=1022)
handles = [mpbuffer.attach("hostile.full") for _ in range(1020)]
assert len(buffer.processes()) >= 1021
last = []
try:
    for _ in range(3):
        last.append(mpbuffer.attach("hostile.full"))
except ProcessTableFull as full:
    assert isinstance(full, RuntimeError)
    assert "1022" in str(full), full
    print(len(last), "more,", full)
else:
    raise AssertionError("1024 handles")
handles[500].add(a=1)
handles[17].close()
mpbuffer.attach("hostile.full").close()
assert len(buffer) == 1
for each in [*handles, *last]:
    each.close()
assert buffer.get_stored_size() == 1
buffer.close()
print("done")
"""
    done = run_python(script=script)
    output = done.stdout.decode()
    assert done.returncode == 0, done.stderr.decode()
    if "too few descriptors" in output:
        pytest.skip(output)
    assert output.splitlines()[-1] == "done"


def test_a_child_finds_the_process_table_full(segment_file):
    """The records say that all numbers belong to living processes (to this one)."""
    with ReplayBuffer(10, {"a": {}}, name="hostile.file", max_handles=40) as buffer:
        status = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        namespaces = [os.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("pid", "time")]
        path = segment_file(buffer.name)
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        inode = str(path.stat().st_ino)
        mapped = min(int(line[0].partition("-")[0], 16) for line in maps if line[4] == inode)
        with open(path, "r+b") as file:
            places = Places(file.read(300))
            described = (os.getpid(), int(status[19]), *namespaces, mapped + places.process_table)
            for number in range(2, 41):
                file.seek(places.process(number))
                file.write(struct.pack("<6Q", 1, *described))
        with pytest.raises(ProcessTableFull, match=r"got 40 open handles.* max_handles="):
            mpbuffer.attach(buffer.name)
        pid = os.fork()
        if pid == 0:
            try:
                buffer.add(a=1)
            except ProcessTableFull:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        buffer.add(a=1)
        assert len(buffer) == 1


# Calls after close, and a second learner


def saved_rows():
    file = io.BytesIO()
    with PrioritizedReplayBuffer(10, FIELDS) as buffer:
        buffer.add(**ROW)
        buffer.save_transitions(file)
    return file.getvalue()


SAVED = saved_rows()


def save_and_remove(buffer):
    with tempfile.TemporaryDirectory() as path:
        buffer.snapshot(path)


CALLS_AFTER_CLOSE = {
    "add": lambda b: b.add(**ROW),
    "sample": lambda b: b.sample(1),
    "sample_uniform": lambda b: b.sample_uniform(1),
    "batches": lambda b: b.batches(1),
    "update_priorities": lambda b: b.update_priorities([0], [1.0]),
    "get_generations": lambda b: b.get_generations([0]),
    "get_priorities": lambda b: b.get_priorities([0]),
    "get_all_transitions": lambda b: b.get_all_transitions(),
    "save_transitions": lambda b: b.save_transitions(io.BytesIO()),
    "snapshot": save_and_remove,
    "load_transitions": lambda b: b.load_transitions(io.BytesIO(SAVED)),
    "get_stored_size": lambda b: b.get_stored_size(),
    "get_buffer_size": lambda b: b.get_buffer_size(),
    "get_next_index": lambda b: b.get_next_index(),
    "get_max_priority": lambda b: b.get_max_priority(),
    "get_current_episode_len": lambda b: b.get_current_episode_len(),
    "on_episode_end": lambda b: b.on_episode_end(),
    "clear": lambda b: b.clear(),
    "rows_added": lambda b: b.rows_added(),
    "processes": lambda b: b.processes(),
    "stats": lambda b: b.stats(),
    "learner_status": lambda b: b.learner_status(),
    "acquire_learner": lambda b: b.acquire_learner(),
    "release_learner": lambda b: b.release_learner(),
    "writer": lambda b: b.writer().close(),
    "alpha": lambda b: b.alpha,
    "eps": lambda b: b.eps,
    "nbytes": lambda b: b.nbytes,
    "max_handles": lambda b: b.max_handles,
    "shared": lambda b: b.shared,
    "_encode_sample": lambda b: b._encode_sample([0]),
    "_leaves": lambda b: b._leaves(),
    "_tree_total": lambda b: b._tree_total(),
    "__len__": len,
    "__reduce__": lambda b: b.__reduce__(),
}
WORK_AFTER_CLOSE = {"close", "closed", "name", "is_Nstep", "largest_size", "sequence"}
TRIED_ELSEWHERE = {"keep_after_exit"}  # in test_keeping.py


def public_names(cls):
    return {name for name in dir(cls) if not name.startswith("_")}


def test_every_public_name_is_tried_after_close():
    assert public_names(PrioritizedReplayBuffer) <= {
        *CALLS_AFTER_CLOSE,
        *WORK_AFTER_CLOSE,
        *TRIED_ELSEWHERE,
    }


@pytest.mark.parametrize("call", CALLS_AFTER_CLOSE, ids=str)
@both_classes
def test_use_after_close(cls, call):
    if not hasattr(cls, call):
        pytest.skip(f"{cls.__name__} has no {call}")
    buffer = cls(10, FIELDS)
    buffer.add(**ROW)
    CALLS_AFTER_CLOSE[call](buffer)
    buffer.close()
    for _ in range(2):
        with pytest.raises(BufferClosed, match="closed"):
            CALLS_AFTER_CLOSE[call](buffer)
    assert buffer.closed
    assert "closed" in repr(buffer)
    buffer.close()
    with buffer:
        pass


@both_classes
def test_a_handle_that_was_never_opened(cls):
    buffer = cls.__new__(cls)
    for name, call in CALLS_AFTER_CLOSE.items():
        if hasattr(cls, name):
            with pytest.raises(BufferClosed):
                call(buffer)
    assert buffer.closed
    buffer.close()


def test_a_second_learner_is_told_who_is_the_first(context):
    with (
        PrioritizedReplayBuffer(10, FIELDS) as buffer,
        BufferElsewhere(context, buffer.name) as other,
        mpbuffer.attach(buffer.name) as second_handle,
    ):
        buffer.add(**ROW)
        other.sample(1)
        calls = ("sample", "update_priorities", "get_generations", "_tree_total")
        for handle in (buffer, second_handle):
            for call in calls:
                begun = time.monotonic()
                with pytest.raises(mpbuffer.LearnerBusy) as busy:
                    CALLS_AFTER_CLOSE[call](handle)
                assert time.monotonic() - begun < 1
                assert str(other.pid) in str(busy.value)
                assert "release_learner" in str(busy.value)
        os.kill(other.pid, signal.SIGSTOP)
        try:
            with pytest.raises(mpbuffer.LearnerBusy, match="stopped"):
                deadline = time.monotonic() + 10
                while True:
                    try:
                        buffer.sample(1)
                    except mpbuffer.LearnerBusy as busy:
                        if "stopped" in str(busy) or time.monotonic() > deadline:
                            raise
                    time.sleep(0.01)
        finally:
            os.kill(other.pid, signal.SIGCONT)
        other.release_learner()
        assert len(buffer.sample(1)["a"]) == 1


def test_an_interpreter_without_standard_streams():
    """Descriptors 0, 1 and 2 are never a segment's, where prints would go into it."""
    script = """
import os
os.closerange(0, 3)
import mpbuffer
buffer = mpbuffer.ReplayBuffer(10, {"a": {}}, name="hostile.streams")
buffer.add(a=1)
segment = os.stat(f"/dev/shm/mpbuffer-{os.getuid()}-{buffer.name}")
ours = []
for fd in map(int, os.listdir("/proc/self/fd")):
    try:
        if os.path.samestat(os.fstat(fd), segment):
            ours.append(fd)
    except OSError:
        pass
ok = len(buffer) == 1 and ours and min(ours) > 2
buffer.close()
os._exit(0 if ok else 1)
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        assert process.wait(60) == 0
    finally:
        with contextlib.suppress(OSError):
            process.kill()
