"""mpbuffer."""

import ctypes
import os
import time

import mpbuffer
from peers.adapter import Adapter
from peers.rows import Fields


class Mpbuffer(Adapter):
    """mpbuffer's two buffers."""

    packages = ("mpbuffer", "numpy")

    def __init__(
        self, capacity: int, fields: Fields, *, kind: str, shared: bool, at_once: int
    ) -> None:
        if kind == "prioritized":
            self.rb = mpbuffer.PrioritizedReplayBuffer(capacity, fields)
        else:
            self.rb = mpbuffer.ReplayBuffer(capacity, fields)

    @classmethod
    def versions(cls) -> dict[str, str]:
        """Return the versions, and which sources the extension was built from."""
        return super().versions() | {"sources": mpbuffer._core.source_digest[:12]}

    def close(self) -> None:
        """Close the segment."""
        self.rb.close()

    def rows_folded(self) -> int:
        """Return how many rows the learner has taken into its tree."""
        return self.rb.learner_status().rows_folded

    def lines_per_draw(self) -> float:
        """Return how many lines of the tree a draw has looked at, on average."""
        status = self.rb.learner_status()
        return status.nodes_visited / status.draws

    def seconds_to_attach(self) -> float:
        """Return the seconds of opening the buffer once more by its name."""
        start = time.perf_counter()
        second = mpbuffer.attach(self.rb.name)
        seconds = time.perf_counter() - start
        second.close()
        return seconds

    def records(self) -> tuple[dict[str, int], int]:
        """Return the address of each field of slot 0, and the bytes from a slot to the next.

        In this process's own mapping of the segment, found by the values of the first two slots,
        so that it holds for any layout; they must be random.
        """
        start, end = self._mapping()
        addresses: dict[str, int] = {}
        stride = 0
        for name, (zeroth, first) in self.rb._encode_sample([0, 1]).items():
            where = _find(start, end, zeroth.tobytes())
            while stride and _find(where + stride, end, first.tobytes()) != where + stride:
                where = _find(where + 1, end, zeroth.tobytes())
            stride = stride or _find(where, end, first.tobytes()) - where
            addresses[name] = where
        return addresses, stride

    def _mapping(self) -> tuple[int, int]:
        """Return where the largest mapping of the segment starts and ends."""
        segment = os.fstat(self.rb._data_descriptor()).st_ino
        spans = []
        with open("/proc/self/maps") as file:
            for addresses, _, _, _, inode, *_ in map(str.split, file):
                if int(inode) == segment:
                    start, end = (int(address, 16) for address in addresses.split("-"))
                    spans.append((end - start, start, end))
        return max(spans)[1:]


def _find(start: int, end: int, value: bytes) -> int:
    """Return the first address in [start, end) where these bytes lie."""
    memmem = ctypes.CDLL(None).memmem
    memmem.restype = ctypes.c_void_p
    memmem.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t
    found = memmem(start, end - start, value, len(value))
    if found is None:
        raise LookupError("the rows of the first two slots are not in the mapping")
    return int(found)
