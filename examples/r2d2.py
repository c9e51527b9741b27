"""Recurrent Q-learning: explorers play with memory, the learner replays sequences with their state.

    python examples/r2d2.py                # a corridor, until it is solved; see --help
    python examples/r2d2.py --memoryless   # the same without memory: it cannot be solved

After Kapturowski et al., "Recurrent Experience Replay in Distributed Reinforcement Learning"
(2019): double Q-learning with an LSTM, from sequences that begin with the state that the explorer
had, and whose first steps, the burn-in, only bring that state up to date.

* An explorer acts epsilon-greedily. It adds each step with the state of its LSTM before the step,
  and with the TD error as it looked when it acted. Sequences overlap; each step is stored once.
* The learner (this process) samples sequences by priority, with the time on the first axis, and
  gives new priorities back. Now and then it publishes its weights.

The corridor: the first observation shows a cue, left or right. Then doors appear, seldom and at
random, the last one at the end. A door opens to who goes to the side of the cue. The return of an
episode is the share of its doors that opened. Whoever does not remember the cue sees the same at
all doors, whatever the cue was, so that each opens with probability 1/2 at best.
"""

import argparse
import copy
import json
import os
import pathlib
import signal
import sys
import time

import numpy as np
import torch
from torch import nn

import mpbuffer

ACTIONS, OBSERVATION, UNITS = 2, 3, 32
MEMORYLESS_RETURN = 0.5  # the best that is possible without memory, in the mean
GAMMA = 0.9
SEQUENCE = {"length": 20, "period": 10, "burn_in": 4, "state": "state"}
FIELDS = {
    "obs": {"shape": OBSERVATION},
    "act": {"dtype": np.int64},
    "rew": {},
    "done": {},
    "state": {"shape": (2, UNITS)},  # the LSTM's, before the step
}
WARM_UP = 100  # sequences
STEPS_PER_CYCLE = 100  # that explorers play for each batch that is learned


class Corridor:
    """Many episodes side by side; each begins anew when it has ended."""

    length = 30
    door_probability = 0.15

    def __init__(self, n: int, rng: np.random.Generator):
        self.n, self.rng = n, rng
        self.cue, self.t, self.doors, self.opened = np.zeros((4, n), int)
        self.at_door = np.zeros(n, bool)

    def reset(self) -> np.ndarray:
        """Begin all episodes; return their first observations."""
        self._begin(np.ones(self.n, bool))
        return self._observation()

    def step(self, actions: np.ndarray):
        """Return observations, rewards, whether episodes ended, and the returns of those."""
        opened = self.at_door & (actions == self.cue)
        self.doors += self.at_door
        self.opened += opened
        self.t += 1
        ended = self.t == self.length
        returns = self.opened[ended] / self.doors[ended]
        self._begin(ended)
        self.at_door = (self.t > 0) & (self.rng.random(self.n) < self.door_probability)
        self.at_door |= self.t == self.length - 1
        return self._observation(), opened.astype(np.float32), ended, returns

    def _begin(self, which: np.ndarray) -> None:
        self.t[which] = self.doors[which] = self.opened[which] = 0
        self.cue[which] = self.rng.integers(ACTIONS, size=which.sum())
        self.at_door[which] = False

    def _observation(self) -> np.ndarray:
        shown = np.where(self.t == 0, 2 * self.cue - 1, 0)
        noise = self.rng.uniform(-1, 1, self.n)
        return np.stack([shown, self.at_door, noise], axis=1).astype(np.float32)


class RecurrentQ(nn.Module):
    """Values of actions for sequences, time first. Without memory, the state stays 0."""

    def __init__(self, memoryless: bool):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(OBSERVATION, UNITS), nn.ReLU())
        self.core = nn.Linear(UNITS, UNITS) if memoryless else nn.LSTM(UNITS, UNITS)
        self.head = nn.Linear(UNITS, ACTIONS)
        self.register_buffer("cycles", torch.zeros((), dtype=torch.int64))

    def forward(self, obs: torch.Tensor, state: torch.Tensor):
        """Return values (T, n, actions), and the state (2, n, units) behind the last step."""
        features = self.encoder(obs)
        if isinstance(self.core, nn.Linear):
            return self.head(torch.relu(self.core(features))), state
        features, (hidden, cell) = self.core(features, tuple(state[:, None].contiguous()))
        return self.head(features), torch.cat([hidden, cell])

    @torch.inference_mode()
    def act(self, obs: np.ndarray, state: torch.Tensor):
        """Values (n, actions) of one step, and the next state."""
        q, state = self(torch.as_tensor(obs)[None], state)
        return q[0].numpy(), state


def no_state(n: int) -> torch.Tensor:
    return torch.zeros(2, n, UNITS)


def explore(explorer: mpbuffer.Explorer, memoryless: bool, weights) -> None:
    """Play with the newest weights until told to stop: the work of each explorer's process."""
    torch.set_num_threads(1)
    network = RecurrentQ(memoryless)
    version = weights.load_into(network)
    first_cycle, played = int(network.cycles), 0
    corridor = Corridor(1, explorer.rng)
    obs, state = corridor.reset(), no_state(1)
    q, next_state = network.act(obs, state)
    with explorer.buffer.writer() as writer:
        while not explorer.should_stop():
            random = explorer.rng.random() < explorer.epsilon
            act = int(explorer.rng.integers(ACTIONS) if random else q[0].argmax())
            step = {"obs": obs[0], "act": act, "state": state[:, 0].numpy()}
            obs, rew, done, _ = corridor.step(np.array([act]))
            state = no_state(1) if done[0] else next_state
            value, (q, next_state) = q[0, act], network.act(obs, state)
            # The next values are known now: so the step is added with its TD error.
            td = rew[0] + GAMMA * (1 - done[0]) * q.max() - value
            writer.add(**step, rew=rew[0], done=done[0], td=td)

            # Explorers together may be so many steps ahead of the learner, and no more.
            played += 1
            while played % 50 == 0 and not explorer.should_stop():
                version = weights.load_into(network, newer_than=version) or version
                allowed = STEPS_PER_CYCLE * (int(network.cycles) - first_cycle)
                warm_up = 3 * WARM_UP * SEQUENCE["period"]
                if played * explorer.n <= warm_up + allowed:
                    break
                explorer.stopping.wait(0.005)


class Learner:
    """Double Q-learning from sequences, with a target network that follows."""

    def __init__(self, memoryless: bool):
        self.online = RecurrentQ(memoryless)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.online.parameters(), lr=2e-3)
        self.cycles = 0

    def cycle(self, rb: mpbuffer.PrioritizedReplayBuffer, batch: dict[str, torch.Tensor]) -> None:
        """Train on a batch whose time is on the first axis, and update its priorities."""
        burn_in = rb.sequence.burn_in
        state = batch["state"].transpose(0, 1)
        with torch.no_grad():  # the state that the networks of today would have
            _, online_state = self.online(batch["obs"][:burn_in], state)
            _, target_state = self.target(batch["obs"][:burn_in], state)
        rest = {name: batch[name][burn_in:] for name in ("obs", "act", "rew", "done", "mask")}
        q, _ = self.online(rest["obs"], online_state)
        with torch.no_grad():
            q_of_target, _ = self.target(rest["obs"], target_state)
            follows = q_of_target.gather(2, q.argmax(2, keepdim=True))[1:]
            follows = torch.cat([follows, torch.zeros_like(follows[:1])])
            target = rest["rew"] + GAMMA * (1 - rest["done"]) * follows
        td = (target - q.gather(2, rest["act"])).squeeze(2)
        # A step counts if what follows it is there, or nothing follows.
        counts = rest["mask"] & (rest["mask"].roll(-1, 0) | (rest["done"].squeeze(2) > 0))
        counts[-1] &= rest["done"][-1].squeeze(1) > 0

        losses = nn.functional.huber_loss(td, torch.zeros_like(td), reduction="none")
        loss = (batch["weights"] * losses * counts).sum() / counts.sum()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.online.parameters(), 10)
        self.optimizer.step()
        rb.update_priorities(
            batch["indexes"].numpy(),
            mpbuffer.sequence_priorities(td.detach().numpy().T, counts.numpy().T),
        )
        self.cycles += 1
        if self.cycles % 100 == 0:
            self.target.load_state_dict(self.online.state_dict())

    def weights(self) -> dict[str, torch.Tensor]:
        """Return what explorers need: the network, and how many cycles it was trained for."""
        self.online.cycles.fill_(self.cycles)
        return self.online.state_dict()


def greedy_return(network: RecurrentQ, rng: np.random.Generator, episodes: int) -> float:
    """Return the mean over so many episodes, played side by side."""
    corridor, state = Corridor(episodes, rng), no_state(episodes)
    obs = corridor.reset()
    for _ in range(corridor.length):
        q, state = network.act(obs, state)
        obs, _, _, returns = corridor.step(q.argmax(1))
    return float(returns.mean())


def train(options: argparse.Namespace, rb, weights, learner: Learner, explorers, result) -> None:
    """Train until the corridor is solved or time is up; what happens goes into `result`."""
    rng, start = np.random.default_rng([options.seed, 1_000]), time.monotonic()
    while len(rb) < WARM_UP:
        explorers.check()
        if time.monotonic() - start > options.time_limit:
            return
        time.sleep(0.02)
    for batch in rb.batches(options.batch_size, beta=0.6, tensors=True, time_major=True):
        learner.cycle(rb, batch)
        if learner.cycles % 20 == 0:
            weights.publish(learner.weights())
            explorers.check()  # raises what an explorer raised, replaces those that were killed
        seconds = time.monotonic() - start
        result |= {"cycles": learner.cycles, "seconds": round(seconds, 2)}
        if learner.cycles % options.evaluate == 0:
            greedy = greedy_return(learner.online, rng, 200)
            result["returns"].append({"cycles": learner.cycles, "greedy": greedy})
            print(
                f"{seconds:6.1f} s  {learner.cycles:6,} cycles  {rb.rows_added():7,} sequences  "
                f"mean greedy return {greedy:.2f}",
                flush=True,
            )
            # So few episodes may be good luck.
            result["solved"] = (
                greedy >= options.solved_at
                and greedy_return(learner.online, rng, 1_000) >= options.solved_at
            )
            if result["solved"]:
                return
        if seconds > options.time_limit or learner.cycles >= options.cycles:
            return


def parse_options() -> argparse.Namespace:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description="R2D2 on one machine.", formatter_class=formatter)
    add = parser.add_argument
    add("--memoryless", action="store_true", help="a network without memory")
    add("--explorers", type=int, default=2, help="number of explorer processes")
    add("--seed", type=int, default=0, help="for networks, corridors, draws")
    add("--batch-size", type=int, default=32, help="sequences")
    add("--cycles", type=int, default=20_000, help="batches to learn at most")
    add("--evaluate", type=int, default=250, help="every so many cycles")
    add("--time-limit", type=float, default=600, help="seconds of training")
    add("--solved-at", type=float, default=0.95, help="mean return that ends the training")
    add("--out", type=pathlib.Path, help="file for the result, JSON")
    options = parser.parse_args()
    if options.explorers < 1:
        parser.error(f"--explorers: expected 1 or more, got {options.explorers}")
    return options


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop cleanly, as on Ctrl-C
    options = parse_options()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    learner = Learner(options.memoryless)
    result = {"memoryless": options.memoryless, "seed": options.seed, "solved": False}
    result |= {"memoryless_return": MEMORYLESS_RETURN, "cycles": 0, "seconds": 0.0, "returns": []}
    with (
        mpbuffer.PrioritizedReplayBuffer(
            4_000, FIELDS, sequence=SEQUENCE, alpha=0.6, seed=options.seed
        ) as rb,
        mpbuffer.SharedWeights(learner.weights()) as weights,
    ):
        shared = (options.memoryless, weights)
        explorers = mpbuffer.Explorers(
            explore, options.explorers, rb, args=shared, seed=options.seed
        )
        try:
            with explorers:
                train(options, rb, weights, learner, explorers, result)
        except KeyboardInterrupt:
            return 130
    rng = np.random.default_rng([options.seed, 2_000])  # of corridors that nothing has used
    result["final_return"] = greedy_return(learner.online, rng, 2_000)
    print(
        f"{'solved' if result['solved'] else 'not solved'} after {result['cycles']:,} cycles and "
        f"{result['seconds']:.1f} s: mean return {result['final_return']:.3f}; without memory at "
        f"most {MEMORYLESS_RETURN}"
    )
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["solved"] else 1


if __name__ == "__main__":
    sys.exit(main())
