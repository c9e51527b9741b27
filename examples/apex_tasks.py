"""The tasks of apex.py: their environments, the networks for them, and what suits each of them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from torch import nn

rms_prop = functools.partial(torch.optim.RMSprop, lr=6.25e-5, alpha=0.95, eps=1.5e-7, centered=True)
adam = functools.partial(torch.optim.Adam, lr=2e-3, fused=True)


@dataclass(frozen=True)
class Task:
    """What suits a task: the paper's numbers, unless it needs others."""

    solved_at: float  # mean return of greedy episodes
    episodes: int = 20  # so many, and then five times as many others
    capacity: int = 2_000_000  # rows; fewer if half of the free memory does not hold them
    warm_up_rows: int = 50_000  # before the first cycle
    rows_per_cycle: float = 64.0  # by all explorers together at most; the paper sets no limit
    batch_size: int = 512
    gamma: float = 0.99
    steps: int = 3
    alpha: float = 0.6  # exponent of the priorities
    beta: float = 0.4  # exponent of the importance weights
    optimizer: Callable = rms_prop
    largest_gradient: float = 40.0  # norm
    target_cycles: int = 2_500  # after so many, the target network becomes
    target_share: float = 1.0  # to this share the online one
    publish_cycles: int = 10
    evaluate_cycles: int = 10_000


SMALL = {"warm_up_rows": 1_000, "rows_per_cycle": 4.0, "batch_size": 128, "evaluate_cycles": 1_000}
SMALL |= {"optimizer": adam, "target_cycles": 4, "target_share": 0.04, "publish_cycles": 50}
TASKS = {
    "CartPole-v1": Task(solved_at=475.0, capacity=50_000, **SMALL),
    "LunarLander-v3": Task(solved_at=200.0, capacity=200_000, **SMALL),
    "ALE/Pong-v5": Task(solved_at=18.0, episodes=4, warm_up_rows=20_000),
}


def make_env(name: str, training: bool = False) -> gymnasium.Env:
    """Make an environment whose observations are vectors, or frames with their channels first."""
    if not name.startswith("ALE/"):
        return gymnasium.make(name)
    import ale_py

    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gymnasium.register_envs(ale_py)
    env = gymnasium.make(name, frameskip=1, repeat_action_probability=0.0)
    # 84 x 84 grey pixels, each action four times, up to 30 no-ops first.
    env = gymnasium.wrappers.AtariPreprocessing(env, terminal_on_life_loss=training)
    env = gymnasium.wrappers.FrameStackObservation(env, 4)
    return gymnasium.wrappers.TransformReward(env, np.sign) if training else env


class DuelingNetwork(nn.Module):
    """Q values from a state's value and its actions' advantages (Wang et al., 2016)."""

    def __init__(self, env: gymnasium.Env):
        super().__init__()
        shape, actions = env.observation_space.shape, int(env.action_space.n)
        if len(shape) == 1:
            body, features, hidden = [nn.Linear(shape[0], 128)], 128, 64
        else:  # Mnih et al., 2015
            body = [nn.Conv2d(shape[0], 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU()]
            body, features, hidden = [*body, nn.Conv2d(64, 64, 3)], 64 * 7 * 7, 512
        self.scale = 1.0 if len(shape) == 1 else 1 / 255
        self.body = nn.Sequential(*body, nn.ReLU(), nn.Flatten())
        self.value, self.advantage = (
            nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
            for outputs in (1, actions)
        )
        self.register_buffer("cycles", torch.zeros((), dtype=torch.int64))  # trained for so many

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Return the Q values of all actions."""
        features = self.body(observations.float() * self.scale)
        advantage = self.advantage(features)
        return self.value(features) + advantage - advantage.mean(1, keepdim=True)
