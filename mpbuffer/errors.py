"""Exceptions, beside the builtin ones for wrong values.

Each class is also the builtin exception that code written for other buffers expects.
"""

__all__ = [
    "BufferClosed",
    "EmptyBuffer",
    "ExplorerFailed",
    "LearnerBusy",
    "MpbufferError",
    "NotEnoughMemory",
    "ProcessTableFull",
    "PublisherBusy",
    "RoleBusy",
    "SegmentExists",
    "SegmentMismatch",
    "SegmentNotFound",
    "SlotsHeld",
    "SnapshotBusy",
    "SnapshotMismatch",
    "SnapshotNotFound",
]


class MpbufferError(Exception):
    """Base of the errors below."""


class SegmentNotFound(MpbufferError, FileNotFoundError):
    """There is no segment of that name, or no longer."""


class SegmentExists(MpbufferError, FileExistsError):
    """A segment of that name is in use."""


class SegmentMismatch(MpbufferError, ValueError):
    """The segment is damaged, has another format, or belongs to another user."""


class NotEnoughMemory(MpbufferError, MemoryError):
    """The segment does not fit; the message has the bytes needed and available, and where."""


class ProcessTableFull(MpbufferError, RuntimeError):
    """As many handles of the segment are open as its ``max_handles=`` allows."""


class RoleBusy(MpbufferError, RuntimeError):
    """Another handle has the role that the call needs; names it, and since when it has it."""


class LearnerBusy(RoleBusy):
    """Another handle is the buffer's learner."""


class PublisherBusy(RoleBusy):
    """Another handle is the publisher of the weights."""


class SlotsHeld(MpbufferError, TimeoutError):
    """Living processes held every slot too long; the message names them and counts rows added."""


class EmptyBuffer(MpbufferError, ValueError):
    """There is no complete row to sample, or all of them have priority 0."""


class SnapshotNotFound(MpbufferError, FileNotFoundError):
    """There is no snapshot in that directory."""


class SnapshotMismatch(MpbufferError, ValueError):
    """The snapshot is damaged, has another format, or is none."""


class SnapshotBusy(MpbufferError, BlockingIOError):
    """Another process or thread is writing a snapshot into the directory."""


class ExplorerFailed(MpbufferError, RuntimeError):
    """An explorer's function raised, or its process died and is not restarted.

    Attributes
    ----------
    index : int
        Which explorer.
    exit_code : int or None
        Its process's exit code: minus the signal's number if one killed it; None if not known yet.
    remote_traceback : str
        The traceback of the exception in the explorer; empty if there was none.
    """

    def __init__(
        self, message: str, index: int, exit_code: int | None, remote_traceback: str = ""
    ) -> None:
        super().__init__(message, index, exit_code, remote_traceback)
        self.index, self.exit_code, self.remote_traceback = index, exit_code, remote_traceback

    def __str__(self) -> str:
        return "\n".join(filter(None, (self.args[0], self.remote_traceback.rstrip())))


class BufferClosed(MpbufferError, ValueError):
    """The handle was closed."""
