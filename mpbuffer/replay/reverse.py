"""Reverse experience replay: strided batches that walk from the newest row to older ones."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from mpbuffer._arguments.integers import whole_number
from mpbuffer._segment.handing_on import opened_once_there
from mpbuffer.buffer.creation import EnvDict
from mpbuffer.buffer.replay_buffer import ReplayBuffer
from mpbuffer.errors import EmptyBuffer

__all__ = ["ReverseReplayBuffer"]


class ReverseReplayBuffer(ReplayBuffer):
    """A replay buffer in shared memory whose batches walk backwards, a stride apart.

    Rotinov, "Reverse experience replay", 2019 (arXiv:1910.08780). The first batch has the newest
    row t and the rows t - stride, t - 2 * stride, and so on; the next one t - 1, t - 1 - stride,
    and so on. When the first row of a batch would be ``2 * stride`` rows or more behind the newest
    one, the walk starts again there. Beyond the oldest row it goes on at the newest one.

    Everything else is as in ReplayBuffer. The place of the walk belongs to the handle: each process
    walks for itself, and a process that is handed the buffer goes on from the place that the
    handle had. The segment is that of a ReplayBuffer: ``mpbuffer.attach(name)`` opens one, and
    ``ReverseReplayBuffer.attach(name)`` walks on the rows of any. With many writers, the order of
    rows is that in which they reached the buffer.

    Parameters
    ----------
    size, env_dict : float and mapping
        As for ReplayBuffer.
    stride : int, optional
        Rows between two of a batch, at least 1.
    **kwargs : optional
        All other parameters of ReplayBuffer.

    Raises
    ------
    TypeError, ValueError
        As for ReplayBuffer, or if `stride` is not as above.

    Examples
    --------
    >>> from mpbuffer import ReverseReplayBuffer
    >>> buffer = ReverseReplayBuffer(20, {"obs": {}}, stride=5)
    >>> _ = buffer.add(obs=range(20))
    >>> [buffer.sample(3)["obs"].ravel().tolist() for _ in range(2)]
    [[19.0, 14.0, 9.0], [18.0, 13.0, 8.0]]
    >>> buffer.close()
    """

    def __init__(
        self, size: float, env_dict: EnvDict | None = None, *, stride: int = 300, **kwargs: Any
    ) -> None:
        self._stride = whole_number("stride", stride, 1, 2**40)
        self._first: int | None = None  # the slot of the last batch's first row
        super().__init__(size, env_dict, **kwargs)

    @classmethod
    def attach(cls, name: str, *, stride: int = 300, timeout: float = 0.0) -> ReverseReplayBuffer:
        """Open a uniform buffer that another process has created, and walk on its rows.

        Parameters
        ----------
        name, timeout : str and float
            As for ``mpbuffer.attach``.
        stride : int, optional
            As for the class.

        Returns
        -------
        ReverseReplayBuffer
            Its walk starts at the newest row.

        Raises
        ------
        SegmentNotFound, SegmentMismatch, ProcessTableFull
            As for ``mpbuffer.attach``.
        TypeError, ValueError
            If an argument is not as above, or the buffer is prioritized.
        """
        rows_between = whole_number("stride", stride, 1, 2**40)
        buffer = opened_once_there(cls._opened, name, timeout)
        if buffer._prioritized:
            buffer.close()
            raise ValueError(f"cannot walk on {name!r}: it is prioritized, expected a ReplayBuffer")
        buffer._stride, buffer._first = rows_between, None
        return buffer

    def sample(  # type: ignore[override]
        self, batch_size: int, *, return_indexes: bool = False
    ) -> dict[str, npt.NDArray[Any]]:
        """Return the next batch of the walk.

        Any process may call it; each handle has its own walk. It never blocks. A row that another
        process is just writing is passed over: the batch then begins one row earlier.

        Parameters
        ----------
        batch_size : int
            At least 1. A batch that reaches beyond the oldest row has some rows twice.
        return_indexes : bool, optional
            Whether to add ``"indexes"``.

        Returns
        -------
        dict of str to numpy.ndarray
            Fresh arrays of shape ``(batch_size,) + shape``, newest row first; ``"indexes"``: int64
            (batch_size,), their slots, on request.

        Raises
        ------
        EmptyBuffer
            If there is no complete row.
        TypeError, ValueError
            If `batch_size` is not as above.
        BufferClosed
            After close().
        """
        rows = whole_number("batch_size", batch_size, 1)
        stored, following = self.get_stored_size(), self.get_next_index()
        # Slots in use: up to the next one until the ring has gone round.
        slots = following if following >= stored else self.get_buffer_size()
        steps_back = np.arange(rows, dtype=np.int64) * self._stride
        for passed_over in range(slots if stored else 0):
            first = (self._next_first(following, slots) - passed_over) % slots
            indexes = (first - steps_back) % slots
            try:
                batch = self._rows_at(indexes)
            except IndexError:  # a row that is being written
                continue
            self._first = first
            if return_indexes:
                batch["indexes"] = indexes
            return batch
        raise EmptyBuffer(f"cannot sample '{self.name}': it holds no complete row")

    def _next_first(self, following: int, slots: int) -> int:
        """Return the slot of the next batch's first row."""
        newest = (following - 1) % slots
        first = self._first
        if first is None or first >= slots or (newest - first) % slots + 1 >= 2 * self._stride:
            return newest
        return first - 1

    def batches(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: batches() gathers uniform draws. Call sample().

        Raises
        ------
        TypeError
            Always.
        """
        raise TypeError(
            f"cannot make batches of a ReverseReplayBuffer ('{self.name}'): batches() draws "
            "uniformly; call sample()"
        )
