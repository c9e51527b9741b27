"""Buffers for Stable-Baselines3 and sb3-contrib: ``replay_buffer_class=`` of their algorithms.

Needs stable-baselines3; tested with its release 2.9.
"""

from mpbuffer.adapters.sb3.buffers import DictReplayBuffer, ReplayBuffer
from mpbuffer.adapters.sb3.hindsight import HerReplayBuffer
from mpbuffer.adapters.sb3.prioritized import (
    PrioritizedDQN,
    PrioritizedReplayBuffer,
    WeightedSamples,
)

__all__ = [
    "DictReplayBuffer",
    "HerReplayBuffer",
    "PrioritizedDQN",
    "PrioritizedReplayBuffer",
    "ReplayBuffer",
    "WeightedSamples",
]
