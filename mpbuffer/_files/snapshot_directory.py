"""A directory of snapshots, and one that is being written into it.

Chunks lie in ``chunks/`` and never change. A new snapshot writes what it needs beside those that
are there, syncs it, and then replaces ``manifest.json`` by one rename. So whenever its process is
killed, the directory holds the last whole snapshot. Files that no manifest names are removed by
the next one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from mpbuffer import _core
from mpbuffer._files.chunks import GrowingFile, WrittenFiles
from mpbuffer._files.manifests import (
    CHUNKS,
    MANIFEST,
    Manifest,
    is_chunk,
    numbered_manifests,
    read_manifest,
)
from mpbuffer.errors import SnapshotBusy, SnapshotMismatch, SnapshotNotFound

__all__ = ["Saving", "saving_into"]

_LOCK = "lock"

# Snapshots that are being written by this process, in the order of their beginnings. One that a
# signal handler begins may be inside another of the same thread. Appending and listing are atomic.
# Weak: one whose end an exception prevented ends when it is collected.
_savings: list[weakref.ref[Saving]] = []


class Saving:
    """A snapshot that is being written.

    Attributes
    ----------
    previous : Manifest or None
        The directory's last snapshot.
    overtaken : bool
        Whether a signal handler, amid this one, has completed another one in its place.
    files : WrittenFiles
        New chunks.
    """

    def __init__(self, path: str) -> None:
        self.files = WrittenFiles()
        self.previous: Manifest | None = None
        self.overtaken = False
        self.token = secrets.token_hex(4)  # in the names of its files
        self._growing: list[GrowingFile] = []
        self._lock = -1
        self._entry = weakref.ref(self)
        self.pid, self.thread = os.getpid(), threading.get_ident()
        self.path = os.path.realpath(path)
        self.chunks = os.path.join(self.path, CHUNKS)
        os.makedirs(self.chunks, exist_ok=True)
        facts = os.stat(self.path)
        self.place = facts.st_dev, facts.st_ino

    def __del__(self) -> None:
        self.end()

    def begin(self) -> None:
        """Make sure that nobody else writes into the directory, and read what is there."""
        with _core.SignalsDeferred():
            _savings.append(self._entry)
            earlier = _earlier_than(self)
            if any(each.thread != self.thread for each in earlier):
                raise SnapshotBusy(
                    f"cannot write a snapshot into {self.path}: another thread of this process is "
                    "writing one; wait for it"
                )
            if not earlier:
                self._lock = _locked(self.path)
        with contextlib.suppress(SnapshotNotFound):
            self.previous = read_manifest(os.path.join(self.path, MANIFEST))
        if not earlier:
            self._remove_what_is_not_needed(self.previous)

    def end(self) -> None:
        """Forget this one; remove what it wrote in vain."""
        with _core.SignalsDeferred():
            if self._entry in _savings:
                _savings.remove(self._entry)
            self.files.close()
            for file in self._growing:
                file.close()
            if os.getpid() == self.pid:
                self._remove_own_files()
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    def goes_on(self) -> bool:
        """Return whether there is still something to do.

        Raises
        ------
        RuntimeError
            In a child that was forked meanwhile.
        """
        if os.getpid() != self.pid:
            raise RuntimeError(
                f"cannot go on with the snapshot in {self.path}: this process was forked in the "
                "middle of it, and its parent writes it"
            )
        return not self.overtaken

    def path_of(self, what: str) -> str:
        """Return the path of a new chunk."""
        return os.path.join(self.chunks, f"{what}.{self.token}.npy")

    def growing(self, what: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> GrowingFile:
        """Begin a chunk that is written piece by piece."""
        with _core.SignalsDeferred():
            file = GrowingFile(self.path_of(what), dtype, shape)
            self._growing.append(file)
        return file

    def commit(self, manifest: Manifest, keep: int) -> None:
        """Make it the directory's snapshot, and keep so many in all."""
        self.files.sync()
        _sync_directory(self.chunks)
        if self.previous is None:
            _sync_directory(os.path.dirname(self.path))
        with _core.SignalsDeferred():
            if not self.goes_on():
                return
            if keep > 1 and self.previous is not None:
                with open(os.path.join(self.path, MANIFEST), "rb") as stream:
                    self._replace(f"manifest-{self.previous.number:06d}.json", stream.read())
            text = manifest.to_bytes()
            self._replace(MANIFEST, text)
            self.files.bytes_written += len(text)
            for each in _earlier_than(self):
                each.overtaken = True
            self.token = ""  # its files are the snapshot's
        self._remove_what_is_not_needed(manifest, keep)

    def _replace(self, name: str, text: bytes) -> None:
        path = os.path.join(self.path, name)
        with open(f"{path}.part", "wb") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(f"{path}.part", path)
        _sync_directory(self.path)

    def _remove_own_files(self) -> None:
        if not self.token:
            return
        with contextlib.suppress(OSError):
            for entry in os.listdir(self.chunks):
                if entry.endswith(f".{self.token}.npy"):
                    os.unlink(os.path.join(self.chunks, entry))

    def _remove_what_is_not_needed(self, last: Manifest | None, keep: int | None = None) -> None:
        """Remove the oldest manifests, if it is said how many to keep, and chunks of none."""
        earlier = list(numbered_manifests(self.path).values())
        if keep is not None:
            for name in earlier[: max(len(earlier) - (keep - 1), 0)]:
                os.unlink(os.path.join(self.path, name))
            earlier = earlier[max(len(earlier) - (keep - 1), 0) :]
        needed = set() if last is None else {file.name for file in last.files()}
        for name in earlier:
            try:
                manifest = read_manifest(os.path.join(self.path, name))
            except SnapshotMismatch:
                return  # of a newer version, perhaps: what it needs is not known
            needed |= {file.name for file in manifest.files()}
        for entry in os.listdir(self.chunks):
            if entry not in needed and is_chunk(entry):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(self.chunks, entry))


@contextlib.contextmanager
def saving_into(path: str) -> Iterator[Saving]:
    """Begin a snapshot; what is not committed is removed.

    Raises
    ------
    SnapshotBusy
        If another process or thread is writing one into the directory.
    SnapshotMismatch
        If there is a ``manifest.json`` that cannot be read.
    OSError
        If the directory cannot be made or written to.
    """
    saving = Saving(path)
    try:
        saving.begin()
        yield saving
    finally:
        saving.end()


def _earlier_than(saving: Saving) -> list[Saving]:
    """Return those that this process began before, and has not ended, in the same directory."""
    all_of_them = list(_savings)
    before = [entry() for entry in all_of_them[: all_of_them.index(saving._entry)]]
    return [
        each
        for each in before
        if each is not None and each.place == saving.place and each.pid == saving.pid
    ]


def _locked(path: str) -> int:
    """Return a descriptor whose lock keeps other processes out, and goes with this process."""
    descriptor = os.open(os.path.join(path, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise SnapshotBusy(
                f"cannot write a snapshot into {path}: another process is writing one; wait for it"
            ) from None
        raise
    return descriptor


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
