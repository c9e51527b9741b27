"""What publishers and readers of the tests of SharedWeights do. Light to import.

Every array of a version follows from one number, so that any mixture can be told.
"""

import os
import time

import numpy as np

SHAPES = {"first": (64, 32), "second": (777,), "scalar": (), "last": (3, 1000)}


class Flag:
    """An event that a process may be killed in the middle of asking for: it has no lock."""

    def __init__(self, context):
        self._value = context.RawValue("b", 0)

    def is_set(self):
        return self._value.value != 0

    def set(self):
        self._value.value = 1


def weights_of(number, scale=1):
    """A version that carries its number in every word, differently in each array."""
    return {
        name: np.full((*shape, scale) if shape else (), number * 4 + i, np.int64)
        for i, (name, shape) in enumerate(SHAPES.items())
    }


def number_in(weights):
    """The number that all words agree on; AssertionError for a mixture."""
    number = int(weights["scalar"]) // 4
    for i, name in enumerate(SHAPES):
        wrong = weights[name] != number * 4 + i
        assert not np.any(wrong), f"{name}: {np.unique(weights[name])}, expected {number * 4 + i}"
    return number


def read_number(weights):
    """The version read and the number that its arrays carry."""
    got = weights.read()
    return got.version, number_in(got)


def publish_for_ever(weights, told):
    """Publish as fast as it goes; tell once when that has begun."""
    number = weights.read()["scalar"] // 4
    while True:
        number += 1
        weights.publish(weights_of(number))
        if told is not None:
            told.set()
            told = None


def read_until(weights, done, connection):
    """Read every new version until told; send how many reads, the last version, the copies made."""
    connection.send("ready")
    deadline = time.monotonic() + 100
    version = reads = 0
    while time.monotonic() < deadline:
        ended = done.is_set()
        got = weights.read(newer_than=version)
        if got is not None:
            assert got.version > version
            assert number_in(got) >= 0
            version, reads = got.version, reads + 1
        elif ended and weights._handle.newest() == version:
            break
    connection.send((reads, version, weights._handle.repeated_reads(), os.getpid()))
