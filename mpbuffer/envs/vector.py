"""Transitions from the values that vector environments return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mpbuffer import _core
from mpbuffer.envs import autoreset as modes
from mpbuffer.envs.infos import Infos, checked_infos, final_of
from mpbuffer.envs.spaces import TransitionNames, arrays_of, schema_from, spaces_of

__all__ = ["TransitionRows", "VectorTransitions"]

Indexes = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]


class TransitionRows(dict[str, npt.NDArray[Any]]):
    """Fields of the transitions of one step, for ``add(**rows)``. There may be no rows.

    Attributes
    ----------
    envs : numpy.ndarray of intp, shape (rows,)
        The environment that each row comes from, ascending.
    ended : numpy.ndarray of intp
        The environments whose episode ended with this step; their last rows are among these.
    """

    envs: Indexes
    ended: Indexes

    def __init__(
        self, fields: Mapping[str, npt.NDArray[Any]], envs: Indexes, ended: Indexes
    ) -> None:
        super().__init__(fields)
        self.envs = envs
        self.ended = ended


class VectorTransitions:
    """Makes transitions of the values that a vector environment returns.

    A vector environment resets its environments itself. What it returns then mixes two episodes,
    depending on its autoreset mode (gymnasium 1.1 and later; gymnasium 1.0 and EnvPool have the
    first one, earlier versions and a VecEnv of Stable-Baselines3 the second one):

    - next step: the step after the last one of an episode is a reset: its action is ignored, its
      reward is 0, and its observation is the first one of the next episode. It makes no row.
    - same step: the last step of an episode returns the first observation of the next one. The true
      next observation is taken from ``infos["final_obs"]``, ``"final_observation"`` or
      ``"terminal_observation"``. gymnasium does not copy it: it is lost if an environment writes
      all its observations into one array.
    - disabled: the caller resets by ``options={"reset_mask": ...}`` and then calls reset() here.

    For one thread. Keeps a copy of the last observations.

    Parameters
    ----------
    envs : gymnasium.vector.VectorEnv, EnvPool's, or a VecEnv of Stable-Baselines3
        With or without wrappers. Only its spaces and its mode are read. A wrapper that changes
        observations must change ``infos["final_obs"]`` too.
    autoreset : str or gymnasium.vector.AutoresetMode, optional
        ``"NextStep"``, ``"SameStep"`` or ``"Disabled"``. Default: ``metadata["autoreset_mode"]``
        of `envs` or of what it wraps; else the mode of its package, as above. Required for other
        packages.
    obs, act, rew, next_obs, terminated, truncated : str, optional
        Names of fields, as in schema_from().

    Raises
    ------
    TypeError, ValueError
        As schema_from() does; or if the autoreset mode is none of the three, or unknown.

    Examples
    --------
    >>> import gymnasium, mpbuffer
    >>> envs = gymnasium.make_vec("CartPole-v1", num_envs=3, vectorization_mode="sync")
    >>> buffer = mpbuffer.ReplayBuffer(1_000, mpbuffer.schema_from(envs))
    >>> transitions = VectorTransitions(envs)
    >>> observations, _ = envs.reset(seed=1)
    >>> _ = transitions.reset(observations)
    >>> for _ in range(100):
    ...     actions = envs.action_space.sample()  # or what a policy says to the observations
    ...     observations, *others = envs.step(actions)
    ...     rows = transitions.step(actions, observations, *others)
    ...     _ = buffer.add(**rows)
    >>> buffer.sample(32)["next_obs"].shape
    (32, 4)
    >>> buffer.close()
    >>> envs.close()
    """

    def __init__(
        self,
        envs: Any,
        *,
        autoreset: Any = None,
        obs: str = "obs",
        act: str = "act",
        rew: str = "rew",
        next_obs: str = "next_obs",
        terminated: str | None = "terminated",
        truncated: str | None = "truncated",
    ) -> None:
        self._names = TransitionNames(obs, act, rew, next_obs, terminated, truncated)
        schema_from(envs, **self._names._asdict())  # refuses what cannot be a buffer's
        observation_space, action_space = spaces_of(envs)
        self._obs = arrays_of(observation_space, obs)
        self._next_obs = arrays_of(observation_space, next_obs)
        self._act = arrays_of(action_space, act)
        told = modes.told_mode(envs) if autoreset is None else autoreset
        self._assumed = told is None
        self._mode = modes.mode_name(modes.mode_of_package(envs) if told is None else told)
        self._resets_twice = self._mode == modes.NEXT_STEP and modes.resets_twice(envs)
        count = getattr(envs, "num_envs", None)
        self._count: int | None = None if count is None else int(count)
        self._last: list[npt.NDArray[Any]] | None = None
        self._every: Indexes = np.arange(0)
        self._none: Flags = np.zeros(0, np.bool_)  # no environment; compared by identity below
        self._over = self._none  # whose episode has ended and that were not reset
        self._at_start = self._none  # that were reset and not stepped

    def reset(self, observations: Any, reset_mask: npt.ArrayLike | None = None) -> Indexes:
        """Take the first observations of new episodes, which ``envs.reset()`` returned.

        Parameters
        ----------
        observations : nested dicts, tuples and arrays
            Of all environments. They are copied.
        reset_mask : array_like of bool, shape (environments,), optional
            The mask in the options of ``envs.reset()``: which environments were reset. Default:
            all.

        Returns
        -------
        numpy.ndarray of intp
            The environments whose running episode was cut off.

        Raises
        ------
        ValueError
            If `observations` or `reset_mask` has another shape, or some environments never had a
            first observation.
        """
        first = self._copies(observations)
        count = len(first[0])
        if reset_mask is None:
            mask = np.ones(count, np.bool_)
        else:
            mask = _flags("reset_mask", reset_mask, count)
        if self._last is None:
            if not mask.all():
                raise ValueError(
                    "cannot take a reset of some environments: the others have no observation yet; "
                    "reset all of them first"
                )
            self._every, self._none = _read_only(np.arange(count)), np.zeros(count, np.bool_)
            self._over, self._at_start = self._none, ~self._none
        else:
            for index, last in enumerate(self._last):
                merged = last.copy()
                merged[mask] = first[index][mask]
                first[index] = _read_only(merged)
        cut = np.flatnonzero(mask & ~self._over & ~self._at_start)
        self._count = count
        self._last = first
        self._at_start = self._at_start | mask
        if not self._resets_twice:
            self._over = self._over & ~mask if np.any(self._over & ~mask) else self._none
        return cut

    def step(
        self,
        actions: Any,
        observations: Any,
        rewards: npt.ArrayLike,
        terminated: npt.ArrayLike,
        truncated: Any,
        infos: Any = None,
    ) -> TransitionRows:
        """Take the values that ``envs.step(actions)`` returned; return the transitions.

        A VecEnv of Stable-Baselines3 returns four values: observations, rewards, dones and infos.
        ``step(actions, *envs.step(actions))`` takes them too. An episode that ended was truncated
        if its info has ``"TimeLimit.truncated"``, else terminated.

        Parameters
        ----------
        actions : nested dicts, tuples and arrays
            The actions given to the environments.
        observations, rewards, terminated, truncated
            The values returned, for all environments.
        infos : mapping or sequence of mappings
            The infos returned: one mapping of arrays, or one mapping for each environment.

        Returns
        -------
        TransitionRows
            Add them before the next step: arrays may share memory with the arguments. Observations
            are read-only.

        Raises
        ------
        ValueError
            If there was no reset() yet; if an array has another shape; if `infos` lacks a final
            observation, or has one though the environment's mode was only assumed; if a dtype
            cannot represent an observation or a flag; if an environment was stepped whose episode
            has ended and that was not reset. Then nothing was taken: go on with a reset() of all
            environments.
        TypeError
            If `infos` is neither.
        """
        last, count, names = self._last, self._count, self._names
        if last is None or count is None:
            raise ValueError("cannot take a step: call reset() with the first observations before")
        came = self._copies(observations)
        reward = _of_each("rewards", rewards, count)
        if infos is None:
            infos = checked_infos(truncated, count)
            dones = _flags("dones", terminated, count)
            truncations = dones & _time_limits(infos, count)
            terminations = dones & ~truncations
        else:
            infos = checked_infos(infos, count)
            terminations = _flags("terminated", terminated, count)
            truncations = _flags("truncated", truncated, count)
        acted = [_of_each(each.field, each.inside(actions), count) for each in self._act]
        not_stepped = self._over
        if self._mode == modes.DISABLED and not_stepped is not self._none:
            raise ValueError(
                f"cannot take a step of environments {np.flatnonzero(not_stepped).tolist()}: their "
                "episodes have ended and autoreset is disabled; call envs.reset(options="
                "{'reset_mask': ...}) and then reset()"
            )
        over, ended = terminations | truncations, self._every[:0]
        if np.count_nonzero(over):
            over &= ~not_stepped
            ended = np.flatnonzero(over)
        followed = self._true_next(came, ended, infos) if len(ended) else came

        columns: dict[str, npt.NDArray[Any]] = {}
        for array, values in zip(self._obs, last, strict=True):
            columns[array.field] = values
        for array, values in zip(self._act, acted, strict=True):
            columns[array.field] = values
        columns[names.rew] = reward
        for array, values in zip(self._next_obs, followed, strict=True):
            columns[array.field] = values
        if names.terminated is not None:
            columns[names.terminated] = terminations
        if names.truncated is not None:
            columns[names.truncated] = truncations
        envs = self._every
        if not_stepped is not self._none:
            envs = np.flatnonzero(~not_stepped)
            columns = {name: values[envs] for name, values in columns.items()}

        self._last = came
        self._over = self._none
        self._at_start = not_stepped
        if len(ended):
            if self._mode == modes.SAME_STEP:
                self._at_start = over
            else:
                self._over = over
        return TransitionRows(columns, envs, ended)

    def _copies(self, observations: Any) -> list[npt.NDArray[Any]]:
        """Return read-only copies of the arrays in `observations`, one row per environment."""
        copies = []
        count = self._count
        for array in self._obs:
            values = np.array(array.inside(observations))
            if count is None and values.ndim > 0:
                count = len(values)
            if values.shape != (count, *array.shape):
                raise ValueError(
                    f"cannot take observations: {array.field!r} must have shape "
                    f"{(count or 'environments', *array.shape)}, got {values.shape}"
                )
            copies.append(_read_only(values))
        return copies

    def _true_next(
        self, came: list[npt.NDArray[Any]], ended: Indexes, infos: Infos
    ) -> list[npt.NDArray[Any]]:
        """Return the observations that the step led to; an episode ended with it."""
        finals = [final_of(infos, int(env)) for env in ended]
        if self._mode != modes.SAME_STEP:
            found = next((key for key, _ in filter(None, finals)), None)
            if self._assumed and found is not None:
                raise ValueError(
                    f"cannot take a step: its infos have {found!r}, but the environments' "
                    "metadata do not have their autoreset mode; expected autoreset='SameStep', or "
                    "'NextStep' if they do not reset in the step that ends an episode"
                )
            return came
        missing = [int(env) for env, final in zip(ended, finals, strict=True) if final is None]
        if missing:
            raise ValueError(
                f"cannot take a step: the episodes of environments {missing} have ended, but "
                "infos['final_obs'] lacks their last observations"
            )
        followed = [values.copy() for values in came]
        for env, (key, final) in zip(ended, filter(None, finals), strict=True):
            for array, values in zip(self._obs, followed, strict=True):
                what = f"cannot take a step: {array.field!r} of infos[{key!r}][{env}]"
                one = _core.converted(what, array.inside(final), values.dtype)
                if one.shape != array.shape:
                    raise ValueError(f"{what} must have shape {array.shape}, got {one.shape}")
                values[env] = one
        return [_read_only(values) for values in followed]


def _time_limits(infos: Infos, count: int) -> Flags:
    """Return which episodes a time limit cut off, in environments that have one flag."""
    key = "TimeLimit.truncated"
    if isinstance(infos, Mapping):
        return _flags(key, infos.get(key, np.zeros(count, np.bool_)), count)
    return _flags(key, [bool(info.get(key, False)) for info in infos], count)


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.setflags(write=False)
    return array


def _of_each(name: str, given: Any, count: int) -> npt.NDArray[Any]:
    values = np.asarray(given)
    if values.shape[:1] != (count,):
        raise ValueError(
            f"cannot take a step: {name!r} must have a row for each of {count} environments, "
            f"got shape {values.shape}"
        )
    return values


def _flags(name: str, values: npt.ArrayLike, count: int) -> Flags:
    flags = _core.converted(name, values, np.dtype(np.bool_))
    if flags.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), got {flags.shape}")
    return flags
