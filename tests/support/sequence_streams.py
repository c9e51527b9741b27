"""Steps in which every value follows from a number, and the sequences that they make, slowly."""

import numpy as np

FIELDS = {
    "id": {"shape": (), "dtype": np.int64},
    "obs": {"shape": 3},
    "act": {"shape": (2, 2), "dtype": np.int16},
    "core": {"shape": 5, "dtype": np.float64},
    "done": {"shape": (), "dtype": bool},
}
COMPUTED = {"mask": ((), bool), "is_first": ((), bool)}


def steps_of(ids, done=False):
    """The steps with these numbers; one step for a single number."""
    ids = np.asarray(ids, np.int64)
    mixed = (ids[..., None] * 2654435761 + np.arange(9)) % 32749
    return {
        "id": ids,
        "obs": mixed[..., :3].astype(np.float32),
        "act": mixed[..., 3:7].astype(np.int16).reshape(*ids.shape, 2, 2),
        "core": mixed[..., 4:9] / 7,
        "done": np.broadcast_to(np.asarray(done, bool), ids.shape),
    }


class Rule:
    """The rule as one reads it in the documents, applied to episodes that are known as a whole."""

    def __init__(self, length, period=None, pad=True, burn_in=0, state=("core",)):
        self.length, self.period = length, length if period is None else period
        self.pad, self.burn_in, self.state = pad, burn_in, state

    def argument(self):
        given = {"length": self.length, "period": self.period, "pad": self.pad}
        return {**given, "burn_in": self.burn_in, "state": list(self.state)}

    def sequences(self, episode, ended):
        """(the numbers of its steps, whether they begin the episode), of all so far."""
        found, start = [], 0
        while start + self.length <= len(episode):
            found.append((tuple(episode[start : start + self.length]), start == 0))
            start += self.period
        covered = 0 if start == 0 else start - self.period + self.length
        rest = episode[start:]
        if ended and self.pad and covered < len(episode) and len(rest) > self.burn_in:
            found.append((tuple(rest), start == 0))
        return found


class Stream:
    """One environment's steps as one explorer adds them, and the sequences that are finished."""

    def __init__(self, rule):
        self.rule, self.episode, self.told = rule, [], 0

    def add(self, number, done=False):
        self.episode.append(number)
        return self._new(done)

    def end(self):
        return self._new(True)

    def _new(self, ended):
        all_so_far = self.rule.sequences(self.episode, ended)
        new, self.told = all_so_far[self.told :], len(all_so_far)
        if ended:
            self.drop()
        return new

    def drop(self):
        self.episode, self.told = [], 0


def batch_of(sequences, done_at, rule, longest=None):
    """The batch that these sequences make: {name: array of (sequences, steps, ...)}."""
    steps = rule.length if longest is None else longest
    batch = {}
    for name in FIELDS:
        rows = []
        for ids, _ in sequences:
            values = steps_of(ids, [each in done_at for each in ids])[name]
            padded = np.zeros((steps, *values.shape[1:]), values.dtype)
            padded[: len(ids)] = values
            rows.append(padded[0] if name in rule.state else padded)
        batch[name] = np.stack(rows)
    batch["mask"] = np.array([[t < len(ids) for t in range(steps)] for ids, _ in sequences])
    batch["is_first"] = np.array(
        [[t == 0 and first for t in range(steps)] for _, first in sequences]
    )
    return batch


def found_in(batch):
    """(numbers of steps, whether they begin an episode) of each row of a batch."""
    return [
        (tuple(ids[there].tolist()), bool(first[0]))
        for ids, there, first in zip(batch["id"], batch["mask"], batch["is_first"], strict=True)
    ]


def assert_equal(batch, expected):
    """That the batch has exactly these arrays, beside what draws have."""
    __tracebackhide__ = True
    assert set(batch) - {"weights", "indexes", "probabilities"} == set(expected)
    for name, values in expected.items():
        assert batch[name].dtype == values.dtype, name
        np.testing.assert_array_equal(batch[name], values, err_msg=name)


def assert_whole(batch, rule, done_at=None):
    """That each sequence of the batch is what its numbers say, whichever it is.

    With `done_at` None, flags are not looked at.
    """
    __tracebackhide__ = True
    expected = batch_of(found_in(batch), done_at or (), rule, batch["mask"].shape[1])
    if done_at is None:
        batch, expected = dict(batch), dict(expected)
        del batch["done"], expected["done"]
    assert_equal(batch, expected)
