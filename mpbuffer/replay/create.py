"""cpprb's functions ``create_*``: a buffer, its fields, and what add() takes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mpbuffer.buffer.creation import EnvDict
from mpbuffer.buffer.prioritized import PrioritizedReplayBuffer
from mpbuffer.buffer.replay_buffer import ReplayBuffer
from mpbuffer.envs.spaces import SpaceArray, arrays_of, spaces_of

__all__ = ["create_before_add_func", "create_buffer", "create_env_dict"]


def create_buffer(
    size: float, env_dict: EnvDict | None = None, *, prioritized: bool = False, **kwargs: Any
) -> ReplayBuffer:
    """Create a buffer of one of the two classes.

    Parameters
    ----------
    size, env_dict : float and mapping
        As for ReplayBuffer.
    prioritized : bool, optional
        Whether it is a PrioritizedReplayBuffer.
    **kwargs : optional
        All other parameters of the class.

    Returns
    -------
    ReplayBuffer or PrioritizedReplayBuffer
        The new buffer.

    Raises
    ------
    Exception
        What the class raises.
    """
    cls = PrioritizedReplayBuffer if prioritized else ReplayBuffer
    return cls(size, env_dict, **kwargs)


def create_env_dict(
    env: Any, *, int_type: npt.DTypeLike | None = None, float_type: npt.DTypeLike | None = None
) -> dict[str, dict[str, Any]]:
    """Return an ``env_dict`` for an environment, with cpprb's names and a single flag ``done``.

    ``schema_from`` does the same with today's two flags, and with the dtypes of the spaces.

    Fields are ``rew``, ``done``, ``obs``, ``next_obs`` and ``act``. A Tuple's parts are ``obs0``,
    ``next_obs0``, ``act0``, and so on. A Dict's parts have its keys: ``key`` and ``next_key``.
    Deeper parts follow after a dot.

    Parameters
    ----------
    env : gymnasium.Env or gym.Env
        Only its spaces are read.
    int_type : dtype_like, optional
        Of Discrete, MultiDiscrete and MultiBinary. int32.
    float_type : dtype_like, optional
        Of rew, done and a Box of floats. float32. A Box of integers or truth values keeps its own
        dtype: uint8 frames stay uint8.

    Returns
    -------
    dict of str to dict
        For each field ``{"shape": int or tuple of int, "dtype": numpy.dtype}``.

    Raises
    ------
    TypeError
        If `env` has no spaces, or one is or contains another kind than Box, Discrete, MultiBinary,
        MultiDiscrete, Dict and Tuple.
    ValueError
        If two fields would have the same name; then use ``schema_from`` and ``to_fields``.
    """
    floats = np.dtype(np.float32 if float_type is None else float_type)
    integers = np.dtype(np.int32 if int_type is None else int_type)
    described: dict[str, dict[str, Any]] = {
        name: {"shape": 1, "dtype": floats} for name in ("rew", "done")
    }
    for field, _, array in _arrays_in(env):
        dtype = array.dtype if array.kind == "Box" else integers
        described[field] = {
            "shape": array.shape or 1,
            "dtype": floats if dtype.kind == "f" else dtype,
        }
    return described


def create_before_add_func(env: Any) -> Callable[..., dict[str, Any]]:
    """Return a function that makes the fields of ``create_env_dict`` of a transition, for add().

    Parameters
    ----------
    env : gymnasium.Env or gym.Env
        Only its spaces are read.

    Returns
    -------
    callable
        ``before_add(obs, act, next_obs, rew, done)`` returns a dict for ``add(**fields)``. It also
        takes batches of transitions, nested as a vector environment's.

    Raises
    ------
    TypeError, ValueError
        As for create_env_dict().
    """
    arrays = _arrays_in(env)

    def before_add(obs: Any, act: Any, next_obs: Any, rew: Any, done: Any) -> dict[str, Any]:
        given = {"obs": obs, "next_obs": next_obs, "act": act}
        fields = {field: array.inside(given[part]) for field, part, array in arrays}
        return {**fields, "rew": rew, "done": done}

    return before_add


def _arrays_in(env: Any) -> list[tuple[str, str, SpaceArray]]:
    """List the arrays of a transition: the field, the part (obs, next_obs or act), the array."""
    observation_space, action_space = spaces_of(env)
    parts = {"obs": observation_space, "next_obs": observation_space, "act": action_space}
    arrays = [
        (_field(part, array.path), part, array)
        for part, space in parts.items()
        for array in arrays_of(space, part)
    ]
    fields = ["rew", "done", *(field for field, _, _ in arrays)]
    twice = sorted({field for field in fields if fields.count(field) > 1})
    if twice:
        raise ValueError(
            f"cannot make fields of {env!r}: two would be named {twice[0]!r}; use schema_from() "
            "and to_fields(), whose names have prefixes"
        )
    return arrays


def _field(part: str, path: tuple[str | int, ...]) -> str:
    if not path:
        return part
    first, *deeper = path
    if isinstance(first, int):
        name = f"{part}{first}"
    else:
        name = f"next_{first}" if part == "next_obs" else first
    return ".".join([name, *map(str, deeper)])
