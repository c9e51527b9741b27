"""What can go wrong, beside the builtin errors for wrong values.

Each class also is the builtin error that code written for other buffers expects.
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
]


class MpbufferError(Exception):
    """Base of the errors below."""


class SegmentNotFound(MpbufferError, FileNotFoundError):
    """No buffer of that name is there (any more)."""


class SegmentExists(MpbufferError, FileExistsError):
    """A buffer of that name is in use."""


class SegmentMismatch(MpbufferError, ValueError):
    """What has that name is damaged, is of another format, or belongs to somebody else."""


class NotEnoughMemory(MpbufferError, MemoryError):
    """The buffer would not fit; tells how much is needed, how much is there, and where."""


class ProcessTableFull(MpbufferError, RuntimeError):
    """1022 handles are using the buffer already."""


class RoleBusy(MpbufferError, RuntimeError):
    """Another handle has the role that the call needs; names it, and since when it has it."""


class LearnerBusy(RoleBusy):
    """Another handle is the buffer's learner."""


class PublisherBusy(RoleBusy):
    """Another handle is the publisher of the weights."""


class SlotsHeld(MpbufferError, TimeoutError):
    """Living processes held every slot for too long; tells which, and how many rows were added."""


class EmptyBuffer(MpbufferError, ValueError):
    """There is no complete row to sample, or none that may be drawn: all have priority 0."""


class ExplorerFailed(MpbufferError, RuntimeError):
    """An explorer's function raised, or its process ended and is not to be restarted.

    Attributes
    ----------
    index : int
        Which explorer.
    exit_code : int or None
        Of its process: minus the signal's number if one killed it; None if not known yet.
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
