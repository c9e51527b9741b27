"""Episodes that can be read and deleted one by one."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from mpbuffer._arguments.integers import whole_number
from mpbuffer.buffer.attaching import attach
from mpbuffer.buffer.replay_buffer import ReplayBuffer
from mpbuffer.replay.episode import require_transitions

__all__ = ["SelectiveReplayBuffer"]

Rows = dict[str, npt.NDArray[Any]]

_FIELDS = ("obs", "act", "rew", "next_obs", "done")


class SelectiveReplayBuffer:
    """Episodes in the order of their steps, each of which can be read and deleted.

    Nothing is overwritten: when the buffer is full, further steps are left out, with one warning,
    until an episode is deleted. An episode ends with a step whose `done` is not 0.

    The rows lie in shared memory, in the ReplayBuffer that the attribute ``rb`` is. A process that
    is handed this object, or opens it by attach(), sees the same episodes: it finds them by their
    `done`. One process at a
    time may add and delete; all others may sample and read. While it deletes an episode, others see
    some of the rows only.

    Parameters
    ----------
    episode_len : int
        Steps of an episode. There is room for ``episode_len * Nepisodes`` steps, whatever the
        length of each episode.
    obs_dim, act_dim, rew_dim : int, optional
        Numbers in each observation, action and reward. All fields are float64.
    Nepisodes : int, optional
        Episodes of that length.
    obs_shape : tuple of int, optional
        Shape of an observation, instead of `obs_dim`.
    **kwargs : optional
        Parameters of ReplayBuffer, such as ``name`` and ``seed``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.
    NotEnoughMemory, SegmentExists
        As for ReplayBuffer.

    Examples
    --------
    >>> from mpbuffer import SelectiveReplayBuffer
    >>> buffer = SelectiveReplayBuffer(10, Nepisodes=2)
    >>> for step in range(5):
    ...     _ = buffer.add(obs=step, act=0, rew=1, next_obs=step + 1, done=step in (1, 3))
    >>> buffer.get_stored_episode_size()
    3
    >>> buffer.delete_episode(0)
    2
    >>> buffer.get_episode(0)["obs"].ravel().tolist()
    [2.0, 3.0]
    >>> buffer.close()
    """

    def __init__(
        self,
        episode_len: int,
        obs_dim: int = 1,
        act_dim: int = 1,
        *,
        Nepisodes: int = 10,
        rew_dim: int = 1,
        obs_shape: tuple[int, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        steps = whole_number("episode_len", episode_len, 1)
        steps *= whole_number("Nepisodes", Nepisodes, 1)
        shapes: dict[str, tuple[int, ...]] = {
            "obs": (whole_number("obs_dim", obs_dim, 1),),
            "act": (whole_number("act_dim", act_dim, 1),),
            "rew": (whole_number("rew_dim", rew_dim, 1),),
        }
        if obs_shape is not None:
            shapes["obs"] = tuple(obs_shape)
        shapes |= {"next_obs": shapes["obs"], "done": (1,)}
        fields = {name: {"shape": shape, "dtype": np.float64} for name, shape in shapes.items()}
        require_transitions("selective replay", kwargs.get("sequence"))
        self._set_rows(ReplayBuffer(steps, fields, **kwargs))
        self._obs_shape: tuple[int, ...] | None = None if obs_shape is None else shapes["obs"]

    def _set_rows(self, rb: ReplayBuffer) -> None:
        self.rb = rb
        self._shapes = {name: tuple(shape) for name, _, shape in rb._fields()}
        self._obs_shape = self._shapes["obs"]
        self._warned = False

    @classmethod
    def attach(cls, name: str, *, timeout: float = 0.0) -> SelectiveReplayBuffer:
        """Open the episodes of another process's SelectiveReplayBuffer of that name.

        Parameters
        ----------
        name, timeout : str and float
            As for ``mpbuffer.attach``.

        Returns
        -------
        SelectiveReplayBuffer
            The same episodes.

        Raises
        ------
        SegmentNotFound, SegmentMismatch, ProcessTableFull
            As for ``mpbuffer.attach``.
        ValueError
            If an argument is not as above, or the rows are of another buffer.
        """
        rb = attach(name, timeout=timeout)
        kinds = {field: dtype for field, dtype, _ in rb._fields()}
        of_another = rb._prioritized or rb.sequence is not None
        if of_another or kinds != dict.fromkeys(_FIELDS, np.dtype(np.float64)):
            rb.close()
            raise ValueError(f"cannot attach {name!r}: its rows are of no SelectiveReplayBuffer")
        buffer = cls.__new__(cls)
        buffer._set_rows(rb)
        return buffer

    def add(
        self,
        obs: npt.ArrayLike,
        act: npt.ArrayLike,
        rew: npt.ArrayLike,
        next_obs: npt.ArrayLike,
        done: npt.ArrayLike,
    ) -> int:
        """Add one step or some consecutive ones. For one process at a time.

        Parameters
        ----------
        obs, act, rew, next_obs, done : array_like
            Of one step, or with a leading dimension of n steps.

        Returns
        -------
        int
            How many steps there were before.

        Raises
        ------
        ValueError
            If the arguments have different numbers of steps, or other shapes. Nothing has changed.
        SlotsHeld, OSError, BufferClosed
            As ``ReplayBuffer.add``.
        """
        given = {"obs": obs, "act": act, "rew": rew, "next_obs": next_obs, "done": done}
        steps = {name: self._as_steps(name, values) for name, values in given.items()}
        counts = {name: len(values) for name, values in steps.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"cannot add steps: arguments have different numbers: {counts}")
        before = self.rb.get_stored_size()
        room = self.rb.get_buffer_size() - before
        if counts["done"] > room and not self._warned:
            self._warned = True
            warnings.warn(
                f"{counts['done'] - room} steps are left out: '{self.rb.name}' is full; call "
                "delete_episode() or clear()",
                stacklevel=2,
            )
        if min(counts["done"], room) > 0:
            self.rb.add(**{name: values[:room] for name, values in steps.items()})
        return before

    def _as_steps(self, name: str, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        array, shape = np.asarray(values, np.float64), self._shapes[name]
        if array.size % math.prod(shape):
            raise ValueError(
                f"cannot add steps: {name} must have shape {shape} or (n, {shape}), "
                f"got {array.shape}"
            )
        return array.reshape((-1, *shape))

    def sample(self, batch_size: int, **kwargs: Any) -> Rows:
        """Draw steps of all episodes uniformly, with replacement. As ``ReplayBuffer.sample``."""
        return self.rb.sample(batch_size, **kwargs)

    def get_stored_episode_size(self) -> int:
        """Return how many episodes there are, an unfinished last one included. O(size)."""
        return len(_bounds(self.rb.get_all_transitions())) - 1

    def get_episode(self, i: int) -> Rows:
        """Return a copy of the steps of an episode. O(size).

        Parameters
        ----------
        i : int
            0 is the oldest episode.

        Returns
        -------
        dict of str to numpy.ndarray
            obs, act, rew, next_obs and done: float64 ``(steps,) + shape``; no steps if there are
            fewer episodes.

        Raises
        ------
        TypeError, ValueError
            If `i` is no int, or negative.
        """
        rows = self.rb.get_all_transitions()
        begin, end = _bounds_of(rows, i)
        return {name: values[begin:end].copy() for name, values in rows.items()}

    def delete_episode(self, i: int) -> int:
        """Delete an episode; later ones move up. For one process at a time. O(size).

        The other episodes are written anew: if the process is killed meanwhile, they are lost.

        Parameters
        ----------
        i : int
            0 is the oldest episode.

        Returns
        -------
        int
            How many steps it had; 0 if there are fewer episodes.

        Raises
        ------
        TypeError, ValueError
            If `i` is no int, or negative.
        SlotsHeld, OSError, BufferClosed
            As ``ReplayBuffer.add``.
        """
        rows = self.rb.get_all_transitions()
        begin, end = _bounds_of(rows, i)
        if end > begin:
            kept = {name: np.delete(values, slice(begin, end), 0) for name, values in rows.items()}
            self.rb.clear()
            if len(kept["done"]):
                self.rb.add(**kept)
        return end - begin

    def clear(self) -> None:
        """Delete all episodes. As ``ReplayBuffer.clear``."""
        self.rb.clear()

    def get_stored_size(self) -> int:
        """Return how many steps there are."""
        return self.rb.get_stored_size()

    def get_next_index(self) -> int:
        """Return where the next step goes: after all that there are."""
        return self.rb.get_stored_size()

    def get_buffer_size(self) -> int:
        """Return how many steps there is room for."""
        return self.rb.get_buffer_size()

    def get_obs_shape(self) -> tuple[int, ...] | None:
        """Return the argument `obs_shape`."""
        return self._obs_shape

    def get_obs_dim(self) -> int:
        """Return how many numbers an observation has."""
        return math.prod(self._shapes["obs"])

    def get_act_dim(self) -> int:
        """Return how many numbers an action has."""
        return self._shapes["act"][0]

    def get_rew_dim(self) -> int:
        """Return how many numbers a reward has."""
        return self._shapes["rew"][0]

    def close(self) -> None:
        """Close this process's handle; the last one frees the memory."""
        self.rb.close()

    def __enter__(self) -> SelectiveReplayBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _bounds(rows: Rows) -> list[int]:
    """Return where episodes begin, and the end of the last one."""
    bounds = [0, *(np.flatnonzero(rows["done"].ravel()) + 1).tolist()]
    stored = len(rows["done"])
    return bounds if bounds[-1] == stored else [*bounds, stored]


def _bounds_of(rows: Rows, i: int) -> tuple[int, int]:
    episode = whole_number("the number of the episode", i, 0)
    bounds = _bounds(rows)
    return (bounds[episode], bounds[episode + 1]) if episode + 1 < len(bounds) else (0, 0)
