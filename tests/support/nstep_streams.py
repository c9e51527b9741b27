"""Steps that can be recognised, and the n-step rows that must become of them, computed slowly.

The oracle knows nothing of windows: for each step it looks for the end of the episode and adds up
what is before it. Light to import, since each spawned process imports it.
"""

import os
import time

import numpy as np
from explorer_processes import scrambled

FIELDS = {
    "explorer": {"shape": (), "dtype": "i4"},
    "env": {"shape": (), "dtype": "i2"},
    "t": {"shape": (), "dtype": "i8"},
    "obs": {"shape": 3, "dtype": "f4"},
    "rew": {},
    "costs": {"shape": 2, "dtype": "f8"},
    "next_obs": {"shape": 3, "dtype": "f4"},
    "terminated": {"shape": (), "dtype": "?"},
    "truncated": {"dtype": "f4"},
}
NSTEP = {"size": 3, "rew": ["rew", "costs"], "gamma": 0.97, "next": "next_obs", "discount": "disc"}
FLAGS = ("terminated", "truncated", "done")


def steps_of(explorer, env, begin, count):
    """Steps `begin` to `begin + count` of this environment of this explorer: a list of dicts.

    About one in nine ends an episode, by either flag or by both.
    """
    t = np.arange(begin, begin + count, dtype=np.uint64)
    seeds = scrambled(
        (np.uint64(explorer) << np.uint64(48)) + (np.uint64(env) << np.uint64(40)) + t
    )
    many = scrambled(seeds[:, None] + np.arange(9, dtype=np.uint64))
    numbers = (many >> np.uint64(11)) * 2.0**-53 - 0.5
    chance = seeds % np.uint64(36)
    return [
        {
            "explorer": explorer,
            "env": env,
            "t": begin + i,
            "obs": numbers[i, :3].astype(np.float32),
            "rew": np.float32(numbers[i, 3]),
            "costs": numbers[i, 4:6],
            "next_obs": numbers[i, 6:].astype(np.float32),
            "terminated": bool(chance[i] in (0, 1, 2)),
            "truncated": float(chance[i] in (2, 3)),
        }
        for i in range(count)
    ]


def terminates(step):
    """Whether nothing follows the step."""
    if step.get("terminated"):
        return True
    return bool(step.get("done")) and not step.get("truncated")


def folded(steps, n, gamma, rew, last, discount="disc"):
    """The row that begins with the first of these steps, which are of one episode, n at most."""
    assert 1 <= len(steps) <= n
    row = dict(steps[0])
    for name in rew:
        dtype = np.asarray(steps[0][name]).dtype
        sums = []
        for i in range(np.size(steps[0][name])):
            total, power = float(np.ravel(steps[0][name])[i]), 1.0
            for step in steps[1:]:
                power *= gamma
                total += power * float(np.ravel(step[name])[i])
            sums.append(total)
        row[name] = np.array(sums).astype(dtype).reshape(np.shape(steps[0][name]))
    for name in last:
        row[name] = steps[-1][name]
    power = 1.0
    for _ in steps:
        power *= gamma
    if discount:
        row[discount] = np.float32(0.0 if terminates(steps[-1]) else power)
    return row


def oracle_rows(steps, nstep, cuts=(), whole=True):
    """The rows of a stream of one environment, in order.

    `cuts`: after which steps on_episode_end() was called. Without `whole` the stream is still
    going on after its last step: rows that wait for more are left out.
    """
    n, gamma = nstep["size"], nstep.get("gamma", 0.99)
    names = [nstep.get(key) or [] for key in ("rew", "next")]
    rew, following = [[each] if isinstance(each, str) else list(each) for each in names]
    last = [*following, *(flag for flag in FLAGS if steps and flag in steps[0])]
    rows = []
    for first in range(len(steps)):
        end = first
        while end - first + 1 < n and end + 1 < len(steps) and not ends(steps, end, cuts):
            end += 1
        if end - first + 1 == n or ends(steps, end, cuts) or whole:
            rows.append(folded(steps[first : end + 1], n, gamma, rew, last, nstep.get("discount")))
    return rows


def ends(steps, i, cuts):
    return i in cuts or any(steps[i].get(flag) for flag in FLAGS)


def as_bytes(row, fields):
    """All of a row in its fields' dtypes, to be compared and counted."""
    return tuple(
        np.ascontiguousarray(row[name], np.dtype(fields[name].get("dtype", "f4"))).tobytes()
        for name in fields
    )


def rows_in(columns):
    """A dict of arrays as a list of rows."""
    return [{name: column[i] for name, column in columns.items()} for i in range(len(columns["t"]))]


ALL_FIELDS = FIELDS | {"disc": {}}


def explore_one(buffer, explorer, count, staged):
    """Add a stream of one environment, staged or not; end the last episode by hand."""
    if not staged:
        for step in steps_of(explorer, 0, 0, count):
            buffer.add(**step)
        buffer.on_episode_end()
        return
    with buffer.writer(flush_every=1 + explorer * 7) as writer:
        for step in steps_of(explorer, 0, 0, count):
            writer.add(**step)


def explore_many(buffer, explorer, count, envs):
    """Add streams of several environments, each at its own pace; leave the rest to the end."""
    random = np.random.default_rng(explorer)
    streams = [iter(steps_of(explorer, env, 0, count)) for env in range(envs)]
    writer = buffer.writer(flush_every=20, n_envs=envs)
    left = set(range(envs))
    while left:
        acting = sorted(random.choice(sorted(left), random.integers(1, len(left) + 1), False))
        steps = {env: next(streams[env], None) for env in acting}
        left -= {env for env, step in steps.items() if step is None}
        rows = [(env, step) for env, step in steps.items() if step is not None]
        if rows:
            columns = {name: np.array([step[name] for _, step in rows]) for name in FIELDS}
            writer.add(envs=[env for env, _ in rows], **columns)
    buffer.kept = writer  # so that it is still there when the process ends


def explore_until_killed(buffer, explorer, pause, connection):
    """Add an endless stream of two environments; tell and pause after each 100 steps."""
    deadline = time.monotonic() + 60
    with buffer.writer(flush_every=10, n_envs=2) as writer:
        begin = 0
        while time.monotonic() < deadline:
            pair = [steps_of(explorer, env, begin, 100) for env in range(2)]
            for both in zip(*pair, strict=True):
                writer.add(**{name: np.array([step[name] for step in both]) for name in FIELDS})
            begin += 100
            connection.send(begin)
            time.sleep(pause)
    os._exit(1)
