"""cpprb's buffers for many processes."""

import cpprb

from peers.adapter import Adapter
from peers.rows import Fields


class CpprbMP(Adapter):
    """cpprb.MPReplayBuffer and cpprb.MPPrioritizedReplayBuffer."""

    packages = ("cpprb", "numpy")

    def __init__(
        self, capacity: int, fields: Fields, *, kind: str, shared: bool, at_once: int
    ) -> None:
        kinds = {"uniform": cpprb.MPReplayBuffer, "prioritized": cpprb.MPPrioritizedReplayBuffer}
        self.rb = kinds[kind](capacity, fields)
