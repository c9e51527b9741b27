"""Making a buffer again from a snapshot."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpbuffer import _core
from mpbuffer._files.chunks import ArrayFile, read_array
from mpbuffer._files.manifests import CHUNKS, MANIFEST, Chunk, Manifest, read_manifest
from mpbuffer._segment.exit import close_at_exit
from mpbuffer._segment.handing_on import names_of
from mpbuffer.buffer import creation
from mpbuffer.buffer.description import read_description
from mpbuffer.buffer.frames import Cut
from mpbuffer.buffer.nstep import NstepRule
from mpbuffer.buffer.prioritized import PrioritizedReplayBuffer
from mpbuffer.buffer.replay_buffer import ReplayBuffer
from mpbuffer.buffer.schema import Field
from mpbuffer.buffer.snapshots import Progress
from mpbuffer.buffer.stored_arrays import BIRTHS, FRAMES, POSITIONS, StoredRing, stored_rings
from mpbuffer.errors import MpbufferError, SegmentMismatch, SnapshotMismatch

__all__ = ["restore"]

_BYTES_AT_ONCE = 16 << 20  # of rows that are added together
_CHUNKS_OF_FRAMES = 8  # in memory at once
_MOST_ATTEMPTS = 5

_Positions = npt.NDArray[np.uint64]


def restore(
    path: str | os.PathLike[str],
    name: str | None = None,
    size: float | None = None,
    *,
    overwrite: bool = False,
    numa_interleave: bool = False,
    logger: Any = None,
    progress: Progress | None = None,
) -> ReplayBuffer:
    """Make a buffer from a snapshot that ``buffer.snapshot(path)`` has written.

    It is created with the arguments of the buffer that was saved. Each row is in its slot, with
    its position, frames and priority, and positions go on where they were: indexes and generations
    mean the same. Where a row was saved that is older than a lap, it counts as one of the last lap.
    This handle's generator goes on where the learner's was when it saved; so the learner draws the
    same batches. Others can attach, and add, when the call has returned.

    With another `size` the newest rows are kept, as many as fit. They are added in their order, and
    positions begin anew.

    Any process may call it, several times, on any machine of the same byte order. It takes as long
    as reading the files twice. What is damaged is refused, and leaves nothing behind: each byte is
    checked before it is used, and nothing is run.

    Parameters
    ----------
    path : str or path
        The directory, for its last snapshot; or one of its files ``manifest-NUMBER.json``.
    name, overwrite, numa_interleave, logger : optional
        As for ReplayBuffer.
    size : int or whole float, optional
        How many rows the buffer holds. Default: as many as before.
    progress : callable, optional
        Called with the bytes read and in all.

    Returns
    -------
    ReplayBuffer or PrioritizedReplayBuffer

    Raises
    ------
    SnapshotNotFound
        If there is no snapshot.
    SnapshotMismatch
        If it is damaged, truncated, of another format, or none.
    SegmentExists, NotEnoughMemory
        As for ReplayBuffer.
    OSError
        If a file cannot be read.
    TypeError, ValueError
        If another argument is not as above.
    """
    rows = None if size is None else creation.checked_size(size)
    place = os.fspath(path)
    file = os.path.join(place, MANIFEST) if os.path.isdir(place) else place
    segment_name, nameless = names_of(name, bool(overwrite))
    for attempt in range(_MOST_ATTEMPTS):
        manifest = read_manifest(file)
        try:
            restored = _Restored(file, manifest, rows, progress)
            return restored.buffer(
                segment_name, nameless, bool(overwrite), bool(numa_interleave), logger
            )
        except SnapshotMismatch:
            # A newer snapshot may have replaced this one, and removed its files.
            if attempt + 1 == _MOST_ATTEMPTS or read_manifest(file).number == manifest.number:
                raise
    raise AssertionError("unreachable")


class _Description(NamedTuple):
    fields: list[Field]
    cuts: list[Cut]
    strict: bool
    nstep: NstepRule | None
    prioritized: bool


class _Restored:
    def __init__(
        self, path: str, manifest: Manifest, size: int | None, progress: Progress | None
    ) -> None:
        self.path, self.manifest, self.progress = path, manifest, progress
        self.folder = os.path.join(os.path.dirname(path) or ".", CHUNKS)
        self.total = sum(file.size for file in manifest.files())
        self.done = 0
        with self._refusing():
            saved, counters = manifest.buffer, manifest.counters
            text = saved["description"]
            prioritized = json.loads(text)["class"] == "PrioritizedReplayBuffer"
            self.described = _Description(*read_description(path, text.encode()), prioritized)
            self.slots = creation.checked_size(saved["size"])
            self.sources = [creation.checked_size(each) for each in saved["sources"]]
            fields, cuts = self.described.fields, self.described.cuts
            self.rings = stored_rings(fields, cuts, self.slots, self.sources)
            self.position, self.cleared = int(counters["position"]), int(counters["cleared"])
            self.size = self.slots if size is None else size
            wanted = [-(-ring.slots // each) for ring, each in self._rings_and_slots()]
            if [len(chunks) for chunks in manifest.chunks] != wanted:
                raise ValueError("chunks do not cover all slots")

    def _rings_and_slots(self) -> Iterator[tuple[StoredRing, int]]:
        for ring, slots in zip(self.rings, self.manifest.slots_per_chunk, strict=True):
            yield ring, creation.checked_size(slots)

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn errors that a foreign manifest can cause into SnapshotMismatch."""
        try:
            yield
        except (ValueError, TypeError, KeyError, IndexError, OverflowError, RuntimeError) as error:
            if isinstance(error, MpbufferError) and not isinstance(error, SegmentMismatch):
                raise
            raise SnapshotMismatch(f"cannot restore {self.path}: {error}") from error

    def buffer(
        self, name: str, nameless: bool, overwrite: bool, numa_interleave: bool, logger: Any
    ) -> ReplayBuffer:
        """Create it, fill it, and let others see it."""
        described, saved = self.described, self.manifest.buffer
        cls = PrioritizedReplayBuffer if described.prioritized else ReplayBuffer
        buffer: ReplayBuffer = cls.__new__(cls)
        with self._refusing():
            exponents = (
                creation.checked_exponent("alpha", saved["alpha"]),
                creation.checked_exponent("eps", saved["eps"]),
            )
            seed = creation.checked_seed(int(saved["seed"]))
        buffer._create(
            name,
            self.size,
            described.fields,
            described.cuts,
            self._sources(),
            described.prioritized,
            *exponents,
            seed,
            described.strict,
            None if described.nstep is None else described.nstep.for_core(),
            saved["description"],
            numa_interleave,
            nameless,
            overwrite,
            creation.CreationLog(name, logger),
            True,
        )
        try:
            if self.size == self.slots:
                self._fill_same(buffer)
            else:
                self._fill_other(buffer)
            counters = self.manifest.counters
            with self._refusing():
                largest = float(counters["max_priority"])
                generator = counters["generator"]
                buffer._publish(largest, generator)
        except BaseException:
            buffer.close()
            raise
        close_at_exit(buffer)
        return buffer

    def _sources(self) -> int:
        """Return how many frames each source ring of the new buffer holds, for the core."""
        if not self.sources or self.size == self.slots:
            return self.sources[0] if self.sources else 0
        references = sum(planes for ring, planes, _ in self.described.cuts if ring)
        if self.sources[0] == _core.sources_for(self.slots, references):
            return 0
        return max(-(-self.sources[0] * self.size // self.slots), 16, 4 * references)

    def _read(
        self, file: ArrayFile, dtype: npt.DTypeLike, shape: tuple[int, ...]
    ) -> npt.NDArray[Any]:
        values = read_array(self.folder, file, np.dtype(dtype), shape)
        self.done += file.size
        if self.progress is not None:
            self.progress(self.done, self.total)
        return values

    def _file_of(self, chunk: Chunk, key: str) -> ArrayFile:
        with self._refusing():
            return chunk.files[key]

    def _chunks(self, number: int) -> Iterator[tuple[int, Chunk]]:
        """Return each chunk of a ring that has rows, and its first slot."""
        per_chunk = self.manifest.slots_per_chunk[number]
        for index, chunk in enumerate(self.manifest.chunks[number]):
            first = index * per_chunk
            if chunk.slots > min(per_chunk, self.rings[number].slots - first):
                raise SnapshotMismatch(f"cannot restore {self.path}: a chunk has too many slots")
            if chunk.rows:
                yield first, chunk

    def _positions(self, number: int) -> _Positions:
        """Return the positions of all slots of a ring; 0 where a slot is empty."""
        positions = np.zeros(self.rings[number].slots, np.uint64)
        for first, chunk in self._chunks(number):
            file = self._file_of(chunk, POSITIONS)
            positions[first : first + chunk.slots] = self._read(file, np.uint64, (chunk.slots,))
        return positions

    def _rows(self, chunk: Chunk) -> dict[str, npt.NDArray[Any]]:
        return {
            key: self._read(self._file_of(chunk, key), each.dtype, (chunk.slots, *each.shape))
            for key, each in self.rings[0].arrays.items()
        }

    def _leaves(self) -> npt.NDArray[np.float32] | None:
        if not self.described.prioritized:
            return None
        if self.manifest.leaves is None:
            raise SnapshotMismatch(f"cannot restore {self.path}: it has no leaves")
        return self._read(self.manifest.leaves, np.float32, (self.slots,))

    def _keep_rows_with_frames(
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

    def _newest_position(self, slots: _Positions) -> _Positions:
        """Return the last position of these slots that has been claimed."""
        last, size = np.uint64(self.position - 1), np.uint64(self.slots)
        newest: _Positions = last - (last - slots) % size
        return newest

    def _fill_same(self, buffer: ReplayBuffer) -> None:
        cleared = self.cleared
        positions = self._positions(0)
        positions[positions < cleared] = 0
        with self._refusing():
            sources = [int(each) for each in self.manifest.counters["sources"]]
            buffer._restore_counters(self.position, cleared, sources)
        frames = []
        for number in range(1, len(self.rings)):
            frames.append(self._positions(number))
            each = self.rings[number].arrays[FRAMES]
            for first, chunk in self._chunks(number):
                there = frames[-1][first : first + chunk.slots]
                file = self._file_of(chunk, FRAMES)
                values = self._read(file, each.dtype, (chunk.slots, *each.shape))
                with self._refusing():
                    buffer._restore_frames(number, first, values, there)
        leaves = self._leaves()
        lost = 0
        for first, chunk in self._chunks(0):
            end = first + chunk.slots
            rows, there = self._rows(chunk), positions[first:end]
            if frames:
                lost += self._keep_rows_with_frames(there, rows, frames)
            else:  # so that no slot counts as one whose newer row is still to come
                slots = np.arange(first, end, dtype=np.uint64)
                there = np.where(there, np.maximum(there, self._newest_position(slots)), there)
            with self._refusing():
                buffer._restore_stored(
                    first,
                    [values for key, values in rows.items() if key != BIRTHS],
                    rows.get(BIRTHS),
                    there,
                    None if leaves is None else leaves[first:end],
                )
        if lost:  # the oldest: nobody is to wait for new rows in their slots
            kept = positions[positions > 0]
            cleared = int(kept.min()) if len(kept) else self.position
            buffer._restore_counters(self.position, cleared, sources)

    def _fill_other(self, buffer: ReplayBuffer) -> None:
        positions = self._positions(0)
        positions[positions < self.cleared] = 0
        left_out = max(int(np.count_nonzero(positions)) - self.size, 0)
        frames = [self._positions(number) for number in range(1, len(self.rings))]
        leaves = self._leaves()
        store = _Frames(self, frames)
        for first, chunk, start, end in self._by_age():
            there = positions[first + start : first + end].copy()
            if left_out:  # so many of the oldest
                oldest = there.nonzero()[0][:left_out]
                there[oldest] = 0
                left_out -= len(oldest)
            if not there.any():
                continue
            rows = {key: values[start:end] for key, values in self._rows(chunk).items()}
            if frames:
                self._keep_rows_with_frames(there, rows, frames)
            chosen = there.nonzero()[0]
            step = max(_BYTES_AT_ONCE // buffer._row_bytes, 1)
            for at in range(0, len(chosen), step):
                some = chosen[at : at + step]
                with self._refusing():
                    buffer._add_with_leaves(
                        store.whole_rows(rows, some),
                        None if leaves is None else leaves[first + start :][some],
                    )

    def _by_age(self) -> Iterator[tuple[int, Chunk, int, int]]:
        """Return parts of chunks, from the oldest rows to the newest."""
        oldest = self.position % self.slots
        chunks = list(self._chunks(0))
        for first, chunk in chunks:
            if first + chunk.slots > oldest:
                yield first, chunk, max(oldest - first, 0), chunk.slots
        for first, chunk in chunks:
            if first < oldest:
                yield first, chunk, 0, min(oldest - first, chunk.slots)


class _Frames:
    """Frames of a snapshot, put together to the values of rows. A few chunks are kept in memory."""

    def __init__(self, restored: _Restored, positions: list[_Positions]) -> None:
        self._restored, self._positions = restored, positions
        self._kept: dict[tuple[int, int], npt.NDArray[Any]] = {}

    def whole_rows(
        self, rows: dict[str, npt.NDArray[Any]], chosen: npt.NDArray[np.intp]
    ) -> dict[str, npt.NDArray[Any]]:
        """Return the values of these rows' fields, as they are given to add()."""
        described = self._restored.described
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
        per_chunk = self._restored.manifest.slots_per_chunk[ring]
        slots = (positions % np.uint64(len(self._positions[ring - 1]))).astype(np.intp)
        stored = self._restored.rings[ring].arrays[FRAMES]
        values = np.empty((*positions.shape, *stored.shape), stored.dtype)
        for index in np.unique(slots // per_chunk):
            here = slots // per_chunk == index
            values[here] = self._chunk(ring, int(index))[slots[here] - index * per_chunk]
        return values

    def _chunk(self, ring: int, index: int) -> npt.NDArray[Any]:
        values = self._kept.pop((ring, index), None)
        if values is None:
            restored = self._restored
            chunk = restored.manifest.chunks[ring][index]
            stored = restored.rings[ring].arrays[FRAMES]
            file = restored._file_of(chunk, FRAMES)
            shape = (chunk.slots, *stored.shape)
            values = read_array(restored.folder, file, stored.dtype, shape)
            while len(self._kept) >= _CHUNKS_OF_FRAMES:
                del self._kept[next(iter(self._kept))]
        self._kept[ring, index] = values
        return values
