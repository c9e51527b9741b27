"""Opening a buffer by its name, whichever kind it is."""

from __future__ import annotations

from mpbuffer._segment.handing_on import opened_once_there
from mpbuffer.buffer.prioritized import PrioritizedReplayBuffer
from mpbuffer.buffer.replay_buffer import ReplayBuffer

__all__ = ["attach"]


def attach(name: str, *, timeout: float = 0.0) -> ReplayBuffer:
    """Open a buffer that another process of this user has created.

    Parameters
    ----------
    name : str
        The buffer's ``name``. A buffer created without ``name=`` is found only while a process has
        it open that this process may inspect: of the same user, neither setuid nor otherwise
        protected, and in this pid namespace or below.
    timeout : float, optional
        How many seconds to wait for the name at most, for programs that are started together.
        ``math.inf`` is allowed.

    Returns
    -------
    ReplayBuffer or PrioritizedReplayBuffer
        The class that it was created as.

    Raises
    ------
    SegmentNotFound
        If there is no buffer of that name.
    SegmentMismatch
        If it is damaged, has another format, or belongs to another user.
    ProcessTableFull
        If as many handles are open as the buffer's `max_handles`.
    ValueError
        If `timeout` is not at least 0, or `name` is not valid.
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
