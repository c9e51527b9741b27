"""A multiprocessing.Queue of batches into a cpprb buffer of the learner's own."""

import multiprocessing
import queue
from typing import Any

import cpprb
import numpy as np

from peers.adapter import Adapter, Unsupported
from peers.rows import Fields, Rows

MOST_BATCHES = 128  # in the queue; then explorers wait


class Sender:
    """An explorer's end."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def open(self) -> None:
        """Let the process end without waiting until somebody has read what it sent."""
        self.batches.cancel_join_thread()

    def batch_of(self, rows: Rows, priorities: np.ndarray) -> Any:
        """Return the arguments of the learner's add."""
        return rows | {"priorities": priorities}

    def add(self, batch: Any) -> None:
        """Send a batch; waits while the queue is full."""
        self.batches.put(batch)


class QueueIntoCpprb(Adapter):
    """Before each sample the learner adds all batches that are in the queue at that moment."""

    packages = ("cpprb", "numpy")

    def __init__(
        self, capacity: int, fields: Fields, *, kind: str, shared: bool, at_once: int
    ) -> None:
        if not shared:
            raise Unsupported("alone it is cpprb")
        self.rb = cpprb.PrioritizedReplayBuffer(capacity, fields)
        self.batches = multiprocessing.get_context("fork").Queue(MOST_BATCHES)
        self.arrived = 0

    def for_explorer(self) -> Sender:
        """Return the queue."""
        return Sender(self.batches)

    def sample(self, rows: int) -> Any:
        """Take in what is there, then draw."""
        self.serve()
        return super().sample(rows)

    def rows_arrived(self) -> int:
        """Return rows that the learner has taken out of the queue."""
        return self.arrived

    def serve(self) -> None:
        """Add as many batches as the queue holds now."""
        for _ in range(self.batches.qsize()):
            try:
                batch = self.batches.get(timeout=0.1)
            except queue.Empty:
                return  # counted, but its bytes are still in the sender's thread
            self.rb.add(**batch)
            self.arrived += len(batch["priorities"])
