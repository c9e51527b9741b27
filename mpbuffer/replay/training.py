"""cpprb's training loop: act, add, sample, update."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mpbuffer import _core
from mpbuffer._arguments.integers import whole_number
from mpbuffer.buffer.nstep import FLAGS

__all__ = ["train"]

# Asked for once: a handler that raises inside getLogger() leaves a lock of logging's taken.
_LOGGER = logging.getLogger("mpbuffer")

Transition = Mapping[str, Any]


def train(
    buffer: Any,
    env: Any,
    get_action: Callable[..., Any],
    update_policy: Callable[..., Any],
    *,
    max_steps: float = 1_000_000,
    max_episodes: int | None = None,
    batch_size: int = 64,
    n_warmups: int = 0,
    after_step: Callable[..., Transition] | None = None,
    done_check: Callable[[Transition], Any] | None = None,
    obs_update: Callable[[Transition], Any] | None = None,
    rew_sum: Callable[[float, Transition], float] | None = None,
    episode_callback: Callable[[int, int, float], Any] | None = None,
    logger: Any = None,
) -> None:
    """Train a policy in one process: act, add, sample and update, step by step.

    Other processes may add to the buffer meanwhile. `env` may have today's gymnasium calls, where
    ``reset()`` returns an observation and infos and ``step()`` five values, or those of early gym:
    an observation, and four values.

    Without `after_step` a transition has obs, act, rew, next_obs, done, terminated and truncated;
    those that are fields of the buffer are added. With five values, done is terminated, because
    bootstrapping goes on after a time limit; the episode ends with either flag.

    Parameters
    ----------
    buffer : ReplayBuffer or PrioritizedReplayBuffer
        With fields of these names, or of those that `after_step` returns. For a prioritized one
        this process takes the learner's role.
    env : gymnasium.Env or gym.Env
        Neither closed nor seeded here.
    get_action : callable
        ``get_action(obs, step, episode, is_warmup)`` returns the action.
    update_policy : callable
        ``update_policy(sample, step, episode)`` updates the policy. For a prioritized buffer it
        returns the new priorities, the absolute TD errors.
    max_steps : int or whole float, optional
        Steps in all, less than 2**64 - 1.
    max_episodes : int, optional
        Episodes in all. Default: no limit.
    batch_size : int, optional
        Rows of each sample.
    n_warmups : int, optional
        Steps before the first sample.
    after_step : callable, optional
        ``after_step(obs, action, env.step(action), step, episode)`` returns the transition to add.
    done_check : callable, optional
        ``done_check(transition)`` says whether the episode is over. Default: if a field done,
        terminated or truncated of the transition is true, or the environment said so.
    obs_update : callable, optional
        ``obs_update(transition)`` returns the next observation to act on. Default: next_obs.
    rew_sum : callable, optional
        ``rew_sum(total, transition)`` returns the episode's reward so far. Default: adds rew.
    episode_callback : callable, optional
        ``episode_callback(episode, episode_step, episode_reward)`` is called at the end of each
        episode; `episode_step` counts from 0.
    logger : logging.Logger, optional
        Logs a line for each episode at level INFO. Default: the logger ``mpbuffer``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above; nothing has been done then. TypeError if `update_policy`
        returns None for a prioritized buffer.
    Exception
        What the buffer, the environment and the functions raise.

    Examples
    --------
    >>> import gymnasium, mpbuffer
    >>> env = gymnasium.make("CartPole-v1")
    >>> with mpbuffer.ReplayBuffer(1000, mpbuffer.create_env_dict(env)) as buffer:
    ...     mpbuffer.train(
    ...         buffer,
    ...         env,
    ...         lambda obs, step, episode, is_warmup: env.action_space.sample(),
    ...         lambda sample, step, episode: None,  # learn from the sample
    ...         max_steps=100,
    ...         n_warmups=50,
    ...     )
    ...     len(buffer)
    100
    """
    is_whole = isinstance(max_steps, float) and max_steps.is_integer()
    steps = whole_number("max_steps", int(max_steps) if is_whole else max_steps, 0, 2**64 - 2)
    episodes = None if max_episodes is None else whole_number("max_episodes", max_episodes, 0)
    warmups = whole_number("n_warmups", n_warmups, 0)
    whole_number("batch_size", batch_size, 1)
    log = _LOGGER if logger is None else logger
    if not isinstance(buffer, _core.ReplayBuffer):
        raise TypeError(f"cannot train: buffer must be a ReplayBuffer, got {buffer!r}")
    ranked = buffer if isinstance(buffer, _core.PrioritizedReplayBuffer) else None
    fields = [name for name, _, _ in buffer._fields()]
    if steps == 0 or episodes == 0:
        return

    obs, episode, episode_step, episode_reward = _first_of(env), 0, 0, 0.0
    began = time.perf_counter()
    for step in range(steps):
        is_warmup = step < warmups
        action = get_action(obs, step, episode, is_warmup)
        returned = env.step(action)
        if after_step is not None:
            transition = added = after_step(obs, action, returned, step, episode)
        else:
            transition = _transition(obs, action, returned)
            added = {name: value for name, value in transition.items() if name in fields}
        buffer.add(**added)

        if not is_warmup and buffer.get_stored_size() > 0:  # n-step rows come later than steps
            sample = buffer.sample(batch_size)
            priorities = update_policy(sample, step, episode)
            if ranked is not None:
                ranked.update_priorities(sample["indexes"], priorities)

        if rew_sum is not None:
            episode_reward = rew_sum(episode_reward, transition)
        else:
            episode_reward = np.add(episode_reward, transition["rew"], dtype=np.float64)
        if done_check is not None:
            over = done_check(transition)
        else:
            flags = [transition.get(flag, False) for flag in FLAGS]
            over = any(flags) or any(_flags(returned).values())
        if not over:
            obs = transition["next_obs"] if obs_update is None else obs_update(transition)
            episode_step += 1
            continue

        buffer.on_episode_end()
        taken = max(time.perf_counter() - began, 1e-9)
        log.info(
            "episode %d: %d steps (%d in all), reward %s, %.1f steps/s",
            episode,
            episode_step + 1,
            step + 1,
            episode_reward,
            (episode_step + 1) / taken,
        )
        if episode_callback is not None:
            episode_callback(episode, episode_step, episode_reward)
        episode += 1
        if episode == episodes:
            return
        obs, episode_step, episode_reward = _first_of(env), 0, 0.0
        began = time.perf_counter()
    buffer.on_episode_end()  # the next call begins with another episode


def _first_of(env: Any) -> Any:
    """Reset an environment; return the first observation, without today's infos."""
    returned = env.reset()
    if isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], dict):
        return returned[0]
    return returned


def _flags(returned: Any) -> dict[str, Any]:
    """Return how an episode goes on by what ``env.step()`` returned; nothing if that is unknown."""
    if len(returned) == 5:
        _, _, terminated, truncated, _ = returned
        return {"done": terminated, "terminated": terminated, "truncated": truncated}
    if len(returned) == 4:
        _, _, done, info = returned
        told = info.get("TimeLimit.truncated", False) if isinstance(info, Mapping) else False
        truncated = bool(done) and bool(told)
        return {"done": done, "terminated": done and not truncated, "truncated": truncated}
    return {}


def _transition(obs: Any, action: Any, returned: Any) -> Transition:
    flags = _flags(returned)
    if not flags:
        raise ValueError(
            f"cannot make a transition: env.step() returned {len(returned)} values, expected 5 or "
            "4; give after_step"
        )
    basic = {"obs": obs, "act": action, "rew": returned[1], "next_obs": returned[0]}
    return {**basic, **flags}
