"""When vector environments reset an environment whose episode has ended."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

NEXT_STEP, SAME_STEP, DISABLED = "NextStep", "SameStep", "Disabled"


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


def told_mode(envs: Any) -> Any:
    """Return the autoreset mode in the environments' metadata; None if there is none."""
    if any(_comes_from(layer, "stable_baselines3") for layer in _layers(envs)):
        return None  # its metadata are those of a single environment
    for layer in _layers(envs):
        told = (getattr(layer, "metadata", None) or {}).get("autoreset_mode")
        if told is not None:
            return told
    return None


def mode_of_package(envs: Any) -> str:
    """Return the autoreset mode of a package that has only one.

    Raises
    ------
    ValueError
        If the environments are of another package.
    """
    for layer in _layers(envs):
        if _comes_from(layer, "stable_baselines3") or _comes_from(layer, "gym"):
            return SAME_STEP
        if _comes_from(layer, "envpool"):
            return NEXT_STEP
        if _comes_from(layer, "gymnasium"):
            version = str(getattr(sys.modules.get("gymnasium"), "__version__", ""))
            if version.startswith("0."):
                return SAME_STEP
            if version.startswith("1.0."):
                return NEXT_STEP
    raise ValueError(
        f"cannot tell when {type(envs).__name__} resets an environment whose episode has ended: "
        "its metadata have no 'autoreset_mode'; expected autoreset='SameStep' if it resets in the "
        "step that ends the episode, 'NextStep' if in the step after, whose action is ignored, or "
        "'Disabled' if never"
    )


def mode_name(mode: Any) -> str:
    """Return an autoreset mode's name: of gymnasium's AutoresetMode, or a str."""
    name = getattr(mode, "value", mode)
    if name not in (NEXT_STEP, SAME_STEP, DISABLED):
        raise ValueError(
            f"autoreset must be {NEXT_STEP!r}, {SAME_STEP!r} or {DISABLED!r}, got {mode!r}"
        )
    return str(name)


def resets_twice(envs: Any) -> bool:
    """Return whether step() resets an environment again that reset() has reset after its end.

    gymnasium's AsyncVectorEnv (1.0 to 1.4) does so without shared memory.
    """
    return getattr(getattr(envs, "unwrapped", envs), "shared_memory", None) is False
