"""The rows that are added: fields as in a cpprb env_dict, with random values made beforehand."""

from typing import Any

import numpy as np

Fields = dict[str, dict[str, Any]]
Rows = dict[str, np.ndarray]

OBSERVATION = {"shape": [4], "dtype": "float32"}
SCALAR = {"shape": [1], "dtype": "float32"}
FRAMES = {"shape": [4, 84, 84], "dtype": "uint8"}

CARTPOLE: Fields = {
    "obs": OBSERVATION,
    "act": SCALAR,
    "rew": SCALAR,
    "next_obs": OBSERVATION,
    "done": SCALAR,
}
GYMNASIUM: Fields = CARTPOLE | {
    "act": {"shape": [1], "dtype": "int64"},
    "done": {"shape": [1], "dtype": "bool"},
}
ATARI: Fields = CARTPOLE | {"obs": FRAMES, "next_obs": FRAMES, "act": GYMNASIUM["act"]}


def fields_of_bytes(row_bytes: int) -> Fields:
    """Return CartPole's fields with observations so long that a row has about so many bytes."""
    numbers = max(1, (row_bytes - 12) // 8)
    observation = {"shape": [numbers], "dtype": "float32"}
    return CARTPOLE | {"obs": observation, "next_obs": observation}


def payload_bytes(fields: Fields) -> int:
    """Return the bytes of a row's values."""
    return sum(
        int(np.prod(field["shape"])) * np.dtype(field["dtype"]).itemsize
        for field in fields.values()
    )


def random_rows(fields: Fields, rows: int, rng: np.random.Generator) -> Rows:
    """Return random values, (rows,) + shape each: bytes, integers, flags, or normals."""
    values = {}
    for name, field in fields.items():
        shape, dtype = (rows, *field["shape"]), np.dtype(field["dtype"])
        if dtype == np.uint8:
            values[name] = rng.integers(256, size=shape, dtype=np.uint8)
        elif dtype == np.int64:
            values[name] = rng.integers(2**62, size=shape)
        elif dtype == np.bool_:
            values[name] = rng.random(shape) < 0.05
        else:
            values[name] = rng.standard_normal(shape).astype(dtype)
    return values


def random_priorities(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return float32 priorities, exponentially distributed as absolute errors may be."""
    return rng.exponential(size=shape).astype(np.float32)


Transition = tuple[Any, Any, Any, Any, Any]  # obs, act, rew, next_obs, done


def single_transitions(kind: str, count: int, rng: np.random.Generator) -> list[Transition]:
    """Return CartPole transitions one by one.

    `kind` is "gymnasium" (float32 observations, np.int64 action, float reward, bool flag, as
    CartPole-v1 gives them) or "float32" (five float32 arrays).
    """
    rows = random_rows(CARTPOLE, count, rng)
    if kind == "float32":
        return list(zip(*(list(rows[name]) for name in CARTPOLE), strict=True))
    actions = [np.int64(action) for action in rng.integers(2, size=count)]
    rewards = [1.0] * count
    flags = [bool(flag) for flag in rng.random(count) < 0.05]
    return list(
        zip(list(rows["obs"]), actions, rewards, list(rows["next_obs"]), flags, strict=True)
    )
