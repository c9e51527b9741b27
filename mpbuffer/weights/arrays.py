"""Arrays and tensors that are published, and those that are read into."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mpbuffer._arguments.tensors import as_plain_array, as_tensor, is_tensor, torch_name
from mpbuffer._segment.description import as_described
from mpbuffer.weights.parts import Part


def array_of(name: str, value: Any) -> tuple[npt.NDArray[Any], str | None]:
    """Return the value as an array, without a copy where possible, and its torch dtype's name."""
    if is_tensor(value):
        if value.layout is not sys.modules["torch"].strided:
            raise TypeError(
                f"array {name!r} is a tensor of layout {value.layout}, expected strided"
            )
        if value.is_quantized:
            raise TypeError(
                f"array {name!r} is a quantized tensor of dtype {torch_name(value)}, whose scale "
                "and zero point would be lost; expected its dequantize() or int_repr()"
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


def first_version_of(name: Any, value: Any) -> tuple[Part, npt.NDArray[Any]]:
    """Return how an array of the first version is described, and the array as it is stored."""
    if not isinstance(name, str) or not name:
        raise TypeError(f"an array's name must be a non-empty str, got {name!r}")
    array, torch_dtype = array_of(name, value)
    try:
        dtype = as_described(array.dtype)
    except TypeError as error:
        raise TypeError(f"array {name!r} has dtype {array.dtype}: {error}") from None
    if dtype.itemsize == 0:
        raise ValueError(f"array {name!r} has dtype {dtype} of no size; expected e.g. 'S16'")
    part = Part(name, dtype, array.shape, torch_dtype)
    return part, np.ascontiguousarray(array, dtype).reshape(array.shape)


def check_like(
    part: Part, shape: tuple[int, ...], dtype: np.dtype[Any], torch_dtype: str | None, what: str
) -> None:
    """Raise ValueError or TypeError unless shape and dtype are those of the first version."""
    if shape != part.shape:
        raise ValueError(f"{what}: array {part.name!r} has shape {shape}, expected {part.shape}")
    wanted = part.torch or str(part.dtype)
    if dtype != part.dtype if torch_dtype is None else torch_dtype != wanted:
        raise TypeError(
            f"{what}: array {part.name!r} has dtype {torch_dtype or dtype}, expected {wanted}"
        )


def writable_array(part: Part, value: Any, what: str) -> tuple[npt.NDArray[Any], Any]:
    """Return memory to read into, and the value to copy it to afterwards, or None."""
    if is_tensor(value):
        tensor = value.detach()
        check_like(part, tuple(tensor.shape), part.dtype, torch_name(tensor), what)
        if tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_conj():
            return as_plain_array(tensor), None
        return np.empty(part.shape, part.dtype), tensor
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"{what}: {part.name!r} is a {type(value).__name__}, expected a NumPy array or a "
            "tensor to be filled"
        )
    check_like(part, value.shape, value.dtype, None, what)
    if not value.flags.writeable:
        raise ValueError(f"{what}: array {part.name!r} is read-only")
    if value.flags.c_contiguous:
        return value, None
    return np.empty(part.shape, part.dtype), value


def copy_into(target: Any, array: npt.NDArray[Any]) -> None:
    """Copy an array into an array or a tensor."""
    if isinstance(target, np.ndarray):
        target[...] = array
        return
    target.copy_(as_tensor(array, torch_name(target)))


def tell_autograd(values: list[Any]) -> None:
    """Tell autograd that tensors were written to, which makes their saved versions invalid."""
    torch = sys.modules.get("torch")
    note = getattr(getattr(torch, "autograd", None), "graph", None)
    increment = getattr(note, "increment_version", None)
    if torch is None or increment is None:
        return
    for value in values:
        if isinstance(value, torch.Tensor) and not value.is_inference():
            increment(value)
