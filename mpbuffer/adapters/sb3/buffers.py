"""The two plain buffers, in place of Stable-Baselines3's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common import buffers
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.utils import get_device

from mpbuffer.adapters.transitions import TrainerRows

__all__ = ["DictReplayBuffer", "ReplayBuffer"]

Array = npt.NDArray[Any]


class ReplayBuffer(TrainerRows, buffers.ReplayBuffer):
    """Stable-Baselines3's replay buffer, with its rows in shared memory.

    Pass the class to an algorithm::

        DQN("MlpPolicy", env, replay_buffer_class=mpbuffer.adapters.sb3.ReplayBuffer)

    Samples have the values that Stable-Baselines3's buffer has at the same draws. Which rows are
    drawn follows from `seed`, in mpbuffer's own stream.

    The rows are the attribute ``rows``: hand it to ``mpbuffer.Explorers``, or give it a `name`, and
    other processes add to it. Box actions are scaled to [-1, 1] in it, as Stable-Baselines3 stores
    them. ``observations``, ``next_observations``, ``actions``, ``rewards``, ``dones`` and
    ``timeouts`` are read-only copies of all rows in Stable-Baselines3's shape.

    ``save_replay_buffer`` saves the rows, compressed. A buffer loaded from a file has no name.

    Parameters
    ----------
    buffer_size, observation_space, action_space, device, n_envs, handle_timeout_termination
        As for Stable-Baselines3's. The observation space may be a Dict.
    optimize_memory_usage : bool, optional
        Whether an observation that is also the next one of the step before is stored once, by
        ``next_of``. Unlike in Stable-Baselines3's buffer, the last next observation of an episode
        is there, so that `handle_timeout_termination` may be true, each row can be drawn, and the
        space may be a Dict. In episodes of less than some 16 steps, the oldest rows go early unless
        `sources` is larger. Observations of less than 128 bytes are stored twice all the same.
    n_steps : int, optional
        Rows of n steps, as NStepReplayBuffer's: samples have ``discounts``. They are folded before
        they are written, so that the last ``n_steps - 1`` steps of a running episode are no rows
        yet; an episode that a reset cuts off ends there. ``discounts`` is 0 where the last step
        terminates. VecNormalize scales the folded reward, and clips that.
    gamma : float, optional
        The discount of each step, if `n_steps` is more than 1.
    **of_mpbuffer : optional
        Further parameters of ``mpbuffer.ReplayBuffer``: `name`, `overwrite`, `seed`,
        `numa_interleave`, `logger`, and `stack_compress` and `sources` for frames. Default of
        `seed`: it follows from the state of NumPy's global generator, which the algorithm's `seed`
        sets.

    Raises
    ------
    TypeError, ValueError, SegmentExists, NotEnoughMemory
        As for ``mpbuffer.ReplayBuffer``.
    """

    _prioritized = False

    def __init__(
        self,
        buffer_size: int,
        observation_space: Any,
        action_space: Any,
        device: Any = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        n_steps: int = 1,
        gamma: float = 0.99,
        **of_mpbuffer: Any,
    ) -> None:
        self._make_rows(
            buffer_size,
            observation_space,
            action_space,
            get_device(device),
            n_envs,
            n_steps=n_steps,
            gamma=gamma,
            optimize_memory_usage=optimize_memory_usage,
            handle_timeout_termination=handle_timeout_termination,
            prioritized=self._prioritized,
            **of_mpbuffer,
        )
        self.obs_shape = buffers.get_obs_shape(observation_space)

    def sample(self, batch_size: int, env: Any = None) -> Any:
        """Draw rows, each with the same probability.

        Parameters
        ----------
        batch_size : int
        env : VecNormalize, optional
            Normalizes observations and rewards.

        Returns
        -------
        ReplayBufferSamples or DictReplayBufferSamples
            Tensors on the buffer's device.

        Raises
        ------
        EmptyBuffer
            If there is no row; it is a ValueError, as Stable-Baselines3's is.
        """
        return self._samples(self.rows.sample(batch_size), env)

    def _get_samples(self, batch_inds: Array, env: Any = None) -> Any:
        """Return the rows of the steps that Stable-Baselines3 has drawn, of random environments."""
        envs = np.random.randint(0, self.n_envs, size=len(batch_inds))
        return self._samples(self._rows_at(batch_inds, envs), env)

    def _samples(self, rows: dict[str, Array], env: Any) -> Any:
        kind = ReplayBufferSamples if self._keys is None else DictReplayBufferSamples
        return kind(*self._normalized_values(rows, env))

    def _normalized_values(self, rows: dict[str, Array], env: Any) -> tuple[Any, ...]:
        obs, next_obs = self._observations(rows, 0), self._observations(rows, 1)
        if env is not None:
            obs, next_obs = self._normalize_obs(obs, env), self._normalize_obs(next_obs, env)
            rows = {**rows, "rew": self._normalize_reward(rows["rew"], env)}
        return self._values(obs, next_obs, rows)

    def _all(self, field: str) -> Array:
        """Return a copy of a field, ``(buffer_size, n_envs) + shape``; zeros where nothing is."""
        rows = self.rows._encode_sample(np.arange(self.buffer_size * self.n_envs))[field]
        values: Array = rows.reshape(self.buffer_size, self.n_envs, *rows.shape[1:])
        values.setflags(write=False)
        return values

    def _all_observations(self, next_one: int) -> Any:
        if self._keys is None:
            return self._all(("obs", "next_obs")[next_one])
        return {key: self._all(names[next_one]) for key, names in self._keys.items()}

    @property
    def observations(self) -> Any:
        """A copy of all observations, of shape ``(buffer_size, n_envs) + shape``."""
        return self._all_observations(0)

    @property
    def next_observations(self) -> Any:
        """A copy of all next observations, of shape ``(buffer_size, n_envs) + shape``."""
        return self._all_observations(1)

    @property
    def actions(self) -> Array:
        """A copy of all actions, of shape ``(buffer_size, n_envs, action_dim)``."""
        return self._all("act")

    @property
    def rewards(self) -> Array:
        """A copy of all rewards, of shape ``(buffer_size, n_envs)``."""
        return self._all("rew")[..., 0]

    @property
    def dones(self) -> Array:
        """Whether each step ended its episode: float32, of shape ``(buffer_size, n_envs)``."""
        return np.maximum(self._all("terminated")[..., 0], self.timeouts)

    @property
    def timeouts(self) -> Array:
        """Whether a time limit ended it: float32, of shape ``(buffer_size, n_envs)``."""
        return self._all("truncated")[..., 0].astype(np.float32)


class DictReplayBuffer(ReplayBuffer, buffers.DictReplayBuffer):
    """Stable-Baselines3's DictReplayBuffer, with its rows in shared memory.

    As ReplayBuffer. Each key's observations are fields ``obs.KEY`` and ``next_obs.KEY`` of `rows`.
    """
