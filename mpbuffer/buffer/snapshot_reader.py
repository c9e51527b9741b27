"""Reading a snapshot: its description, and its rows and frames, chunk by chunk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mpbuffer._files.chunks import ArrayFile, read_array
from mpbuffer._files.manifests import CHUNKS, Chunk, Manifest
from mpbuffer.buffer import creation
from mpbuffer.buffer.description import read_description
from mpbuffer.buffer.snapshots import Progress
from mpbuffer.buffer.stored_arrays import FRAMES, POSITIONS, StoredRing, stored_rings
from mpbuffer.errors import MpbufferError, SegmentMismatch, SnapshotMismatch

__all__ = ["FrameChunks", "SnapshotReader"]

_CHUNKS_OF_FRAMES = 8  # in memory at once

_Positions = npt.NDArray[np.uint64]


class SnapshotReader:
    """One snapshot, as its files say, chunk by chunk.

    Attributes
    ----------
    described : Description
        The buffer's fields and rules.
    slots, sources : int, list of int
        Rows that the buffer held, and frames of each source ring.
    rings : list of StoredRing
        The arrays.
    position, cleared : int
        Of the ring of rows.
    """

    def __init__(self, path: str, manifest: Manifest, progress: Progress | None) -> None:
        self.path, self.manifest, self.progress = path, manifest, progress
        self.folder = os.path.join(os.path.dirname(path) or ".", CHUNKS)
        self.total = sum(file.size for file in manifest.files())
        self.done = 0
        with self.refusing():
            saved, counters = manifest.buffer, manifest.counters
            text = saved["description"]
            self.described = read_description(path, text.encode())
            if self.described.sequence is not None:
                raise ValueError("its rows are sequences, which no snapshot has")
            self.slots = creation.checked_size(saved["size"])
            self.sources = [creation.checked_size(each) for each in saved["sources"]]
            fields, cuts = self.described.fields, self.described.cuts
            self.rings = stored_rings(fields, cuts, self.slots, self.sources)
            self.position, self.cleared = int(counters["position"]), int(counters["cleared"])
            wanted = [-(-ring.slots // each) for ring, each in self._rings_and_slots()]
            if [len(chunks) for chunks in manifest.chunks] != wanted:
                raise ValueError("chunks do not cover all slots")

    def _rings_and_slots(self) -> Iterator[tuple[StoredRing, int]]:
        for ring, slots in zip(self.rings, self.manifest.slots_per_chunk, strict=True):
            yield ring, creation.checked_size(slots)

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Turn errors that a foreign manifest can cause into SnapshotMismatch."""
        try:
            yield
        except (ValueError, TypeError, KeyError, IndexError, OverflowError, RuntimeError) as error:
            if isinstance(error, MpbufferError) and not isinstance(error, SegmentMismatch):
                raise
            raise SnapshotMismatch(f"cannot restore {self.path}: {error}") from error

    def read(
        self, file: ArrayFile, dtype: npt.DTypeLike, shape: tuple[int, ...]
    ) -> npt.NDArray[Any]:
        """Read a file, all of it checked."""
        values = read_array(self.folder, file, np.dtype(dtype), shape)
        self.done = min(self.done + file.size, self.total)
        if self.progress is not None:
            self.progress(self.done, self.total)
        return values

    def finish(self) -> None:
        """Tell that all is done: not every file is needed for another size."""
        if self.progress is not None and self.done < self.total:
            self.progress(self.total, self.total)

    def file_of(self, chunk: Chunk, key: str) -> ArrayFile:
        """Return the file of one of a chunk's arrays."""
        with self.refusing():
            return chunk.files[key]

    def chunks(self, number: int) -> Iterator[tuple[int, Chunk]]:
        """Return each chunk of a ring that has rows, and its first slot."""
        per_chunk = self.manifest.slots_per_chunk[number]
        for index, chunk in enumerate(self.manifest.chunks[number]):
            first = index * per_chunk
            if chunk.slots > min(per_chunk, self.rings[number].slots - first):
                raise SnapshotMismatch(f"cannot restore {self.path}: a chunk has too many slots")
            if chunk.rows:
                yield first, chunk

    def positions_of(self, number: int) -> _Positions:
        """Return the positions of all slots of a ring; 0 where a slot is empty."""
        positions = np.zeros(self.rings[number].slots, np.uint64)
        for first, chunk in self.chunks(number):
            file = self.file_of(chunk, POSITIONS)
            positions[first : first + chunk.slots] = self.read(file, np.uint64, (chunk.slots,))
        return positions

    def rows_of(self, chunk: Chunk) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays of a chunk of rows."""
        return {
            key: self.read(self.file_of(chunk, key), each.dtype, (chunk.slots, *each.shape))
            for key, each in self.rings[0].arrays.items()
        }

    def leaves(self) -> npt.NDArray[np.float32] | None:
        """Return the leaves of all slots; None of a uniform buffer."""
        if not self.described.prioritized:
            return None
        if self.manifest.leaves is None:
            raise SnapshotMismatch(f"cannot restore {self.path}: it has no leaves")
        return self.read(self.manifest.leaves, np.float32, (self.slots,))

    def drop_rows_without_frames(
        self,
        positions: _Positions,
        rows: dict[str, npt.NDArray[Any]],
        frames: list[_Positions],
    ) -> int:
        """Set the positions of rows to 0 whose frames were overwritten before they were saved.

        Returns how many.
        """
        before = np.count_nonzero(positions)
        for i, (ring, _, _) in enumerate(self.described.cuts):
            if not ring:
                continue
            there, wanted = frames[ring - 1], rows[str(i)]
            found = there[wanted % np.uint64(len(there))] == wanted
            positions[~found.all(axis=1)] = 0
        return int(before - np.count_nonzero(positions))

    def newest_positions(self, slots: _Positions) -> _Positions:
        """Return the last position of these slots that has been claimed."""
        last, size = np.uint64(self.position - 1), np.uint64(self.slots)
        newest: _Positions = last - (last - slots) % size
        return newest

    def parts_by_age(self) -> Iterator[tuple[int, Chunk, int, int]]:
        """Return parts of chunks, from the oldest rows to the newest."""
        oldest = self.position % self.slots
        chunks = list(self.chunks(0))
        for first, chunk in chunks:
            if first + chunk.slots > oldest:
                yield first, chunk, max(oldest - first, 0), chunk.slots
        for first, chunk in chunks:
            if first < oldest:
                yield first, chunk, 0, min(oldest - first, chunk.slots)


class FrameChunks:
    """Frames of a snapshot, put together to the values of rows. A few chunks are kept in memory."""

    def __init__(self, reader: SnapshotReader, positions: list[_Positions]) -> None:
        self._reader, self._positions = reader, positions
        self._kept: dict[tuple[int, int], npt.NDArray[Any]] = {}

    def whole_rows(
        self, rows: dict[str, npt.NDArray[Any]], chosen: npt.NDArray[np.intp]
    ) -> dict[str, npt.NDArray[Any]]:
        """Return the values of these rows' fields, as they are given to add()."""
        described = self._reader.described
        whole = {}
        for i, (name, _, shape) in enumerate(described.fields):
            values = rows[str(i)][chosen]
            ring, _, last = described.cuts[i] if described.cuts else (0, 1, False)
            if ring:
                values = self._frames_at(ring, values)
                values = np.moveaxis(values, 1, -1) if last else values
                values = values.reshape(len(chosen), *shape)
            whole[name] = values
        return whole

    def _frames_at(self, ring: int, positions: _Positions) -> npt.NDArray[Any]:
        per_chunk = self._reader.manifest.slots_per_chunk[ring]
        slots = (positions % np.uint64(len(self._positions[ring - 1]))).astype(np.intp)
        stored = self._reader.rings[ring].arrays[FRAMES]
        values = np.empty((*positions.shape, *stored.shape), stored.dtype)
        for index in np.unique(slots // per_chunk):
            here = slots // per_chunk == index
            values[here] = self._chunk(ring, int(index))[slots[here] - index * per_chunk]
        return values

    def _chunk(self, ring: int, index: int) -> npt.NDArray[Any]:
        values = self._kept.pop((ring, index), None)
        if values is None:
            reader = self._reader
            chunk = reader.manifest.chunks[ring][index]
            stored = reader.rings[ring].arrays[FRAMES]
            file = reader.file_of(chunk, FRAMES)
            shape = (chunk.slots, *stored.shape)
            values = read_array(reader.folder, file, stored.dtype, shape)
            while len(self._kept) >= _CHUNKS_OF_FRAMES:
                del self._kept[next(iter(self._kept))]
        self._kept[ring, index] = values
        return values
