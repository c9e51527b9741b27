"""Stable-Baselines3's DQN, and explorers in other processes that add to its buffer.

python examples/sb3_explorers.py --explorers 2 --steps 20000
"""

import argparse
import time

import gymnasium
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback

import mpbuffer
from mpbuffer.adapters import sb3

ENV = "CartPole-v1"


def explore(explorer: mpbuffer.Explorer, weights: mpbuffer.SharedWeights) -> None:
    """Step four environments of its own once for each version of the learner's policy."""
    envs = gymnasium.make_vec(ENV, num_envs=4, vectorization_mode="sync")
    policy = DQN("MlpPolicy", ENV, buffer_size=1, device="cpu").policy
    transitions = mpbuffer.VectorTransitions(envs)
    observations, _ = envs.reset(seed=int(explorer.rng.integers(2**31)))
    transitions.reset(observations)
    version = None
    while not explorer.should_stop():
        newer = weights.load_into(policy, newer_than=version)
        if newer is None:
            time.sleep(0.001)
            continue
        version = newer
        actions, _ = policy.predict(observations, deterministic=True)
        at_random = explorer.rng.random(4) < explorer.epsilon
        actions[at_random] = explorer.rng.integers(2, size=at_random.sum())
        observations, *others = envs.step(actions)
        explorer.buffer.add(**transitions.step(actions, observations, *others))


class Publish(BaseCallback):
    """Publishes the policy after each rollout, and looks after the explorers."""

    def __init__(self, weights: mpbuffer.SharedWeights, explorers: mpbuffer.Explorers):
        super().__init__()
        self.weights, self.explorers = weights, explorers

    def _on_training_start(self) -> None:
        while self.model.replay_buffer.rows.rows_added() == 0:  # the explorers are starting
            self.explorers.check()
            time.sleep(0.01)

    def _on_step(self) -> bool:
        self.explorers.check()
        return True

    def _on_rollout_end(self) -> None:
        self.weights.publish(self.model.policy.state_dict())


def main() -> None:
    parser = argparse.ArgumentParser(description="DQN with explorers in other processes.")
    parser.add_argument("--explorers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20_000)
    options = parser.parse_args()
    if min(options.explorers, options.steps) < 1:
        parser.error("--explorers, --steps: expected 1 or more")
    torch.set_num_threads(1)  # the other cores are the explorers'
    model = DQN("MlpPolicy", ENV, buffer_size=50_000, replay_buffer_class=sb3.ReplayBuffer)
    rows = model.replay_buffer.rows
    with (
        mpbuffer.SharedWeights(model.policy.state_dict()) as weights,
        mpbuffer.Explorers(explore, options.explorers, rows, args=(weights,)) as explorers,
    ):
        model.learn(options.steps, Publish(weights, explorers))
    print(f"{options.steps:,} steps of the learner's own, {rows.rows_added():,} rows in all")
    model.replay_buffer.close()


if __name__ == "__main__":
    main()
