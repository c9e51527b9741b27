"""cpprb in one process."""

import cpprb

from peers.adapter import Adapter, Unsupported
from peers.rows import Fields


class Cpprb(Adapter):
    """cpprb.ReplayBuffer and cpprb.PrioritizedReplayBuffer."""

    packages = ("cpprb", "numpy")

    def __init__(
        self, capacity: int, fields: Fields, *, kind: str, shared: bool, at_once: int
    ) -> None:
        if shared:
            raise Unsupported("other processes cannot add to it")
        kinds = {"uniform": cpprb.ReplayBuffer, "prioritized": cpprb.PrioritizedReplayBuffer}
        self.rb = kinds[kind](capacity, fields)
