"""Snapshots of a buffer in a directory, while other processes use it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mpbuffer import _core
from mpbuffer._arguments.integers import whole_number
from mpbuffer._files.chunks import GrowingFile
from mpbuffer._files.manifests import MANIFEST, Chunk, Manifest, read_manifest
from mpbuffer._files.snapshot_directory import Saving, saving_into
from mpbuffer.buffer.description import read_description
from mpbuffer.buffer.statuses import SnapshotStatus
from mpbuffer.buffer.stored_arrays import BIRTHS, FRAMES, POSITIONS, StoredRing, stored_rings

__all__ = ["Progress", "SavedInSnapshots"]

Progress = Callable[[int, int], object]


class SavedInSnapshots(_core.ReplayBuffer):
    """Base of buffers: what saves them in a directory."""

    def snapshot(
        self,
        path: str | os.PathLike[str],
        *,
        keep: int = 1,
        progress: Progress | None = None,
    ) -> SnapshotStatus:
        """Save the buffer in a directory, from which ``mpbuffer.restore`` makes it again.

        Any process may call it while others add and the learner learns. Rows come as their reader
        would see them: whole, one after another. A row that is overwritten meanwhile comes as the
        new row, as the old one, or not at all. The snapshot has the rows and their frames, their
        priorities and the largest one, the positions, and what the buffer was created with. If the
        learner itself saves, it has the state of its generator, too: the restored learner draws the
        same batches. Of a uniform buffer it has that of the handle which saves. Steps that are not
        rows yet, and rows that writers hold, are not in it.

        A later snapshot into the same directory writes only what has changed. The directory's last
        snapshot is whole at any time, whenever a process is killed. A signal handler may call it in
        the middle of any other call; amid a snapshot into the same directory, its own one counts.

        It blocks until all is on the disk: as long as the disk takes. It keeps at most some 64 MiB
        in memory, and no other process waits for it.

        Parameters
        ----------
        path : str or path
            The directory. It is made if it is not there.
        keep : int, optional
            How many snapshots the directory keeps, this one included. The last one is
            ``manifest.json``, earlier ones are ``manifest-NUMBER.json``.
        progress : callable, optional
            Called with the bytes done and in all, some hundred times. What it raises ends the
            snapshot.

        Returns
        -------
        SnapshotStatus

        Raises
        ------
        SnapshotBusy
            If another process or thread is writing a snapshot into the directory.
        SnapshotMismatch
            If the directory has a ``manifest.json`` that is damaged or not of a snapshot.
        OSError
            If a file cannot be written. After any error the last snapshot is as it was.
        TypeError, ValueError
            If `keep` is not an integer of at least 1, or the rows are sequences.
        BufferClosed
            After close().
        """
        count = whole_number("keep", keep, 1)
        before = _Facts(self)
        with saving_into(os.fspath(path)) as saving:
            work = _Work(self, before, saving, progress)
            manifest = work.manifest()
            if manifest is not None:
                saving.commit(manifest, count)
            if saving.overtaken or manifest is None:
                manifest = read_manifest(os.path.join(saving.path, MANIFEST))
            return SnapshotStatus(
                manifest.number,
                sum(chunk.rows for chunk in manifest.chunks[0]),
                sum(file.size for file in manifest.files()),
                saving.files.bytes_written,
            )


class _Facts:
    """What does not change while a buffer lives, and its position now."""

    def __init__(self, buffer: _core.ReplayBuffer) -> None:
        self.slots, self.alpha, self.eps, self.seed, self.sources, created, text = (
            buffer._ring_facts()
        )
        self.history = f"{buffer.name}@{created:x}"
        if not buffer.shared:  # forked copies go on apart
            self.history += f"/{os.getpid()}"
        self.description = text.decode()
        described = read_description(buffer.name, text)
        if described.sequence is not None:
            raise ValueError(
                f"cannot save {buffer.name!r} in a snapshot: its rows are sequences, which is not "
                "supported; get_all_transitions() returns them as arrays"
            )
        self.rings = stored_rings(described.fields, described.cuts, self.slots, self.sources)
        self.position = buffer._counters()[0]


class _Work:
    """One snapshot, ring by ring: rows first, so that their frames are there when they are read."""

    def __init__(
        self,
        buffer: _core.ReplayBuffer,
        facts: _Facts,
        saving: Saving,
        progress: Progress | None,
    ) -> None:
        self.buffer, self.facts, self.saving = buffer, facts, saving
        self.progress = progress
        self.done = 0
        self.total = sum(ring.slots * ring.slot_bytes for ring in facts.rings)
        self.newest = 0
        previous = saving.previous
        per_chunk = [ring.slots_per_chunk for ring in facts.rings]
        continues = (
            previous is not None
            and previous.history == facts.history
            and previous.slots_per_chunk == per_chunk
        )
        self.kept = previous.chunks if continues and previous is not None else None

    def manifest(self) -> Manifest | None:
        """Write all chunks; None if a signal handler has made another snapshot meanwhile."""
        facts, saving = self.facts, self.saving
        leaves = None
        if self.buffer._prioritized:
            leaves = saving.growing("leaves", np.dtype(np.float32), (facts.slots,))
        chunks = []
        for ring in facts.rings:
            kept = None if self.kept is None else self.kept[ring.number]
            saved = self._save_ring(ring, kept, leaves if ring.number == 0 else None)
            if saved is None:
                return None
            chunks.append(saved)
        _, cleared, max_priority, sources = self.buffer._counters()
        counters = {
            "position": max(facts.position, self.newest + 1),
            "cleared": cleared,
            "max_priority": max_priority,
            "sources": sources,
            "generator": self.buffer._generator_state(),
        }
        created_with = {
            "description": facts.description,
            "size": facts.slots,
            "alpha": facts.alpha,
            "eps": facts.eps,
            "seed": facts.seed,
            "sources": facts.sources,
        }
        return Manifest(
            1 if saving.previous is None else saving.previous.number + 1,
            time.time(),
            facts.history,
            created_with,
            counters,
            [ring.slots_per_chunk for ring in facts.rings],
            chunks,
            None if leaves is None else saving.files.finish(leaves),
        )

    def _save_ring(
        self, ring: StoredRing, kept: list[Chunk] | None, leaf_file: GrowingFile | None
    ) -> list[Chunk] | None:
        per_chunk = ring.slots_per_chunk
        memory = {
            key: np.empty((per_chunk, *each.shape), each.dtype) for key, each in ring.arrays.items()
        }
        positions = np.empty(per_chunk, np.uint64)
        leaves = None if leaf_file is None else np.empty(per_chunk, np.float32)
        chunks: dict[int, Chunk] = {}
        for first in self._first_slots(ring):
            if not self.saving.goes_on():
                return None
            n = min(per_chunk, ring.slots - first)
            arrays = {key: values[:n] for key, values in memory.items()}
            old = None if kept is None else kept[first // per_chunk]
            marks = positions[:n], None if leaves is None else leaves[:n]
            chunk = None if old is None else self._unless_changed(ring, first, old, *marks)
            if chunk is None:
                self._read(ring, first, arrays, *marks)
                chunk = self._write(ring, first // per_chunk, arrays, positions[:n])
            chunks[first] = chunk
            if leaf_file is not None and leaves is not None:
                leaf_file.write(leaves[:n])
            if ring.number == 0:
                self.newest = max(self.newest, int(positions[:n].max()))
            self._tell(n * ring.slot_bytes)
        return [chunk for _, chunk in sorted(chunks.items())]

    def _first_slots(self, ring: StoredRing) -> list[int]:
        """Return the first slots of chunks: of frames the oldest first, ahead of their writers."""
        firsts = list(range(0, ring.slots, ring.slots_per_chunk))
        if ring.number == 0:
            return firsts
        position = self.buffer._counters()[3][ring.number - 1]
        oldest = position % ring.slots // ring.slots_per_chunk
        return firsts[oldest:] + firsts[:oldest]

    def _unless_changed(
        self,
        ring: StoredRing,
        first: int,
        old: Chunk,
        positions: npt.NDArray[np.uint64],
        leaves: npt.NDArray[np.float32] | None,
    ) -> Chunk | None:
        """Return a chunk of the previous snapshot, with its rows' leaves, if it is still right."""
        self._read(ring, first, {}, positions, leaves)
        return old if old.positions == _digest(positions) else None

    def _read(
        self,
        ring: StoredRing,
        first: int,
        arrays: dict[str, npt.NDArray[Any]],
        positions: npt.NDArray[np.uint64],
        leaves: npt.NDArray[np.float32] | None,
    ) -> None:
        if ring.number:
            self.buffer._read_frames(ring.number, first, arrays.get(FRAMES), positions)
            return
        births = arrays.get(BIRTHS)
        fields = [values for key, values in arrays.items() if key != BIRTHS]
        self.buffer._read_stored(first, fields, births, positions, leaves)

    def _write(
        self,
        ring: StoredRing,
        index: int,
        arrays: dict[str, npt.NDArray[Any]],
        positions: npt.NDArray[np.uint64],
    ) -> Chunk:
        rows = int(np.count_nonzero(positions))
        slots = 0 if rows == 0 else int(positions.nonzero()[0][-1]) + 1
        files = {}
        if rows:
            labels = {key: each.label for key, each in ring.arrays.items()} | {POSITIONS: POSITIONS}
            all_arrays = arrays | {POSITIONS: positions}
            paths = {
                key: self.saving.path_of(f"{ring.label}-{index:06d}.{labels[key]}")
                for key in all_arrays
            }
            written = self.saving.files.write(
                {paths[key]: values[:slots] for key, values in all_arrays.items()}
            )
            files = dict(zip(all_arrays, written, strict=True))
        return Chunk(rows, slots, _digest(positions), files)

    def _tell(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total)


def _digest(positions: npt.NDArray[np.uint64]) -> str:
    """Return what tells positions apart: a later row's is larger, unless its writer was late."""
    return f"{int(positions.max())}-{_core.crc32(positions):08x}"
