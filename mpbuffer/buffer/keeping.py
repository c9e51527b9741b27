"""A buffer that outlives the process that made it."""

from __future__ import annotations

from mpbuffer import _core
from mpbuffer._segment.keeper import keep_after_exit
from mpbuffer.errors import BufferClosed

__all__ = ["KeptAfterExit"]


class KeptAfterExit(_core.ReplayBuffer):
    """Base of buffers: what keeps one for a learner that is started again."""

    def keep_after_exit(self, seconds: float) -> int:
        """Keep the buffer for some seconds after this process ends, however it ends.

        A small process attaches, waits for the end of this one, sleeps, and closes its handle. A
        restarted learner then finds the buffer by ``mpbuffer.attach(name)``, with all rows and
        priorities.

        Parameters
        ----------
        seconds : float
            0 to 10^9.

        Returns
        -------
        int
            The pid of the small process, which has a session of its own. ``os.kill`` it to free
            the buffer earlier.

        Raises
        ------
        TypeError, ValueError
            If `seconds` is not as above, or the buffer was created with ``shared=False``.
        BufferClosed
            If this handle was closed.
        RuntimeError
            If the process does not attach within 60 seconds; the message has its output. The call
            waits for it, usually less than a second. Also in a frozen program, and where
            ``sys.executable`` is no Python interpreter, unless ``multiprocessing.set_executable()``
            has named one.
        OSError
            If the process cannot be started.
        """
        if self.closed:
            raise BufferClosed(f"cannot keep '{self.name}': this handle was closed")
        if not self.shared:
            raise ValueError(
                f"cannot keep '{self.name}': it is private to this process, expected a shared "
                "buffer; leave shared=False away where it is created"
            )
        return keep_after_exit(self.name, seconds)
