"""A buffer for CleanRL's single-file scripts: change the line that imports ``ReplayBuffer``.

Needs torch; neither CleanRL nor Stable-Baselines3. Spaces may be gymnasium's or early gym's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from mpbuffer.adapters.transitions import TrainerRows

__all__ = ["ReplayBuffer", "Samples"]


class Samples(NamedTuple):
    """A batch: tensors of shape ``(batch_size,) + shape``, one number a row as ``(batch_size, 1)``.

    Attributes
    ----------
    observations, actions, next_observations, dones, rewards : torch.Tensor
        ``dones`` is float32: 1 where nothing follows. Observations of a Dict space are dicts.
    discounts : torch.Tensor or None
        Of n-step rows: gamma to the power of their steps, and 0 where nothing follows.
    """

    observations: Any
    actions: Any
    next_observations: Any
    dones: Any
    rewards: Any
    discounts: Any = None


class ReplayBuffer(TrainerRows):
    """The buffer that CleanRL's scripts take from Stable-Baselines3, with rows in shared memory.

    Hand the attribute ``rows`` to ``mpbuffer.Explorers``, or give it a `name`, and other processes
    add to the buffer.

    Parameters
    ----------
    buffer_size : int
        Rows of all environments.
    observation_space, action_space : space
        Of one environment.
    device : torch.device or str, optional
        Of the tensors. ``"auto"``: CUDA where it is.
    n_envs : int, optional
        How many environments are stepped together.
    optimize_memory_usage : bool, optional
        Whether an observation that is also the next one of the step before is stored once, by
        ``next_of``. `handle_timeout_termination` may be true all the same. In episodes of less than
        some 16 steps, the oldest rows go early unless `sources` is larger.
    handle_timeout_termination : bool, optional
        Whether add() reads ``"TimeLimit.truncated"`` of the infos: such steps end an episode, and
        do not count as done.
    n_steps : int, optional
        Rows of n steps. The last ``n_steps - 1`` steps of a running episode are no rows yet.
    gamma : float, optional
        The discount of each step, if `n_steps` is more than 1.
    **of_mpbuffer : optional
        Further parameters of ``mpbuffer.ReplayBuffer``: `name`, `overwrite`, `seed`,
        `numa_interleave`, `logger`, and `stack_compress` and `sources` for frames. Default of
        `seed`: it follows from the state of NumPy's global generator.

    Raises
    ------
    TypeError, ValueError, SegmentExists, NotEnoughMemory
        As for ``mpbuffer.ReplayBuffer``.
    """

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
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._make_rows(
            buffer_size,
            observation_space,
            action_space,
            torch.device(device),
            n_envs,
            n_steps=n_steps,
            gamma=gamma,
            optimize_memory_usage=optimize_memory_usage,
            handle_timeout_termination=handle_timeout_termination,
            **of_mpbuffer,
        )

    def sample(self, batch_size: int) -> Samples:
        """Draw rows, each with the same probability.

        Raises
        ------
        EmptyBuffer
            If there is no row; it is a ValueError, as Stable-Baselines3's is.
        """
        return self._samples(self.rows.sample(batch_size))

    def _samples(self, rows: Any) -> Samples:
        obs, next_obs = self._observations(rows, 0), self._observations(rows, 1)
        return Samples(*self._values(obs, next_obs, rows))
