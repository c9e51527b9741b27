"""TorchRL's replay buffers, on a storage in shared memory where other processes add."""

import itertools
import time
from typing import Any

import numpy as np
import torch
import torchrl
from tensordict import TensorDict
from torchrl.data import (
    LazyTensorStorage,
    TensorDictPrioritizedReplayBuffer,
    TensorDictReplayBuffer,
)

from peers.adapter import Adapter, Unsupported
from peers.rows import Fields, Rows, Transition


class TorchRL(Adapter):
    """TensorDictReplayBuffer and TensorDictPrioritizedReplayBuffer.

    Shared, the prioritized one is made with sync=False: explorers have a uniform sampler, and the
    learner's tree catches up with what they wrote before each sample.
    """

    start_method = "forkserver"
    preload = ("torch", "tensordict", "torchrl.data", "peers.torchrl", "peers.explorer")
    packages = ("torchrl", "tensordict", "torch", "numpy")

    def __init__(
        self, capacity: int, fields: Fields, *, kind: str, shared: bool, at_once: int
    ) -> None:
        storage = LazyTensorStorage(capacity)
        if kind == "uniform":
            self.rb: Any = TensorDictReplayBuffer(storage=storage, shared=shared)
            return
        if getattr(torchrl, "_torchrl", None) is None:
            raise Unsupported("its C++ extension does not load here, so it has no sum tree")
        self.rb = TensorDictPrioritizedReplayBuffer(
            alpha=0.6, beta=0.4, storage=storage, shared=shared, sync=not shared
        )

    def batch_of(self, rows: Rows, priorities: np.ndarray | None) -> Any:
        """Return tensors that share the rows' memory."""
        return {name: torch.from_numpy(values) for name, values in rows.items()}

    def add(self, batch: Any) -> None:
        """Extend by a TensorDict, made here since extend() writes into it."""
        self.rb.extend(TensorDict(batch, [len(batch["obs"])]))

    def seconds_of_single_adds(self, transitions: list[Transition], laps: int) -> float:
        """Add transitions one by one, each in a TensorDict of its own."""
        add = self.rb.add
        start = time.perf_counter()
        for _ in itertools.repeat(None, laps):
            for obs, act, rew, next_obs, done in transitions:
                add(
                    TensorDict(
                        {"obs": obs, "act": act, "rew": rew, "next_obs": next_obs, "done": done}
                    )
                )
        return time.perf_counter() - start

    def sample(self, rows: int) -> Any:
        """Draw rows; with `priority_weight` and `index` from the prioritized buffer."""
        return self.rb.sample(rows)

    sample_uniform = sample

    def update(self, sampled: Any, priorities: np.ndarray) -> None:
        """Give the rows of a `sample` new priorities."""
        self.rb.update_priority(sampled["index"], torch.from_numpy(priorities))
