"""Fields of a row: from ``env_dict`` to what the core lays out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mpbuffer._arguments.integers import whole_number
from mpbuffer._segment.description import as_described

__all__ = ["Field", "fields_from"]

Field = tuple[str, "np.dtype[Any]", list[int]]

_FIELD_KEYS = {"shape", "dtype"}
_KEYS_OF_CPPRB = {"add_shape"}  # which cpprb's buffers write into an env_dict


def fields_from(
    env_dict: Mapping[str, Mapping[str, Any]], default: npt.DTypeLike, *, warned_frame: int = 2
) -> list[Field]:
    """Check an ``env_dict`` and make it the core's list of fields.

    Parameters
    ----------
    env_dict : mapping of str to mapping
        For each field ``{"shape": int or tuple of int, "dtype": dtype}``; shape defaults to 1.
        Other keys are ignored with one UserWarning that names them, and those that cpprb writes
        into it without.
    default : dtype_like
        The dtype of fields that name none.
    warned_frame : int, optional
        The stack level that warnings name: 2 is the caller, 3 the caller's caller.

    Returns
    -------
    list of (str, numpy.dtype, list of int)
        In the order given; dtypes in native byte order.

    Raises
    ------
    TypeError
        If a field's description is no mapping, its shape has no integers, or its dtype is invalid,
        holds Python objects, or belongs to a package whose dtypes other processes cannot find.
    ValueError
        If there are no fields, a shape is not positive, or a dtype has no fixed size.
    """
    if not isinstance(env_dict, Mapping):
        raise TypeError(f"env_dict must map field names to descriptions, got {env_dict!r}")
    if not env_dict:
        raise ValueError("env_dict names no fields, at least one is needed")
    fields: list[Field] = []
    described_otherwise: dict[str, list[str]] = {}
    for name, description in env_dict.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"a field's name must be a non-empty str, got {name!r}")
        if not isinstance(description, Mapping):
            raise TypeError(
                f"field {name!r} must be described by a mapping with 'shape' and 'dtype', "
                f"got {description!r}"
            )
        unknown = [repr(key) for key in description if key not in _FIELD_KEYS | _KEYS_OF_CPPRB]
        if unknown:
            described_otherwise[repr(name)] = unknown
        wanted = description.get("dtype")
        dtype = _fixed_size_dtype(name, default if wanted is None else wanted)
        shape = _shape(name, description.get("shape", 1))
        if dtype.subdtype is not None:
            dtype, inner = dtype.subdtype
            shape += inner
        fields.append((name, dtype, shape))
    if described_otherwise:
        names = ", ".join(described_otherwise)
        keys = dict.fromkeys(key for keys in described_otherwise.values() for key in keys)
        warnings.warn(
            f"field {names} is described by {', '.join(keys)}, which is ignored; "
            "expected 'shape' and 'dtype'",
            stacklevel=warned_frame,
        )
    return fields


def _fixed_size_dtype(name: str, wanted: Any) -> np.dtype[Any]:
    try:
        dtype = np.dtype(wanted)
    except TypeError as error:
        raise TypeError(f"field {name!r}: {wanted!r} is no NumPy dtype ({error})") from None
    if dtype.hasobject:
        lying = "texts of any length" if dtype.kind == "T" else "Python objects"
        raise TypeError(
            f"field {name!r} has dtype {dtype}: shared memory cannot hold {lying}; "
            "expected a dtype of fixed size, such as float32, uint8 or 'S16'"
        )
    if dtype.itemsize == 0:
        raise ValueError(f"field {name!r} has dtype {dtype} of no size; expected e.g. 'S16'")
    try:
        return as_described(dtype)
    except TypeError as error:
        raise TypeError(f"field {name!r} has dtype {dtype}: {error}") from None


def _shape(name: str, wanted: Any) -> list[int]:
    is_listed = isinstance(wanted, (tuple, list, np.ndarray)) and np.ndim(wanted) > 0
    extents = wanted if is_listed else (wanted,)
    what = f"each extent of field {name!r}, whose shape is {wanted!r},"
    return [whole_number(what, extent, 1) for extent in extents]
