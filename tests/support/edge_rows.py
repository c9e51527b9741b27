"""Rows that tell whether they are whole, and which priority is theirs.

A row's body follows from its id, and so does its priority: whatever threads, handlers and forks do
meanwhile, a torn row, a foreign weight and a priority that hit another row can be told by looking.
"""

import zlib

import numpy as np

UNRANKED = np.uint64(1 << 63)  # of ids of rows that were added without a priority
_STEP = np.uint64(0x9E3779B97F4A7C15)


class Wrong(AssertionError):
    """A result that must not be."""


def fields(width):
    return {"id": {"shape": (), "dtype": np.uint64}, "body": {"shape": width, "dtype": np.uint64}}


STEP_FIELDS = {"rew": {"shape": ()}, "done": {"shape": (), "dtype": bool}}
NSTEP = {"size": 3, "rew": "rew", "gamma": 0.5, "discount": "discount"}
# Rewards are all 1. By rewards summed, the discount of a row that did not terminate.
_DISCOUNTS = {1.0: 0.5, 1.5: 0.25, 1.75: 0.125}


def _offsets(width):
    with np.errstate(over="ignore"):
        return np.arange(1, width + 1, dtype=np.uint64) * _STEP


def rows(ids, width):
    ids = np.asarray(ids, np.uint64)
    with np.errstate(over="ignore"):
        return {"id": ids, "body": ids[:, None] + _offsets(width)}


def priorities_of(ids):
    """1 to 8, exact in float32, and so are quotients of any two by their larger one."""
    return 1.0 + (ids % np.uint64(8)).astype(np.float64)


def ranked(ids):
    return (ids & UNRANKED) == 0


def check_whole(batch, what):
    ids, body = batch["id"], batch["body"]
    with np.errstate(over="ignore"):
        differs = (body - ids[:, None] != _offsets(body.shape[1])).any(axis=1)
    if differs.any():
        first = int(np.flatnonzero(differs)[0])
        raise Wrong(
            f"{what}: {int(differs.sum())} of {len(ids)} rows are not whole; row {first} has id "
            f"{ids[first]} and body {body[first][:4]}..."
        )
    if "discount" in batch:
        for reward, discount, done in zip(
            batch["rew"].ravel(), batch["discount"].ravel(), batch["done"].ravel(), strict=True
        ):
            if discount != (0 if done else _DISCOUNTS.get(float(reward))):
                raise Wrong(f"{what}: rewards of {reward} with discount {discount}, done {done}")


def check_weights(batch, beta, what):
    """Finite, in (0, 1], and one row's to another's as their priorities say (alpha 1, eps 0)."""
    weights = batch["weights"].astype(np.float64).ravel()
    if not (np.isfinite(weights).all() and (weights > 0).all() and (weights <= 1).all()):
        raise Wrong(f"{what}: weights beyond (0, 1]: {weights.min()} to {weights.max()}")
    known = ranked(batch["id"])
    if not known.any():
        return
    least = weights[known] * priorities_of(batch["id"][known]) ** beta
    if least.max() > least.min() * (1 + 1e-5):
        raise Wrong(
            f"{what}: weights are not those of these rows: least leaf from {least.min()} to "
            f"{least.max()}, beta {beta}"
        )


def digest(array):
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1))
