"""Stable-Baselines3's DQN on CartPole-v1, with the settings of its zoo, until it is solved.

    python bench/sb3_dqn.py --seed 0 --out DIRECTORY

Solved is what `examples/apex.py` calls so: a mean return of at least 475 over 20 greedy episodes,
and then over 100 others. Writes DIRECTORY/result.json.
"""

import argparse
import json
import time
from pathlib import Path

import gymnasium
import numpy as np
import stable_baselines3
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback

THRESHOLD = 475.0
ZOO_STEPS = 50_000
# rl-baselines3-zoo, hyperparams/dqn.yml, CartPole-v1
ZOO = {
    "policy": "MlpPolicy",
    "learning_rate": 2.3e-3,
    "batch_size": 64,
    "buffer_size": 100_000,
    "learning_starts": 1_000,
    "gamma": 0.99,
    "target_update_interval": 10,
    "train_freq": 256,
    "gradient_steps": 128,
    "exploration_final_eps": 0.04,
    "policy_kwargs": {"net_arch": [256, 256]},
}
ZOO_EXPLORATION_FRACTION = 0.16


class UntilSolved(BaseCallback):
    """Evaluates now and then; ends the training when the task is solved or the time is up."""

    def __init__(self, rng: np.random.Generator, interval: int, time_limit: float) -> None:
        super().__init__()
        self.rng, self.interval = rng, interval
        self.start = time.monotonic()
        self.end = self.start + time_limit
        self.seconds: float | None = None
        self.returns: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        if time.monotonic() > self.end:
            return False
        if self.num_timesteps % self.interval:
            return True
        mean = self.greedy_return(20)
        now = time.monotonic() - self.start
        self.returns.append({"seconds": round(now, 2), "greedy": mean, "rows": self.num_timesteps})
        if mean < THRESHOLD or self.greedy_return(100) < THRESHOLD:
            return True
        self.seconds = round(time.monotonic() - self.start, 2)
        return False

    @torch.inference_mode()
    def greedy_return(self, episodes: int) -> float:
        """Return the mean over episodes played side by side."""
        envs = gymnasium.make_vec("CartPole-v1", num_envs=episodes, vectorization_mode="sync")
        observations, _ = envs.reset(seed=self.rng.integers(2**31, size=episodes).tolist())
        returns, running = np.zeros(episodes), np.ones(episodes, dtype=bool)
        while running.any():
            values = self.model.q_net(torch.as_tensor(observations))
            observations, rewards, terminated, truncated, _ = envs.step(values.argmax(1).numpy())
            returns += rewards * running
            running &= ~(terminated | truncated)
        envs.close()
        return float(returns.mean())


def main() -> None:
    """Train once."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--time-limit", type=float, default=600, help="seconds of training")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--interval", type=int, default=2_048, help="steps between evaluations")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    most_steps = 10**6
    model = DQN(
        env=gymnasium.make("CartPole-v1"),
        seed=options.seed,
        device="cpu",
        exploration_fraction=ZOO_EXPLORATION_FRACTION * ZOO_STEPS / most_steps,
        **ZOO,
    )
    rng = np.random.default_rng([options.seed, 1_000])
    until = UntilSolved(rng, options.interval, options.time_limit)
    model.learn(total_timesteps=most_steps, callback=until)
    result = {
        "seed": options.seed,
        "solved": until.seconds is not None,
        "seconds_to_criterion": until.seconds,
        "rows": model.num_timesteps,
        "returns": until.returns,
        "versions": {
            "stable-baselines3": stable_baselines3.__version__,
            "torch": torch.__version__,
            "gymnasium": gymnasium.__version__,
        },
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
