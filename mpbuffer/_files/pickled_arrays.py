"""Arrays out of a pickle, without pickle: nothing that the file names is imported or called.

cpprb's files hold a pickled dict of arrays. Of pickle's language only what such a dict needs is
understood here: texts, numbers, tuples, lists, dicts, and what NumPy writes for arrays and dtypes.
"""

from __future__ import annotations

import math
import operator
import pickletools
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpbuffer._segment.description import dtype_from_json

__all__ = ["array_of_bytes", "read_pickled"]

_VALUES = {
    "BINFLOAT",
    "BININT",
    "BININT1",
    "BININT2",
    "BINBYTES",
    "BINBYTES8",
    "BINUNICODE",
    "BINUNICODE8",
    "LONG1",
    "SHORT_BINBYTES",
    "SHORT_BINUNICODE",
}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_FRESH = {"EMPTY_LIST": list, "EMPTY_DICT": dict}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MULTIARRAY = {"numpy.core.multiarray", "numpy._core.multiarray"}  # of NumPy 1 and 2


class _Name(NamedTuple):
    module: str
    name: str


class _Dtype:
    def __init__(self, what: Any) -> None:
        if isinstance(what, _Name):
            self.text, self.dtype = "", dtype_from_json({"package": what.module, "name": what.name})
        else:
            self.text, self.dtype = str(what), np.dtype(str(what))

    def build(self, state: Any) -> None:
        """Take the details that NumPy writes behind a dtype's name."""
        _, byte_order, base, names, fields, itemsize = state[:6]
        if base is not None:
            self.dtype = np.dtype((base[0].dtype, base[1]))
        elif names is not None:
            described = {
                "names": list(names),
                "formats": [fields[name][0].dtype for name in names],
                "offsets": [fields[name][1] for name in names],
                "itemsize": itemsize,
            }
            self.dtype = np.dtype(described)  # type: ignore[call-overload]
        elif len(state) > 8 and state[8] is not None:  # dates and times
            unit, count = state[8][1][:2]
            self.dtype = np.dtype(f"{self.text}[{count}{unit.decode()}]")
        if byte_order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(byte_order)


class _Array:
    value: Any = None

    def build(self, state: Any) -> None:
        """Take shape and bytes; an array of no dimension may hold an object instead."""
        _, shape, dtype, by_columns, content = state
        if not dtype.dtype.hasobject:
            self.value = array_of_bytes(content, dtype.dtype, shape, by_columns)
        elif shape == () and isinstance(content, list) and len(content) == 1:
            self.value = content[0]
        else:
            raise ValueError(f"it holds an array of Python objects of shape {shape}")


def array_of_bytes(
    content: bytes, dtype: np.dtype[Any], shape: Any, by_columns: bool
) -> npt.NDArray[Any]:
    """Return a read-only array of these bytes.

    Raises
    ------
    ValueError, TypeError
        If their number does not suit dtype and shape.
    """
    extents = tuple(operator.index(extent) for extent in shape)
    wanted = math.prod(extents) * dtype.itemsize
    if min(extents, default=0) < 0 or len(content) != wanted:
        raise ValueError(f"an array has {len(content)} bytes, expected {wanted}")
    if wanted == 0:
        return np.empty(extents, dtype)
    return np.frombuffer(content, dtype).reshape(extents, order="F" if by_columns else "C")


def _called(function: Any, arguments: Any) -> Any:
    if isinstance(function, _Name):
        if function == ("numpy", "dtype"):
            return _Dtype(arguments[0])
        if function.module in _MULTIARRAY:
            if function.name == "_reconstruct" and arguments[0] == ("numpy", "ndarray"):
                return _Array()
            if function.name == "scalar":
                dtype, content = arguments
                return array_of_bytes(content, dtype.dtype, (), False).item()
        function = ".".join(function)
    raise ValueError(
        f"it needs pickle to call {function}; only dicts of arrays are read, because a pickle can "
        "run any program"
    )


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        return _plain(value.value)
    if isinstance(value, dict):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (_Name, _Dtype)):
        raise ValueError("it holds something else than arrays")
    return value


def read_pickled(stream: IO[bytes]) -> Any:
    """Return the value that is pickled next in a stream.

    Raises
    ------
    ValueError
        If the pickle is more than arrays, texts and numbers in dicts, tuples and lists.
    Exception
        Of many kinds, if it is damaged.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        first = marks.pop()
        values = stack[first:]
        del stack[first:]
        return values

    def popped(count: int) -> list[Any]:
        values = [stack.pop() for _ in range(count)]
        return values[::-1]

    argument: Any
    for opcode, argument, _ in pickletools.genops(stream):
        kind = opcode.name
        if kind in _VALUES:
            stack.append(argument)
        elif kind in _CONSTANTS:
            stack.append(_CONSTANTS[kind])
        elif kind in _FRESH:
            stack.append(_FRESH[kind]())
        elif kind == "MARK":
            marks.append(len(stack))
        elif kind == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif kind in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif kind in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif kind in _TUPLES:
            stack.append(tuple(popped(_TUPLES[kind])))
        elif kind == "TUPLE":
            stack.append(tuple(since_mark()))
        elif kind in ("APPEND", "APPENDS"):
            values = popped(1) if kind == "APPEND" else since_mark()
            list.extend(stack[-1], values)
        elif kind in ("SETITEM", "SETITEMS"):
            values = popped(2) if kind == "SETITEM" else since_mark()
            dict.update(stack[-1], zip(values[::2], values[1::2], strict=True))
        elif kind == "GLOBAL":
            stack.append(_Name(*argument.split(" ")))
        elif kind == "STACK_GLOBAL":
            stack.append(_Name(*popped(2)))
        elif kind == "REDUCE":
            stack.append(_called(*popped(2)))
        elif kind == "BUILD":
            (state,) = popped(1)
            stack[-1].build(state)
        elif kind not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"its pickle has {kind}, which arrays do not need")
    (value,) = stack
    return _plain(value)
