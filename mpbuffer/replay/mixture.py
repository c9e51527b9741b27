"""Batches from several buffers, such as demonstrations and what explorers add."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mpbuffer._arguments.integers import whole_number
from mpbuffer.buffer.batches import WeightNorm
from mpbuffer.buffer.prioritized import PrioritizedReplayBuffer
from mpbuffer.buffer.replay_buffer import ReplayBuffer

__all__ = ["Mixture"]

_LARGEST_LEAF = float(np.finfo(np.float32).max)
_OWN_NAMES = {"weights", "indexes", "buffers"}


class Mixture:
    """Samples from several buffers at once, each with its share of every batch.

    Shares are exact: over many batches each buffer gives its proportion of the rows, to within one
    row. Prioritized and uniform buffers may be mixed. A mixture holds no rows and no roles: its
    buffers are used as ever, and it is not closed.

    An index means a row of one of the buffers: ``batch["buffers"]`` tells which, and
    ``batch["indexes"]`` has its slot there, plus the sizes of the buffers before. So one array is
    enough for update_priorities(). A row keeps its index as long as the buffers keep their order.

    For one thread at a time.

    Parameters
    ----------
    buffers : sequence of ReplayBuffer or PrioritizedReplayBuffer
        With the same fields: names, dtypes and shapes. At least one.
    proportions : sequence of float
        Of each buffer, at least 0, in any unit: 1 and 3 are a quarter and three quarters.

    Raises
    ------
    TypeError
        If one is not a buffer.
    ValueError
        If there is no buffer, fields or lengths differ, a field is named ``weights``, ``indexes``
        or ``buffers``, a proportion is negative or not finite, or
        all are 0.
    """

    def __init__(self, buffers: Sequence[ReplayBuffer], proportions: Sequence[float]) -> None:
        self._buffers = list(buffers)
        if not self._buffers:
            raise ValueError("cannot mix buffers: got none, expected at least one")
        for buffer in self._buffers:
            if not isinstance(buffer, ReplayBuffer):
                raise TypeError(f"cannot mix buffers: expected a buffer, got {buffer!r}")
        fields = self._buffers[0]._fields()
        for buffer in self._buffers[1:]:
            if sorted(map(str, buffer._fields())) != sorted(map(str, fields)):
                raise ValueError(
                    f"cannot mix {buffer.name!r} with {self._buffers[0].name!r}: its fields are "
                    f"{_in_words(buffer)}, expected {_in_words(self._buffers[0])}"
                )
        taken = _OWN_NAMES & {name for name, _, _ in fields}
        if taken:
            raise ValueError(f"cannot mix buffers: a field name is reserved: {sorted(taken)[0]!r}")
        shares = np.array(proportions, np.float64)
        if shares.shape != (len(self._buffers),):
            raise ValueError(
                f"cannot mix {len(self._buffers)} buffers: got proportions of shape "
                f"{shares.shape}, expected one for each buffer"
            )
        if not (np.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0):
            raise ValueError(
                f"proportions must be finite, at least 0, and not all 0, got {proportions!r}"
            )
        self._fields = [(name, dtype, tuple(shape)) for name, dtype, shape in fields]
        self._shares = shares / shares.sum()
        self._due = np.zeros(len(shares))  # rows that earlier batches have left to each
        sizes = [buffer.get_buffer_size() for buffer in self._buffers]
        self._firsts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    @property
    def buffers(self) -> list[ReplayBuffer]:
        """The buffers, in their order."""
        return list(self._buffers)

    @property
    def proportions(self) -> npt.NDArray[np.float64]:
        """What each buffer gives of a batch: float64 (buffers,), with sum 1."""
        return np.array(self._shares)

    def sample(
        self, batch_size: int, beta: float = 0.4, *, weight_norm: WeightNorm = "buffer"
    ) -> dict[str, npt.NDArray[Any]]:
        """Draw a batch: rows of the first buffer, then of the second, and so on.

        For the learner of each prioritized buffer among them, as its sample(). It never blocks.

        Parameters
        ----------
        batch_size : int
            Rows in all, at least 1.
        beta : float, optional
            Exponent of the importance weights, at least 0.
        weight_norm : {"buffer", "batch", None}, optional
            What the weights of Schaul et al. (2016, section 3.4) are divided by: for each row the
            largest one of its own buffer, for all rows the largest one of this batch, or 1. Rows of
            uniform buffers have weight 1 before.

        Returns
        -------
        dict of str to numpy.ndarray
            For each field ``(batch_size,) + shape``; ``"weights"``: float32 (batch_size,);
            ``"buffers"``: int64 (batch_size,), the place of each row's buffer; ``"indexes"``: int64
            (batch_size,), its slot plus the sizes of the buffers before.

        Raises
        ------
        EmptyBuffer
            If a buffer whose share is not 0 has no row to draw.
        LearnerBusy
            If another handle is the learner of one of them.
        TypeError, ValueError
            If an argument is not as above.
        BufferClosed
            If a buffer was closed.
        """
        rows = whole_number("batch_size", batch_size, 1)
        batch: dict[str, npt.NDArray[Any]] = {
            name: np.empty((rows, *shape), dtype) for name, dtype, shape in self._fields
        }
        weights = batch["weights"] = np.ones(rows, np.float32)
        places = batch["buffers"] = np.empty(rows, np.int64)
        indexes = batch["indexes"] = np.empty(rows, np.int64)
        counts, due = self._split(rows)
        first = 0
        for place, (buffer, count) in enumerate(zip(self._buffers, counts, strict=True)):
            if count == 0:
                continue
            here = slice(first, first + count)
            out = {name: batch[name][here] for name, _, _ in self._fields}
            out["indexes"] = indexes[here]
            if isinstance(buffer, PrioritizedReplayBuffer):
                out["weights"] = weights[here]
                norm: WeightNorm = "buffer" if weight_norm == "buffer" else None
                if weight_norm not in ("buffer", "batch", None):
                    norm = weight_norm  # which it refuses
                buffer.sample(count, beta, weight_norm=norm, out=out)
            else:
                buffer.sample(count, return_indexes=True, out=out)
            places[here] = place
            indexes[here] += self._firsts[place]
            first += count
        if weight_norm == "batch":
            weights /= weights.max()
        self._due = due
        return batch

    def batches(
        self, batch_size: int, beta: float = 0.4, *, weight_norm: WeightNorm = "buffer"
    ) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Return an endless iterator over samples; parameters and exceptions as for sample()."""
        while True:
            yield self.sample(batch_size, beta, weight_norm=weight_norm)

    def update_priorities(
        self,
        indexes: npt.ArrayLike,
        priorities: npt.ArrayLike,
        generations: npt.ArrayLike | None = None,
    ) -> int:
        """Set the priorities of rows that were sampled, each in its buffer.

        For the learner. Rows of uniform buffers have no priority; they are passed over. An index
        means the row that was last drawn in its slot, as far back as the last eight batches. For
        exact updates after that pass `generations`. It never blocks.

        Parameters
        ----------
        indexes : array_like of int
            (n,) of ``batch["indexes"]``.
        priorities : array_like
            A scalar for all, or n values, at least 0.
        generations : array_like of int, optional
            (n,) what get_generations() returned for these indexes.

        Returns
        -------
        int
            How many updates were stale: of rows that were overwritten since.

        Raises
        ------
        IndexError
            If an index is no row's.
        TypeError, ValueError
            If lengths differ, indexes are no integers, or a priority is NaN, infinite, negative or
            too large. After an error nothing has changed.
        LearnerBusy
            If another handle is the learner of one of the buffers.
        """
        slots, places = self._located(indexes)
        values = np.broadcast_to(np.asarray(priorities, np.float64).reshape(-1), slots.shape)
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise ValueError("cannot update priorities: one is NaN, infinite or negative")
        known = None if generations is None else np.asarray(generations, np.uint64).reshape(-1)
        if known is not None and known.shape != slots.shape:
            raise ValueError(
                f"cannot update priorities: got {len(known)} generations, expected {len(slots)}"
            )
        parts = []
        for place, buffer in enumerate(self._buffers):
            here = places == place
            if isinstance(buffer, PrioritizedReplayBuffer) and here.any():
                largest = float(values[here].max())
                if not (largest + buffer.eps) ** buffer.alpha <= _LARGEST_LEAF:
                    raise ValueError(
                        f"cannot update priorities: {largest} is too large for {buffer.name!r}"
                    )
                buffer.acquire_learner()
                parts.append((buffer, here))
        return sum(
            buffer.update_priorities(
                slots[here], values[here], None if known is None else known[here]
            )
            for buffer, here in parts
        )

    def get_generations(self, indexes: npt.ArrayLike) -> npt.NDArray[np.uint64]:
        """Return which rows the indexes mean, to be passed to update_priorities() later.

        For the learner. Raises what update_priorities() does.

        Parameters
        ----------
        indexes : array_like of int
            (n,) of ``batch["indexes"]``.

        Returns
        -------
        numpy.ndarray
            uint64 (n,); 0 for rows of uniform buffers.
        """
        slots, places = self._located(indexes)
        generations = np.zeros(slots.shape, np.uint64)
        for place, buffer in enumerate(self._buffers):
            here = places == place
            if isinstance(buffer, PrioritizedReplayBuffer) and here.any():
                generations[here] = buffer.get_generations(slots[here])
        return generations

    def _split(self, rows: int) -> tuple[list[int], npt.NDArray[np.float64]]:
        """Return how many rows each buffer gives, and what is due to each after that."""
        wanted = self._due + rows * self._shares
        counts = np.maximum(np.floor(wanted + 1e-9), 0).astype(np.int64)
        # What is left goes to those that are furthest behind; what is too much comes from the rest.
        for place in np.argsort(counts - wanted, kind="stable")[: max(rows - counts.sum(), 0)]:
            counts[place] += 1
        while counts.sum() > rows:
            counts[int(np.argmax(counts - wanted))] -= 1
        return counts.tolist(), wanted - counts

    def _located(
        self, indexes: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        given = np.asarray(indexes).reshape(-1)
        if given.dtype.kind not in "iu" and given.size:
            raise TypeError(
                f"cannot find rows: indexes have dtype {given.dtype}, expected integers"
            )
        all_of_them = given.astype(np.int64)
        end = int(self._firsts[-1])
        wrong = (all_of_them < 0) | (all_of_them >= end)
        if wrong.any():
            raise IndexError(
                f"cannot find rows: index {all_of_them[wrong][0]} is not in [0, {end})"
            )
        places = np.searchsorted(self._firsts, all_of_them, side="right") - 1
        return all_of_them - self._firsts[places], places


def _in_words(buffer: ReplayBuffer) -> str:
    return ", ".join(f"{name}:{dtype}{tuple(shape)}" for name, dtype, shape in buffer._fields())
