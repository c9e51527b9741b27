"""Hindsight experience replay: rows are relabelled when they are sampled."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.her import goal_selection_strategy as goals
from stable_baselines3.her import her_replay_buffer

from mpbuffer.adapters.sb3.buffers import DictReplayBuffer
from mpbuffer.adapters.transitions import TrainerRows

__all__ = ["HerReplayBuffer"]

Array = npt.NDArray[Any]


class HerReplayBuffer(DictReplayBuffer, her_replay_buffer.HerReplayBuffer):
    """Stable-Baselines3's HerReplayBuffer, with its rows in shared memory.

    Andrychowicz et al., "Hindsight experience replay", 2017. Rows are relabelled when they are
    sampled. The draws are Stable-Baselines3's, from NumPy's global generator, and so are the
    samples. Where episodes begin and end is known in this process only: others may read the rows,
    and must not add to them.

    Parameters
    ----------
    buffer_size, observation_space, action_space, env, device, n_envs, optimize_memory_usage
    handle_timeout_termination, n_sampled_goal, goal_selection_strategy, copy_info_dict
        As for Stable-Baselines3's; `optimize_memory_usage` must be False, as there.
    **of_mpbuffer : optional
        As for ReplayBuffer, without `n_steps`.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: Any,
        action_space: Any,
        env: Any,
        device: Any = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        n_sampled_goal: int = 4,
        goal_selection_strategy: Any = "future",
        copy_info_dict: bool = False,
        **of_mpbuffer: Any,
    ) -> None:
        if of_mpbuffer.get("n_steps", 1) != 1:
            raise NotImplementedError(
                f"cannot create a buffer: n_steps={of_mpbuffer['n_steps']!r} is not supported with "
                "hindsight goals; pass 1"
            )
        if optimize_memory_usage:
            raise NotImplementedError(
                "cannot create a buffer: optimize_memory_usage=True is not supported with "
                "hindsight goals, as steps of an episode could go before others; pass False"
            )
        strategy = goal_selection_strategy
        if isinstance(strategy, str):
            strategy = goals.KEY_TO_GOAL_STRATEGY.get(strategy.lower())
        if not isinstance(strategy, goals.GoalSelectionStrategy):
            raise ValueError(
                "goal_selection_strategy must be one of "
                f"{', '.join(goals.KEY_TO_GOAL_STRATEGY)}, got {goal_selection_strategy!r}"
            )
        super().__init__(
            buffer_size,
            observation_space,
            action_space,
            device,
            n_envs,
            handle_timeout_termination=handle_timeout_termination,
            **of_mpbuffer,
        )
        self.env, self.copy_info_dict = env, copy_info_dict
        self.goal_selection_strategy, self.n_sampled_goal = strategy, n_sampled_goal
        self.her_ratio = 1.0 - 1.0 / (n_sampled_goal + 1)  # rounded as there
        self._forget_episodes()

    def _forget_episodes(self) -> None:
        shape = self.buffer_size, self.n_envs
        self.ep_start, self.ep_length = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self._current_ep_start = np.full(self.n_envs, self.pos, np.int64)
        self._of_whole_episodes: Array | None = None
        self.infos = np.full(shape, None, object) if self.copy_info_dict else None
        self._rows_known = self.rows.rows_added()

    def _refuse_rows_of_others(self) -> None:
        others = self.rows.rows_added() - self._rows_known
        if others:
            raise RuntimeError(
                f"cannot relabel rows of '{self.rows.name}': other processes have added {others}, "
                "whose episodes are not known here; only this process may add"
            )

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: Array,
        reward: Array,
        done: Array,
        infos: Sequence[dict[str, Any]],
    ) -> None:
        """Add a step of all environments. An episode can be sampled when it has ended.

        Raises
        ------
        RuntimeError
            If another process has added rows.
        ValueError, SlotsHeld, BufferClosed
            As for ReplayBuffer.
        """
        self._refuse_rows_of_others()
        pos = self.pos
        super().add(obs, next_obs, action, reward, done, infos)
        self._rows_known = self.rows.rows_added()
        for env in np.flatnonzero(self.ep_length[pos]):  # its first step is gone, so all are
            end = self.ep_start[pos, env] + self.ep_length[pos, env]
            self.ep_length[np.arange(pos, end) % self.buffer_size, env] = 0
            self._of_whole_episodes = None
        self.ep_start[pos] = self._current_ep_start
        if self.infos is not None:
            self.infos[pos] = infos
        for env in np.flatnonzero(done):
            self._end_episode(int(env))

    def _end_episode(self, env: int) -> None:
        self._compute_episode_length(env)
        self._of_whole_episodes = None

    def sample(self, batch_size: int, env: Any = None) -> Any:
        """Draw rows of whole episodes; give most of them goals that their episode reached.

        Parameters
        ----------
        batch_size : int
        env : VecNormalize, optional
            Normalizes observations and rewards.

        Returns
        -------
        DictReplayBufferSamples
            First the rows as they were, then ``int(her_ratio * batch_size)`` with new goals.

        Raises
        ------
        RuntimeError
            If no episode has ended, there is no environment, or another process has added rows.
        """
        self._refuse_rows_of_others()
        if self.env is None:
            raise RuntimeError("cannot compute rewards of new goals: call set_env() before")
        if self._of_whole_episodes is None:
            self._of_whole_episodes = np.flatnonzero(self.ep_length)
        if not len(self._of_whole_episodes):
            raise RuntimeError(
                "cannot sample: no episode has ended; expected learning_starts to be more than "
                "the steps of the longest episode"
            )
        drawn = np.random.choice(self._of_whole_episodes, size=batch_size, replace=True)
        relabelled = int(self.her_ratio * batch_size)
        places, envs = np.divmod(np.roll(drawn, -relabelled), self.n_envs)
        rows = self._rows_at(places, envs)
        new = slice(batch_size - relabelled, batch_size)
        if relabelled:
            reached = self._reached_goals(places[new], envs[new])
            for field in ("obs.desired_goal", "next_obs.desired_goal"):
                rows[field][new] = reached
            infos: Any = [{} for _ in range(relabelled)]
            if self.infos is not None:
                infos = copy.deepcopy(self.infos[places[new], envs[new]])
            (rewards,) = self.env.env_method(
                "compute_reward",
                rows["next_obs.achieved_goal"][new],
                rows["obs.desired_goal"][new],
                infos,
                indices=[0],
            )
            rows["rew"][new, 0] = rewards
        return self._samples(rows, env)

    def _reached_goals(self, places: Array, envs: Array) -> Array:
        """Choose a step of each row's episode; return the goals that these steps reached."""
        starts, lengths = self.ep_start[places, envs], self.ep_length[places, envs]
        if self.goal_selection_strategy is goals.GoalSelectionStrategy.FINAL:
            steps = lengths - 1
        elif self.goal_selection_strategy is goals.GoalSelectionStrategy.EPISODE:
            steps = np.random.randint(0, lengths)
        else:
            steps = np.random.randint((places - starts) % self.buffer_size, lengths)
        chosen = (starts + steps) % self.buffer_size
        return self._rows_at(chosen, envs)["next_obs.achieved_goal"]

    def truncate_last_trajectory(self) -> None:
        """End the running episodes, as if truncated: their steps can be sampled from now on."""
        running = np.flatnonzero(self._current_ep_start != self.pos)
        if len(running):
            warnings.warn(
                f"the last episodes of {len(running)} environments are cut off; if they go on, "
                "load the buffer with truncate_last_traj=False",
                stacklevel=3,
            )
        for env in running:
            self._end_episode(int(env))

    def reset(self) -> None:
        """Delete all rows and episodes."""
        super().reset()
        self._forget_episodes()

    def __getstate__(self) -> dict[str, Any]:
        return {**TrainerRows.__getstate__(self), "env": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        TrainerRows.__setstate__(self, state)
        self._rows_known = self.rows.rows_added()
