"""Goals of hindsight experience replay: the states chosen, and arrays as their fields take them."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from mpbuffer import _core
from mpbuffer.buffer.prioritized import PrioritizedReplayBuffer
from mpbuffer.buffer.replay_buffer import ReplayBuffer
from mpbuffer.errors import EmptyBuffer
from mpbuffer.replay.episode import Kind

__all__ = ["STRATEGIES", "as_field", "of_every_step", "reached_states", "same_states"]

STRATEGIES = ("future", "episode", "random", "final")

Array = npt.NDArray[Any]


def reached_states(
    strategy: str,
    states: Array,
    goals: int,
    rng: np.random.Generator,
    buffer: ReplayBuffer,
    field: str,
) -> Array:
    """Choose states for each step of an episode: Andrychowicz et al., 2017, section 4.5.

    Parameters
    ----------
    strategy : str
        One of STRATEGIES.
    states : numpy.ndarray, shape (steps,) + shape
        The episode's next states.
    goals : int
        How many for each step.
    rng : numpy.random.Generator
        Draws places in the episode, and decides between the episode and the buffer.
    buffer : ReplayBuffer
        Where ``"random"`` draws earlier states from, by its field `field`.
    field : str
        The next states' field.

    Returns
    -------
    numpy.ndarray, shape (goals, steps) + shape
        A copy.
    """
    steps = len(states)
    if strategy == "random":
        chosen = _anywhere(states, goals * steps, rng, buffer, field)
        return chosen.reshape((goals, *states.shape))
    if strategy == "future":
        from_own = np.arange(steps)[:, np.newaxis]
        places = rng.integers(from_own, steps, (steps, goals)).T
    elif strategy == "episode":
        places = rng.integers(0, steps, (goals, steps))
    else:
        places = np.full((goals, steps), steps - 1)
    taken: Array = states[places]
    return taken


def _anywhere(
    states: Array, count: int, rng: np.random.Generator, buffer: ReplayBuffer, field: str
) -> Array:
    """Draw from the episode and the buffer together, each state with the same probability."""
    steps = len(states)
    all_states = max(steps, min(steps + buffer.get_stored_size(), buffer.get_buffer_size()))
    places = rng.integers(0, all_states, count)
    earlier = np.flatnonzero(places >= steps)
    places[earlier] = rng.integers(0, steps, len(earlier))
    chosen: Array = states[places]
    if len(earlier):
        draw = buffer.sample
        if isinstance(buffer, PrioritizedReplayBuffer):
            draw = buffer.sample_uniform
        with contextlib.suppress(EmptyBuffer):  # if cleared meanwhile, the episode's states stay
            chosen[earlier] = draw(len(earlier))[field]
    return chosen


def same_states(states: Array) -> Array:
    """Return the states: the goals that they reach, by default."""
    return states


def of_every_step(goal: npt.ArrayLike, kind: Kind, steps: int) -> Array:
    """Return the goal of an episode for each of its steps; it may be one for each already."""
    dtype, shape = kind
    array = _core.converted("cannot end the episode: goal", goal, dtype)
    if array.size == math.prod(shape):
        array = np.broadcast_to(array.reshape(shape), (steps, *shape))
    return as_field("goal", array, kind, steps)


def as_field(what: str, values: npt.ArrayLike, kind: Kind, steps: int) -> Array:
    """Convert what a function of the user's returned to a field of that many rows.

    Raises
    ------
    ValueError, TypeError
        If it has another shape, or the dtype cannot represent a value. `what` is its name.
    """
    dtype, shape = kind
    array = _core.converted(f"cannot end the episode: {what}", values, dtype)
    if array.size != steps * math.prod(shape) or array.shape[:1] != (steps,):
        raise ValueError(
            f"cannot end the episode: {what} must have shape {(steps, *shape)}, got {array.shape}"
        )
    return array.reshape((steps, *shape))
