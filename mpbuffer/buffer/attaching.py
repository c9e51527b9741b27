"""Opening a buffer by its name, whichever kind it is."""

from __future__ import annotations

from mpbuffer._segment.handing_on import opened_once_there
from mpbuffer.buffer.prioritized import PrioritizedReplayBuffer
from mpbuffer.buffer.replay_buffer import ReplayBuffer

__all__ = ["attach"]


def attach(name: str, *, timeout: float = 0.0) -> ReplayBuffer:
    """Open the buffer that another process of this user has made.

    Parameters
    ----------
    name : str
        What its ``name`` says. A buffer that was made without ``name=`` is found as long as a
        process has it open that this one may look at: of the same user, not setuid or otherwise
        protected, and in this pid namespace or below.
    timeout : float, optional
        How many seconds to wait for the name at most: for programs that are started together. It
        may be ``math.inf``.

    Returns
    -------
    ReplayBuffer or PrioritizedReplayBuffer
        Whichever it is.

    Raises
    ------
    SegmentNotFound
        If no buffer of that name is there.
    SegmentMismatch
        If it is damaged, of another layout, or somebody else's.
    ProcessTableFull
        If 1022 handles are open already.
    ValueError
        If `timeout` is no number of at least 0, or `name` cannot be a name.
    """
    return opened_once_there(_opened, name, timeout)


def _opened(name: str, descriptor: int) -> ReplayBuffer:
    buffer: ReplayBuffer = PrioritizedReplayBuffer.__new__(PrioritizedReplayBuffer)
    description = buffer._attach(name, descriptor)
    if not buffer._prioritized:
        opened, buffer = buffer, ReplayBuffer.__new__(ReplayBuffer)
        buffer._take_over(opened)
    buffer._finish_attaching(name, description)
    return buffer
