"""Fields of a row: from ``env_dict`` to what the core lays out and a segment describes."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import operator
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mpbuffer.buffer.nstep import NstepRule, nstep_from_json
from mpbuffer.errors import SegmentMismatch

__all__ = ["Field", "describe", "fields_from", "read_description", "refusing_damage"]

Field = tuple[str, "np.dtype[Any]", list[int]]

_MOST_ELEMENTS = 2**40
_FIRST_NUMBER_OF_OTHERS = 256  # NumPy's own dtypes have smaller ones, but for StringDType
_PACKAGES_OF_DTYPES = ("ml_dtypes",)  # those whose dtypes any process finds by name
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
        If a field's description is no mapping, its shape no integers, or its dtype is not one,
        holds Python objects, or is of a package whose dtypes other processes cannot find.
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
        lying = "texts of any length" if dtype.kind == "T" else "Python objects"
        raise TypeError(
            f"field {name!r} has dtype {dtype}: {lying} cannot lie in shared memory; "
            "expected a dtype of fixed size, such as float32, uint8 or 'S16'"
        )
    if dtype.itemsize == 0:
        raise ValueError(f"field {name!r} has dtype {dtype} of no size; expected e.g. 'S16'")
    try:
        return as_described(dtype)
    except TypeError as error:
        raise TypeError(f"field {name!r} has dtype {dtype}: {error}") from None


def as_described(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype as its description gives it back: native, without alignment or titles.

    Raises
    ------
    TypeError
        If it belongs to a package whose dtypes cannot be described.
    """
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


def _package_of(dtype: np.dtype[Any]) -> str | None:
    """Return the package that a dtype comes from; None if it is NumPy's or has fields."""
    if 0 <= dtype.num < _FIRST_NUMBER_OF_OTHERS:
        return None
    return dtype.type.__module__.partition(".")[0]


def _dtype_to_json(dtype: np.dtype[Any]) -> Any:
    if dtype.names is not None:
        described = []
        for name, padding, *shape in dtype.descr:
            key = name if isinstance(name, str) else name[1]
            part = dtype[key].base if key else None
            described.append([name, padding if part is None else _dtype_to_json(part), *shape])
        return described
    package = _package_of(dtype)
    if package is None:
        return np.lib.format.dtype_to_descr(dtype)
    if package not in _PACKAGES_OF_DTYPES:
        raise TypeError(
            f"other processes cannot find the dtypes of package {package!r} by name; expected "
            f"one of NumPy or {', '.join(_PACKAGES_OF_DTYPES)}, such as a 'V{dtype.itemsize}' "
            "to view as it"
        )
    return {"package": package, "name": dtype.type.__name__}


def _dtype_from_json(described: Any) -> np.dtype[Any]:
    if isinstance(described, dict):
        return _dtype_of_package(str(described["package"]), str(described["name"]))
    if not isinstance(described, list):
        dtype: np.dtype[Any] = np.lib.format.descr_to_dtype(described)
        return dtype
    names, formats, offsets, end = [], [], [], 0
    for name, part, *shape in described:
        inner = _dtype_from_json(part)
        if shape:
            inner = np.dtype((inner, tuple(shape[0])))
        if name:  # else padding
            names.append(str(name))
            formats.append(inner)
            offsets.append(end)
        end += inner.itemsize
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": end})


def _dtype_of_package(package: str, name: str) -> np.dtype[Any]:
    if package not in _PACKAGES_OF_DTYPES:
        raise ImportError(f"its dtype {name!r} is of package {package!r}, which is not known here")
    try:
        module = importlib.import_module(package)
    except ImportError:
        raise ImportError(
            f"its dtype {name!r} is of package {package!r}, which cannot be imported here; "
            f"install it (pip install {package})"
        ) from None
    if not hasattr(module, name):
        raise ImportError(
            f"its dtype {name!r} is not in package {package!r} {module.__version__}; "
            "install a newer one"
        )
    dtype: np.dtype[Any] = np.dtype(getattr(module, name))
    if _package_of(dtype) != package:
        raise ValueError(f"dtype {name!r} of {package!r}")
    return dtype


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
        If the block ends with an error that text which nobody wrote can cause, or, from an
        ImportError, if a package is missing that the text names.
    """
    try:
        yield
    except ImportError as error:
        raise SegmentMismatch(f"cannot attach {name!r}: {error}") from error
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
