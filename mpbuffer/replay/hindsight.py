"""Hindsight experience replay: each episode is stored for its goal and for goals it reached."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mpbuffer._arguments.integers import whole_number
from mpbuffer.buffer.attaching import attach
from mpbuffer.buffer.creation import EnvDict
from mpbuffer.buffer.prioritized import PrioritizedReplayBuffer
from mpbuffer.buffer.replay_buffer import ReplayBuffer
from mpbuffer.errors import BufferClosed
from mpbuffer.replay.episode import Episode, require_transitions
from mpbuffer.replay.goals import (
    STRATEGIES,
    as_field,
    of_every_step,
    reached_states,
    same_states,
)

__all__ = ["HindsightReplayBuffer"]

Array = npt.NDArray[Any]
RewardOf = Callable[[Any, Any, Any], npt.ArrayLike]
GoalOf = Callable[[Any], npt.ArrayLike]

_OWN = ("rew", "goal")  # fields that on_episode_end() computes


class HindsightReplayBuffer:
    """Stores each episode with its own goal, and again with goals that it did reach.

    Andrychowicz et al., "Hindsight experience replay", 2017 (arXiv:1707.01495), section 3.3 and
    algorithm 1. add() collects the steps of an episode; on_episode_end() computes the rewards and
    writes all rows. Rows have the fields of `env_dict`, ``rew`` and ``goal``. An episode of n steps
    makes ``n * (1 + additional_goals)`` rows.

    Rows lie in shared memory, in the buffer that the attribute ``rb`` is. Hand this object to any
    number of explorers, or open it there by attach(). Each process has its own episode and its own
    ``rng``; the child of a fork starts without steps. If `prioritized`, one process samples: the
    learner. Under spawn and forkserver `reward_func` and `goal_func` must be functions of a module,
    not lambdas. ``Explorers`` take `rb` as their buffer, and this object in `args`. For one thread
    in each process.

    Parameters
    ----------
    size : int or whole float
        Rows of the buffer.
    env_dict : mapping of str to mapping
        As for ReplayBuffer, without ``rew`` and ``goal``. If they are there, they give these two
        fields' shapes and dtypes. By default ``rew`` is one number of the default dtype, and
        ``goal`` has the dtype of the state.
    max_episode_len : int
        Steps of the longest episode, at least 1.
    reward_func : callable
        ``reward_func(next_states, actions, goals)`` returns the rewards: arrays of the steps of an
        episode, ``(n,) + shape`` each. It returns ``(n,)``, or ``(n,)`` and the shape of ``rew``.
    goal_func : callable, optional
        ``goal_func(states)`` returns the goals that states reach, ``(n,) + goal_shape``. Default:
        the states.
    goal_shape : int or tuple of int, optional
        Of a goal. Default: the state's.
    state, action, next_state : str, optional
        Names of fields in `env_dict`.
    strategy : {"future", "episode", "random", "final"}, optional
        Which next states become goals: random ones of those that follow in the episode, the step's
        own included; random ones of the episode; random ones of all rows in the buffer and of the
        episode; the episode's last one.
    additional_goals : int, optional
        Goals for each step, at least 0. With ``"final"`` it is 1.
    prioritized : bool, optional
        Whether rows are sampled in proportion to priorities.
    **kwargs : optional
        Other parameters of ReplayBuffer or PrioritizedReplayBuffer. `Nstep` rows have the same goal
        in all their steps. With `seed`, this process's goals follow from it, too.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.
    SegmentExists, NotEnoughMemory
        As for ReplayBuffer.

    Attributes
    ----------
    rb : ReplayBuffer or PrioritizedReplayBuffer
        The rows.

    Examples
    --------
    >>> from mpbuffer import HindsightReplayBuffer
    >>> def reward(next_states, actions, goals):
    ...     return (next_states == goals) - 1.0
    >>> fields = {"obs": {}, "act": {}, "next_obs": {}}
    >>> with HindsightReplayBuffer(100, fields, 50, reward, strategy="final") as buffer:
    ...     for step in range(2):
    ...         buffer.add(obs=step, act=0, next_obs=step + 1)
    ...     buffer.on_episode_end(7)  # the goal was not reached
    ...     rows = buffer.get_all_transitions()
    >>> rows["goal"].ravel().tolist(), rows["rew"].ravel().tolist()
    ([7.0, 7.0, 2.0, 2.0], [-1.0, -1.0, -1.0, 0.0])
    """

    def __init__(
        self,
        size: float,
        env_dict: EnvDict,
        max_episode_len: int,
        reward_func: RewardOf,
        *,
        goal_func: GoalOf | None = None,
        goal_shape: int | tuple[int, ...] | None = None,
        state: str = "obs",
        action: str = "act",
        next_state: str = "next_obs",
        strategy: str = "future",
        additional_goals: int = 4,
        prioritized: bool = True,
        **kwargs: Any,
    ) -> None:
        self._set_rules(
            max_episode_len,
            reward_func,
            goal_func,
            state,
            action,
            next_state,
            strategy,
            additional_goals,
        )
        for name in (state, action, next_state):
            if name not in env_dict:
                raise ValueError(f"env_dict must have the field {name!r}, got {list(env_dict)}")
        goal = {**env_dict[state], **env_dict.get("goal", {})}
        if goal_shape is not None:
            goal["shape"] = goal_shape
        require_transitions("hindsight", kwargs.get("sequence"))
        cls = PrioritizedReplayBuffer if prioritized else ReplayBuffer
        fields = {**env_dict, "rew": env_dict.get("rew", {}), "goal": goal}
        rb = cls(size, fields, **kwargs)
        self._set_rows(rb, kwargs.get("seed"), bool(kwargs.get("strict", False)))

    def _set_rules(
        self,
        max_episode_len: int,
        reward_func: RewardOf,
        goal_func: GoalOf | None = None,
        state: str = "obs",
        action: str = "act",
        next_state: str = "next_obs",
        strategy: str = "future",
        additional_goals: int = 4,
    ) -> None:
        self.max_episode_len = whole_number("max_episode_len", max_episode_len, 1)
        self.reward_func = _callable("reward_func", reward_func)
        self.goal_func = same_states if goal_func is None else _callable("goal_func", goal_func)
        self.state, self.action, self.next_state = state, action, next_state
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
        self.strategy = strategy
        goals = whole_number("additional_goals", additional_goals, 0)
        self.additional_goals = 1 if strategy == "final" else goals

    def _set_rows(self, rb: ReplayBuffer, seed: int | None, strict: bool) -> None:
        self.rb = rb
        self.prioritized = rb._prioritized
        described = {name: (dtype, tuple(shape)) for name, dtype, shape in rb._fields()}
        self._rew, self._goal = described.pop("rew"), described.pop("goal")
        nstep = rb._nstep()
        if nstep is not None:
            described.pop(nstep[4], None)  # add() does not take the discount
        self._steps, self._strict = described, strict
        self._episode: Episode | None = None
        self._seeds = {os.getpid(): seed}  # no other process draws the same goals

    @classmethod
    def attach(
        cls,
        name: str,
        max_episode_len: int,
        reward_func: RewardOf,
        *,
        timeout: float = 0.0,
        **kwargs: Any,
    ) -> HindsightReplayBuffer:
        """Open the rows that another process's HindsightReplayBuffer of that name has.

        Parameters
        ----------
        name, timeout : str and float
            As for ``mpbuffer.attach``.
        max_episode_len, reward_func : int and callable
            As for the class: a segment holds no functions.
        **kwargs : optional
            `goal_func`, `state`, `action`, `next_state`, `strategy` and `additional_goals`, as for
            the class.

        Returns
        -------
        HindsightReplayBuffer
            With an episode of its own.

        Raises
        ------
        SegmentNotFound, SegmentMismatch, ProcessTableFull
            As for ``mpbuffer.attach``.
        TypeError, ValueError
            If an argument is not as above, or the rows have other fields.
        """
        buffer = cls.__new__(cls)
        buffer._set_rules(max_episode_len, reward_func, **kwargs)
        rb = attach(name, timeout=timeout)
        fields = {field for field, _, _ in rb._fields()}
        missing = {buffer.state, buffer.action, buffer.next_state, *_OWN} - fields
        if missing or rb.sequence is not None:
            rb.close()
            lacking = f"have no fields {sorted(missing)}" if missing else "are sequences"
            raise ValueError(f"cannot attach {name!r}: its rows {lacking}")
        buffer._set_rows(rb, None, False)
        return buffer

    @property
    def goal_shape(self) -> tuple[int, ...]:
        """Shape of a goal."""
        return self._goal[1]

    @property
    def rng(self) -> np.random.Generator:
        """Draws this process's goals. Set it for reproducible ones."""
        return self._here().rng

    @rng.setter
    def rng(self, generator: np.random.Generator) -> None:
        self._here().rng = generator

    @property
    def episode_rb(self) -> ReplayBuffer:
        """Steps of this process's running episode."""
        return self._here().rb

    def _here(self) -> Episode:
        """Return this process's episode; a new one in the child of a fork."""
        if self.rb.closed:
            raise BufferClosed(
                f"cannot play an episode for '{self.rb.name}': its handle was closed"
            )
        if self._episode is None or self._episode.pid != os.getpid():
            rng = np.random.default_rng(self._seeds.get(os.getpid()))
            self._episode = Episode(self._steps, self.max_episode_len, rng, self._strict)
        return self._episode

    def add(self, **kwargs: npt.ArrayLike) -> None:
        """Add one step, or some consecutive ones, to this process's episode.

        Parameters
        ----------
        **kwargs : array_like
            As for ``ReplayBuffer.add``. ``rew`` and ``goal`` are ignored: on_episode_end() computes
            them.

        Raises
        ------
        ValueError
            If the episode would have more than `max_episode_len` steps; and as
            ``ReplayBuffer.add``. Nothing has changed then.
        KeyError, TypeError, BufferClosed
            As ``ReplayBuffer.add``.
        """
        here = self._here()
        here.add({name: value for name, value in kwargs.items() if name not in _OWN})

    def on_episode_end(self, goal: npt.ArrayLike) -> None:
        """End this process's episode, and write its rows for its goal and for reached goals.

        Rows of one goal are in the order of their steps, with rows of other processes in between.
        Without steps it does nothing.

        Parameters
        ----------
        goal : array_like
            The goal of the episode, of shape `goal_shape`; or that of each step, ``(steps,) +
            goal_shape``.

        Raises
        ------
        ValueError, TypeError
            If a goal or a reward has another shape or cannot be represented.
        IndexError
            If the episode has more steps than the buffer has rows.
        Exception
            What `reward_func` and `goal_func` raise. After these errors nothing has changed.
        SlotsHeld, OSError, BufferClosed
            As ``ReplayBuffer.add``. The steps are kept, some rows may have been written. A process
            that is killed here has written some rows, too.
        """
        here = self._here()
        length = len(here.rb)
        if length == 0:
            return
        steps = here.rb.get_all_transitions()
        next_states, actions = steps[self.next_state], steps[self.action]
        goals = [of_every_step(goal, self._goal, length)]
        if self.additional_goals > 0:
            field, count = self.next_state, self.additional_goals
            for states in reached_states(
                self.strategy, next_states, count, here.rng, self.rb, field
            ):
                reached = self.goal_func(states)
                goals.append(as_field("goal_func's result", reached, self._goal, length))
        rewards = []
        for each in goals:
            reward = self.reward_func(next_states, actions, each)
            rewards.append(as_field("reward_func's result", reward, self._rew, length))
        for each, rew in zip(goals, rewards, strict=True):
            self.rb.add(**steps, goal=each, rew=rew)
            self.rb.on_episode_end()
        here.rb.clear()

    def sample(self, batch_size: int, **kwargs: Any) -> dict[str, Array]:
        """Draw rows. As ``sample`` of the class of `rb`."""
        return self.rb.sample(batch_size, **kwargs)

    def update_priorities(self, indexes: npt.ArrayLike, priorities: npt.ArrayLike) -> int:
        """Update priorities. As ``PrioritizedReplayBuffer.update_priorities``.

        Raises
        ------
        ValueError
            If the buffer is not prioritized.
        """
        return self._ranked().update_priorities(indexes, priorities)

    def get_max_priority(self) -> float:
        """Return the largest priority. As ``PrioritizedReplayBuffer.get_max_priority``.

        Raises
        ------
        ValueError
            If the buffer is not prioritized.
        """
        return self._ranked().get_max_priority()

    def _ranked(self) -> PrioritizedReplayBuffer:
        if not isinstance(self.rb, PrioritizedReplayBuffer):
            raise ValueError(
                f"'{self.rb.name}' has no priorities: it was created with prioritized=False"
            )
        return self.rb

    def get_all_transitions(self, shuffle: bool = False) -> dict[str, Array]:
        """Return a copy of all rows. As ``ReplayBuffer.get_all_transitions``."""
        return self.rb.get_all_transitions(shuffle)

    def clear(self) -> None:
        """Delete all rows, and the steps of this process's episode."""
        self.rb.clear()
        if self._episode is not None:
            self._here().rb.clear()

    def get_stored_size(self) -> int:
        """Return how many rows there are. Steps of running episodes are none yet."""
        return self.rb.get_stored_size()

    def get_buffer_size(self) -> int:
        """Return how many rows the buffer holds."""
        return self.rb.get_buffer_size()

    def close(self) -> None:
        """Close this process's handle and drop its episode; the last handle frees the memory."""
        self._episode = None
        self.rb.close()

    def __enter__(self) -> HindsightReplayBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of goals {self.strategy!r}: {self.rb!r}>"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_episode": None, "_seeds": {}}


def _callable(name: str, function: Any) -> Any:
    if not callable(function):
        raise TypeError(f"{name} must be callable, got {function!r}")
    return function
