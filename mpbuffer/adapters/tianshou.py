"""Buffers for Tianshou 2: its collectors fill them, its algorithms sample them.

Needs tianshou; tested with its release 2.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from tianshou.data import Batch, ReplayBufferManager, to_numpy

from mpbuffer.adapters.by_value import PickledByValue
from mpbuffer.adapters.episode_links import EpisodeLinks

__all__ = ["PrioritizedVectorReplayBuffer", "VectorReplayBuffer"]

Array = npt.NDArray[Any]
Slots = npt.NDArray[np.int64]


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Array]]:
    """Yield the arrays of a nested batch, and the fields that they are."""
    if isinstance(value, Batch):
        for key in value.get_keys():
            yield from _leaves(f"{name}.{key}", value[key])
    else:
        yield name, np.asarray(value)


def _nested(name: str, fields: dict[str, Array]) -> Any:
    """Return the batch whose arrays are the fields below `name`, or the array itself."""
    if name in fields:
        return fields[name]
    below: dict[str, dict[str, Array]] = {}
    for field, values in fields.items():
        if field.startswith(name + "."):
            key = field[len(name) + 1 :].partition(".")[0]
            below.setdefault(key, {})[field] = values
    return Batch({key: _nested(f"{name}.{key}", inside) for key, inside in below.items()})


class VectorReplayBuffer(PickledByValue, ReplayBufferManager):
    """Tianshou's VectorReplayBuffer, with its rows in one ring in shared memory.

    An index is a row's slot. ``prev``, ``next`` and ``unfinished_index`` follow the episodes of
    each environment, as there. What differs: the oldest rows of all environments are overwritten,
    not those of each one; ``info`` and ``policy`` of steps are not stored; a batch is drawn from
    mpbuffer's own stream. Where episodes go on is known in this process only: others may read the
    attribute ``rows``, and must not add to it.

    Parameters
    ----------
    total_size : int
        Rows of all environments; rounded up to a multiple of `buffer_num`.
    buffer_num : int
        How many environments there are.
    stack_num : int, optional
        How many consecutive observations of an episode are stacked into one, when sampled.
    ignore_obs_next : bool, optional
        Whether next observations are taken from the next row, and not stored.
    save_only_last_obs : bool, optional
        Whether of stacked observations the last one is stored.
    random_seed : int, optional
        Of the draws.
    **of_mpbuffer : optional
        Further parameters of ``mpbuffer.ReplayBuffer``, such as `name`.

    Raises
    ------
    ValueError
        If a number is not as above.

    Attributes
    ----------
    rows : mpbuffer.ReplayBuffer or mpbuffer.PrioritizedReplayBuffer or None
        The rows. They are created with the first step, whose arrays tell fields and dtypes.
    """

    _prioritized = False

    def __init__(
        self,
        total_size: int,
        buffer_num: int,
        *,
        stack_num: int = 1,
        ignore_obs_next: bool = False,
        save_only_last_obs: bool = False,
        random_seed: int = 42,
        **of_mpbuffer: Any,
    ) -> None:
        numbers = {"total_size": total_size, "buffer_num": buffer_num, "stack_num": stack_num}
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number!r}")
        self.buffer_num, self.stack_num = buffer_num, stack_num
        self.maxsize = -(-total_size // buffer_num) * buffer_num
        self._save_obs_next, self._save_only_last_obs = not ignore_obs_next, save_only_last_obs
        self._random_state = np.random.RandomState(random_seed)  # of shuffles
        self.rows = None
        self._of_rows = {"seed": random_seed, **of_mpbuffer}
        self._columns = {
            "rew": np.zeros(self.maxsize),
            "terminated": np.zeros(self.maxsize, np.bool_),
            "truncated": np.zeros(self.maxsize, np.bool_),
        }
        self._forget_episodes()
        self._forget_statistics()

    def _forget_episodes(self) -> None:
        self._links = EpisodeLinks(self.maxsize, self.buffer_num)
        self._rows_known = 0 if self.rows is None else self.rows.rows_added()

    def _forget_statistics(self) -> None:
        self._ep_return, self._ep_len = np.zeros(self.buffer_num), np.zeros(self.buffer_num, int)

    # Steps in

    def add(
        self, batch: Any, buffer_ids: npt.ArrayLike | None = None
    ) -> tuple[Array, Array, Array, Array]:
        """Add a step of the environments `buffer_ids`; by default of all.

        Returns
        -------
        tuple of numpy.ndarray
            Of each step: its index; the return and the length of its episode if that ends, else 0;
            the index where its episode begins.

        Raises
        ------
        ValueError
            If the number of steps is wrong, or a field's dtype cannot represent a value. Nothing
            has changed then.
        RuntimeError
            If another process has added rows.
        """
        self._refuse_rows_of_others()
        envs = np.arange(self.buffer_num) if buffer_ids is None else np.asarray(buffer_ids)
        terminated, truncated = (np.asarray(f, bool) for f in (batch.terminated, batch.truncated))
        rew = np.asarray(batch.rew, np.float64)
        if rew.shape != envs.shape:
            raise ValueError(
                f"cannot add steps: rewards must have shape {envs.shape}, one for each of the "
                f"environments {envs.tolist()}, got {rew.shape}"
            )
        fields = {"act": np.asarray(batch.act), "rew": rew}
        fields |= {"terminated": terminated, "truncated": truncated}
        for name in ("obs", "obs_next") if self._save_obs_next else ("obs",):
            for field, values in _leaves(name, batch[name]):
                fields[field] = values[:, -1] if self._save_only_last_obs else values
        if self.rows is None:
            self._create(fields)
        first = self.rows.add(**fields)
        self._rows_known = self.rows.rows_added()
        slots = (first + np.arange(len(envs))) % self.maxsize
        done = terminated | truncated
        starts = self._links.add(slots, envs, done)
        for name, values in self._columns.items():
            values[slots] = fields[name]
        self._ep_return[envs] += rew
        self._ep_len[envs] += 1
        told = slots, self._ep_return[envs] * done, self._ep_len[envs] * done, starts
        self._ep_return[envs[done]], self._ep_len[envs[done]] = 0.0, 0
        return told

    def _create(self, fields: dict[str, Array]) -> None:
        described = {
            name: {"shape": values.shape[1:], "dtype": values.dtype}
            for name, values in fields.items()
        }
        self._create_rows(self.maxsize, described, self._of_rows, prioritized=self._prioritized)

    def _refuse_rows_of_others(self) -> None:
        others = 0 if self.rows is None else self.rows.rows_added() - self._rows_known
        if others:
            raise RuntimeError(
                f"cannot follow episodes of '{self.rows.name}': other processes have added "
                f"{others} rows; only this process may add"
            )

    # Indexes

    def __len__(self) -> int:
        return 0 if self.rows is None else len(self.rows)

    def prev(self, index: Any) -> Any:
        """Return the index of the step before; of the first one that is left, its own."""
        return self._links.prev[index]

    def next(self, index: Any) -> Any:
        """Return the index of the step after; of the last one of an episode, its own."""
        return self._links.next[index]

    def unfinished_index(self) -> Array:
        """Return the indexes of the last steps of running episodes."""
        return self._links.unfinished()

    @property
    def last_index(self) -> Array:
        """The index of each environment's last step; -1 where none is left."""
        return self._links.last

    @property
    def subbuffer_edges(self) -> Array:
        """``[0, maxsize]``: rows of all environments lie in one ring."""
        return np.array([0, self.maxsize])

    def get_buffer_indices(self, start: int, stop: int) -> Array:
        """Return the indexes of an episode's steps from `start` to the one before `stop`."""
        return self._links.back_to(start, (stop - 1) % self.maxsize)

    def _all_indices(self) -> Array:
        """Return all indexes: those of each environment together, from the oldest on."""
        slots = np.arange(len(self))
        if len(slots) == self.maxsize:
            slots = (slots + self.rows.get_next_index()) % self.maxsize
        return self._links.in_order(slots)

    def sample_indices(self, batch_size: int | None) -> Array:
        """Draw indexes. 0: all, in the order of environments and steps. None: all, shuffled."""
        if batch_size is None:
            return self._random_state.permutation(self._all_indices())
        if batch_size <= 0 or len(self) == 0:
            return self._all_indices() if batch_size == 0 else np.array([], int)
        return self._drawn(batch_size)["indexes"]

    def _drawn(self, batch_size: int) -> dict[str, Array]:
        drawn: dict[str, Array] = self.rows.sample(batch_size, return_indexes=True)
        return drawn

    # Rows out

    def sample(self, batch_size: int | None) -> tuple[Any, Array]:
        """Draw rows; return them, and their indexes. None and 0 as for sample_indices().

        Raises
        ------
        RuntimeError
            If another process has added rows.
        """
        self._refuse_rows_of_others()
        if batch_size is None or batch_size <= 0 or len(self) == 0:
            indices = self.sample_indices(batch_size)
            return self[indices], indices
        rows = self._drawn(batch_size)
        batch = self._batch(rows, rows["indexes"])
        if "weights" in rows:
            batch.weight = rows["weights"]
        return batch, rows["indexes"]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            index = self._all_indices() if index == slice(None) else np.arange(len(self))[index]
        indices = np.asarray(index)
        if indices.dtype == np.bool_:
            indices = np.flatnonzero(indices)
        if self.rows is None:
            return Batch()
        flat = indices.reshape(-1).astype(np.int64)
        batch = self._batch(self.rows._encode_sample(flat), flat)
        return batch[0] if indices.ndim == 0 else batch

    def _batch(self, rows: dict[str, Array], indices: Slots) -> Any:
        if self._save_obs_next:
            obs_next = self._stacked(rows, "obs_next", indices)
        else:
            after = self._links.next[indices]
            obs_next = self._stacked(self.rows._encode_sample(after), "obs", after)
        return Batch(
            obs=self._stacked(rows, "obs", indices),
            act=rows["act"],
            rew=rows["rew"],
            terminated=rows["terminated"],
            truncated=rows["truncated"],
            done=rows["terminated"] | rows["truncated"],
            obs_next=obs_next,
            info=Batch(),
            policy=Batch(),
        )

    def _stacked(self, rows: dict[str, Array], name: str, indices: Slots) -> Any:
        """Return observations, each with those before it if they are to be stacked."""
        steps = [_nested(name, rows)]
        for _ in range(self.stack_num - 1):
            indices = self._links.prev[indices]
            steps.insert(0, _nested(name, self.rows._encode_sample(indices)))
        if self.stack_num == 1:
            return steps[0]
        return (Batch if isinstance(steps[0], Batch) else np).stack(steps, axis=1)

    def get(self, index: Any, key: str, default_value: Any = None, stack_num: Any = None) -> Any:
        """Return one of the values of ``self[index]``, stacked as the buffer's."""
        if stack_num not in (None, self.stack_num):
            raise NotImplementedError(f"cannot stack {stack_num} steps, expected {self.stack_num}")
        return self[index].get(key, default_value)

    @property
    def rew(self) -> Array:
        """Rewards by index, float64."""
        return self._columns["rew"]

    @property
    def terminated(self) -> Array:
        """By index, whether an episode terminated."""
        return self._columns["terminated"]

    @property
    def truncated(self) -> Array:
        """By index, whether an episode was truncated."""
        return self._columns["truncated"]

    @property
    def done(self) -> Array:
        """By index, whether an episode ended."""
        return self._links.done

    # The whole

    def reset(self, keep_statistics: bool = False) -> None:
        """Delete all rows; with `keep_statistics` running episodes count on."""
        if self.rows is not None:
            self.rows.clear()
        self._forget_episodes()
        if not keep_statistics:
            self._forget_statistics()

    def close(self) -> None:
        """Close this process's handle of the rows; the last one frees the memory."""
        if self.rows is not None:
            self.rows.close()

    def __setstate__(self, state: dict[str, Any]) -> None:
        PickledByValue.__setstate__(self, state)
        self._rows_known = 0 if self.rows is None else self.rows.rows_added()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.buffer_num} environments: {self.rows!r}>"

    def __getattr__(self, key: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__!r} has no attribute {key!r}")

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(
            "rows in shared memory are not changed in place, and are saved by pickle.dump(buffer)"
        )

    update = set_batch = set_array_at_key = dropnull = save_hdf5 = _refuse


class PrioritizedVectorReplayBuffer(VectorReplayBuffer):
    """Tianshou's PrioritizedVectorReplayBuffer, with its rows in one ring in shared memory.

    Schaul et al., 2016. As VectorReplayBuffer; sampled in proportion to
    ``(priority + eps) ** alpha``, with float32's eps. One process samples.

    Parameters
    ----------
    total_size, buffer_num, **kwargs
        As for VectorReplayBuffer.
    alpha, beta : float
        Exponents of priorities and of importance weights.
    weight_norm : bool, optional
        Whether weights are divided by the largest one in the batch; else by that of all rows.
    """

    _prioritized = True

    def __init__(
        self,
        total_size: int,
        buffer_num: int,
        *,
        alpha: float,
        beta: float,
        weight_norm: bool = True,
        **kwargs: Any,
    ) -> None:
        eps = float(np.finfo(np.float32).eps)
        super().__init__(total_size, buffer_num, alpha=alpha, eps=eps, **kwargs)
        self._beta, self._weight_norm = beta, "batch" if weight_norm else "buffer"

    def set_beta(self, beta: float) -> None:
        """Set the exponent of the importance weights of later batches."""
        self._beta = beta

    def _drawn(self, batch_size: int) -> dict[str, Array]:
        drawn: dict[str, Array] = self.rows.sample(
            batch_size, beta=self._beta, weight_norm=self._weight_norm
        )
        return drawn

    def update_weight(self, index: Sequence[int] | Array, new_weight: Any) -> None:
        """Set priorities, such as absolute TD errors, of rows that were sampled."""
        self.rows.update_priorities(index, np.abs(to_numpy(new_weight)).reshape(-1))
