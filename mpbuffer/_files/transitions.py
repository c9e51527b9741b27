"""cpprb's file of transitions: an ``.npz`` of a dict of arrays, and what is kept beside them."""

from __future__ import annotations

import contextlib
import os
import secrets
import zipfile
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpbuffer._files.pickled_arrays import array_of_bytes, read_pickled

__all__ = ["File", "SavedTransitions", "read_transitions", "write_transitions"]

File = str | os.PathLike[str] | IO[bytes]

_FORMAT_VERSION = 1


class SavedTransitions(NamedTuple):
    """What a file holds.

    Attributes
    ----------
    rows : dict of str to numpy.ndarray
        ``(n,) + shape`` of each field, by slot.
    nstep : bool
        Whether they are n-step rows.
    priorities : numpy.ndarray or None
        float64 (n,).
    largest_priority : float or None
        That the buffer had seen.
    oldest : int
        The row that was added first; the order goes on from there, and around. cpprb does not keep
        it: 0.
    """

    rows: dict[str, npt.NDArray[Any]]
    nstep: bool
    priorities: npt.NDArray[np.float64] | None
    largest_priority: float | None
    oldest: int

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))


def write_transitions(file: File, saved: SavedTransitions) -> None:
    """Write a file that cpprb can load: as a whole, or not at all where `file` is a path."""
    members: dict[str, Any] = {
        "safe": True,
        "version": _FORMAT_VERSION,
        "data": saved.rows,
        "Nstep": saved.nstep,
        "cache": None,
        "next_of": None,
        "oldest": saved.oldest,
    }
    if saved.priorities is not None:
        members["priorities"] = saved.priorities
        members["largest_priority"] = saved.largest_priority
    if not isinstance(file, (str, os.PathLike)):
        np.savez_compressed(file, **members)
        return
    path = os.path.realpath(os.fspath(file))
    if not path.endswith(".npz"):
        path += ".npz"  # as numpy.savez does
    with _replaced(path) as stream:
        np.savez_compressed(stream, **members)


@contextlib.contextmanager
def _replaced(path: str) -> Iterator[IO[bytes]]:
    """Open a new file that takes the path when all is written."""
    if os.path.exists(path) and not os.path.isfile(path):  # a device or a pipe
        with open(path, "wb") as stream:
            yield stream
        return
    unfinished = f"{path}.{secrets.token_hex(4)}.part"
    try:
        with open(unfinished, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
        raise


def read_transitions(file: File) -> SavedTransitions:
    """Read what write_transitions() or cpprb has written.

    Raises
    ------
    ValueError
        If it is no such file, damaged, or needs pickle.
    OSError
        If it cannot be opened.
    """
    if not isinstance(file, (str, os.PathLike)):
        return _read(file, repr(getattr(file, "name", file)))
    path = os.fspath(file)
    if not os.path.exists(path) and os.path.exists(f"{path}.npz"):
        path += ".npz"  # which numpy.savez has added
    with open(path, "rb") as stream:
        return _read(stream, repr(path))


def _read(stream: IO[bytes], name: str) -> SavedTransitions:
    try:
        with zipfile.ZipFile(stream) as archive:
            return _checked(_Members(archive))
    except Exception as error:  # of many kinds, for a damaged file can be anything
        is_told = type(error) is ValueError
        reason = str(error) if is_told else f"it is damaged or no such file ({error!r})"
        raise ValueError(f"cannot load transitions from {name}: {reason}") from error


class _Members:
    """The arrays of an ``.npz``, read without pickle."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._names = set(archive.namelist())

    def __contains__(self, name: str) -> bool:
        return f"{name}.npy" in self._names

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise ValueError(f"it has no {name!r}, which cpprb's files have")
        with self._archive.open(f"{name}.npy") as member:
            shape, by_columns, dtype = _header(member)
            if not dtype.hasobject:
                return array_of_bytes(member.read(), dtype, shape, by_columns)
            value = read_pickled(member)
            if member.read(1):  # at the end, zipfile compares the checksum
                raise ValueError(f"{name!r} is longer than expected")
            return value


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read what an ``.npy`` begins with.

    NumPy does it by ``ast``. In CPython before 3.11.5, two threads that do so at once disturb each
    other, which raises SystemError.
    """
    for attempts_left in reversed(range(10)):
        try:
            if np.lib.format.read_magic(member) == (1, 0):
                return np.lib.format.read_array_header_1_0(member)
            return np.lib.format.read_array_header_2_0(member)
        except SystemError:
            if attempts_left == 0:
                raise
            member.seek(0)
    raise AssertionError("unreachable")


def _checked(members: _Members) -> SavedTransitions:
    version = int(members["version"])
    if version != _FORMAT_VERSION:
        raise ValueError(f"its format is {version}, expected {_FORMAT_VERSION}")
    rows = members["data"]
    if not isinstance(rows, dict) or not rows:
        raise ValueError("its data are no dict of arrays")
    for field, values in rows.items():
        if not isinstance(field, str) or not isinstance(values, np.ndarray) or values.ndim == 0:
            raise ValueError("its data are no dict of arrays of rows")
    if not bool(members["safe"]):
        rows = _with_cached_rows(rows, members["cache"], members["next_of"])
    lengths = {field: len(values) for field, values in rows.items()}
    n = next(iter(lengths.values()))
    if set(lengths.values()) != {n}:
        raise ValueError(f"its fields have different numbers of rows: {lengths}")
    priorities = largest = None
    if "priorities" in members:
        priorities = np.asarray(members["priorities"], np.float64)
        largest = float(members["largest_priority"])
        if priorities.shape != (n,):
            raise ValueError(f"its priorities have shape {priorities.shape}, expected ({n},)")
    oldest = int(members["oldest"]) if "oldest" in members else 0
    if not 0 <= oldest < max(n, 1):
        raise ValueError(f"its oldest row is {oldest}, expected one of {n}")
    return SavedTransitions(rows, bool(members["Nstep"]), priorities, largest, oldest)


def _with_cached_rows(rows: dict[str, npt.NDArray[Any]], cache: Any, next_of: Any) -> Any:
    """Return whole rows of a file of ``safe=False``: the buffer as it is, and what is not in it."""
    whole = {field: values.copy() for field, values in rows.items()}
    for field in () if next_of is None else np.ravel(next_of):
        whole[f"next_{field}"] = np.roll(rows[str(field)], -1, axis=0)
    for slot, values in cache.items():
        for field, value in values.items():
            whole[field][slot] = value
    return whole
