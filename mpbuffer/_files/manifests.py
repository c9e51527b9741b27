"""The manifest of a snapshot: a JSON text that names each file, with checksums of all and its own.

Nothing in it is run; whatever it says is checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from mpbuffer._files.chunks import ArrayFile
from mpbuffer._segment.description import CAUSED_BY_DAMAGE
from mpbuffer.errors import SnapshotMismatch, SnapshotNotFound

__all__ = [
    "CHUNKS",
    "MANIFEST",
    "Chunk",
    "Manifest",
    "is_chunk",
    "numbered_manifests",
    "read_manifest",
]

MANIFEST = "manifest.json"
CHUNKS = "chunks"
_FORMAT = "mpbuffer snapshot"
_VERSION = [1, 0]  # another major is refused; a minor adds what earlier ones may leave alone
_NUMBERED = re.compile(r"manifest-(\d{6,18})\.json")
_CHUNK_NAME = re.compile(r"[0-9A-Za-z_-]+(\.[0-9A-Za-z_-]+)*\.npy")


class Chunk(NamedTuple):
    """The rows, or the frames, of a range of slots.

    Attributes
    ----------
    rows : int
        How many slots hold one.
    slots : int
        How many slots the files have; those behind them are empty.
    positions : str
        The largest one and the CRC-32 of all: chunks with the same ones are the same.
    files : dict of str to ArrayFile
        For each array its file. None if `rows` is 0.
    """

    rows: int
    slots: int
    positions: str
    files: dict[str, ArrayFile]


class Manifest(NamedTuple):
    """All that a snapshot says beside its arrays.

    Attributes
    ----------
    number : int
        1 for the first snapshot in the directory, then one more each time.
    saved_at : float
        Seconds since the epoch.
    history : str
        Which buffer it is of: chunks of one history can be kept from one snapshot to the next.
    buffer : dict
        What the buffer was created with.
    counters : dict
        Positions, the largest priority, and the state of the generator.
    slots_per_chunk : list of int
        Of rows, then of the frames of each source ring.
    chunks : list of list of Chunk
        Likewise.
    leaves : ArrayFile or None
        The leaves of all slots.
    """

    number: int
    saved_at: float
    history: str
    buffer: dict[str, Any]
    counters: dict[str, Any]
    slots_per_chunk: list[int]
    chunks: list[list[Chunk]]
    leaves: ArrayFile | None

    def files(self) -> Iterable[ArrayFile]:
        """Return each file that it refers to."""
        for ring in self.chunks:
            for chunk in ring:
                yield from chunk.files.values()
        if self.leaves is not None:
            yield self.leaves

    def to_bytes(self) -> bytes:
        """Return the text of the file."""
        content = self._asdict()
        content["chunks"] = [[chunk._asdict() for chunk in ring] for ring in self.chunks]
        text = json.dumps(
            {"format": _FORMAT, "version": _VERSION, "content": content, "sha256": _sha256(content)}
        )
        return text.encode()


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(path: str) -> Manifest:
    """Read a manifest.

    Raises
    ------
    SnapshotNotFound
        If there is none.
    SnapshotMismatch
        If it is damaged, of another format, or of something else.
    """
    try:
        with open(path, "rb") as stream:
            text = stream.read()
    except FileNotFoundError:
        raise SnapshotNotFound(f"cannot read {path}: there is no snapshot") from None
    try:
        return _manifest_of(path, text)
    except SnapshotMismatch:
        raise
    except CAUSED_BY_DAMAGE as error:
        raise SnapshotMismatch(f"cannot read {path}: it is damaged ({error!r})") from error


def _manifest_of(path: str, text: bytes) -> Manifest:
    whole = json.loads(text.decode())
    if not isinstance(whole, dict) or whole.get("format") != _FORMAT:
        raise SnapshotMismatch(f"cannot read {path}: it is not the manifest of a snapshot")
    major, minor = (int(each) for each in whole["version"])
    if major != _VERSION[0]:
        raise SnapshotMismatch(
            f"cannot read {path}: it has format {major}.{minor}, this version reads {_VERSION[0]}.x"
        )
    content = whole["content"]
    if _sha256(content) != whole["sha256"]:
        raise SnapshotMismatch(f"cannot read {path}: its SHA-256 is wrong: it is damaged")
    known = {key: content[key] for key in Manifest._fields}
    known["chunks"] = [[_chunk_of(each) for each in ring] for ring in known["chunks"]]
    if known["leaves"] is not None:
        known["leaves"] = _file_of(known["leaves"])
    return Manifest(**known)


def _chunk_of(described: dict[str, Any]) -> Chunk:
    files = {str(key): _file_of(file) for key, file in described["files"].items()}
    rows, slots = int(described["rows"]), int(described["slots"])
    if not 0 <= rows <= slots or (rows > 0) != bool(files):
        raise ValueError(f"a chunk of {rows} rows in {slots} slots and {len(files)} files")
    return Chunk(rows, slots, str(described["positions"]), files)


def _file_of(described: list[Any]) -> ArrayFile:
    name, size, crc32 = described
    if not _CHUNK_NAME.fullmatch(name):
        raise ValueError(f"a file's name is {name!r}")
    return ArrayFile(name, int(size), int(crc32))


def numbered_manifests(path: str) -> dict[int, str]:
    """Return the names of the earlier manifests in a directory, by their numbers, ascending."""
    found = {}
    for entry in os.listdir(path):
        match = _NUMBERED.fullmatch(entry)
        if match:
            found[int(match[1])] = entry
    return dict(sorted(found.items()))


def is_chunk(name: str) -> bool:
    """Return whether a file of that name may be a chunk."""
    return _CHUNK_NAME.fullmatch(name) is not None
