"""Arrays in a segment's description, which is a JSON text, and errors if it is damaged."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np

from mpbuffer.errors import SegmentMismatch

_MOST_ELEMENTS = 2**40
_FIRST_NUMBER_OF_OTHERS = 256  # NumPy's own dtypes have smaller ones, but for StringDType
_PACKAGES_OF_DTYPES = ("ml_dtypes",)  # those whose dtypes any process finds by name


# What reading a damaged text as JSON, and using what was read, can raise.
CAUSED_BY_DAMAGE = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    RecursionError,
)


@contextlib.contextmanager
def refusing_damage(name: str) -> Iterator[None]:
    """Turn errors from reading a damaged description into SegmentMismatch.

    Raises
    ------
    SegmentMismatch
        If the block raises an error that a damaged text can cause, or an ImportError because the
        text names a package that is missing.
    """
    try:
        yield
    except ImportError as error:
        raise SegmentMismatch(f"cannot attach {name!r}: {error}") from error
    except (*CAUSED_BY_DAMAGE, SyntaxError) as error:
        raise SegmentMismatch(
            f"cannot attach {name!r}: its description is damaged ({error!r})"
        ) from error


def as_described(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype as it is read from its description: native, without alignment or titles.

    Raises
    ------
    TypeError
        If it belongs to a package whose dtypes cannot be described.
    """
    return dtype_from_json(json.loads(json.dumps(dtype_to_json(dtype.newbyteorder("=")))))


def _package_of(dtype: np.dtype[Any]) -> str | None:
    """Return the package that a dtype comes from; None if it is NumPy's or has fields."""
    if 0 <= dtype.num < _FIRST_NUMBER_OF_OTHERS:
        return None
    return dtype.type.__module__.partition(".")[0]


def dtype_to_json(dtype: np.dtype[Any]) -> Any:
    if dtype.names is not None:
        described = []
        for name, padding, *shape in dtype.descr:
            key = name if isinstance(name, str) else name[1]
            part = dtype[key].base if key else None
            described.append([name, padding if part is None else dtype_to_json(part), *shape])
        return described
    package = _package_of(dtype)
    if package is None:
        return np.lib.format.dtype_to_descr(dtype)
    if package not in _PACKAGES_OF_DTYPES:
        raise TypeError(
            f"other processes cannot find the dtypes of package {package!r} by name; expected "
            f"a dtype of NumPy or {', '.join(_PACKAGES_OF_DTYPES)}, for instance "
            f"'V{dtype.itemsize}' and a view"
        )
    return {"package": package, "name": dtype.type.__name__}


def dtype_from_json(described: Any) -> np.dtype[Any]:
    if isinstance(described, dict):
        return _dtype_of_package(str(described["package"]), str(described["name"]))
    if not isinstance(described, list):
        dtype: np.dtype[Any] = np.lib.format.descr_to_dtype(described)
        return dtype
    names, formats, offsets, end = [], [], [], 0
    for name, part, *shape in described:
        inner = dtype_from_json(part)
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


def shape_from_json(shape: Any, *, least: int) -> list[int]:
    """Return the extents; ValueError if one is below `least`, or there are too many elements."""
    extents = [operator.index(extent) for extent in shape]
    if min(extents, default=least) < least or math.prod(extents) > _MOST_ELEMENTS:
        raise ValueError(f"shape {extents}")
    return extents


def name_from_json(name: Any) -> str:
    """Return the name; ValueError if it is no text that can be encoded."""
    return str(name).encode().decode()
