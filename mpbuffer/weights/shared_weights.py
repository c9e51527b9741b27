"""Weights in shared memory: the learner publishes whole versions, explorers read the latest."""

from __future__ import annotations

import json
import math
import operator
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpbuffer import _core
from mpbuffer._arguments.tensors import as_plain_array, as_tensor, is_tensor, torch_name
from mpbuffer._segment.exit import close_at_exit
from mpbuffer._segment.handing_on import (
    NotCopied,
    descriptor_for_child,
    names_of,
    opened_copy,
    opened_once_there,
)
from mpbuffer.buffer.schema import _dtype_from_json, _dtype_to_json, as_described, refusing_damage

__all__ = ["PublisherStatus", "SharedWeights", "WeightsVersion"]

_CLASS = "SharedWeights"
_LEAST_SLOTS, _MOST_SLOTS = 3, 64
_MOST_ELEMENTS = 2**40


class _Part(NamedTuple):
    """One array of each version; `torch` names the tensor's dtype, or is None for an array."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    torch: str | None

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.torch or self.dtype} {self.shape}"


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

    One handle at a time, the publisher, replaces all arrays by publish(), in one copy and without
    waiting for anybody. Every process that has a handle reads the latest version whole. A handle
    goes to processes under fork, spawn or forkserver, or is opened by ``attach(name)``.

    A read is one copy and waits for nobody: the slot that it reads is not written meanwhile. A
    publisher that is stopped or killed, at any instruction, leaves the latest version readable;
    killed or stopped readers hold up neither it nor one another. Only where a reader was stopped
    (SIGSTOP) in the middle of a copy and went on may a copy have to be made again.

    A version can be read as soon as publish() returns, with one exception: while ``slots - 2``
    superseded versions are still being copied, each by a running process, the newest one waits
    until one of these copies is done. It comes then, unless a still newer one has replaced it.

    Memory for `slots` versions is allocated at creation. A handle is closed by close(), by leaving
    a ``with`` block, when it is garbage collected, and when its process ends; the memory is freed
    with the last one. With and without `name`, it is as a ReplayBuffer's, and so are copies and
    pickles.

    Parameters
    ----------
    weights : mapping of str to array_like or torch.Tensor
        Flat, such as a module's ``state_dict()``; becomes version 1. Names, shapes and dtypes are
        those of all versions to come. Arrays of any NumPy dtype of fixed size, and tensors of any
        dtype on any device.
    name : str, optional
        1 to 128 of ``[A-Za-z0-9._-]``.
    overwrite : bool, optional
        Whether to take `name` from weights or a buffer of this user.
    slots : int, optional
        How many versions there is room for, 3 to 64.

    Raises
    ------
    SegmentExists
        If `name` is in use.
    NotEnoughMemory
        If there is too little room: in memory, in this cgroup, or, with `name`, in /dev/shm.
    TypeError, ValueError
        If `weights` is no such mapping, or another argument is not as above.
    """

    _handle: _core.WeightsHandle
    _parts: tuple[_Part, ...]

    def __init__(
        self,
        weights: Mapping[str, Any],
        *,
        name: str | None = None,
        overwrite: bool = False,
        slots: int = 4,
    ) -> None:
        if not isinstance(weights, Mapping):
            raise TypeError(f"weights must map names to arrays, got {weights!r}")
        if not weights:
            raise ValueError("weights names no arrays, at least one is needed")
        try:
            slot_count = operator.index(slots)
        except TypeError:
            raise TypeError(f"slots must be an int, got {slots!r}") from None
        if not _LEAST_SLOTS <= slot_count <= _MOST_SLOTS:
            raise ValueError(f"slots must be {_LEAST_SLOTS} to {_MOST_SLOTS}, got {slots!r}")
        segment_name, nameless = names_of(name, bool(overwrite))
        parts, arrays = [], []
        for key, value in weights.items():
            part, array = _first_version_of(key, value)
            parts.append(part)
            arrays.append(array)
        self._parts = tuple(parts)
        self._handle = _core.WeightsHandle.create(
            segment_name,
            slot_count,
            arrays,
            _describe(self._parts),
            nameless,
            bool(overwrite),
        )
        close_at_exit(self)

    @classmethod
    def attach(cls, name: str, *, timeout: float = 0.0) -> SharedWeights:
        """Open the weights that another process of this user has made.

        Parameters
        ----------
        name : str
            What its ``name`` says.
        timeout : float, optional
            How many seconds to wait for the name at most.

        Returns
        -------
        SharedWeights
            A handle that reads; publish() makes it the publisher, if nobody is.

        Raises
        ------
        SegmentNotFound
            If nothing of that name is there.
        SegmentMismatch
            If it is damaged, of another layout, a replay buffer, or somebody else's.
        ProcessTableFull
            If 1022 handles are open already.
        ValueError
            If `timeout` is no number of at least 0, or `name` cannot be a name.
        """
        return opened_once_there(cls._opened, name, timeout)

    @classmethod
    def _opened(cls, name: str, descriptor: int) -> SharedWeights:
        handle = _core.WeightsHandle.attach(name, descriptor)
        try:
            parts = read_weights_description(name, handle.description())
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
        return _attach_copy, (type(self), self.name, source)

    @property
    def name(self) -> str:  # type: ignore[override]
        """What ``SharedWeights.attach`` opens it by."""
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
            return f"<{_CLASS}: closed>"
        return (
            f"<{_CLASS} {self.name!r}: version {self.version}, {len(self._parts)} arrays, "
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
        """Replace all arrays, as this handle is or becomes the publisher.

        One copy of the bytes; waits for nobody. Tensors on another device, and arrays that are not
        contiguous, are copied once more to get them here.

        Parameters
        ----------
        weights : mapping of str to array_like or torch.Tensor
            The names, shapes and dtypes of the first version, in any order. They must not change
            during the call.

        Returns
        -------
        int
            The version's number, one more than the last.

        Raises
        ------
        KeyError
            If a name is missing, or was not there in the first version.
        ValueError
            If a shape is another.
        TypeError
            If `weights` is no mapping, or a dtype is another.
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
        """Copy the latest version. Any process may call it; it waits for nobody.

        Parameters
        ----------
        out : mapping of str to numpy.ndarray or torch.Tensor, optional
            Filled in place instead of fresh arrays. Memory that is contiguous and on the CPU is
            written directly, other tensors through a copy. If the read was interrupted by an error
            its contents are undefined.
        newer_than : int, optional
            Do nothing unless there is a later version than this; asking costs one atomic load.
        as_numpy : bool, optional
            Return NumPy arrays also for what came as tensors, without PyTorch: dtypes that NumPy
            does not have come as unsigned integers of their size.

        Returns
        -------
        WeightsVersion or None
            A dict of arrays by name, tensors (on the CPU) for what was published as tensors, with
            its ``version`` and ``age``; the values of `out`, if given. None if nothing is newer.

        Raises
        ------
        KeyError, ValueError, TypeError
            If `out` has other names, shapes or dtypes, or cannot be written to.
        BufferClosed
            After close().
        """
        after = 0 if newer_than is None else operator.index(newer_than)
        if newer_than is not None and self._handle.newest() <= after:
            return None
        after = max(after, 0)
        late: list[tuple[Any, Any]] = []
        if out is None:
            arrays = [np.empty(part.shape, part.dtype) for part in self._parts]
        else:
            values = self._values_of(out, "read into")
            arrays = []
            for part, value in zip(self._parts, values, strict=True):
                array, target = _writable(part, value, f"cannot read into {self.name!r}")
                arrays.append(array)
                if target is not None:
                    late.append((target, array))
        got = self._handle.read(arrays, after)
        if got is None:
            return None
        if out is not None:
            for target, array in late:
                _copy_late(target, array)
            _tell_autograd(values)
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
            A module stands for its ``state_dict()``.
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
        """Give up the publisher's role, if this handle has it; another process can take it then."""
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
            ("misses", expected - weights.keys()),
            ("was not in the first version, but came:", weights.keys() - expected),
        ):
            if names:
                raise KeyError(f"cannot {verb} {self.name!r}: {problem} {sorted(names, key=str)}")
        return [weights[part.name] for part in self._parts]

    def _arrays_of(self, weights: Any, verb: str) -> list[npt.NDArray[Any]]:
        arrays = []
        for part, value in zip(self._parts, self._values_of(weights, verb), strict=True):
            array, torch_dtype = _array_of(part.name, value)
            if array.dtype != part.dtype and array.dtype.newbyteorder("=") == part.dtype:
                array = array.astype(part.dtype)
            _check_like(part, array.shape, array.dtype, torch_dtype, f"cannot {verb} {self.name!r}")
            arrays.append(np.ascontiguousarray(array).reshape(part.shape))
        return arrays


def _attach_copy(cls: type[SharedWeights], name: str, source: Any) -> SharedWeights:
    """Open a pickled handle."""
    return opened_copy(cls._opened, name, source)


def _array_of(name: str, value: Any) -> tuple[npt.NDArray[Any], str | None]:
    """Return the value as an array, without a copy where possible, and its torch dtype's name."""
    if is_tensor(value):
        if value.layout is not sys.modules["torch"].strided:
            raise TypeError(
                f"array {name!r} is a tensor of layout {value.layout}, expected strided"
            )
        if value.is_quantized:
            raise TypeError(
                f"array {name!r} is a quantized tensor, of dtype {torch_name(value)}: its scale "
                "and zero point would be lost; expected dequantize() of it, or its int_repr()"
            )
        plain = value.detach().resolve_conj().resolve_neg().cpu()
        return as_plain_array(plain), torch_name(value)
    if isinstance(value, Mapping):
        raise TypeError(f"array {name!r} is itself a mapping; expected a flat mapping of arrays")
    only_dlpack = hasattr(value, "__dlpack__") and not hasattr(value, "__array__")
    try:
        array = np.from_dlpack(value) if only_dlpack else np.asarray(value)
    except (ValueError, TypeError, RuntimeError, BufferError) as error:
        raise TypeError(f"array {name!r}: {type(value).__name__} is no array ({error})") from error
    if array.dtype.hasobject:
        held = "texts of any length" if array.dtype.kind == "T" else "Python objects"
        raise TypeError(f"array {name!r} holds {held}, got {value!r}; expected numbers")
    return array, None


def _first_version_of(name: Any, value: Any) -> tuple[_Part, npt.NDArray[Any]]:
    if not isinstance(name, str) or not name:
        raise TypeError(f"an array's name must be a non-empty str, got {name!r}")
    array, torch_dtype = _array_of(name, value)
    try:
        dtype = as_described(array.dtype)
    except TypeError as error:
        raise TypeError(f"array {name!r} has dtype {array.dtype}: {error}") from None
    if dtype.itemsize == 0:
        raise ValueError(f"array {name!r} has dtype {dtype} of no size; expected e.g. 'S16'")
    part = _Part(name, dtype, array.shape, torch_dtype)
    return part, np.ascontiguousarray(array, dtype).reshape(array.shape)


def _check_like(
    part: _Part, shape: tuple[int, ...], dtype: np.dtype[Any], torch_dtype: str | None, what: str
) -> None:
    if shape != part.shape:
        raise ValueError(f"{what}: array {part.name!r} has shape {shape}, expected {part.shape}")
    wanted = part.torch or str(part.dtype)
    if dtype != part.dtype if torch_dtype is None else torch_dtype != wanted:
        raise TypeError(
            f"{what}: array {part.name!r} has dtype {torch_dtype or dtype}, expected {wanted}"
        )


def _writable(part: _Part, value: Any, what: str) -> tuple[npt.NDArray[Any], Any]:
    """Return memory to read into, and what it then has to be copied to; None if it is that."""
    if is_tensor(value):
        tensor = value.detach()
        _check_like(part, tuple(tensor.shape), part.dtype, torch_name(tensor), what)
        if tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_conj():
            return as_plain_array(tensor), None
        return np.empty(part.shape, part.dtype), tensor
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"{what}: {part.name!r} is a {type(value).__name__}, expected a NumPy array or a "
            "tensor to be filled"
        )
    _check_like(part, value.shape, value.dtype, None, what)
    if not value.flags.writeable:
        raise ValueError(f"{what}: array {part.name!r} is read-only")
    if value.flags.c_contiguous:
        return value, None
    return np.empty(part.shape, part.dtype), value


def _copy_late(target: Any, array: npt.NDArray[Any]) -> None:
    if isinstance(target, np.ndarray):
        target[...] = array
        return
    target.copy_(as_tensor(array, torch_name(target)))


def _tell_autograd(values: list[Any]) -> None:
    """Have autograd notice that tensors were written to: their saved versions are void."""
    torch = sys.modules.get("torch")
    note = getattr(getattr(torch, "autograd", None), "graph", None)
    increment = getattr(note, "increment_version", None)
    if torch is None or increment is None:
        return
    for value in values:
        if isinstance(value, torch.Tensor) and not value.is_inference():
            increment(value)


def _describe(parts: tuple[_Part, ...]) -> str:
    return json.dumps(
        {
            "class": _CLASS,
            "arrays": [
                {
                    "name": part.name,
                    "descr": _dtype_to_json(part.dtype),
                    "shape": part.shape,
                    "torch": part.torch,
                }
                for part in parts
            ],
            "attributes": {},
        }
    )


def read_weights_description(name: str, text: bytes) -> tuple[_Part, ...]:
    with refusing_damage(name):
        description = json.loads(text.decode())
        if description["class"] != _CLASS or description["attributes"]:
            raise ValueError(f"class {description['class']!r}, {description['attributes']!r}")
        parts = tuple(
            _Part(
                str(each["name"]).encode().decode(),
                _dtype_from_json(each["descr"]),
                _extents_from_json(each["shape"]),
                None if each["torch"] is None else str(each["torch"]),
            )
            for each in description["arrays"]
        )
        if not parts or len({part.name for part in parts}) != len(parts):
            raise ValueError("no arrays, or two of one name")
        if any(part.dtype.hasobject for part in parts):
            raise ValueError("an array holds Python objects")
    return parts


def _extents_from_json(shape: Any) -> tuple[int, ...]:
    extents = tuple(operator.index(extent) for extent in shape)
    if min(extents, default=0) < 0 or math.prod(extents) > _MOST_ELEMENTS:
        raise ValueError(f"shape {extents}")
    return extents
