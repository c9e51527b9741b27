"""The replay buffer of Stable-Baselines3."""

import itertools
import time
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer

from peers.adapter import Adapter, Unsupported
from peers.rows import Fields, Rows, Transition


class StableBaselines3(Adapter):
    """stable_baselines3.common.buffers.ReplayBuffer; a batch is a step of as many environments."""

    packages = ("stable-baselines3", "torch", "numpy")

    def __init__(
        self, capacity: int, fields: Fields, *, kind: str, shared: bool, at_once: int
    ) -> None:
        if kind == "prioritized":
            raise Unsupported("it has no prioritized buffer")
        if shared:
            raise Unsupported("other processes cannot add to it")
        observation, action = fields["obs"], fields["act"]
        box = gymnasium.spaces.Box(
            -np.inf, np.inf, tuple(observation["shape"]), np.dtype(observation["dtype"]).type
        )
        if action["dtype"] == "int64":
            actions: gymnasium.Space = gymnasium.spaces.Discrete(2)
        else:
            actions = gymnasium.spaces.Box(-np.inf, np.inf, tuple(action["shape"]))
        self.rb = ReplayBuffer(capacity, box, actions, device="cpu", n_envs=at_once)
        self.infos: list[dict[str, Any]] = [{} for _ in range(at_once)]
        self.at_once = at_once

    def batch_of(self, rows: Rows, priorities: np.ndarray | None) -> Any:
        """Return the arguments of add, as a vectorised environment gives them."""
        ours = rows["rew"][:, 0], rows["done"][:, 0]
        return rows["obs"], rows["next_obs"], rows["act"], *ours, self.infos

    def add(self, batch: Any) -> None:
        """Add one transition of each environment."""
        self.rb.add(*batch)

    def fill(self, rows: Rows, priorities: np.ndarray | None) -> None:
        """Write the rows into its arrays."""
        steps = len(rows["obs"]) // self.at_once
        rb = self.rb
        end = min(rb.pos + steps, rb.buffer_size)
        part = slice(rb.pos, end)

        def shaped(values: np.ndarray, target: np.ndarray) -> np.ndarray:
            return values[: (end - rb.pos) * self.at_once].reshape(target[part].shape)

        pairs = [(rb.observations, "obs"), (rb.next_observations, "next_obs")]
        pairs += [(rb.actions, "act"), (rb.rewards, "rew"), (rb.dones, "done")]
        for target, name in pairs:
            target[part] = shaped(rows[name], target)
        rb.full = rb.full or end == rb.buffer_size
        rb.pos = end % rb.buffer_size

    def seconds_of_single_adds(self, transitions: list[Transition], laps: int) -> float:
        """Add transitions one by one, as its algorithms do for one environment."""
        add, infos = self.rb.add, self.infos
        start = time.perf_counter()
        for _ in itertools.repeat(None, laps):
            for obs, act, rew, next_obs, done in transitions:
                add(obs, next_obs, act, rew, done, infos)
        return time.perf_counter() - start
