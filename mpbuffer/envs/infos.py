"""Infos of vector environments, and the last observations of episodes in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Infos", "checked_infos", "final_of"]

Infos = Mapping[str, Any] | Sequence[Mapping[str, Any]]

# Keys of the true next observation where an environment was reset in the same step: in gymnasium 1,
# in its earlier versions, in Stable-Baselines3 and early gym.
_FINAL = ("final_obs", "final_observation", "terminal_observation")


def checked_infos(infos: Any, count: int) -> Infos:
    """Return the infos; TypeError or ValueError unless they are those of `count` environments."""
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


def final_of(infos: Infos, env: int) -> tuple[str, Any] | None:
    """Return the last observation of an environment's episode, with its key; None if missing.

    In gymnasium's infos, "_key" has flags: where "key" has a value. Nested observations may be one
    array of observations, or nested arrays of all.
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
