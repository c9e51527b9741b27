"""Fields of a row: from ``env_dict`` to what the core lays out and a segment describes."""

from __future__ import annotations

import contextlib
import json
import math
import operator
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mpbuffer.errors import SegmentMismatch
from mpbuffer.nstep import NstepRule, nstep_from_json

__all__ = ["Field", "describe", "fields_from", "read_description", "refusing_damage"]

Field = tuple[str, "np.dtype[Any]", list[int]]

_MOST_ELEMENTS = 2**40
_FIELD_KEYS = {"shape", "dtype"}
_DESCRIPTION_KEYS = {"class", "fields", "strict", "attributes", "nstep"}


def fields_from(
    env_dict: Mapping[str, Mapping[str, Any]], default: npt.DTypeLike, *, warned_frame: int = 2
) -> list[Field]:
    """Check an ``env_dict`` and make it the core's list of fields.

    Parameters
    ----------
    env_dict : mapping of str to mapping
        For each field ``{"shape": int or tuple of int, "dtype": dtype}``; shape defaults to 1.
        Other keys are ignored with a UserWarning that names them.
    default : dtype_like
        The dtype of fields that name none.
    warned_frame : int, optional
        Whose call a warning names: 2 is the caller's, 3 that of the caller's caller, and so on.

    Returns
    -------
    list of (str, numpy.dtype, list of int)
        In the order given; dtypes in native byte order.

    Raises
    ------
    TypeError
        If a field's description is no mapping, its shape no integers, or its dtype is not one or
        holds Python objects.
    ValueError
        If there are no fields, a shape is not positive, or a dtype has no fixed size.
    """
    if not isinstance(env_dict, Mapping):
        raise TypeError(f"env_dict must map field names to descriptions, got {env_dict!r}")
    if not env_dict:
        raise ValueError("env_dict names no fields, at least one is needed")
    fields: list[Field] = []
    for name, description in env_dict.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"a field's name must be a non-empty str, got {name!r}")
        if not isinstance(description, Mapping):
            raise TypeError(
                f"field {name!r} must be described by a mapping with 'shape' and 'dtype', "
                f"got {description!r}"
            )
        unknown = [repr(key) for key in description if key not in _FIELD_KEYS]
        if unknown:
            warnings.warn(
                f"field {name!r} is described by {', '.join(unknown)}, which is ignored; "
                "expected 'shape' and 'dtype'",
                stacklevel=warned_frame,
            )
        wanted = description.get("dtype")
        dtype = _fixed_size_dtype(name, default if wanted is None else wanted)
        shape = _shape(name, description.get("shape", 1))
        if dtype.subdtype is not None:
            dtype, inner = dtype.subdtype
            shape += inner
        fields.append((name, dtype, shape))
    return fields


def _fixed_size_dtype(name: str, wanted: Any) -> np.dtype[Any]:
    try:
        dtype = np.dtype(wanted)
    except TypeError as error:
        raise TypeError(f"field {name!r}: {wanted!r} is no NumPy dtype ({error})") from None
    if dtype.hasobject:
        raise TypeError(
            f"field {name!r} has dtype {dtype}: Python objects cannot lie in shared memory; "
            "expected a dtype of fixed size, such as float32, uint8 or 'S16'"
        )
    if dtype.itemsize == 0:
        raise ValueError(f"field {name!r} has dtype {dtype} of no size; expected e.g. 'S16'")
    # The dtype as the description will give it back: native, without alignment flags or titles.
    return _dtype_from_json(json.loads(json.dumps(_dtype_to_json(dtype.newbyteorder("=")))))


def _shape(name: str, wanted: Any) -> list[int]:
    extents = wanted if isinstance(wanted, (tuple, list)) else (wanted,)
    try:
        shape = [operator.index(extent) for extent in extents]
    except TypeError:
        raise TypeError(
            f"field {name!r} has shape {wanted!r}, expected an int or a tuple of them"
        ) from None
    if any(extent < 1 for extent in shape):
        raise ValueError(f"field {name!r} has shape {wanted!r}, every extent must be at least 1")
    return shape


def _dtype_to_json(dtype: np.dtype[Any]) -> Any:
    return np.lib.format.dtype_to_descr(dtype)


def _dtype_from_json(description: Any) -> np.dtype[Any]:
    def with_tuples(part: Any) -> Any:
        if not isinstance(part, list):
            return part
        return [
            (
                each[0] if isinstance(each[0], str) else tuple(each[0]),
                with_tuples(each[1]),
                *(tuple(extra) for extra in each[2:]),
            )
            for each in part
        ]

    return np.lib.format.descr_to_dtype(with_tuples(description))


def _extents_from_json(shape: Any) -> list[int]:
    extents = [operator.index(extent) for extent in shape]
    if min(extents, default=1) < 1 or math.prod(extents) > _MOST_ELEMENTS:
        raise ValueError(f"shape {extents}")
    return extents


def describe(prioritized: bool, fields: list[Field], strict: bool, nstep: NstepRule | None) -> str:
    """Return the JSON text that a segment carries, so that it can be attached by name."""
    description: dict[str, Any] = {
        "class": "PrioritizedReplayBuffer" if prioritized else "ReplayBuffer",
        "fields": [
            {"name": name, "descr": _dtype_to_json(dtype), "shape": shape}
            for name, dtype, shape in fields
        ],
        "strict": strict,
        "attributes": {},
    }
    if nstep is not None:
        description["nstep"] = nstep.to_json()
    return json.dumps(description)


@contextlib.contextmanager
def refusing_damage(name: str) -> Iterator[None]:
    """Turn whatever reading a damaged description raises into SegmentMismatch.

    Raises
    ------
    SegmentMismatch
        If the block ends with an error that text which nobody wrote can cause.
    """
    try:
        yield
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        OverflowError,
        RecursionError,
        SyntaxError,
    ) as error:
        raise SegmentMismatch(
            f"cannot attach {name!r}: its description is damaged ({error!r})"
        ) from error


def read_description(name: str, text: str) -> tuple[list[Field], bool, NstepRule | None]:
    """Return fields, strictness and how n-step rows are folded from a segment's JSON text.

    Raises
    ------
    SegmentMismatch
        If the text is damaged, or names attributes that this version does not know.
    """
    with refusing_damage(name):
        description = json.loads(text)
        unknown = set(description) - _DESCRIPTION_KEYS | set(description["attributes"])
        fields = [
            (
                str(each["name"]).encode().decode(),
                _dtype_from_json(each["descr"]),
                _extents_from_json(each["shape"]),
            )
            for each in ([] if unknown else description["fields"])
        ]
        if not unknown and (not fields or len({field[0] for field in fields}) != len(fields)):
            raise ValueError("no fields, or two of one name")
        strict = bool(description["strict"])
        nstep = None
        if not unknown and "nstep" in description:
            nstep = nstep_from_json(description["nstep"], fields)
    if unknown:
        raise SegmentMismatch(
            f"cannot attach {name!r}: it has attributes that this version does not know: "
            f"{', '.join(sorted(unknown))}"
        )
    if any(dtype.hasobject for _, dtype, _ in fields):
        raise SegmentMismatch(f"cannot attach {name!r}: a field holds Python objects")
    return fields, strict, nstep
