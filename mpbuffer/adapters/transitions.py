"""The rows behind trainers' buffers: fields of their spaces, steps in, tensors out.

What Stable-Baselines3 and CleanRL share: their buffers take one step of all environments and give
named tuples of tensors. Needs torch, and neither of the two.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import mpbuffer
from mpbuffer.adapters.by_value import PickledByValue

__all__ = ["TrainerRows"]

Array = npt.NDArray[Any]
TIME_LIMIT = "TimeLimit.truncated"


class TrainerRows(PickledByValue):
    """A buffer of mpbuffer's, in the terms of a trainer that steps `n_envs` environments together.

    Attributes
    ----------
    rows : mpbuffer.ReplayBuffer or mpbuffer.PrioritizedReplayBuffer
        The rows, in shared memory: hand it to Explorers. Fields are those of ``schema_from``:
        ``obs``, ``act``, ``rew``, ``next_obs``, ``terminated`` and ``truncated``, and
        ``obs.KEY`` and ``next_obs.KEY`` of Dict spaces. Actions are flat. With n-step rows there is
        ``discount``, too.
    """

    def _make_rows(
        self,
        buffer_size: int,
        observation_space: Any,
        action_space: Any,
        device: torch.device,
        n_envs: int,
        *,
        n_steps: int = 1,
        gamma: float = 0.99,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        prioritized: bool = False,
        **of_mpbuffer: Any,
    ) -> None:
        self.buffer_size = max(int(buffer_size) // n_envs, 1)
        self.observation_space, self.action_space = observation_space, action_space
        self.device, self.n_envs = device, n_envs
        self.handle_timeout_termination = bool(handle_timeout_termination)
        self.optimize_memory_usage = bool(optimize_memory_usage)
        self.n_steps, self.gamma = n_steps, gamma
        fields = mpbuffer.schema_from(observation_space, action_space)
        self.action_dim = math.prod(fields["act"]["shape"])
        act = np.dtype(fields["act"]["dtype"])
        fields["act"] = {
            "shape": (self.action_dim,),
            "dtype": np.float32 if act == np.float64 else act,
        }
        fields["rew"] = fields["terminated"] = {"shape": (1,), "dtype": np.float32}
        self._keys: dict[str, tuple[str, str]] | None = None
        if hasattr(observation_space, "spaces"):
            self._keys = {
                key: (f"obs.{key}", f"next_obs.{key}") for key in observation_space.spaces
            }
        follows = [field for field in fields if field.partition(".")[0] == "next_obs"]
        nstep = None
        if n_steps != 1:
            nstep = {"size": n_steps, "rew": "rew", "gamma": gamma, "next": follows}
            nstep["discount"] = "discount"
        self._shapes = {name: (n_envs, *field["shape"]) for name, field in fields.items()}
        self._following = [(field.removeprefix("next_"), field) for field in follows]
        self._none_truncated, self._envs = np.zeros(n_envs, np.bool_), np.arange(n_envs)
        self._forget_steps()
        of_mpbuffer.setdefault("seed", _seed_of_numpy())
        if self.optimize_memory_usage:
            of_mpbuffer.setdefault("next_of", [field for field, _ in self._following])
        rows = self.buffer_size * n_envs
        self._create_rows(rows, fields, of_mpbuffer, prioritized=prioritized, Nstep=nstep)

    def _forget_steps(self) -> None:
        self._writer: Any = None
        self._writer_pid = 0
        self._followed: dict[str, Array] = {}  # what the next step begins with
        self._over = self._none_truncated  # in other environments

    # Steps in

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: Any,
        reward: Any,
        done: Any,
        infos: Sequence[dict[str, Any]],
    ) -> None:
        """Add a step of all environments. Arguments are those of Stable-Baselines3's buffers.

        Raises
        ------
        ValueError
            If the space's dtype cannot represent a value. Nothing has changed then.
        SlotsHeld, BufferClosed
            As for ``mpbuffer.ReplayBuffer.add``.
        """
        terminated, truncated = done, self._none_truncated
        if self.handle_timeout_termination:
            limits = [info.get(TIME_LIMIT, False) for info in infos]
            if any(limits):
                truncated = np.array(limits, np.bool_)
                terminated = np.logical_and(done, ~truncated)
        steps = {"rew": reward, "terminated": terminated, "truncated": truncated}
        steps["act"] = self._shaped("act", action)
        if self._keys is None:
            steps["obs"] = self._shaped("obs", obs)
            steps["next_obs"] = self._shaped("next_obs", next_obs)
        else:
            for key, (field, next_field) in self._keys.items():
                steps[field] = self._shaped(field, obs[key])
                steps[next_field] = self._shaped(next_field, next_obs[key])
        if self.n_steps == 1:
            self.rows.add(**steps)
        else:
            self._write_steps(steps, np.logical_or(done, truncated))

    def _shaped(self, field: str, values: Any) -> Any:
        """Return values of all environments in the field's shape; scalars get a dimension."""
        shape = self._shapes[field]
        if type(values) is np.ndarray and values.shape == shape:
            return values
        return np.reshape(values, shape)

    def _write_steps(self, steps: dict[str, Any], over: Array) -> None:
        """Add steps that are folded; an episode that a reset cut off ends before them."""
        if self._writer is None or self._writer_pid != os.getpid():
            self._writer = self.rows.writer(1, n_envs=self.n_envs)
            self._writer_pid, self._followed = os.getpid(), {}
        cut = np.zeros(self.n_envs, np.bool_)
        for field, followed in self._followed.items():
            differs = steps[field] != followed
            if np.count_nonzero(differs):
                differs &= followed == followed  # NaN differs from itself
                cut |= differs.reshape(self.n_envs, -1).any(axis=1)
        cut &= ~self._over
        if np.count_nonzero(cut):
            self._writer.on_episode_end(np.flatnonzero(cut))
        if self.n_envs > 1:
            self._writer.add(envs=self._envs, **steps)
        else:
            self._writer.add(**steps)
        self._over = over
        for field, next_field in self._following:
            self._followed[field] = steps[next_field].copy()

    # Tensors out

    def _tensor(self, values: Array) -> torch.Tensor:
        """Return a tensor of an array that nobody else has; on the CPU they share memory."""
        return torch.as_tensor(values, device=self.device)

    def _observations(self, rows: dict[str, Array], next_one: int) -> Any:
        if self._keys is None:
            return rows[("obs", "next_obs")[next_one]]
        return {key: rows[names[next_one]] for key, names in self._keys.items()}

    def _tensors(self, observations: Any) -> Any:
        if self._keys is None:
            return self._tensor(observations)
        return {key: self._tensor(values) for key, values in observations.items()}

    def _values(self, obs: Any, next_obs: Any, rows: dict[str, Array]) -> tuple[Any, ...]:
        """Return a sample's values in Stable-Baselines3's order; observations are given."""
        return (
            self._tensors(obs),
            self._tensor(rows["act"]),
            self._tensors(next_obs),
            self._tensor(rows["terminated"]),
            self._tensor(rows["rew"]),
            self._tensor(rows["discount"]) if "discount" in rows else None,
        )

    def _rows_at(self, places: Array, envs: Array) -> dict[str, Array]:
        """Return the rows that step `places` of environments `envs` have made, as copies."""
        rows: dict[str, Array] = self.rows._encode_sample(places * self.n_envs + envs)
        return rows

    # The whole

    @property
    def pos(self) -> int:
        """Where the next step of all environments goes."""
        return int(self.rows.get_next_index()) // self.n_envs

    @property
    def full(self) -> bool:
        """Whether each step that comes overwrites one."""
        return len(self.rows) == self.buffer_size * self.n_envs

    def size(self) -> int:
        """Return how many steps of all environments there are."""
        return len(self.rows) // self.n_envs

    def reset(self) -> None:
        """Delete all rows, and the steps that are not rows yet."""
        self._end_writer()
        self.rows.clear()

    def _end_writer(self) -> None:
        if self._writer is not None and self._writer_pid == os.getpid():
            self._writer.close()
        self._forget_steps()

    def close(self) -> None:
        """Close this process's handle of the rows; the last one frees the memory."""
        self._end_writer()
        self.rows.close()

    def __len__(self) -> int:
        return self.size()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the steps that are not n-step rows yet."""
        return {**super().__getstate__(), "_writer": None, "_followed": {}}


def _seed_of_numpy() -> int:
    """Return a seed that follows from NumPy's global generator, which stays as it is."""
    generator = np.random.RandomState()
    generator.set_state(np.random.get_state())
    return int(generator.randint(2**63, dtype=np.uint64))
