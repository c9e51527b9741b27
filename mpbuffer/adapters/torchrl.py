"""Buffers for TorchRL: TensorDicts in and out, for its trainers and loops.

Needs torch and tensordict; tested with torchrl 0.14.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, is_leaf_nontensor

from mpbuffer.adapters.by_value import PickledByValue
from mpbuffer.errors import EmptyBuffer

__all__ = ["PrioritizedReplayBuffer", "ReplayBuffer"]

_INDEX, _WEIGHT = "index", "priority_weight"


class ReplayBuffer(PickledByValue):
    """A TensorDictReplayBuffer whose rows lie in shared memory.

    It has the calls that TorchRL's trainers make: extend, add, sample, iteration, state_dict and
    update_tensordict_priority. An entry such as ``("next", "reward")`` is the field
    ``next.reward`` of the attribute `rows`, to which any process adds.

    A sample's tensors have memory of their own, and ``"index"`` tells the rows.

    Parameters
    ----------
    size : int
        Rows.
    batch_size : int, optional
        Rows of a sample; without it sample() is told.
    example : TensorDict, optional
        Rows, for instance ``env.fake_tensordict()``, whose last dimensions are features: tells
        entries, shapes and dtypes. Then the rows are created now, and the buffer can be handed to
        other processes; else with the first rows that come.
    prefetch : int, optional
        How many batches a thread gathers ahead.
    device : torch.device or str, optional
        Of samples. Default: the CPU.
    **of_mpbuffer : optional
        Further parameters of ``mpbuffer.ReplayBuffer``, such as `name` and `seed`.

    Raises
    ------
    TypeError
        If an entry is no tensor.
    ValueError, SegmentExists, NotEnoughMemory
        As for ``mpbuffer.ReplayBuffer``.

    Attributes
    ----------
    rows : mpbuffer.ReplayBuffer or mpbuffer.PrioritizedReplayBuffer or None
    """

    _prioritized = False

    def __init__(
        self,
        size: int,
        *,
        batch_size: int | None = None,
        example: TensorDictBase | None = None,
        prefetch: int = 0,
        device: Any = None,
        **of_mpbuffer: Any,
    ) -> None:
        self._size, self.batch_size, self._prefetch = size, batch_size, prefetch
        self.device = torch.device("cpu" if device is None else device)
        self._of_rows = of_mpbuffer
        self.rows: Any = None
        self._keys: dict[str, Any] = {}
        self._batches: dict[int, Any] = {}
        if example is not None:
            self._create(example.reshape(-1))

    @property
    def storage(self) -> ReplayBuffer:
        """The buffer itself: trainers ask a storage for its `device` only."""
        return self

    @property
    def write_count(self) -> int:
        """How many rows all processes have added."""
        return 0 if self.rows is None else int(self.rows.rows_added())

    def __len__(self) -> int:
        return 0 if self.rows is None else len(self.rows)

    def _create(self, data: TensorDictBase) -> None:
        fields, keys = {}, {}
        for key, value in _entries(data):
            field = _field_of(key)
            if field in fields:
                raise ValueError(f"cannot create rows: two entries are the field {field!r}")
            dtype = _numpy_dtype(field, torch.empty(0, dtype=value.dtype))
            fields[field] = {"shape": tuple(value.shape[1:]), "dtype": dtype}
            keys[field] = key
        self._create_rows(self._size, fields, self._of_rows, prioritized=self._prioritized)
        self._keys = keys

    def extend(self, data: TensorDictBase) -> torch.Tensor:
        """Add rows: a TensorDict of shape ``(n,)``; one of more dimensions is flattened.

        ``"index"`` and ``"priority_weight"``, which samples have, are left out.

        Returns
        -------
        torch.Tensor of int64, shape (n,)
            Their indexes, if no other process adds meanwhile.

        Raises
        ------
        TypeError
            If an entry is no tensor.
        KeyError, ValueError, IndexError
            If an entry is missing or has another shape, its dtype cannot represent a value, or more
            rows come than fit. Nothing has changed then.
        """
        data = data.reshape(-1)
        if self.rows is None:
            self._create(data)
        values = {_field_of(key): value.detach().cpu() for key, value in _entries(data)}
        first = int(self.rows.add(**values))
        indexes: torch.Tensor = (first + torch.arange(len(data))) % self._size
        return indexes

    def add(self, data: TensorDictBase) -> int:
        """Add one row: a TensorDict without dimensions. Return its index."""
        return int(self.extend(data.unsqueeze(0))[0])

    def sample(self, batch_size: int | None = None) -> TensorDict:
        """Draw rows, each with the same probability.

        Parameters
        ----------
        batch_size : int, optional
            Default: the buffer's.

        Returns
        -------
        TensorDict, shape (batch_size,)

        Raises
        ------
        EmptyBuffer
            If there is no row.
        ValueError
            If there is no batch size.
        """
        size = self.batch_size if batch_size is None else batch_size
        if size is None:
            raise ValueError("cannot sample: pass batch_size, here or to the buffer")
        if self.rows is None:
            raise EmptyBuffer("cannot sample: no rows have been added")
        if size not in self._batches:
            self._batches[size] = self._iterator(size)
        return self._tensordict(next(self._batches[size]), size)

    def _iterator(self, size: int) -> Any:
        return self.rows.batches(size, return_indexes=True, prefetch=self._prefetch, tensors=True)

    def _tensordict(self, tensors: dict[str, torch.Tensor], size: int) -> TensorDict:
        data = TensorDict({}, [size])
        for field, key in self._keys.items():
            data.set(key, tensors[field])
        data.set(_INDEX, tensors["indexes"])
        if "weights" in tensors:
            data.set(_WEIGHT, tensors["weights"])
        return data if self.device.type == "cpu" else data.to(self.device)

    def __iter__(self) -> Iterator[TensorDict]:
        while True:
            yield self.sample()

    def update_tensordict_priority(self, data: TensorDictBase) -> None:
        """Do nothing: these rows have no priorities."""

    def empty(self) -> None:
        """Delete all rows."""
        if self.rows is not None:
            self.rows.clear()

    def close(self) -> None:
        """Close this process's handle of the rows; the last one frees the memory."""
        for batches in self._batches.values():
            batches.close()
        self._batches = {}
        if self.rows is not None:
            self.rows.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the rows by value, compressed, and priorities."""
        if self.rows is None:
            return {"keys": {}, "env_dict": {}, "rows": b""}
        file = io.BytesIO()
        self.rows.save_transitions(file)
        return {
            "keys": self._keys,
            "env_dict": self._arguments["env_dict"],
            "rows": file.getvalue(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the rows by saved ones."""
        self.empty()
        if not state["rows"]:
            return
        if self.rows is None:
            self._keys = dict(state["keys"])
            fields = state["env_dict"]
            self._create_rows(self._size, fields, self._of_rows, prioritized=self._prioritized)
        self.rows.load_transitions(io.BytesIO(state["rows"]))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_batches": {}}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.rows!r}, batch_size={self.batch_size})"


class PrioritizedReplayBuffer(ReplayBuffer):
    """A TensorDictPrioritizedReplayBuffer whose rows lie in shared memory.

    Schaul et al., 2016. As ReplayBuffer. Samples have ``"priority_weight"``, which TorchRL's losses
    take. One process samples.

    Parameters
    ----------
    size, **kwargs
        As for ReplayBuffer.
    alpha, beta : float
        Exponents of priorities and of importance weights.
    eps : float, optional
        Added to priorities.
    priority_key : str, optional
        The entry that update_tensordict_priority() reads.
    """

    _prioritized = True

    def __init__(
        self,
        size: int,
        *,
        alpha: float,
        beta: float,
        eps: float = 1e-8,
        priority_key: str = "td_error",
        **kwargs: Any,
    ) -> None:
        self.beta, self.priority_key = beta, priority_key
        super().__init__(size, alpha=alpha, eps=eps, **kwargs)

    def _iterator(self, size: int) -> Any:
        return self.rows.batches(size, self.beta, prefetch=self._prefetch, tensors=True)

    def update_tensordict_priority(self, data: TensorDictBase) -> None:
        """Set the priorities of a sample's rows: the sizes of its ``"td_error"``."""
        self.update_priority(data.get(_INDEX), data.get(self.priority_key).abs())

    def update_priority(self, index: Any, priority: Any) -> None:
        """Set the priorities of rows by their indexes; those of rows overwritten are ignored."""
        index, priority = torch.as_tensor(index).cpu(), torch.as_tensor(priority).detach().cpu()
        self.rows.update_priorities(index.reshape(-1).numpy(), priority.reshape(-1).numpy())


def _field_of(key: Any) -> str:
    return key if isinstance(key, str) else ".".join(key)


def _entries(data: TensorDictBase) -> list[tuple[Any, torch.Tensor]]:
    """Return the entries that are stored, by their keys."""
    found = []
    for key, value in data.items(True, True, is_leaf=is_leaf_nontensor):
        if key in (_INDEX, _WEIGHT):
            continue
        if not isinstance(value, torch.Tensor):
            raise TypeError(
                f"cannot store the entry {key!r}: expected a tensor, got {type(value).__name__}"
            )
        found.append((key, value))
    return found


def _numpy_dtype(field: str, tensor: torch.Tensor) -> Any:
    """Return the dtype of a field for such tensors."""
    try:
        return tensor.numpy().dtype
    except TypeError as error:
        raise TypeError(f"cannot store the entry {field!r}: {error}") from None
