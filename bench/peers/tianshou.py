"""The replay buffers of tianshou."""

import itertools
import time
from typing import Any

import numpy as np
from tianshou.data import Batch, PrioritizedReplayBuffer, ReplayBuffer, VectorReplayBuffer

from peers.adapter import Adapter, Unsupported
from peers.rows import Fields, Rows, Transition


class Tianshou(Adapter):
    """tianshou.data's buffers; batches go to a VectorReplayBuffer of as many environments."""

    packages = ("tianshou", "torch", "numpy", "numba")
    most_capacity = 10**6
    slow_because = "rows must be added one by one, and filling it takes too long"

    def __init__(
        self, capacity: int, fields: Fields, *, kind: str, shared: bool, at_once: int
    ) -> None:
        if shared:
            raise Unsupported("other processes cannot add to it")
        self.at_once = at_once
        self.room = capacity
        if kind == "prioritized":
            self.rb: Any = PrioritizedReplayBuffer(capacity, alpha=0.6, beta=0.4)
        elif at_once == 1:
            self.rb = ReplayBuffer(capacity)
        else:
            self.rb = VectorReplayBuffer(capacity, at_once)

    def batch_of(self, rows: Rows, priorities: np.ndarray | None) -> Any:
        """Return what a vectorised environment gives, in tianshou's class."""
        flags = rows["done"][:, 0] > 1.5
        return Batch(
            obs=rows["obs"],
            act=rows["act"][:, 0],
            rew=rows["rew"][:, 0],
            terminated=flags,
            truncated=np.zeros_like(flags),
            obs_next=rows["next_obs"],
            info=Batch(),
        )

    def add(self, batch: Any) -> None:
        """Add one transition of each environment."""
        self.rb.add(batch)

    def fill(self, rows: Rows, priorities: np.ndarray | None) -> None:
        """Add the first rows one by one, then copies of them by `update`."""
        if isinstance(self.rb, VectorReplayBuffer):
            part = {name: values[: self.at_once] for name, values in rows.items()}
            self.add(self.batch_of(part, None))
            return
        if not hasattr(self, "first"):
            self.first = ReplayBuffer(min(1_000, len(rows["obs"])))
            for row in range(self.first.maxsize):
                one = {name: values[row : row + 1] for name, values in rows.items()}
                self.first.add(self.batch_of(one, None)[0])
        for _ in range(len(rows["obs"]) // self.first.maxsize):
            self.rb.update(self.first)

    def seconds_of_single_adds(self, transitions: list[Transition], laps: int) -> float:
        """Add transitions one by one, each in a Batch of its own, as its collector does."""
        add = self.rb.add
        start = time.perf_counter()
        for _ in itertools.repeat(None, laps):
            for obs, act, rew, next_obs, done in transitions:
                add(
                    Batch(
                        obs=obs,
                        act=act,
                        rew=rew,
                        terminated=done,
                        truncated=False,
                        obs_next=next_obs,
                        info={},
                    )
                )
        return time.perf_counter() - start

    def sample(self, rows: int) -> Any:
        """Draw rows by priority; the batch has `weight`."""
        return self.rb.sample(rows)

    def update(self, sampled: Any, priorities: np.ndarray) -> None:
        """Give the rows of a `sample` new weights."""
        self.rb.update_weight(sampled[1], priorities)
