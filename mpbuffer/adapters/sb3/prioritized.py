"""Prioritized replay, and the algorithm whose loss takes the weights."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3 import DQN

from mpbuffer.adapters.sb3.buffers import ReplayBuffer

__all__ = ["PrioritizedDQN", "PrioritizedReplayBuffer", "WeightedSamples"]

Array = npt.NDArray[Any]

_SAMPLES_UNTIL_WARNING = 100


class WeightedSamples(NamedTuple):
    """What PrioritizedReplayBuffer samples: the fields of ReplayBufferSamples, and two more.

    Attributes
    ----------
    observations, actions, next_observations, dones, rewards, discounts
        As in ReplayBufferSamples.
    weights : torch.Tensor, float32, shape (batch_size, 1)
        Importance weights: each row's loss is to be multiplied by its own.
    indexes : numpy.ndarray, int64, shape (batch_size,)
        For ``update_priorities``. Pass this array itself: with a copy, an update of a row that was
        sampled long ago may be stale.
    """

    observations: Any
    actions: Any
    next_observations: Any
    dones: Any
    rewards: Any
    discounts: Any
    weights: Any
    indexes: Any


class PrioritizedReplayBuffer(ReplayBuffer):
    """A buffer that is sampled in proportion to priorities: Schaul et al., 2016.

    Parameters as for ReplayBuffer, Dict observations too, and those below. Samples are
    WeightedSamples. Stable-Baselines3's algorithms do not look at weights, and never update
    priorities; after 100 samples without an update a UserWarning says so. Train with
    PrioritizedDQN, or by an algorithm of your own. One process samples, as
    with ``mpbuffer.PrioritizedReplayBuffer``.

    Parameters
    ----------
    alpha, eps : float, optional
        As for ``mpbuffer.PrioritizedReplayBuffer``.
    beta : float, optional
        Exponent of the importance weights, at least 0. The attribute ``beta`` changes it.
    """

    _prioritized = True

    def __init__(self, *args: Any, beta: float = 0.4, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.beta = beta
        self._samples_before_update = 0

    def sample(self, batch_size: int, env: Any = None) -> WeightedSamples:
        """Draw rows in proportion to (priority + eps) ** alpha.

        Returns
        -------
        WeightedSamples

        Raises
        ------
        EmptyBuffer
            If there is no row.
        LearnerBusy
            If another process samples the rows.
        """
        self._samples_before_update += 1
        if self._samples_before_update == _SAMPLES_UNTIL_WARNING:
            warnings.warn(
                f"priorities were not updated in {_SAMPLES_UNTIL_WARNING} samples: the algorithm "
                "does not call update_priorities(); use PrioritizedDQN, or a uniform ReplayBuffer",
                stacklevel=3,
            )
        rows = self.rows.sample(batch_size, beta=self.beta)
        weights = self._tensor(rows["weights"]).unsqueeze(1)
        return WeightedSamples._make(
            (*self._normalized_values(rows, env), weights, rows["indexes"])
        )

    def update_priorities(self, indexes: Array, priorities: Any) -> int:
        """Set rows' priorities, such as their absolute TD errors.

        Parameters
        ----------
        indexes : numpy.ndarray, shape (n,)
            Of the samples.
        priorities : torch.Tensor or array_like, of n elements
            At least 0.

        Returns
        -------
        int
            How many came too late: their row was overwritten.

        Raises
        ------
        ValueError
            If a priority is negative or not finite. Nothing has changed then.
        """
        self._samples_before_update = _SAMPLES_UNTIL_WARNING  # passed without a warning
        if isinstance(priorities, torch.Tensor):
            priorities = priorities.detach().cpu().numpy()
        return int(self.rows.update_priorities(indexes, np.reshape(priorities, -1)))


class PrioritizedDQN(DQN):
    """Stable-Baselines3's DQN with prioritized replay: Schaul et al., 2016, algorithm 1.

    Each row's Huber loss is multiplied by its weight, and its priority becomes its absolute TD
    error. The exponent beta rises from the buffer's to 1 while the progress does, as
    `exploration_fraction` counts it. Parameters are DQN's; `replay_buffer_class` defaults to
    PrioritizedReplayBuffer, whose alpha, eps, beta, n_steps and gamma are
    `replay_buffer_kwargs`.
    """

    def __init__(self, *args: Any, replay_buffer_class: Any = None, **kwargs: Any) -> None:
        chosen = PrioritizedReplayBuffer if replay_buffer_class is None else replay_buffer_class
        if not issubclass(chosen, PrioritizedReplayBuffer):
            raise TypeError(
                f"replay_buffer_class must be a PrioritizedReplayBuffer, got {chosen.__name__}"
            )
        super().__init__(*args, replay_buffer_class=chosen, **kwargs)

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Take gradient steps on the weighted loss, and update priorities."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        first_beta = self.replay_buffer_kwargs.get("beta", 0.4)
        buffer = self.replay_buffer
        buffer.beta = 1.0 - (1.0 - first_beta) * self._current_progress_remaining
        losses = []
        for _ in range(gradient_steps):
            rows = buffer.sample(batch_size, env=self._vec_normalize_env)
            gamma = self.gamma if rows.discounts is None else rows.discounts
            with torch.no_grad():
                follows = self.q_net_target(rows.next_observations).amax(1, keepdim=True)
                target = rows.rewards + (1.0 - rows.dones) * gamma * follows
            value = self.q_net(rows.observations).gather(1, rows.actions.long())
            each = torch.nn.functional.smooth_l1_loss(value, target, reduction="none")
            loss = (rows.weights * each).mean()
            self.policy.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
            buffer.update_priorities(rows.indexes, (target - value).abs())
            losses.append(loss.item())
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/beta", buffer.beta)
        self.logger.record("train/loss", float(np.mean(losses)))
