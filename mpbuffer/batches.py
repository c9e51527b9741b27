"""Batches one after another, in memory that is used again, gathered while the learner computes."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from mpbuffer import _core
from mpbuffer.errors import BufferClosed

__all__ = ["Batches"]

# How many batches beside the prefetched ones are watched for being used again.
_MOST_KEPT = 8

Arrays = dict[str, npt.NDArray[Any]]


def _references(arrays: Arrays) -> int:
    """Return the largest number of references to one of the arrays."""
    return max(map(sys.getrefcount, arrays.values()))


class _Recycled:
    """The arrays of a batch, between one use and the next."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays
        self.copied: Any = None  # a CUDA event, once nobody refers to the arrays any more


def _cuda_of_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError("cannot pin batches: pin_memory=True needs torch") from error
    if not torch.cuda.is_available():
        raise RuntimeError("cannot pin batches: pin_memory=True needs torch with CUDA")
    return torch


def _pinned_like(values: npt.NDArray[Any], torch: Any) -> npt.NDArray[Any]:
    memory = torch.empty(values.nbytes, dtype=torch.uint8, pin_memory=True).numpy()
    return cast("npt.NDArray[Any]", memory.view(values.dtype).reshape(values.shape))


def _from_numpy_of_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError("cannot make tensors: tensors=True needs torch") from error
    return torch.from_numpy


class Batches(Iterator[dict[str, Any]]):
    """An endless iterator over samples; ``buffer.batches(...)`` makes it.

    The arrays of a batch are used again for a later one as soon as nobody refers to any of them any
    more: not to the array, a view, a tensor of its memory, or a graph that a tensor is part of. As
    long as somebody does, other memory is taken, so that what you keep stays as it was.

    With `prefetch`, a thread that needs no GIL gathers the next batches meanwhile. They were drawn
    from the priorities of that time, up to `prefetch` updates ago. Priorities may be updated late
    and in any order; updates of rows that were overwritten are stale, exactly.

    For one thread at a time. A forked child makes its own.

    Attributes
    ----------
    beta : float
        Exponent of the importance weights of batches that are drawn from now on.
    """

    def __init__(
        self,
        buffer: _core.ReplayBuffer,
        batch_size: int,
        *,
        beta: float | None,
        return_indexes: bool,
        prefetch: int,
        tensors: bool,
        pin_memory: bool,
    ) -> None:
        self._batch_size = _at_least(1, "batch_size", batch_size)
        self._prefetch = _at_least(0, "prefetch", prefetch)
        self._prioritized = beta is not None
        self.beta = 0.0 if beta is None else beta
        self._return_indexes = return_indexes
        self._torch_to_pin: Any = _cuda_of_torch() if pin_memory else None
        self._from_numpy: Any = _from_numpy_of_torch() if tensors else None
        self._buffer = buffer
        self._gatherer: _core.BatchGatherer | None = _core.BatchGatherer(buffer, return_indexes)
        self._owned: list[_Recycled] = []
        self._submitted: deque[_Recycled] = deque()  # oldest first
        self._unshared = _references(self._allocate())

    @property
    def beta(self) -> float:
        """Exponent of the importance weights of batches that are drawn from now on."""
        return self._beta

    @beta.setter
    def beta(self, value: float) -> None:
        beta = float(value)
        if not 0 <= beta < float("inf"):
            raise ValueError(f"beta must be a finite number of at least 0, got {value!r}")
        self._beta = beta

    def __next__(self) -> dict[str, Any]:
        """Return the next batch; waits until it is gathered.

        Raises
        ------
        EmptyBuffer
            If no complete row is there. The iterator goes on: ask again.
        LearnerBusy
            If another handle has the learner's role.
        BufferClosed
            After close(), or the buffer's.
        """
        if self._gatherer is None:
            raise BufferClosed("cannot take a batch: these batches were closed")
        if self._prefetch == 0:
            return self._handed_out(self._sample_now())
        self._top_up(self._gatherer)
        try:
            arrays = self._gatherer.take()
        except BaseException:
            # What else is under way was drawn from the same state of the buffer.
            self._discard(self._gatherer)
            raise
        self._submitted.popleft()
        handed_out = self._handed_out(arrays)  # before _top_up() would find its arrays free
        self._top_up(self._gatherer)
        return handed_out

    def close(self) -> None:
        """End the thread and drop the memory; batches handed out stay valid. Twice is once.

        Waits for a batch that is just being gathered.
        """
        if self._gatherer is not None:
            self._discard(self._gatherer)
            self._gatherer = None
            self._owned.clear()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sample_now(self) -> Arrays:
        arrays = self._free().arrays
        if self._prioritized:
            return _core.PrioritizedReplayBuffer.sample(
                cast(_core.PrioritizedReplayBuffer, self._buffer),
                self._batch_size,
                self._beta,
                out=arrays,
            )
        return _core.ReplayBuffer.sample(
            self._buffer, self._batch_size, return_indexes=self._return_indexes, out=arrays
        )

    def _top_up(self, gatherer: _core.BatchGatherer) -> None:
        while len(self._submitted) < self._prefetch:
            batch = self._free()
            gatherer.submit(batch.arrays, self._batch_size, self._beta)
            self._submitted.append(batch)

    def _discard(self, gatherer: _core.BatchGatherer) -> None:
        gatherer.discard()
        self._submitted.clear()

    def _free(self) -> _Recycled:
        """Return arrays that nobody refers to, fresh ones if there are none."""
        for batch in self._owned:
            if (
                batch not in self._submitted
                and _references(batch.arrays) <= self._unshared
                and self._was_copied(batch)
            ):
                return batch
        if len(self._owned) >= self._prefetch + _MOST_KEPT:
            self._owned.remove(next(each for each in self._owned if each not in self._submitted))
        self._owned.append(_Recycled(self._allocate()))
        return self._owned[-1]

    def _was_copied(self, batch: _Recycled) -> bool:
        """Tell whether what the GPU was asked to copy out of pinned arrays has been copied."""
        if self._torch_to_pin is None:
            return True
        if batch.copied is None:
            batch.copied = self._torch_to_pin.cuda.Event()
            batch.copied.record()
        if not batch.copied.query():
            return False
        batch.copied = None
        return True

    def _allocate(self) -> Arrays:
        arrays = _core.empty_batch(self._buffer, self._batch_size, self._return_indexes)
        if self._torch_to_pin is not None:
            for name in arrays.keys() - {"indexes"}:
                arrays[name] = _pinned_like(arrays[name], self._torch_to_pin)
        return arrays

    def _handed_out(self, arrays: Arrays) -> dict[str, Any]:
        if self._from_numpy is None:
            return dict(arrays)
        return {name: self._from_numpy(values) for name, values in arrays.items()}


def _at_least(least: int, name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return int(value)
