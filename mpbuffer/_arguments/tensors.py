"""PyTorch's tensors as arrays and back, dtypes that NumPy does not have included."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["as_plain_array", "as_tensor", "is_tensor", "tensor_maker", "torch_name"]


def is_tensor(value: Any) -> bool:
    """Tell whether `value` is a tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def torch_name(tensor: Any) -> str:
    """Return the name of a tensor's dtype: ``"bfloat16"``."""
    return str(tensor.dtype).removeprefix("torch.")


def as_plain_array(tensor: Any) -> npt.NDArray[Any]:
    """Return a CPU tensor's memory as an array, of unsigned integers where NumPy has no dtype."""
    try:
        return tensor.numpy()  # type: ignore[no-any-return]
    except TypeError:
        torch = sys.modules["torch"]
        integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        array: npt.NDArray[Any] = tensor.view(integer[tensor.element_size()]).numpy()
        return array.view(f"u{tensor.element_size()}")


def as_tensor(array: npt.NDArray[Any], torch_dtype: str) -> Any:
    """Return a tensor of an array's memory: of that dtype, or of unsigned integers viewed as it."""
    torch = importlib.import_module("torch")
    dtype = getattr(torch, torch_dtype)
    if str(array.dtype) == torch_dtype:
        return torch.from_numpy(array)
    signed = {"uint16": "int16", "uint32": "int32", "uint64": "int64"}.get(str(array.dtype))
    return torch.from_numpy(array if signed is None else array.view(signed)).view(dtype)


def tensor_maker(dtype: np.dtype[Any]) -> Callable[[npt.NDArray[Any]], Any]:
    """Return a function that makes tensors of arrays of a dtype, which share their memory.

    Raises
    ------
    TypeError
        If PyTorch has no such dtype.
    """
    torch = importlib.import_module("torch")
    try:
        torch.from_numpy(np.empty(0, dtype))
    except TypeError:
        same: Any = getattr(torch, dtype.name, None)
        of_floats = isinstance(same, torch.dtype) and (same.is_floating_point or same.is_complex)
        if not of_floats or same.itemsize != dtype.itemsize:
            raise TypeError(f"torch has no dtype {dtype}") from None
        return lambda array: as_tensor(array.view(f"u{dtype.itemsize}"), dtype.name)
    return torch.from_numpy  # type: ignore[no-any-return]
