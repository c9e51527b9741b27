"""Reverb: a server in the learner's process, explorers and learner its clients."""

from typing import Any

import numpy as np
import reverb
import tensorflow

from peers.adapter import Adapter, Unsupported
from peers.rows import Fields, Rows

TABLE = "rows"


class Writer:
    """An explorer's end: each row becomes an item; a batch is flushed at once."""

    def __init__(self, address: str) -> None:
        self.address = address

    def open(self) -> None:
        """Connect to the server."""
        self.client = reverb.Client(self.address)
        self.writer = self.client.trajectory_writer(num_keep_alive_refs=1)

    def batch_of(self, rows: Rows, priorities: np.ndarray) -> Any:
        """Return the rows one by one, with their priorities."""
        names = list(rows)
        single = zip(*(list(rows[name]) for name in names), strict=True)
        return [
            (dict(zip(names, values, strict=True)), priority)
            for values, priority in zip(single, priorities.tolist(), strict=True)
        ]

    def add(self, batch: Any) -> None:
        """Write rows, and wait until the server has them."""
        writer = self.writer
        for row, priority in batch:
            writer.append(row)
            history = writer.history
            writer.create_item(TABLE, priority, {name: history[name][-1] for name in row})
        writer.flush()

    def close(self) -> None:
        """Hang up."""
        self.writer.close()


class Reverb(Adapter):
    """A table with the Prioritized selector, drawn from by TimestepDataset and updated by key.

    The dataset draws ahead: a few batches are on their way when priorities change.
    """

    start_method = "forkserver"
    preload = ("tensorflow", "reverb", "peers.reverb", "peers.explorer")
    packages = ("dm-reverb", "tensorflow-cpu", "numpy")
    most_filled = 30_000
    slow_because = "rows go in one by one"
    rows_per_fill = 1_000

    def __init__(
        self, capacity: int, fields: Fields, *, kind: str, shared: bool, at_once: int
    ) -> None:
        if kind == "uniform":
            raise Unsupported("its server is measured with priorities only")
        table = reverb.Table(
            TABLE,
            sampler=reverb.selectors.Prioritized(0.6),
            remover=reverb.selectors.Fifo(),
            max_size=capacity,
            rate_limiter=reverb.rate_limiters.MinSize(1),
            signature={
                name: tensorflow.TensorSpec(field["shape"], field["dtype"])
                for name, field in fields.items()
            },
        )
        self.server = reverb.Server([table], port=None)
        self.address = f"localhost:{self.server.port}"
        self.client = reverb.Client(self.address)
        self.own = Writer(self.address)
        self.own.open()
        self.batches: dict[int, Any] = {}

    def for_explorer(self) -> Writer:
        """Return a writer that will connect."""
        return Writer(self.address)

    def batch_of(self, rows: Rows, priorities: np.ndarray | None) -> Any:
        """Return the rows one by one."""
        return self.own.batch_of(rows, np.ones(len(rows["obs"]), np.float32))

    def add(self, batch: Any) -> None:
        """Write rows from this process."""
        self.own.add(batch)

    def sample(self, rows: int) -> Any:
        """Take the next batch of the dataset."""
        if rows not in self.batches:
            dataset = reverb.TimestepDataset.from_table_signature(
                self.address, TABLE, max_in_flight_samples_per_worker=2 * rows
            )
            self.batches[rows] = iter(dataset.batch(rows).as_numpy_iterator())
        return next(self.batches[rows])

    def update(self, sampled: Any, priorities: np.ndarray) -> None:
        """Give the items of a `sample` new priorities."""
        updates = dict(zip(sampled.info.key.tolist(), priorities.tolist(), strict=True))
        self.client.mutate_priorities(TABLE, updates)

    def close(self) -> None:
        """Stop the server."""
        self.batches.clear()
        self.own.close()
        self.server.stop()
