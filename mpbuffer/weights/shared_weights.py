"""Weights in shared memory: the learner publishes whole versions, explorers read the latest."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpbuffer import _core
from mpbuffer._arguments.handles import MOST_HANDLES, checked_handles
from mpbuffer._arguments.integers import whole_number
from mpbuffer._arguments.tensors import as_tensor
from mpbuffer._segment.exit import close_at_exit
from mpbuffer._segment.handing_on import (
    NotCopied,
    descriptor_for_child,
    names_of,
    opened_copy,
    opened_once_there,
)
from mpbuffer.weights import arrays as conversions
from mpbuffer.weights.parts import Part, describe, read_description

__all__ = ["PublisherStatus", "SharedWeights", "WeightsVersion"]

_LEAST_SLOTS, _MOST_SLOTS = 3, 64


class PublisherStatus(NamedTuple):
    """Who publishes.

    Attributes
    ----------
    process : int
        The publisher's number in the process table; 0 if nobody has the role.
    pid : int
        Its process.
    since : float
        When it took the role, in seconds since the epoch.
    """

    process: int
    pid: int
    since: float


class WeightsVersion(dict[str, Any]):
    """One version of the weights: a dict of arrays or tensors by name, in the publisher's order.

    Attributes
    ----------
    version : int
        1 for the first.
    age : float
        Seconds between its publication and the end of the copy.
    """

    version: int
    age: float

    def __init__(self, arrays: Mapping[str, Any], version: int, age: float) -> None:
        super().__init__(arrays)
        self.version = version
        self.age = age

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self), self.version, self.age)


class SharedWeights(NotCopied):
    """Named arrays in shared memory, replaced as a whole.

    One handle at a time is the publisher. It replaces all arrays by publish(), in one copy and
    without blocking. Every other handle reads the latest version whole. Pass handles to processes
    under fork, spawn or forkserver, or open them by ``attach(name)``.

    A read is one copy and does not block: nobody writes to the slot that it reads. A publisher that
    is stopped or killed, at any instruction, leaves the latest version readable. Readers that are
    stopped or killed delay neither the publisher nor each other. A read copies twice only if its
    process was stopped (SIGSTOP) in mid-copy.

    A version can be read as soon as publish() returns, with one exception: while ``slots - 2``
    older versions are still being copied, each by a running process, the newest one becomes
    readable when one of these copies ends, unless a newer one has replaced it by then.

    Memory for `slots` versions is allocated at creation. A handle is closed by close(), by leaving
    a ``with`` block, when it is garbage collected, and when its process ends. The last handle frees
    the memory. Names, copies and pickles work as for ReplayBuffer.

    Parameters
    ----------
    weights : mapping of str to array_like or torch.Tensor
        Flat, such as a module's ``state_dict()``. They become version 1, and fix names, shapes and
        dtypes for all versions. Arrays of any NumPy dtype of fixed size, and tensors of any dtype
        on any device.
    name : str, optional
        1 to 128 of ``[A-Za-z0-9._-]``.
    overwrite : bool, optional
        Whether to take `name` from other weights, or a buffer, of this user.
    slots : int, optional
        For how many versions there is memory, 3 to 64.
    max_handles : int, optional
        How many handles may be open at once, 1 to 1022, this one's included. Each takes 640 bytes.

    Raises
    ------
    SegmentExists
        If `name` is in use.
    NotEnoughMemory
        If there is too little memory: on the machine, in this cgroup, or, with `name`, in
        /dev/shm.
    TypeError, ValueError
        If an argument is not as above.
    """

    _handle: _core.WeightsHandle
    _parts: tuple[Part, ...]

    def __init__(
        self,
        weights: Mapping[str, Any],
        *,
        name: str | None = None,
        overwrite: bool = False,
        slots: int = 4,
        max_handles: int = MOST_HANDLES,
    ) -> None:
        if not isinstance(weights, Mapping):
            raise TypeError(f"weights must map names to arrays, got {weights!r}")
        if not weights:
            raise ValueError("weights has no arrays, expected at least one")
        slot_count = whole_number("slots", slots, _LEAST_SLOTS, _MOST_SLOTS)
        handles = checked_handles(max_handles)
        segment_name, nameless = names_of(name, bool(overwrite))
        parts, arrays = [], []
        for key, value in weights.items():
            part, array = conversions.first_version_of(key, value)
            parts.append(part)
            arrays.append(array)
        self._parts = tuple(parts)
        self._handle = _core.WeightsHandle.create(
            segment_name,
            slot_count,
            arrays,
            describe(self._parts),
            nameless,
            bool(overwrite),
            handles,
        )
        close_at_exit(self)

    @classmethod
    def attach(cls, name: str, *, timeout: float = 0.0) -> SharedWeights:
        """Open weights that another process of this user has created.

        Parameters
        ----------
        name : str
            The weights' ``name``.
        timeout : float, optional
            How many seconds to wait for the name at most.

        Returns
        -------
        SharedWeights
            A handle that reads. publish() makes it the publisher if there is none.

        Raises
        ------
        SegmentNotFound
            If there is nothing of that name.
        SegmentMismatch
            If it is damaged, has another format, is a replay buffer, or belongs to another user.
        ProcessTableFull
            If as many handles are open as `max_handles` was at the creation.
        ValueError
            If `timeout` is not at least 0, or `name` is not valid.
        """
        return opened_once_there(cls._opened, name, timeout)

    @classmethod
    def _opened(cls, name: str, descriptor: int) -> SharedWeights:
        handle = _core.WeightsHandle.attach(name, descriptor)
        try:
            parts = read_description(name, handle.description())
            handle.set_parts([part.bytes for part in parts])
        except BaseException:
            handle.close()
            raise
        weights = cls.__new__(cls)
        weights._handle, weights._parts = handle, parts
        close_at_exit(weights)
        return weights

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the handle, not the weights: by descriptor while spawning, else by name."""
        source = descriptor_for_child(self._handle.data_descriptor(), self.name)
        return opened_copy, (type(self), self.name, source)

    @property
    def name(self) -> str:
        """The name that ``SharedWeights.attach`` takes."""
        return self._handle.name()

    @property
    def closed(self) -> bool:
        """Whether this handle was closed."""
        return not self._handle.is_open()

    def close(self) -> None:
        """Close this handle; remove the segment if it was the last one. Twice is once.

        Waits for calls of other threads through this handle, not for other processes.
        """
        handle = getattr(self, "_handle", None)
        if handle is not None:
            handle.close()

    def __enter__(self) -> SharedWeights:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<SharedWeights: closed>"
        return (
            f"<SharedWeights {self.name!r}: version {self.version}, {len(self._parts)} arrays, "
            f"{sum(part.bytes for part in self._parts)} bytes>"
        )

    @property
    def version(self) -> int:
        """The version that read() would return now; 1 is the first."""
        return self._handle.latest()[0]

    @property
    def age(self) -> float:
        """Seconds since the version that read() would return now was published."""
        return self._handle.latest()[1]

    def publish(self, weights: Mapping[str, Any]) -> int:
        """Replace all arrays. This handle becomes the publisher if there is none.

        Copies the bytes once, without blocking. Tensors on another device and arrays that are not
        contiguous are copied once more before.

        Parameters
        ----------
        weights : mapping of str to array_like or torch.Tensor
            Arrays with the names, shapes and dtypes of the first version, in any order. They must
            not change during the call.

        Returns
        -------
        int
            The version's number, one more than the last.

        Raises
        ------
        KeyError
            If a name is missing, or was not in the first version.
        ValueError
            If a shape differs.
        TypeError
            If `weights` is no mapping, or a dtype differs.
        PublisherBusy
            If another handle is the publisher; names it, at once.
        BufferClosed
            After close(). After any error nothing has changed.
        """
        return self._handle.publish(self._arrays_of(weights, "publish to"))

    def read(
        self,
        out: Mapping[str, Any] | None = None,
        *,
        newer_than: int | None = None,
        as_numpy: bool = False,
    ) -> WeightsVersion | None:
        """Copy the latest version. Any process may call it. It never blocks.

        Parameters
        ----------
        out : mapping of str to numpy.ndarray or torch.Tensor, optional
            Arrays to fill, instead of fresh ones. Contiguous memory on the CPU is written directly,
            other tensors through a copy. If an error interrupts the read, their contents are
            undefined.
        newer_than : int, optional
            Do nothing unless there is a later version than this. The check is one atomic load.
        as_numpy : bool, optional
            Return NumPy arrays for tensors too, without PyTorch. Dtypes that NumPy does not have
            become unsigned integers of their size.

        Returns
        -------
        WeightsVersion or None
            A dict of arrays by name, with its ``version`` and ``age``. Tensors (on the CPU) for
            what was published as tensors; the values of `out`, if given. None if nothing is newer.

        Raises
        ------
        KeyError, ValueError, TypeError
            If `out` has other names, shapes or dtypes, or is not writable.
        BufferClosed
            After close().
        """
        after = 0 if newer_than is None else operator.index(newer_than)
        if newer_than is not None and self._handle.newest() <= after:
            return None
        after = max(after, 0)
        copied_after: list[tuple[Any, Any]] = []
        if out is None:
            arrays = [np.empty(part.shape, part.dtype) for part in self._parts]
        else:
            values = self._values_of(out, "read into")
            arrays = []
            for part, value in zip(self._parts, values, strict=True):
                array, target = conversions.writable_array(
                    part, value, f"cannot read into {self.name!r}"
                )
                arrays.append(array)
                if target is not None:
                    copied_after.append((target, array))
        got = self._handle.read(arrays, after)
        if got is None:
            return None
        if out is not None:
            for target, array in copied_after:
                conversions.copy_into(target, array)
            conversions.tell_autograd(values)
            return WeightsVersion(out, *got)
        return WeightsVersion(
            {
                part.name: array if as_numpy or part.torch is None else as_tensor(array, part.torch)
                for part, array in zip(self._parts, arrays, strict=True)
            },
            *got,
        )

    def load_into(self, target: Any, *, newer_than: int | None = None) -> int | None:
        """Copy the latest version into a module's parameters, or a mapping's arrays, in place.

        Parameters
        ----------
        target : torch.nn.Module or mapping of str to array or tensor
            For a module, its ``state_dict()`` is written.
        newer_than : int, optional
            As for read().

        Returns
        -------
        int or None
            The version loaded; None if nothing is newer.

        Raises
        ------
        KeyError, ValueError, TypeError, BufferClosed
            As read() does.
        """
        if newer_than is not None and self._handle.newest() <= newer_than:
            return None
        out = target if isinstance(target, Mapping) else target.state_dict()
        got = self.read(out, newer_than=newer_than)
        return None if got is None else got.version

    def release_publisher(self) -> None:
        """Give up the publisher's role, if this handle has it; another process can take it."""
        self._handle.release_publisher()

    def publisher_status(self) -> PublisherStatus:
        """Return who publishes. Any process may call it."""
        return PublisherStatus(*self._handle.publisher())

    def _values_of(self, weights: Any, verb: str) -> list[Any]:
        """Return the mapping's values in the order of the parts; KeyError if names differ."""
        if not isinstance(weights, Mapping):
            raise TypeError(f"cannot {verb} {self.name!r}: expected a mapping, got {weights!r}")
        expected = {part.name for part in self._parts}
        for problem, names in (
            ("missing arrays", expected - weights.keys()),
            ("arrays that the first version did not have:", weights.keys() - expected),
        ):
            if names:
                raise KeyError(f"cannot {verb} {self.name!r}: {problem} {sorted(names, key=str)}")
        return [weights[part.name] for part in self._parts]

    def _arrays_of(self, weights: Any, verb: str) -> list[npt.NDArray[Any]]:
        arrays, what = [], f"cannot {verb} {self.name!r}"
        for part, value in zip(self._parts, self._values_of(weights, verb), strict=True):
            array, torch_dtype = conversions.array_of(part.name, value)
            if array.dtype != part.dtype and array.dtype.newbyteorder("=") == part.dtype:
                array = array.astype(part.dtype)
            conversions.check_like(part, array.shape, array.dtype, torch_dtype, what)
            arrays.append(np.ascontiguousarray(array).reshape(part.shape))
        return arrays
