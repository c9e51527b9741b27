"""Making a buffer again from a snapshot."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from mpbuffer import _core
from mpbuffer._files.manifests import MANIFEST, read_manifest
from mpbuffer._segment.exit import close_at_exit
from mpbuffer.buffer import creation
from mpbuffer.buffer.prioritized import PrioritizedReplayBuffer
from mpbuffer.buffer.replay_buffer import ReplayBuffer
from mpbuffer.buffer.snapshot_reader import FrameChunks, SnapshotReader
from mpbuffer.buffer.snapshots import Progress
from mpbuffer.buffer.stored_arrays import BIRTHS, FRAMES
from mpbuffer.errors import SnapshotMismatch

__all__ = ["restore"]

_BYTES_AT_ONCE = 16 << 20  # of rows that are added together
_MOST_ATTEMPTS = 5


def restore(
    path: str | os.PathLike[str],
    name: str | None = None,
    size: float | None = None,
    *,
    overwrite: bool = False,
    numa_interleave: bool = False,
    max_handles: int | None = None,
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
    name, overwrite, numa_interleave, max_handles, logger : optional
        As for ReplayBuffer. A snapshot does not have the buffer's `max_handles`.
    size : int or whole float, optional
        How many rows the buffer holds. Default: as many as before.
    progress : callable, optional
        Called with the bytes read and in all.

    Returns
    -------
    ReplayBuffer or PrioritizedReplayBuffer
        Of a subclass, the rows; a class that can attach() gets them by name.

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
    memory = creation.checked_memory(
        creation.MemoryArguments(name, overwrite, numa_interleave, max_handles)
    )
    for attempt in range(_MOST_ATTEMPTS):
        manifest = read_manifest(file)
        try:
            reader = SnapshotReader(file, manifest, progress)
            return _Restoring(reader, rows).buffer(memory, logger)
        except SnapshotMismatch:
            # A newer snapshot may have replaced this one, and removed its files.
            if attempt + 1 == _MOST_ATTEMPTS or read_manifest(file).number == manifest.number:
                raise
    raise AssertionError("unreachable")


class _Restoring:
    """A buffer on its way: created, filled, and then shown to others."""

    def __init__(self, reader: SnapshotReader, size: int | None) -> None:
        self.reader = reader
        self.size = reader.slots if size is None else size

    def buffer(self, memory: creation.Memory, logger: Any) -> ReplayBuffer:
        """Create it, fill it, and let others see it."""
        described, saved = self.reader.described, self.reader.manifest.buffer
        cls = PrioritizedReplayBuffer if described.prioritized else ReplayBuffer
        buffer: ReplayBuffer = cls.__new__(cls)
        with self.reader.refusing():
            exponents = (
                creation.checked_exponent("alpha", saved["alpha"]),
                creation.checked_exponent("eps", saved["eps"]),
            )
            seed = creation.checked_seed(int(saved["seed"]))
        buffer._create(
            memory.name,
            self.size,
            described.fields,
            described.cuts,
            self._sources(),
            described.prioritized,
            *exponents,
            seed,
            described.strict,
            None if described.nstep is None else described.nstep.for_core(),
            None,
            saved["description"],
            memory.numa_interleave,
            memory.nameless,
            memory.overwrite,
            memory.max_handles,
            memory.shared,
            creation.CreationLog(memory.name, logger),
            True,
        )
        try:
            if self.size == self.reader.slots:
                self._fill_same(buffer)
            else:
                self._fill_other(buffer)
            self.reader.finish()
            counters = self.reader.manifest.counters
            with self.reader.refusing():
                buffer._publish(float(counters["max_priority"]), counters["generator"])
        except BaseException:
            buffer.close()
            raise
        close_at_exit(buffer)
        return buffer

    def _sources(self) -> int:
        """Return how many frames each source ring of the new buffer holds, for the core."""
        if not self.reader.sources or self.size == self.reader.slots:
            return self.reader.sources[0] if self.reader.sources else 0
        references = sum(planes for ring, planes, _ in self.reader.described.cuts if ring)
        if self.reader.sources[0] == _core.frames_for(self.reader.slots, references):
            return 0
        return max(-(-self.reader.sources[0] * self.size // self.reader.slots), 16, 4 * references)

    def _fill_same(self, buffer: ReplayBuffer) -> None:
        cleared = self.reader.cleared
        positions = self.reader.positions_of(0)
        positions[positions < cleared] = 0
        with self.reader.refusing():
            sources = [int(each) for each in self.reader.manifest.counters["sources"]]
            buffer._restore_counters(self.reader.position, cleared, sources)
        frames = []
        for number in range(1, len(self.reader.rings)):
            frames.append(self.reader.positions_of(number))
            each = self.reader.rings[number].arrays[FRAMES]
            for first, chunk in self.reader.chunks(number):
                there = frames[-1][first : first + chunk.slots]
                file = self.reader.file_of(chunk, FRAMES)
                values = self.reader.read(file, each.dtype, (chunk.slots, *each.shape))
                with self.reader.refusing():
                    buffer._restore_frames(number, first, values, there)
        leaves = self.reader.leaves()
        lost = 0
        for first, chunk in self.reader.chunks(0):
            end = first + chunk.slots
            rows, there = self.reader.rows_of(chunk), positions[first:end]
            if frames:
                lost += self.reader.drop_rows_without_frames(there, rows, frames)
            else:  # so that no slot counts as one whose newer row is still to come
                newest = self.reader.newest_positions(np.arange(first, end, dtype=np.uint64))
                there = np.where(there, np.maximum(there, newest), there)
            with self.reader.refusing():
                buffer._restore_stored(
                    first,
                    [values for key, values in rows.items() if key != BIRTHS],
                    rows.get(BIRTHS),
                    there,
                    None if leaves is None else leaves[first:end],
                )
        if lost:  # the oldest: nobody is to wait for new rows in their slots
            kept = positions[positions > 0]
            cleared = int(kept.min()) if len(kept) else self.reader.position
            buffer._restore_counters(self.reader.position, cleared, sources)

    def _fill_other(self, buffer: ReplayBuffer) -> None:
        positions = self.reader.positions_of(0)
        positions[positions < self.reader.cleared] = 0
        left_out = max(int(np.count_nonzero(positions)) - self.size, 0)
        frames = [self.reader.positions_of(number) for number in range(1, len(self.reader.rings))]
        leaves = self.reader.leaves()
        store = FrameChunks(self.reader, frames)
        for first, chunk, start, end in self.reader.parts_by_age():
            there = positions[first + start : first + end].copy()
            if left_out:  # so many of the oldest
                oldest = there.nonzero()[0][:left_out]
                there[oldest] = 0
                left_out -= len(oldest)
            if not there.any():
                continue
            rows = {key: values[start:end] for key, values in self.reader.rows_of(chunk).items()}
            if frames:
                self.reader.drop_rows_without_frames(there, rows, frames)
            chosen = there.nonzero()[0]
            step = max(_BYTES_AT_ONCE // buffer._row_bytes, 1)
            for at in range(0, len(chosen), step):
                some = chosen[at : at + step]
                with self.reader.refusing():
                    buffer._add_with_leaves(
                        store.whole_rows(rows, some),
                        None if leaves is None else leaves[first + start :][some],
                    )
