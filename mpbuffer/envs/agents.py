"""Transitions from the values that parallel environments of many agents return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpbuffer.envs.spaces import (
    SpaceArray,
    TransitionNames,
    agents_of,
    arrays_of,
    rewards_of,
    schema_from,
    spaces_of,
)

__all__ = ["AgentTransitions"]

Fields = dict[str, npt.NDArray[Any]]


class AgentTransitions:
    """Makes transitions of the values that a parallel environment of PettingZoo returns.

    Agents may leave and come while others go on, but a buffer's row has the fields of all. Where an
    agent has no part in a step, because it was not observed before or did not act, its
    observations, action and reward are 0, and its terminated is true: nothing follows for it.

    For one thread. Keeps a copy of the last observations.

    Parameters
    ----------
    env : pettingzoo.ParallelEnv
        Only its agents and their spaces are read.
    reward_space, obs, act, rew, next_obs, terminated, truncated : optional
        As for schema_from(), whose fields the rows have.

    Raises
    ------
    TypeError, ValueError
        As schema_from() does. TypeError if `env` is no parallel environment.

    Examples
    --------
    >>> import mpbuffer
    >>> from pettingzoo.classic import rps_v2
    >>> env = rps_v2.parallel_env(max_cycles=5)
    >>> transitions = mpbuffer.AgentTransitions(env)
    >>> buffer = mpbuffer.ReplayBuffer(1_000, mpbuffer.schema_from(env))
    >>> transitions.reset(env.reset(seed=1)[0])
    >>> while env.agents:
    ...     actions = {agent: env.action_space(agent).sample() for agent in env.agents}
    ...     _ = buffer.add(**transitions.step(actions, *env.step(actions)))
    >>> len(buffer), sorted(buffer.sample(2))[:3]
    (5, ['act.player_0', 'act.player_1', 'next_obs.player_0'])
    >>> buffer.close()
    """

    def __init__(
        self,
        env: Any,
        *,
        reward_space: Any = None,
        obs: str = "obs",
        act: str = "act",
        rew: str = "rew",
        next_obs: str = "next_obs",
        terminated: str | None = "terminated",
        truncated: str | None = "truncated",
    ) -> None:
        agents = agents_of(env)
        if agents is None:
            raise TypeError(f"expected a parallel environment with possible_agents, got {env!r}")
        names = TransitionNames(obs, act, rew, next_obs, terminated, truncated)
        schema_from(env, reward_space=reward_space, **names._asdict())  # refuses what it cannot be
        observation_spaces, action_spaces = spaces_of(env)
        self._names = names
        self._agents = agents
        self._obs = arrays_of(observation_spaces, obs)
        self._next_obs = arrays_of(observation_spaces, next_obs)
        self._act = arrays_of(action_spaces, act)
        self._rew = rewards_of(env, reward_space, rew)
        self._last: Observed | None = None

    def reset(self, observations: Mapping[str, Any]) -> None:
        """Take the first observations of an episode, which ``env.reset()`` returned.

        Parameters
        ----------
        observations : mapping of str to observation
            Of the agents that are there. They are copied.

        Raises
        ------
        ValueError, KeyError
            If there is another agent, or a part of an observation is missing.
        """
        self._last = self._observed(observations)

    def step(
        self,
        actions: Mapping[str, Any],
        observations: Mapping[str, Any],
        rewards: Mapping[str, Any],
        terminated: Mapping[str, Any],
        truncated: Mapping[str, Any],
        infos: Any = None,
    ) -> Fields:
        """Take the values that ``env.step(actions)`` returned; return the transition.

        Parameters
        ----------
        actions : mapping of str to action
            The actions given to the environment.
        observations, rewards, terminated, truncated : mapping
            The values returned: of each agent that acted, and of agents that have come.
        infos : optional
            Not needed: ``step(actions, *env.step(actions))``.

        Returns
        -------
        dict of str to numpy.ndarray
            One row, for ``add(**fields)``.

        Raises
        ------
        ValueError
            If there was no reset(), no agent has a part in the step, there is another agent, or one
            that acted is missing in a mapping. Then nothing was taken.
        KeyError
            If a part of an observation or action is missing.
        """
        if self._last is None:
            raise ValueError("cannot take a step: call reset() with the first observations before")
        last, came = self._last, self._observed(observations)
        part = [agent for agent in self._agents if agent in actions and agent in last.agents]
        if not part:
            raise ValueError(
                f"cannot take a step: no agent that was observed has acted; actions are of "
                f"{list(actions)}, the last observations of {sorted(last.agents)}"
            )
        for name, given in (
            ("observations", observations),
            ("rewards", rewards),
            ("terminated", terminated),
            ("truncated", truncated),
        ):
            missing = [agent for agent in part if agent not in given]
            if missing:
                raise ValueError(f"cannot take a step: {name} lack {missing}, which acted")

        def filled(array: SpaceArray, values: Any) -> npt.NDArray[Any]:
            if array.path[0] in part:
                return np.asarray(array.inside(values))
            return np.zeros(array.shape, array.dtype)

        fields = {array.field: filled(array, actions) for array in self._act}
        fields |= {array.field: filled(array, rewards) for array in self._rew}
        for before, after in zip(self._obs, self._next_obs, strict=True):
            there = before.path[0] in part
            empty = np.zeros(before.shape, before.dtype)
            fields[before.field] = last.arrays[before.field] if there else empty
            fields[after.field] = came.arrays[before.field] if there else empty
        for agent in self._agents:
            if self._names.terminated is not None:
                over = bool(terminated[agent]) if agent in part else True
                fields[f"{self._names.terminated}.{agent}"] = np.asarray(over)
            if self._names.truncated is not None:
                over = bool(truncated[agent]) if agent in part else False
                fields[f"{self._names.truncated}.{agent}"] = np.asarray(over)
        self._last = came
        return fields

    def _observed(self, observations: Mapping[str, Any]) -> Observed:
        unknown = [agent for agent in observations if agent not in self._agents]
        if unknown:
            raise ValueError(
                f"cannot take observations of {unknown}: possible_agents are {self._agents}"
            )
        arrays = {
            array.field: np.array(array.inside(observations))
            for array in self._obs
            if array.path[0] in observations
        }
        return Observed(set(observations), arrays)


class Observed(NamedTuple):
    """Which agents were observed, and their arrays by field."""

    agents: set[str]
    arrays: Fields
