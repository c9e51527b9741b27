"""Soft actor-critic: continuous actions, uniform sampling, explorers with vector environments.

    python examples/sac_vector.py        # learns to swing up Pendulum-v1's pole; see --help

After Haarnoja et al., "Soft Actor-Critic Algorithms and Applications" (2018): two critics, and a
temperature that keeps the policy's entropy near minus the number of action dimensions.

* Every explorer is a process that steps several environments at once. VectorTransitions makes
  transitions that happened out of what the vector environment returns, and `buffer.writer()`
  stages them and adds many at a time.
* The learner (this process) samples uniformly, ahead of its training, and publishes its policy.

The result (JSON) is written to --out; the exit code is 0 only if the task was solved.
"""

import argparse
import copy
import json
import os
import pathlib
import sys
import time

import gymnasium
import numpy as np
import rich.console
import torch
from torch import nn

import mpbuffer

GAMMA = 0.99
WIDTH = 128  # of hidden layers
BATCH_SIZE = 128
LEARNING_RATE = 1e-3
TARGET_RATE = 0.01  # share of the critics mixed into their targets every cycle
CAPACITY = 100_000
WARM_UP_ROWS = 1_000  # rows, of random actions, before the first learner cycle
ROWS_PER_CYCLE = 1  # all explorers together add at most so many rows per learner cycle
PUBLISH_CYCLES = 20
EVALUATE_CYCLES = 1_000
EVALUATION_EPISODES = 20

console = rich.console.Console(highlight=False, markup=False, soft_wrap=True)


def perceptron(inputs: int, outputs: int) -> nn.Module:
    hidden = [nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, outputs))


class Policy(nn.Module):
    """A normal distribution of actions, squashed into the action space by tanh."""

    def __init__(self, observations: gymnasium.spaces.Box, actions: gymnasium.spaces.Box):
        super().__init__()
        self.body = perceptron(observations.shape[0], 2 * actions.shape[0])
        self.register_buffer("centre", torch.as_tensor((actions.high + actions.low) / 2))
        self.register_buffer("reach", torch.as_tensor((actions.high - actions.low) / 2))

    def forward(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return actions drawn from the policy, and the log density of each."""
        mean, log_deviation = self.body(observations).chunk(2, dim=1)
        normal = torch.distributions.Normal(mean, log_deviation.clamp(-5, 2).exp())
        raw = normal.rsample()
        # log of the derivative of tanh, in a form that does not overflow
        squashed = 2 * (np.log(2) - raw - nn.functional.softplus(-2 * raw))
        density = (normal.log_prob(raw) - squashed - self.reach.log()).sum(1, keepdim=True)
        return self.centre + self.reach * raw.tanh(), density

    def greedy(self, observations: torch.Tensor) -> torch.Tensor:
        """Return the most likely actions."""
        mean, _ = self.body(observations).chunk(2, dim=1)
        return self.centre + self.reach * mean.tanh()


# -------------------------------------------------------------------------------------- explorers
def explore(explorer: mpbuffer.Explorer, weights: mpbuffer.SharedWeights, options) -> None:
    """Play in a process of its own until told to stop."""
    envs = gymnasium.make_vec(options.env, num_envs=options.envs, vectorization_mode="sync")
    envs.action_space.seed(int(explorer.rng.integers(2**31)))
    policy = Policy(envs.single_observation_space, envs.single_action_space)
    version = first_version = weights.load_into(policy)
    # One that was restarted joins a learner that trains already.
    warm_up_rows = WARM_UP_ROWS if first_version == 1 else 0
    transitions = mpbuffer.VectorTransitions(envs)
    observations, _ = envs.reset(seed=int(explorer.rng.integers(2**31)))
    transitions.reset(observations)
    with explorer.buffer.writer(flush_every=32, n_envs=options.envs) as writer:
        while not explorer.should_stop():
            if writer.steps * explorer.n < warm_up_rows:
                actions = envs.action_space.sample()
            else:
                with torch.inference_mode():
                    actions = policy(torch.as_tensor(observations))[0].numpy()
            observations, *others = envs.step(actions)
            rows = transitions.step(actions, observations, *others)
            writer.add(envs=rows.envs, **rows)
            version = weights.load_into(policy, newer_than=version) or version

            # An explorer may be so many rows ahead of the learner, and no more: its cycles are
            # known by the versions that it has published since this explorer began.
            while not explorer.should_stop():
                cycles = (version - first_version + 2) * PUBLISH_CYCLES
                if writer.steps * explorer.n <= warm_up_rows + cycles * ROWS_PER_CYCLE:
                    break
                explorer.stopping.wait(0.002)
                version = weights.load_into(policy, newer_than=version) or version


# ---------------------------------------------------------------------------------------- learner
class Learner:
    """Soft actor-critic."""

    def __init__(self, observations: gymnasium.spaces.Box, actions: gymnasium.spaces.Box):
        self.policy = Policy(observations, actions)
        inputs = observations.shape[0] + actions.shape[0]
        self.critics = nn.ModuleList(perceptron(inputs, 1) for _ in range(2))
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_temperature = torch.zeros(1, requires_grad=True)
        self.entropy_wanted = -float(actions.shape[0])
        self.of_policy, self.of_critics, self.of_temperature = (
            torch.optim.Adam(parameters, LEARNING_RATE, fused=True)
            for parameters in (
                self.policy.parameters(),
                self.critics.parameters(),
                [self.log_temperature],
            )
        )

    def cycle(self, rows: dict[str, torch.Tensor]) -> None:
        """Train on one batch."""
        temperature = self.log_temperature.exp().detach()
        with torch.no_grad():
            actions, density = self.policy(rows["next_obs"])
            follows = values(self.targets, rows["next_obs"], actions).amin(0)
            # Nothing follows a termination. A truncation only stops the clock, so it bootstraps.
            lives_on = 1 - rows["terminated"].float()
            wanted = rows["rew"] + GAMMA * lives_on * (follows - temperature * density)
        losses = (values(self.critics, rows["obs"], rows["act"]) - wanted).square().mean((1, 2))
        take_step(self.of_critics, losses.sum())

        actions, density = self.policy(rows["obs"])
        q = values(self.critics.requires_grad_(False), rows["obs"], actions).amin(0)
        take_step(self.of_policy, (temperature * density - q).mean())
        self.critics.requires_grad_(True)

        excess = (density.detach() + self.entropy_wanted).mean()
        take_step(self.of_temperature, -(self.log_temperature * excess).sum())
        both = self.targets.parameters(), self.critics.parameters()
        for follower, leader in zip(*both, strict=True):
            follower.lerp_(leader.detach(), TARGET_RATE)


def values(critics: nn.ModuleList, observations: torch.Tensor, actions: torch.Tensor):
    """Return what each critic expects: (critics, rows, 1)."""
    inputs = torch.cat([observations, actions], dim=1)
    return torch.stack([critic(inputs) for critic in critics])


def take_step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.inference_mode()
def greedy_returns(policy: Policy, env_name: str, rng, episodes: int) -> np.ndarray:
    """Play that many episodes side by side, each with a seed of its own from `rng`."""
    envs = gymnasium.make_vec(env_name, num_envs=episodes, vectorization_mode="sync")
    observations, _ = envs.reset(seed=rng.integers(2**31, size=episodes).tolist())
    returns, running = np.zeros(episodes), np.ones(episodes, dtype=bool)
    while running.any():
        actions = policy.greedy(torch.as_tensor(observations)).numpy()
        observations, rewards, terminated, truncated, _ = envs.step(actions)
        returns += rewards * running
        running &= ~(terminated | truncated)
    envs.close()
    return returns


# --------------------------------------------------------------------------------------- main job
def train(options, learner, buffer, weights, explorers, result) -> None:
    """Train until the task is solved or time is up; what happens goes into `result`."""
    rng = np.random.default_rng([options.seed, 1])
    start = time.monotonic()
    while buffer.get_stored_size() < WARM_UP_ROWS and time.monotonic() - start < options.time_limit:
        explorers.check()
        time.sleep(0.02)
    if buffer.get_stored_size() < WARM_UP_ROWS:
        return
    with buffer.batches(BATCH_SIZE, prefetch=2, tensors=True) as batches:
        for cycle, rows in enumerate(batches, start=1):
            learner.cycle(rows)
            explorers.check()
            if cycle % PUBLISH_CYCLES == 0:
                weights.publish(learner.policy.state_dict())
            if cycle % EVALUATE_CYCLES == 0:
                greedy = greedy_returns(learner.policy, options.env, rng, EVALUATION_EPISODES)
                seconds = time.monotonic() - start
                record = {"seconds": round(seconds, 2), "rows": buffer.rows_added()}
                result["returns"].append(record | {"greedy": float(greedy.mean())})
                console.print(
                    f"{seconds:7.2f} s  {cycle / seconds:6,.0f} cycles/s  {record['rows']:8,} rows"
                    f"  mean greedy return {greedy.mean():8.1f}"
                )
                result["solved"] = bool(greedy.mean() >= options.solved_at)
            if result["solved"] or time.monotonic() - start > options.time_limit:
                return


def parse_options() -> argparse.Namespace:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description="Soft actor-critic.", formatter_class=formatter)
    parser.add_argument("--env", default="Pendulum-v1", help="gymnasium name; continuous actions")
    parser.add_argument("--solved-at", type=float, default=-200.0, help="mean greedy return")
    parser.add_argument("--explorers", type=int, default=1, help="number of explorer processes")
    parser.add_argument("--envs", type=int, default=8, help="environments of each explorer")
    parser.add_argument("--seed", type=int, default=0, help="for networks, environments, draws")
    parser.add_argument("--out", type=pathlib.Path, default="sac-result", help="folder to write")
    parser.add_argument("--time-limit", type=float, default=300, help="seconds of training")
    options = parser.parse_args()
    for name, least in (("explorers", 1), ("envs", 1), ("seed", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name}: expected {least} or more, got {getattr(options, name)}")
    return options


def main() -> int:
    options = parse_options()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    env = gymnasium.make(options.env)
    learner = Learner(env.observation_space, env.action_space)
    result = {"env": options.env, "seed": options.seed, "solved": False, "returns": []}
    buffer = mpbuffer.ReplayBuffer(CAPACITY, mpbuffer.schema_from(env), seed=options.seed)
    with buffer, mpbuffer.SharedWeights(learner.policy.state_dict()) as weights:
        arguments = weights, options
        crew = mpbuffer.Explorers(
            explore, options.explorers, buffer, args=arguments, seed=options.seed
        )
        try:
            with crew as explorers:
                train(options, learner, buffer, weights, explorers, result)
        except KeyboardInterrupt:
            return 130
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    console.print(
        f"{'solved' if result['solved'] else 'not solved'}; see {options.out}/result.json"
    )
    return 0 if result["solved"] else 1


if __name__ == "__main__":
    sys.exit(main())
