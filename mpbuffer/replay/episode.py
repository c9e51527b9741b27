"""The running episode of one process."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mpbuffer.buffer.replay_buffer import ReplayBuffer

__all__ = ["Episode", "Kind", "require_transitions"]

Kind = tuple["np.dtype[Any]", tuple[int, ...]]  # of a field: dtype and shape


def require_transitions(what: str, sequence: Any) -> None:
    """Refuse the argument ``sequence=`` where rows have to be transitions.

    Raises
    ------
    ValueError
        If it is given.
    """
    if sequence is not None:
        raise ValueError(
            f"cannot make sequences of the rows of {what}, got sequence={sequence!r}; expected "
            "none, or a ReplayBuffer or PrioritizedReplayBuffer"
        )


class Episode:
    """The steps of one process's running episode, and the draws of its goals.

    Parameters
    ----------
    fields : mapping of str to (numpy.dtype, tuple of int)
        Of a step.
    longest : int
        Steps that there is room for.
    rng : numpy.random.Generator
        Draws.
    strict : bool
        As for ReplayBuffer.

    Attributes
    ----------
    pid : int
        The process.
    rb : ReplayBuffer
        The steps, in order.
    """

    def __init__(
        self, fields: Mapping[str, Kind], longest: int, rng: np.random.Generator, strict: bool
    ) -> None:
        self.pid = os.getpid()
        self.rng = rng
        self._fields = fields
        self._longest = longest
        described = {name: {"dtype": kind[0], "shape": kind[1]} for name, kind in fields.items()}
        self.rb = ReplayBuffer(longest, described, strict=strict)

    def add(self, steps: Mapping[str, npt.ArrayLike]) -> None:
        """Add steps, as ``ReplayBuffer.add``; ValueError if there is no room for all of them."""
        before, added = len(self.rb), self._count(steps)
        if before + added > self._longest:
            raise ValueError(
                f"cannot add {added} steps: the episode has {before}, and max_episode_len is "
                f"{self._longest}; call on_episode_end()"
            )
        self.rb.add(**steps)

    def _count(self, steps: Mapping[str, npt.ArrayLike]) -> int:
        """Return how many steps these fields have; the buffer checks that they agree."""
        counts = [
            math.prod(np.shape(value)) // math.prod(self._fields[name][1])
            for name, value in steps.items()
            if name in self._fields
        ]
        return max(counts, default=0)
