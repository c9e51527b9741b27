"""Batches one after another, in memory that is reused, gathered while the learner computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from mpbuffer import _core
from mpbuffer._arguments.integers import whole_number
from mpbuffer._arguments.tensors import tensor_maker
from mpbuffer.buffer.sequences import COMPUTED

__all__ = ["Batches", "WeightNorm"]

WeightNorm = Literal["buffer", "batch"] | None


def _cuda_of_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError("cannot pin batches: pin_memory=True needs torch") from error
    if not torch.cuda.is_available():
        raise RuntimeError("cannot pin batches: pin_memory=True needs torch with CUDA")
    return torch


def _makers_of_tensors(buffer: _core.ReplayBuffer) -> dict[str, Callable[[Any], Any]]:
    """Return, for each array of a batch, the function that makes a tensor of it."""
    dtypes: dict[str, np.dtype[Any]] = {"indexes": np.dtype(np.int64)}
    dtypes |= dict.fromkeys(("weights", "probabilities"), np.dtype(np.float32))
    dtypes |= {name: dtype for name, dtype, _ in buffer._fields()}
    if buffer._sequence() is not None:
        dtypes |= dict.fromkeys(COMPUTED, np.dtype(bool))
    makers = {}
    for name, dtype in dtypes.items():
        try:
            makers[name] = tensor_maker(dtype)
        except ImportError as error:
            raise ImportError("cannot make tensors: tensors=True needs torch") from error
        except TypeError as error:
            raise TypeError(f"cannot make tensors of field {name!r}: {error}") from None
    return makers


class Batches(Iterator[dict[str, Any]]):
    """An endless iterator over samples; ``buffer.batches(...)`` makes it.

    Each batch has arrays of its own. Their memory is reused for a later batch when nothing
    references it: no array, view, memoryview or tensor, and no autograd graph. A batch that you
    keep stays as it is.

    With `prefetch`, a thread that needs no GIL gathers the next batches. They use priorities that
    are up to `prefetch` updates old. Priorities may be updated late and in any order; an update of
    a row that was overwritten is always stale. ``release_learner()`` discards the batches gathered
    ahead. The next call for a batch takes the role again, as ``sample()`` does.

    For one thread at a time. A forked child makes its own.

    Attributes
    ----------
    beta : float
        Exponent of the importance weights of later draws.
    """

    def __init__(
        self,
        buffer: _core.ReplayBuffer,
        batch_size: int,
        *,
        return_indexes: bool,
        prefetch: int,
        tensors: bool,
        pin_memory: bool,
        beta: float = 0.0,
        weight_norm: WeightNorm = "buffer",
        return_probabilities: bool = False,
        time_major: bool = False,
    ) -> None:
        rows = whole_number("batch_size", batch_size, 1)
        ahead = whole_number("prefetch", prefetch, 0)
        torch_to_pin = _cuda_of_torch() if pin_memory else None
        self._makers = _makers_of_tensors(buffer) if tensors else None
        self._gatherer = _core.BatchGatherer(
            buffer,
            rows,
            ahead,
            return_indexes,
            beta,
            torch_to_pin,
            weight_norm,
            bool(return_probabilities),
            bool(time_major),
        )

    @property
    def beta(self) -> float:
        """Exponent of the importance weights of later draws."""
        return self._gatherer.beta

    @beta.setter
    def beta(self, value: float) -> None:
        self._gatherer.beta = value

    def __next__(self) -> dict[str, Any]:
        """Return the next batch. Blocks until it is gathered.

        A signal handler that runs meanwhile may call anything, close() included.

        Raises
        ------
        EmptyBuffer
            If there is no complete row. The iterator stays usable.
        LearnerBusy
            If another handle has the learner's role.
        BufferClosed
            After close() of this or of the buffer.
        RuntimeError
            With `prefetch`, in a forked child, and if no thread can be started.
        """
        arrays = self._gatherer.next()
        if self._makers is None:
            return arrays
        return {name: self._makers[name](values) for name, values in arrays.items()}

    def close(self) -> None:
        """End the thread and free the memory. Batches that you hold stay valid. Twice is once.

        Blocks until the batch that is being gathered is done.
        """
        self._gatherer.close()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
