"""One process, one buffer: experience replay, and prioritized experience replay.

    python examples/quickstart.py                         # both programs, a few seconds each
    python examples/quickstart.py --program prioritized

Both train a small Q-network on CartPole-v1 for a few thousand steps and print what they did. That
is not long enough to solve it (apex.py does), but long enough to see the calls at work.
"""

import argparse
import copy
import os
import time

import gymnasium
import numpy as np
import torch
from torch import nn

import mpbuffer

GAMMA = 0.99
CAPACITY = 10_000
BATCH_SIZE = 64
FIRST_TRAINING = 500  # rows stored before training begins

# One transition. `done` is 1 where the episode terminated: no reward can follow. It is 0 where the
# episode was only truncated (its time was up), because the next state still has a value then.
FIELDS = {
    "obs": {"shape": 4},
    "act": {"dtype": np.int64},
    "rew": {},
    "next_obs": {"shape": 4},
    "done": {},
}


class Agent:
    """A Q-network that explores ever less."""

    def __init__(self, steps: int):
        self.exploring_steps, self.steps = 0.6 * steps, 0
        self.network = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
        self.target = copy.deepcopy(self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), 1e-3)

    @torch.no_grad()
    def act(self, obs: np.ndarray, rng: np.random.Generator) -> int:
        """Choose an action, at random with a probability that falls from 1 to 0.05."""
        self.steps += 1
        if rng.random() < max(0.05, 1 - self.steps / self.exploring_steps):
            return int(rng.integers(2))
        return int(self.network(torch.from_numpy(obs)).argmax())

    def train(self, sample: dict, weights: np.ndarray | float = 1.0) -> np.ndarray:
        """Take one gradient step on a sample; return the rows' |TD errors|."""
        obs, act, rew, next_obs, done = (torch.from_numpy(sample[name]) for name in FIELDS)
        with torch.no_grad():
            follows = self.target(next_obs).amax(1, keepdim=True)
            target = rew + GAMMA * (1 - done) * follows
        error = target - self.network(obs).gather(1, act)
        loss = (torch.as_tensor(weights) * error.square().squeeze(1)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.steps % 100 == 0:
            self.target.load_state_dict(self.network.state_dict())
        return error.detach().abs().squeeze(1).numpy()


def experience_replay(steps: int, seed: int) -> list[float]:
    env = gymnasium.make("CartPole-v1")
    agent, rng = Agent(steps), np.random.default_rng(seed)
    rb = mpbuffer.ReplayBuffer(CAPACITY, FIELDS, seed=seed)

    returns = [0.0]
    obs, _ = env.reset(seed=seed)
    for _ in range(steps):
        act = agent.act(obs, rng)
        next_obs, rew, terminated, truncated, _ = env.step(act)
        rb.add(obs=obs, act=act, rew=rew, next_obs=next_obs, done=terminated)
        returns[-1] += float(rew)

        obs = next_obs
        if terminated or truncated:
            rb.on_episode_end()
            obs, _ = env.reset()
            returns.append(0.0)

        if rb.get_stored_size() >= FIRST_TRAINING:
            agent.train(rb.sample(BATCH_SIZE))

    print(rb)
    rb.close()
    return returns[:-1] or returns  # the last episode was not finished


def prioritized_experience_replay(steps: int, seed: int) -> list[float]:
    env = gymnasium.make("CartPole-v1")
    agent, rng = Agent(steps), np.random.default_rng(seed)
    rb = mpbuffer.PrioritizedReplayBuffer(CAPACITY, FIELDS, alpha=0.6, seed=seed)

    returns = [0.0]
    obs, _ = env.reset(seed=seed)
    for step in range(steps):
        act = agent.act(obs, rng)
        next_obs, rew, terminated, truncated, _ = env.step(act)
        rb.add(obs=obs, act=act, rew=rew, next_obs=next_obs, done=terminated)  # highest priority
        returns[-1] += float(rew)

        obs = next_obs
        if terminated or truncated:
            rb.on_episode_end()
            obs, _ = env.reset()
            returns.append(0.0)

        if rb.get_stored_size() >= FIRST_TRAINING:
            sample = rb.sample(BATCH_SIZE, beta=0.4 + 0.6 * step / steps)
            errors = agent.train(sample, weights=sample["weights"])
            rb.update_priorities(sample["indexes"], errors)

    print(rb)
    rb.close()
    return returns[:-1] or returns


PROGRAMS = {"uniform": experience_replay, "prioritized": prioritized_experience_replay}


def main() -> None:
    parser = argparse.ArgumentParser(description="Experience replay in one process.")
    parser.add_argument("--program", choices=[*PROGRAMS, "both"], default="both")
    parser.add_argument("--steps", type=int, default=6_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"--steps: expected 1 or more, got {options.steps}")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    for name, program in PROGRAMS.items():
        if options.program in (name, "both"):
            torch.manual_seed(options.seed)
            start = time.monotonic()
            returns = program(options.steps, options.seed)
            print(
                f"{name}: {options.steps:,} steps and {len(returns)} episodes in"
                f" {time.monotonic() - start:.1f} s; mean return of the first 20 episodes"
                f" {np.mean(returns[:20]):.0f}, of the last 20 {np.mean(returns[-20:]):.0f}"
            )


if __name__ == "__main__":
    main()
