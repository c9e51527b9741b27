"""What a measurement asks of a replay buffer. One subclass per peer."""

import importlib.metadata
import itertools
import time
from typing import Any

import numpy as np

from peers.rows import Fields, Rows, Transition


class Unsupported(Exception):
    """The peer cannot do what is asked; the message says why, for the line that is printed."""


class Adapter:
    """One buffer of a peer. The base class suits whatever has cpprb's calls, in attribute `rb`.

    Parameters
    ----------
    capacity : int
        Rows.
    fields : dict
        As in a cpprb env_dict.
    kind : str
        "uniform" or "prioritized".
    shared : bool
        Whether other processes will add, through `for_explorer()`.
    at_once : int
        Rows of each later `add`; some peers must know.

    Attributes
    ----------
    start_method : str
        How its explorers are started.
    preload : tuple of str
        Modules that the forkserver imports before it forks, where that is the start method.
    most_explorers, most_capacity, most_filled : int
        Beyond that it is skipped, or its buffer filled no further, because it would take too long
        or too much memory; `slow_because` says which.
    packages : tuple of str
        Whose versions its figures depend on.
    """

    start_method = "fork"
    preload: tuple[str, ...] = ()
    most_explorers = 64
    most_capacity = 10**9
    most_filled = 10**9
    slow_because = ""
    packages: tuple[str, ...] = ("numpy",)
    rows_per_fill = 10_000
    rb: Any

    def __init__(
        self, capacity: int, fields: Fields, *, kind: str, shared: bool, at_once: int
    ) -> None:
        raise NotImplementedError

    @classmethod
    def versions(cls) -> dict[str, str]:
        """Return the versions of `packages`."""
        return {package: importlib.metadata.version(package) for package in cls.packages}

    def batch_of(self, rows: Rows, priorities: np.ndarray | None) -> Any:
        """Return what `add` takes for these rows; made beforehand, outside of all timing."""
        return rows if priorities is None else rows | {"priorities": priorities}

    def add(self, batch: Any) -> None:
        """Add rows."""
        self.rb.add(**batch)

    def fill(self, rows: Rows, priorities: np.ndarray | None) -> None:
        """Add many rows, as fast as the peer can; not timed."""
        self.add(self.batch_of(rows, priorities))

    def seconds_of_single_adds(self, transitions: list[Transition], laps: int) -> float:
        """Add transitions one by one, calls written out as a user does; seconds of wall time."""
        add = self.rb.add
        start = time.perf_counter()
        for _ in itertools.repeat(None, laps):
            for obs, act, rew, next_obs, done in transitions:
                add(obs=obs, act=act, rew=rew, next_obs=next_obs, done=done)
        return time.perf_counter() - start

    def sample_uniform(self, rows: int) -> Any:
        """Draw rows."""
        return self.rb.sample(rows)

    def sample(self, rows: int) -> Any:
        """Draw rows by priority, with weights."""
        return self.rb.sample(rows, beta=0.4)

    def update(self, sampled: Any, priorities: np.ndarray) -> None:
        """Give the rows of a `sample` new priorities."""
        self.rb.update_priorities(sampled["indexes"], priorities)

    def for_explorer(self) -> Any:
        """Return what is passed to explorers: with `open()`, `batch_of` and `add`; picklable."""
        return self

    def open(self) -> None:
        """Connect; called in each explorer before anything else."""

    def rows_arrived(self) -> int | None:
        """Return rows that came in through explorers so far; None if all that they added did."""
        return None

    def serve(self) -> None:
        """Do what explorers may be waiting for, while nobody samples."""

    def close(self) -> None:
        """Release memory and processes."""
        self.rb = None


def proportional_set_size(pid: int | str = "self") -> int:
    """Return the bytes of memory that a process uses, its part of what it shares included."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    raise OSError(f"no Pss in /proc/{pid}/smaps_rollup")
