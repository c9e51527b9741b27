"""Fields from the spaces of environments: one for each array inside an observation or action."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "SpaceArray",
    "TransitionNames",
    "arrays_of",
    "from_fields",
    "schema_from",
    "to_fields",
]

_OF_ONE_ARRAY = ("Box", "Discrete", "MultiBinary", "MultiDiscrete")
NUMBER = "Number"
_SUPPORTED = (*_OF_ONE_ARRAY, "Dict", "Tuple")


class SpaceArray(NamedTuple):
    """One array inside the elements of a space.

    Attributes
    ----------
    field : str
        Its field.
    path : tuple of str and int
        Keys and positions that lead to it through nested dicts and tuples.
    shape : tuple of int
        Of one element; () for scalars.
    dtype : numpy.dtype
        The space's.
    kind : str
        The space's: ``"Box"``, ``"Discrete"``, ``"MultiBinary"`` or ``"MultiDiscrete"``; NUMBER for
        a reward without a space, which is stored in the buffer's default dtype.
    """

    field: str
    path: tuple[str | int, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    kind: str

    def inside(self, value: Any) -> Any:
        """Return this array of `value`, an element of the space or a batch of them."""
        for key in self.path:
            value = value[key]
        return value


class TransitionNames(NamedTuple):
    """Names of a transition's fields; for nested spaces, the prefixes of their fields.

    `terminated` and `truncated` may be None: then there is no such field.
    """

    obs: str
    act: str
    rew: str
    next_obs: str
    terminated: str | None
    truncated: str | None


def schema_from(
    env: Any,
    action_space: Any = None,
    *,
    reward_space: Any = None,
    obs: str = "obs",
    act: str = "act",
    rew: str = "rew",
    next_obs: str = "next_obs",
    terminated: str | None = "terminated",
    truncated: str | None = "truncated",
) -> dict[str, dict[str, Any]]:
    """Return an ``env_dict``, as buffers take it, for the transitions of an environment.

    Each array has its space's shape and dtype: uint8 frames stay uint8. Scalars get the shape 1, as
    everywhere in buffers. In nested spaces each array becomes a field, named by its path:
    ``"obs.camera"`` in a Dict, ``"obs.0"`` in a Tuple. The reward gets the buffer's
    ``default_dtype``, or is what `reward_space` says; terminated and truncated are bool.

    In a parallel environment of PettingZoo, observations, actions, rewards and flags of each agent
    are fields of their own, named by the agent: ``"obs.walker_0"``, ``"rew.walker_0"``,
    ``"terminated.walker_0"``.

    Parameters
    ----------
    env : environment or space
        A gymnasium.Env, a gymnasium.vector.VectorEnv, a VecEnv of Stable-Baselines3, or a
        ParallelEnv of PettingZoo. For a vector environment, the spaces of a single one are used. An
        observation space if `action_space` is given.
    action_space : space, optional
        Only with an observation space.
    reward_space : space, or mapping of str to space, optional
        Of rewards of several numbers: in MO-Gymnasium, ``env.unwrapped.reward_space``. With agents,
        that of each agent, or one for all. Default: the attribute ``reward_space`` of `env` itself,
        as MO-Gymnasium's vector environments have it; else a reward is one number.
    obs, act, rew, next_obs : str, optional
        Names of the fields.
    terminated, truncated : str or None, optional
        Names of the fields; None leaves one out. For code that has a single flag,
        ``terminated="done", truncated=None``: that flag stops bootstrapping.

    Returns
    -------
    dict of str to dict
        For each field ``{"shape": tuple of int, "dtype": numpy.dtype}``.

    Raises
    ------
    TypeError
        If `env` has no spaces, or a space is or contains another kind than Box, Discrete,
        MultiBinary, MultiDiscrete, Dict and Tuple. Text, Graph, Sequence and OneOf have no arrays
        of one shape.
    ValueError
        If two fields would have the same name, or a space has no elements.
    """
    names = TransitionNames(obs, act, rew, next_obs, terminated, truncated)
    observation_space, agents, rewarding = env, None, None
    if action_space is None:
        observation_space, action_space = spaces_of(env)
        agents, rewarding = agents_of(env), env
    described: list[tuple[str, dict[str, Any]]] = [
        *_described(arrays_of(observation_space, names.obs)),
        *_described(arrays_of(action_space, names.act)),
        *_described(rewards_of(rewarding, reward_space, names.rew)),
        *_described(arrays_of(observation_space, names.next_obs)),
    ]
    bools = {"shape": (1,), "dtype": np.dtype(np.bool_)}
    for flag in (names.terminated, names.truncated):
        if flag is not None:
            fields = [flag] if agents is None else [f"{flag}.{agent}" for agent in agents]
            described += [(field, dict(bools)) for field in fields]
    fields = [field for field, _ in described]
    twice = sorted({field for field in fields if fields.count(field) > 1})
    if twice:
        raise ValueError(f"cannot make a schema: two fields would be named {twice[0]!r}")
    return dict(described)


def _described(arrays: list[SpaceArray]) -> Iterator[tuple[str, dict[str, Any]]]:
    for array in arrays:
        dtype = {} if array.kind == NUMBER else {"dtype": array.dtype}
        yield array.field, {"shape": array.shape or (1,), **dtype}


def spaces_of(env: Any) -> tuple[Any, Any]:
    """Return the observation and action space of an environment, or of each in a vector of them.

    For agents, mappings of the agents to their spaces.

    Raises
    ------
    TypeError
        If it has none, or agents that act one after another.
    """
    agents = agents_of(env)
    if agents is not None:
        return (
            {agent: env.observation_space(agent) for agent in agents},
            {agent: env.action_space(agent) for agent in agents},
        )
    for prefix in ("single_", ""):
        spaces = [getattr(env, f"{prefix}{kind}_space", None) for kind in ("observation", "action")]
        if None not in spaces:
            return spaces[0], spaces[1]
    raise TypeError(
        f"cannot find the spaces of {env!r}: expected an environment with observation_space and "
        "action_space, a vector environment with single_observation_space and "
        "single_action_space, or an observation space and an action space"
    )


def agents_of(env: Any) -> list[str] | None:
    """Return the agents of a parallel environment of PettingZoo; None for any other.

    Raises
    ------
    TypeError
        If its agents act one after another.
    """
    agents = getattr(env, "possible_agents", None)
    if agents is None or not callable(getattr(env, "observation_space", None)):
        return None
    if hasattr(env, "agent_iter"):
        raise TypeError(
            f"cannot make fields of {env!r}, whose agents act one after another: expected a "
            "parallel environment, such as pettingzoo.utils.aec_to_parallel() makes"
        )
    return list(agents)


def rewards_of(env: Any, reward_space: Any, name: str) -> list[SpaceArray]:
    """List the arrays of an environment's rewards, as arrays_of() does.

    Parameters
    ----------
    env : environment or None
        Its own attribute ``reward_space`` counts if there is no `reward_space`.
    reward_space : space, mapping of agents to spaces, or None
        As for schema_from().
    name : str
        Their field, or its prefix.
    """
    agents = agents_of(env)
    space = getattr(env, "reward_space", None) if reward_space is None else reward_space
    if space is None:
        paths: list[tuple[str, ...]] = [()] if agents is None else [(agent,) for agent in agents]
        number = np.dtype(np.float64)
        return [SpaceArray(".".join((name, *path)), path, (), number, NUMBER) for path in paths]
    if agents is not None and type(space) is not dict:
        of_agent = space if callable(space) else lambda _: space
        space = {agent: of_agent(agent) for agent in agents}
    return arrays_of(space, name)


def arrays_of(space: Any, name: str) -> list[SpaceArray]:
    """List the arrays inside the elements of `space`, whose fields begin with `name`.

    Raises
    ------
    TypeError
        If it is or contains an unsupported space.
    ValueError
        If there is none, one has no elements, or two would have the same field.
    """
    if not isinstance(name, str) or not name:
        raise TypeError(f"a field's name must be a non-empty str, got {name!r}")
    arrays = list(_walk(space, name, ()))
    fields = [array.field for array in arrays]
    if not fields:
        raise ValueError(f"cannot make fields of {name!r}: {space!r} contains no arrays")
    for field in fields:
        if fields.count(field) > 1:
            raise ValueError(f"cannot make fields of {name!r}: two would be named {field!r}")
    return arrays


def _walk(space: Any, field: str, path: tuple[str | int, ...]) -> Iterator[SpaceArray]:
    kind = _kind(space, field)
    if kind in _OF_ONE_ARRAY:
        shape = tuple(int(extent) for extent in space.shape)
        if 0 in shape:
            raise ValueError(f"cannot make a field of {field!r}: {space!r} has no elements")
        yield SpaceArray(field, path, shape, np.dtype(space.dtype), kind)
        return
    for key, inner in _inner_spaces(space, kind, field):
        yield from _walk(inner, f"{field}.{key}", (*path, key))


def _inner_spaces(space: Any, kind: str, field: str) -> list[tuple[str | int, Any]]:
    if kind == "Tuple":
        return list(enumerate(space.spaces))
    inner = space if type(space) is dict else space.spaces
    for key in inner:
        if not isinstance(key, str):
            raise TypeError(
                f"cannot make fields of {field!r}: a key of {space!r} must be a str, got {key!r}"
            )
    return list(inner.items())


def _kind(space: Any, field: str) -> str:
    """Return the kind of a supported space, by its classes' names: needs no gymnasium.

    A dict of spaces counts as a Dict.
    """
    if type(space) is dict:
        return "Dict"
    for base in type(space).__mro__:
        if base.__name__ in _SUPPORTED and hasattr(space, "sample"):
            return base.__name__
    raise TypeError(
        f"cannot make fields of {field!r}: expected a space of type {', '.join(_SUPPORTED)}, "
        f"got {space!r}"
    )


def to_fields(space: Any, value: Any, name: str = "obs") -> dict[str, npt.NDArray[Any]]:
    """Split an observation or action into fields, for ``add(**fields)``.

    Parameters
    ----------
    space : space, or dict of str to space
        Of a single environment; of each agent.
    value : nested dicts, tuples and arrays
        An element of `space`, or a batch of elements as a vector environment returns it: dicts and
        tuples of batched arrays.
    name : str, optional
        Prefix of the fields, as in schema_from().

    Returns
    -------
    dict of str to numpy.ndarray
        The arrays of `value`, not copied.

    Raises
    ------
    TypeError, ValueError
        As schema_from() does.
    KeyError, IndexError
        If a part of `value` is missing.
    """
    return {each.field: np.asarray(each.inside(value)) for each in arrays_of(space, name)}


def from_fields(space: Any, fields: Mapping[str, Any], name: str = "obs") -> Any:
    """Join fields of a sampled batch, nested as `space` is.

    Parameters
    ----------
    space : space, or dict of str to space
        Of a single environment; of each agent.
    fields : mapping of str to array or torch.Tensor
        What sample() returned; it may have other fields too.
    name : str, optional
        Prefix of the fields: ``"obs"``, ``"next_obs"`` or ``"act"`` of schema_from().

    Returns
    -------
    nested dicts, tuples and arrays
        Batched as a vector environment's: arrays of shape ``(batch_size, *space.shape)``, so that
        scalars have shape ``(batch_size,)``. They share the memory of `fields`.

    Raises
    ------
    TypeError
        If `space` is or contains an unsupported space.
    KeyError
        If `fields` lacks one.
    """
    kind = _kind(space, name)
    if kind in _OF_ONE_ARRAY:
        if name not in fields:
            raise KeyError(f"cannot join a batch: no field {name!r} among {list(fields)}")
        values = fields[name]
        return values.reshape((len(values), *space.shape))
    parts = {
        key: from_fields(inner, fields, f"{name}.{key}")
        for key, inner in _inner_spaces(space, kind, name)
    }
    return tuple(parts.values()) if kind == "Tuple" else parts
