"""What vector environments return, made into transitions that happened."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mpbuffer import _core
from mpbuffer.envs.spaces import TransitionNames, arrays_of, schema_from, spaces_of

__all__ = ["TransitionRows", "VectorTransitions"]

_NEXT_STEP, _SAME_STEP, _DISABLED = "NextStep", "SameStep", "Disabled"
# Where an environment that was reset in the same step says what it led to: in gymnasium 1, in its
# earlier versions, in Stable-Baselines3 and early gym.
_FINAL = ("final_obs", "final_observation", "terminal_observation")

Indexes = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]
Infos = Mapping[str, Any] | Sequence[Mapping[str, Any]]


class TransitionRows(dict[str, npt.NDArray[Any]]):
    """Fields of the transitions of one step, for ``add(**rows)``; there may be no rows at all.

    Attributes
    ----------
    envs : numpy.ndarray of intp, shape (rows,)
        The environment that each row comes from, ascending.
    ended : numpy.ndarray of intp
        The environments whose episode ended by this step, each with its last row among these.
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
    """Tells which transitions happened in a vector environment, from what it returns.

    A vector environment resets by itself, and what it then returns mixes two episodes. By its
    autoreset mode (gymnasium 1.1 and later; 1.0 and EnvPool have the first one, earlier versions
    and a VecEnv of Stable-Baselines3 the second one):

    - next step: the step after the last one of an episode is no step: its action is ignored, its
      reward is 0, and its observation is the first one of the next episode. It gives no row.
    - same step: the last step of an episode returns the first observation of the next one. The true
      next observation is taken from ``infos["final_obs"]``, ``"final_observation"`` or
      ``"terminal_observation"``. gymnasium does not copy it: an environment that writes all its
      observations into one array has lost it by then.
    - disabled: the caller resets by ``options={"reset_mask": ...}``, and tells so by reset().

    For one thread. Keeps a copy of the last observations.

    Parameters
    ----------
    envs : gymnasium.vector.VectorEnv, EnvPool's, or a VecEnv of Stable-Baselines3
        Also with wrappers. It is asked for its spaces and its mode, and is not stepped. A wrapper
        that changes observations must change ``infos["final_obs"]`` too.
    autoreset : str or gymnasium.vector.AutoresetMode, optional
        ``"NextStep"``, ``"SameStep"`` or ``"Disabled"``. Default: what
        ``metadata["autoreset_mode"]`` of `envs`, or of what it wraps, says; else the mode of its
        package, as above. Needed for all others.
    obs, act, rew, next_obs, terminated, truncated : str, optional
        Names of fields, as in schema_from().

    Raises
    ------
    TypeError, ValueError
        As schema_from() does, or if the autoreset mode is none of the three or cannot be told.

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
        told = _told_mode(envs) if autoreset is None else autoreset
        self._assumed = told is None
        self._mode = _named(_mode_of_package(envs) if told is None else told)
        self._resets_twice = self._mode == _NEXT_STEP and _resets_twice(envs)
        count = getattr(envs, "num_envs", None)
        self._count: int | None = None if count is None else int(count)
        self._last: list[npt.NDArray[Any]] | None = None
        self._every: Indexes = np.arange(0)
        self._none: Flags = np.zeros(0, np.bool_)  # and where it stands below, no environment is
        self._over = self._none  # whose episode has ended, and that was not reset
        self._at_start = self._none  # that was reset, and not stepped

    def reset(self, observations: Any, reset_mask: npt.ArrayLike | None = None) -> Indexes:
        """Take what ``envs.reset()`` returned: the first observations of new episodes.

        Parameters
        ----------
        observations : nested dicts, tuples and arrays
            Of all environments; copied.
        reset_mask : array_like of bool, shape (environments,), optional
            The one that was in the options of ``envs.reset()``: which environments were reset. All
            if not given.

        Returns
        -------
        numpy.ndarray of intp
            The environments whose episode was cut off: it had begun and not ended.

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
        """Take what ``envs.step(actions)`` returned; return the transitions that happened.

        A VecEnv of Stable-Baselines3 returns four things: observations, rewards, dones and infos.
        ``step(actions, *envs.step(actions))`` takes them too. An episode that ended was truncated
        if its info says ``"TimeLimit.truncated"``, else terminated.

        Parameters
        ----------
        actions : nested dicts, tuples and arrays
            What the environments were given.
        observations, rewards, terminated, truncated
            What they returned, of all environments.
        infos : mapping or sequence of mappings
            The same: one of arrays, or one for each environment.

        Returns
        -------
        TransitionRows
            To be added before the next step: arrays may share memory with what was given.
            Observations are read-only.

        Raises
        ------
        ValueError
            If there was no reset() yet; if an array has another shape; if `infos` has no final
            observation where there must be one, or has one in an environment that did not say its
            mode; if an observation or a flag is what its dtype cannot represent; if an environment
            was stepped whose episode had ended and that was not reset. Then nothing was taken: go
            on by a reset() of all environments.
        TypeError
            If `infos` is neither.
        """
        last, count, names = self._last, self._count, self._names
        if last is None or count is None:
            raise ValueError("cannot take a step: reset() was not told the first observations")
        came = self._copies(observations)
        reward = _of_each("rewards", rewards, count)
        if infos is None:
            infos = _checked_infos(truncated, count)
            dones = _flags("dones", terminated, count)
            truncations = dones & _time_limits(infos, count)
            terminations = dones & ~truncations
        else:
            infos = _checked_infos(infos, count)
            terminations = _flags("terminated", terminated, count)
            truncations = _flags("truncated", truncated, count)
        acted = [_of_each(each.field, each.inside(actions), count) for each in self._act]
        not_stepped = self._over
        if self._mode == _DISABLED and not_stepped is not self._none:
            raise ValueError(
                f"cannot take a step of environments {np.flatnonzero(not_stepped).tolist()}: their "
                "episodes have ended and autoreset is disabled; expected envs.reset(options="
                "{'reset_mask': ...}), and reset() to be told"
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
            if self._mode == _SAME_STEP:
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
        """Return the observations that the step led to, where an episode ended by it."""
        finals = [_final_of(infos, int(env)) for env in ended]
        if self._mode != _SAME_STEP:
            found = next((key for key, _ in filter(None, finals)), None)
            if self._assumed and found is not None:
                raise ValueError(
                    f"cannot take a step: its infos have {found!r}, but the environments' "
                    "metadata do not tell their autoreset mode; expected autoreset='SameStep', or "
                    "'NextStep' if they do not reset in the step that ends an episode"
                )
            return came
        missing = [int(env) for env, final in zip(ended, finals, strict=True) if final is None]
        if missing:
            raise ValueError(
                f"cannot take a step: the episodes of environments {missing} have ended, and "
                "infos['final_obs'] does not have their last observations"
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


def _checked_infos(infos: Any, count: int) -> Infos:
    if isinstance(infos, Mapping):
        return infos
    if (
        not isinstance(infos, Sequence)
        or isinstance(infos, str)
        or not all(isinstance(info, Mapping) for info in infos)
    ):
        raise TypeError(
            "cannot take a step: infos must be a mapping, or a list of one for each environment, "
            f"got {type(infos).__name__}; expected what envs.step() returned, in its order"
        )
    if len(infos) != count:
        raise ValueError(
            f"cannot take a step: infos has {len(infos)} mappings, expected one for each of "
            f"{count} environments"
        )
    return infos


def _time_limits(infos: Infos, count: int) -> Flags:
    """Return which episodes were cut off by a time limit, as environments with one flag say."""
    key = "TimeLimit.truncated"
    if isinstance(infos, Mapping):
        return _flags(key, infos.get(key, np.zeros(count, np.bool_)), count)
    return _flags(key, [bool(info.get(key, False)) for info in infos], count)


def _final_of(infos: Infos, env: int) -> tuple[str, Any] | None:
    """Return the observation that ended an environment's episode, and its key; None if not there.

    Of gymnasium's infos, "_key" tells where "key" has a value. Of nested observations it may be
    one array of observations, or nested arrays of all.
    """
    for key in _FINAL:
        if not isinstance(infos, Mapping):
            value = infos[env].get(key)
        elif key not in infos or not infos.get(f"_{key}", {env: True})[env]:
            continue
        else:
            value = _of_environment(infos[key], env)
        if value is not None:
            return key, value
    return None


def _of_environment(batch: Any, env: int) -> Any:
    if isinstance(batch, Mapping):
        return {key: _of_environment(part, env) for key, part in batch.items()}
    return batch[env]


def _layers(envs: Any) -> Iterator[Any]:
    """Yield vector environments, then what it wraps, and so on."""
    seen: list[Any] = []
    while envs is not None and not any(envs is each for each in seen):
        seen.append(envs)
        yield envs
        inside = vars(envs) if hasattr(envs, "__dict__") else {}
        envs = inside.get("env", inside.get("venv"))


def _comes_from(envs: Any, package: str) -> bool:
    return any(base.__module__.partition(".")[0] == package for base in type(envs).__mro__)


def _told_mode(envs: Any) -> Any:
    """Return the autoreset mode that vector environments say that they have; None if none."""
    if any(_comes_from(layer, "stable_baselines3") for layer in _layers(envs)):
        return None  # its metadata are those of a single environment
    for layer in _layers(envs):
        told = (getattr(layer, "metadata", None) or {}).get("autoreset_mode")
        if told is not None:
            return told
    return None


def _mode_of_package(envs: Any) -> str:
    """Return the autoreset mode of packages that have one only.

    Raises
    ------
    ValueError
        If it comes from another.
    """
    for layer in _layers(envs):
        if _comes_from(layer, "stable_baselines3") or _comes_from(layer, "gym"):
            return _SAME_STEP
        if _comes_from(layer, "envpool"):
            return _NEXT_STEP
        if _comes_from(layer, "gymnasium"):
            version = str(getattr(sys.modules.get("gymnasium"), "__version__", ""))
            if version.startswith("0."):
                return _SAME_STEP
            if version.startswith("1.0."):
                return _NEXT_STEP
    raise ValueError(
        f"cannot tell when {type(envs).__name__} resets an environment whose episode has ended: "
        "its metadata have no 'autoreset_mode'; expected autoreset='SameStep' if in the step that "
        "ends it, 'NextStep' if in the step after that, whose action is ignored, or 'Disabled' if "
        "never"
    )


def _named(mode: Any) -> str:
    """Return the name of an autoreset mode: of gymnasium's AutoresetMode, or given as such."""
    name = getattr(mode, "value", mode)
    if name not in (_NEXT_STEP, _SAME_STEP, _DISABLED):
        raise ValueError(
            f"autoreset must be {_NEXT_STEP!r}, {_SAME_STEP!r} or {_DISABLED!r}, got {mode!r}"
        )
    return str(name)


def _resets_twice(envs: Any) -> bool:
    """Tell whether an environment whose episode has ended is reset by reset() and by step() again.

    gymnasium's AsyncVectorEnv (1.0 to 1.4) does so without shared memory.
    """
    return getattr(getattr(envs, "unwrapped", envs), "shared_memory", None) is False


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
