"""Arrays in files of their own: ``.npy`` files that are written once, with their checksums."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpbuffer import _core
from mpbuffer.errors import SnapshotMismatch

__all__ = ["ArrayFile", "GrowingFile", "WrittenFiles", "read_array"]

_BYTES_ON_THE_WAY = 128 << 20
_FILES_ON_THE_WAY = 256
_BYTES_AT_ONCE = 8 << 20


class ArrayFile(NamedTuple):
    """What is known of a file before it is read.

    Attributes
    ----------
    name : str
        In the folder of chunks.
    size : int
        Bytes of the whole file.
    crc32 : int
        Of all of them.
    """

    name: str
    size: int
    crc32: int


def _saved_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype that a ``.npy`` file of such values has: bytes where NumPy has no own."""
    descr = np.lib.format.dtype_to_descr(dtype)
    known = np.lib.format.descr_to_dtype(descr) == dtype
    return dtype if known else np.dtype((np.void, dtype.itemsize))


def _head(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    head = io.BytesIO()
    described = np.lib.format.dtype_to_descr(_saved_dtype(dtype))
    np.lib.format.write_array_header_1_0(
        head, {"descr": described, "fortran_order": False, "shape": shape}
    )
    return head.getvalue()


class WrittenFiles:
    """New files of arrays, which are synced many at a time.

    A file is on its way to the disk from its end on, while the next ones are made.
    """

    def __init__(self) -> None:
        self.bytes_written = 0
        self._open: list[tuple[int, int]] = []  # descriptors, and bytes behind them

    def write(self, arrays: dict[str, npt.NDArray[Any]]) -> list[ArrayFile]:
        """Write C-contiguous arrays, each to its path.

        Raises
        ------
        OSError
            If one cannot be written.
        """
        heads = [_head(each.dtype, each.shape) for each in arrays.values()]
        sizes = [values.nbytes for values in arrays.values()]
        with _core.SignalsDeferred():  # no exception of a handler loses a descriptor
            written = _core.write_files(list(zip(arrays, heads, arrays.values(), strict=True)))
            self._open += [(fd, size) for (fd, _), size in zip(written, sizes, strict=True)]
        files = [
            ArrayFile(os.path.basename(path), len(head) + values.nbytes, crc32)
            for (path, values), head, (_, crc32) in zip(arrays.items(), heads, written, strict=True)
        ]
        self.bytes_written += sum(file.size for file in files)
        on_the_way = sum(size for _, size in self._open)
        if on_the_way > _BYTES_ON_THE_WAY or len(self._open) > _FILES_ON_THE_WAY:
            self._sync(-(-len(self._open) // 2))  # the earlier ones, which are nearly there
        return files

    def finish(self, growing: GrowingFile) -> ArrayFile:
        """Take over a file that is complete."""
        file = growing.file()
        with _core.SignalsDeferred():
            self._open.append((os.dup(growing.descriptor), file.size))
            growing.close()
        self.bytes_written += file.size
        return file

    def sync(self) -> None:
        """Wait until all of them are on the disk.

        Raises
        ------
        OSError
            If one cannot be written.
        """
        self._sync(len(self._open))

    def _sync(self, count: int) -> None:
        with _core.SignalsDeferred():
            first, self._open[:count] = [fd for fd, _ in self._open[:count]], []
            try:
                _core.sync_files(first)
            finally:
                for descriptor in first:
                    os.close(descriptor)

    def close(self) -> None:
        """Close them as they are."""
        while self._open:
            os.close(self._open.pop()[0])


class GrowingFile:
    """One ``.npy`` file, written piece by piece."""

    def __init__(self, path: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._name = os.path.basename(path)
        self._stream = open(path, "xb", buffering=0)  # noqa: SIM115
        self._size = self._crc32 = 0
        self._write(_head(dtype, shape))

    @property
    def descriptor(self) -> int:
        """Of the open file."""
        return self._stream.fileno()

    def write(self, values: npt.NDArray[Any]) -> None:
        """Append C-contiguous values."""
        self._write(values.reshape(-1).view(np.uint8).data)

    def _write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        self._crc32 = _core.crc32(rest, self._crc32)
        self._size += len(rest)
        while rest:
            rest = rest[self._stream.write(rest) :]

    def file(self) -> ArrayFile:
        """Return what is known of it so far."""
        return ArrayFile(self._name, self._size, self._crc32)

    def close(self) -> None:
        """Close the file as it is."""
        self._stream.close()


def _pieces(stream: IO[bytes], into: memoryview) -> Iterator[memoryview]:
    while into:
        count = stream.readinto(into[:_BYTES_AT_ONCE])  # type: ignore[attr-defined]
        if not count:
            return
        yield into[:count]
        into = into[count:]


def read_array(
    folder: str, file: ArrayFile, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    """Read a whole file and check all of it.

    Returns
    -------
    numpy.ndarray
        In memory of its own, of that dtype and shape.

    Raises
    ------
    SnapshotMismatch
        If the file is missing, has another size or checksum, or another dtype or shape.
    OSError
        If it cannot be read.
    """
    path = os.path.join(folder, file.name)

    def refused(why: str) -> SnapshotMismatch:
        return SnapshotMismatch(f"cannot read {path}: {why}")

    try:
        stream = open(path, "rb", buffering=0)  # noqa: SIM115
    except FileNotFoundError:
        raise refused("the snapshot needs it, and there is no such file") from None
    with stream:
        size = os.fstat(stream.fileno()).st_size
        if size != file.size:
            raise refused(f"it has {size} bytes, expected {file.size}")
        memory = np.empty(size, np.uint8)
        crc32 = done = 0
        for piece in _pieces(stream, memory.data):
            crc32 = _core.crc32(piece, crc32)
            done += len(piece)
    if done != size or crc32 != file.crc32:
        raise refused(f"its CRC-32 is {crc32:08x}, expected {file.crc32:08x}: it is damaged")
    head = io.BytesIO(memory[: 1 << 16].data)
    try:
        np.lib.format.read_magic(head)
        found_shape, in_columns, found_dtype = np.lib.format.read_array_header_1_0(head)
    except ValueError as error:
        raise refused(f"it is no .npy file ({error})") from None
    expected = _saved_dtype(dtype)
    if found_dtype != expected or found_shape != shape or in_columns:
        raise refused(
            f"it has dtype {found_dtype} and shape {found_shape}, expected {expected} and {shape}"
        )
    values = memory[head.tell() :]
    if len(values) != int(np.prod(shape, dtype=object)) * dtype.itemsize:
        raise refused(f"it has {len(values)} bytes of values, too few or too many for {shape}")
    if values.ctypes.data % dtype.alignment:
        values = values.copy()
    return values.view(dtype).reshape(shape)
