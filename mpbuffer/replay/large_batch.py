"""Large batch experience replay: a small batch drawn from a large uniform one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mpbuffer._arguments.integers import whole_number
from mpbuffer._arguments.tensors import is_tensor

__all__ = ["LaBERlazy", "LaBERmax", "LaBERmean"]

Floats = npt.NDArray[np.float64]
Indexes = npt.NDArray[np.int64]


class LaBER:
    """What the three variants share: they draw alike, and differ in the weights."""

    def __init__(self, batch_size: int, m: float = 4, *, eps: float = 1e-6) -> None:
        self.batch_size = whole_number("batch_size", batch_size, 1)
        times, added = float(m), float(eps)
        if not 0 < times < float("inf"):
            raise ValueError(f"m must be a finite number above 0, got {m!r}")
        if not 0 <= added < float("inf"):
            raise ValueError(f"eps must be a finite number of at least 0, got {eps!r}")
        rows = int(self.batch_size * times)
        if rows == 0:
            raise ValueError(f"m * batch_size must be at least 1, got {m!r} * {batch_size}")
        self.idx: Indexes = np.arange(rows, dtype=np.int64)
        self.eps = added
        self.rng = np.random.default_rng()

    def __call__(self, *, priorities: npt.ArrayLike, **kwargs: Any) -> dict[str, Any]:
        """Draw the small batch.

        Parameters
        ----------
        priorities : array_like or tensor of float, shape (m * batch_size,)
            Of the rows of the large batch: finite, at least 0, not all 0 unless `eps` is not.
        **kwargs : array_like or tensor
            Fields of the large batch, each with a row for each priority: what a ReplayBuffer's
            sample() returned.

        Returns
        -------
        dict of str to numpy.ndarray or tensor
            The drawn rows of each field; ``"indexes"``: int64 (batch_size,), their places in the
            large batch; ``"weights"``: float64 (batch_size,). These two replace fields of `kwargs`
            of the same names.

        Raises
        ------
        ValueError
            If `priorities` are not as above, or a field has another number of rows.
        """
        probabilities = self._probabilities(priorities)
        fields = {name: _indexable(name, rows, len(self.idx)) for name, rows in kwargs.items()}
        drawn: Indexes = self.rng.choice(self.idx, self.batch_size, p=probabilities)
        batch = {name: rows[drawn] for name, rows in fields.items()}
        batch["weights"] = self._weights(probabilities, drawn)
        batch["indexes"] = drawn
        return batch

    def _probabilities(self, priorities: npt.ArrayLike) -> Floats:
        given = priorities.detach().cpu() if is_tensor(priorities) else priorities  # type: ignore[union-attr]
        raised = np.asarray(given, np.float64) + self.eps
        if raised.shape != self.idx.shape:
            raise ValueError(
                f"cannot draw a batch: priorities must have shape {self.idx.shape}, which is "
                f"m * batch_size, got {raised.shape}"
            )
        total = raised.sum()
        if not np.all(raised >= 0) or not 0 < total < float("inf"):
            raise ValueError(
                "cannot draw a batch: priorities must be finite numbers of at least 0, and not all "
                f"0 with eps=0; got {float(raised.min()) - self.eps} to "
                f"{float(raised.max()) - self.eps}"
            )
        probabilities: Floats = raised / total
        return probabilities

    def _weights(self, probabilities: Floats, drawn: Indexes) -> Floats:
        raise NotImplementedError("LaBER has no weights: use LaBERmean, LaBERlazy or LaBERmax")


def _indexable(name: str, rows: Any, count: int) -> Any:
    """Return a field of the large batch as something that an array of indexes selects from."""
    field = rows if hasattr(rows, "shape") else np.asarray(rows)
    if tuple(field.shape[:1]) != (count,):
        raise ValueError(
            f"cannot draw a batch: field {name!r} must have {count} rows, one for each priority, "
            f"got shape {tuple(field.shape)}"
        )
    return field


class LaBERmean(LaBER):
    """Draws a small batch from a large one; its weights make the draw unbiased.

    LaBER-mean of Lahire, Geist and Rachelson, "Large batch experience replay", 2022
    (arXiv:2110.01528), the variant that they recommend. Draw ``m * batch_size`` rows uniformly, and
    compute the priority p of each: for a squared or Huber loss, the absolute TD error. This draws
    ``batch_size`` of them with replacement, with the probabilities P(i) = p(i) / sum of p. Their
    weights are the mean of P over P(i): the expectation of the small batch's weighted mean loss is
    the large batch's mean loss. It belongs to the learner's process.

    Parameters
    ----------
    batch_size : int
        Rows of the small batch, at least 1.
    m : float, optional
        How many times larger the large batch is. ``m * batch_size``, rounded down, is at least 1.
    eps : float, optional
        Added to every priority, at least 0.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.

    Attributes
    ----------
    batch_size, eps : int and float
        As given.
    idx : numpy.ndarray of int64
        0, 1, ... for the rows of the large batch.
    rng : numpy.random.Generator
        Draws. Set it for reproducible ones.

    See Also
    --------
    LaBERlazy, LaBERmax

    Examples
    --------
    >>> import numpy as np
    >>> from mpbuffer import LaBERmean
    >>> batch = LaBERmean(2, 2, eps=0)(priorities=[0, 3, 0, 0], obs=np.arange(4))
    >>> batch["obs"].tolist(), batch["weights"].tolist()
    ([1, 1], [0.25, 0.25])
    """

    def _weights(self, probabilities: Floats, drawn: Indexes) -> Floats:
        weights: Floats = probabilities.mean() / probabilities[drawn]
        return weights


class LaBERlazy(LaBER):
    """Draws a small batch from a large one; its weights are 1 / P(i), without normalization.

    LaBER-lazy of Lahire et al., "Large batch experience replay", 2022. The weights are those of
    LaBERmean times ``m * batch_size``: the learning rate has to make up for it. Parameters and
    attributes are those of LaBERmean.

    See Also
    --------
    LaBERmean, LaBERmax
    """

    def _weights(self, probabilities: Floats, drawn: Indexes) -> Floats:
        weights: Floats = 1.0 / probabilities[drawn]
        return weights


class LaBERmax(LaBER):
    """Draws a small batch from a large one; the largest weight in it is 1.

    LaBER-max of Lahire et al., "Large batch experience replay", 2022: 1 / P(i), divided by the
    largest of the small batch. Parameters and attributes are those of LaBERmean.

    See Also
    --------
    LaBERmean, LaBERlazy
    """

    def _weights(self, probabilities: Floats, drawn: Indexes) -> Floats:
        least = probabilities[drawn].min()
        weights: Floats = least / probabilities[drawn]
        return weights
