"""Batches one after another, in memory that is reused, gathered while the learner computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mpbuffer import _core
from mpbuffer._arguments.integers import whole_number
from mpbuffer._arguments.tensors import tensor_maker

__all__ = ["Batches"]


def _cuda_of_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError("cannot pin batches: pin_memory=True needs torch") from error
    if not torch.cuda.is_available():
        raise RuntimeError("cannot pin batches: pin_memory=True needs torch with CUDA")
    return torch


def _makers_of_tensors(buffer: _core.ReplayBuffer) -> dict[str, Callable[[Any], Any]]:
    """Return for each array of a batch what makes a tensor of it."""
    dtypes: dict[str, np.dtype[Any]] = {"indexes": np.dtype("i8"), "weights": np.dtype("f4")}
    dtypes |= {name: dtype for name, dtype, _ in buffer._fields()}
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

    Each batch has arrays of its own, whose memory is reused for a later batch as soon as nothing
    references it: no array, view, memoryview or tensor of it, and no graph that a tensor is part
    of. As long as something does, other memory is taken, so that what you keep stays as it was.

    With `prefetch`, a thread that needs no GIL gathers the next batches meanwhile. They use
    priorities that are up to `prefetch` updates old. Priorities may be updated late and in any
    order; updates of rows that were overwritten are stale, exactly. ``release_learner()`` discards
    what was gathered ahead; the next batch that is asked for takes the role again, as ``sample()``
    does.

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
        beta: float,
        return_indexes: bool,
        prefetch: int,
        tensors: bool,
        pin_memory: bool,
    ) -> None:
        rows = whole_number("batch_size", batch_size, 1)
        ahead = whole_number("prefetch", prefetch, 0)
        torch_to_pin = _cuda_of_torch() if pin_memory else None
        self._makers = _makers_of_tensors(buffer) if tensors else None
        self._gatherer = _core.BatchGatherer(
            buffer, rows, ahead, return_indexes, beta, torch_to_pin
        )

    @property
    def beta(self) -> float:
        """Exponent of the importance weights of batches that are drawn from now on."""
        return self._gatherer.beta

    @beta.setter
    def beta(self, value: float) -> None:
        self._gatherer.beta = value

    def __next__(self) -> dict[str, Any]:
        """Return the next batch; waits until it is gathered.

        A handler of a signal that comes meanwhile may call anything, close() included.

        Raises
        ------
        EmptyBuffer
            If no complete row is there. The iterator goes on: ask again.
        LearnerBusy
            If another handle has the learner's role.
        BufferClosed
            After close(), or the buffer's.
        RuntimeError
            With `prefetch`, in a forked child, and where no thread can be started.
        """
        arrays = self._gatherer.next()
        if self._makers is None:
            return arrays
        return {name: self._makers[name](values) for name, values in arrays.items()}

    def close(self) -> None:
        """End the thread and drop the memory; batches handed out stay valid. Twice is once.

        Waits for a batch that is just being gathered.
        """
        self._gatherer.close()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
