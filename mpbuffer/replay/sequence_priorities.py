"""Priorities of sequences, from the errors of their steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mpbuffer._arguments.integers import whole_number

__all__ = ["sequence_priorities"]


def sequence_priorities(
    td: npt.ArrayLike, mask: npt.ArrayLike | None = None, eta: float = 0.9, *, burn_in: int = 0
) -> npt.NDArray[Any]:
    """Return ``eta * max |td| + (1 - eta) * mean |td|`` of each sequence.

    Kapturowski et al., "Recurrent experience replay in distributed reinforcement learning", 2019,
    section 3. A buffer with ``sequence=`` computes its first priorities from ``add(td=...)`` in the
    same way, with an eta of 0.9.

    Parameters
    ----------
    td : array_like
        Temporal-difference errors, (batch_size, T), one for each step. Tensors are detached and
        copied from their device by the caller. What is under a mask of 0 may be anything.
    mask : array_like, optional
        (batch_size, T), not 0 for steps that count: a sample's ``"mask"``. Default: all count.
    eta : float, optional
        In [0, 1].
    burn_in : int, optional
        How many first steps do not count, 0 to T: the buffer's ``sequence.burn_in``. If `td` was
        computed behind the burn-in only, give ``mask[:, burn_in:]`` and leave it 0.

    Returns
    -------
    numpy.ndarray
        (batch_size,) in `td`'s floating dtype, float64 if it has none; 0 where no step counts.

    Raises
    ------
    ValueError
        If `td` is not two-dimensional, `mask` has another shape, or `eta` or `burn_in` is out of
        its range.
    TypeError
        If `burn_in` is no integer.

    Examples
    --------
    >>> import mpbuffer
    >>> td = [[1.0, -3.0, 2.0], [4.0, 7.0, 7.0]]
    >>> mpbuffer.sequence_priorities(td, [[1, 1, 1], [1, 0, 0]]).tolist()
    [2.9, 4.0]
    """
    errors = np.asarray(td)
    if errors.dtype.kind != "f":
        errors = errors.astype(np.float64)
    if errors.ndim != 2:
        raise ValueError(f"td must have shape (batch_size, T), got {errors.shape}")
    counts = np.ones(errors.shape, bool) if mask is None else np.array(mask, bool)
    if counts.shape != errors.shape:
        raise ValueError(f"mask must have the shape of td, {errors.shape}, got {counts.shape}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta!r}")
    counts[:, : whole_number("burn_in", burn_in, 0, errors.shape[1])] = False
    sizes = np.where(counts, np.abs(errors), 0)
    steps = np.maximum(counts.sum(axis=1), 1).astype(errors.dtype)
    largest = sizes.max(axis=1, initial=0)
    return np.asarray(eta * largest + (1 - eta) * sizes.sum(axis=1) / steps, errors.dtype)
