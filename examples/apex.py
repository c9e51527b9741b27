"""Ape-X on one machine: several explorers, one learner, one buffer in shared memory.

    python examples/apex.py        # trains CartPole-v1 until it is solved; see --help

After Horgan et al., "Distributed Prioritized Experience Replay" (2018):

* Every explorer is a process of its own. It acts epsilon-greedily with a copy of the network, each
  explorer with another epsilon, and collects transitions in a small local buffer. About every 50
  rows it adds them to the shared buffer in one call, with their initial priorities |TD error|,
  which follow from the Q values that it computed for acting.
* The learner (this process) samples by priority, trains by double DQN and gives the new |TD errors|
  back to the buffer. Now and then it publishes its weights. It never adds.

The shared buffer goes to the explorers as an ordinary argument; nothing else is to be set up. The
result (JSON) and a plot are written to --out; the exit code is 0 only if the task was solved.
"""

import argparse
import collections
import copy
import ctypes
import json
import multiprocessing
import pathlib
import signal
import sys
import time
import traceback

import gymnasium
import numpy as np
import rich.console
import torch
from torch import nn

import mpbuffer

GAMMA = 0.99
BATCH_SIZE = 128
LEARNING_RATE = 1e-3
TARGET_RATE = 0.01  # share of the online network mixed into the target network every cycle
BETA = 0.4  # exponent of the importance weights
LOCAL_ROWS = 50  # rows that an explorer collects before it adds them
WARM_UP_ROWS = 1_000  # rows before the first learner cycle
ROWS_PER_CYCLE = 2  # all explorers together add at most so many rows per learner cycle
PUBLISH_CYCLES = 50
EVALUATE_CYCLES = 1_000
CRITERION_EPISODES, CONFIRMING_EPISODES, FINAL_EPISODES = 20, 100, 100

console = rich.console.Console(highlight=False, markup=False, soft_wrap=True)


# ---------------------------------------------------------------------------- what both sides use
def make_network(env: gymnasium.Env) -> nn.Module:
    inputs, actions = int(np.prod(env.observation_space.shape)), int(env.action_space.n)
    hidden = [nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(128, actions))


def row_fields(env: gymnasium.Env) -> dict:
    observation = {"shape": env.observation_space.shape, "dtype": np.float32}
    fields = {"obs": observation, "act": {"dtype": np.int64}, "next_obs": observation}
    return fields | {"rew": {}, "done": {}}  # float32, one number each


def epsilon_of(number: int, explorers: int) -> float:
    """Follow Ape-X: from 0.4 for the first explorer down to 0.4^8 = 0.0007 for the last."""
    return 0.4 ** (1 + 7 * number / (explorers - 1)) if explorers > 1 else 0.04


class Signals(ctypes.Structure):
    """What the learner alone writes and the explorers read, a word at a time."""

    _fields_ = (("cycles", ctypes.c_int64), ("stop", ctypes.c_int64))


class SharedWeights:
    """The learner's newest weights: one float32 vector in shared memory, under a lock.

    Sound because the vector is copied in and out under the lock only: no copy is ever torn. Nobody
    waits: an explorer that finds the lock taken keeps its weights until its next rows are added;
    the learner waits a second at most, even if an explorer was killed with the lock in its hand.
    """

    def __init__(self, context, network: nn.Module):
        self.vector = context.RawArray("f", sum(p.numel() for p in network.parameters()))
        self.version = context.RawValue("q", 0)
        self.lock = context.Lock()

    def publish(self, network: nn.Module) -> None:
        """Replace the shared weights by the network's."""
        weights = nn.utils.parameters_to_vector(network.parameters()).detach()
        if self.lock.acquire(timeout=1.0):
            try:
                torch.frombuffer(self.vector, dtype=torch.float32).copy_(weights)
                self.version.value += 1
            finally:
                self.lock.release()

    def fetch(self, network: nn.Module, have: int) -> int:
        """Load the shared weights if they are newer than version `have`; return the version."""
        if self.version.value == have or not self.lock.acquire(block=False):
            return have
        try:
            weights = torch.frombuffer(self.vector, dtype=torch.float32).clone()
            have = self.version.value
        finally:
            self.lock.release()
        nn.utils.vector_to_parameters(weights, network.parameters())
        return have


# -------------------------------------------------------------------------------------- explorers
def explorer_main(number, options, rb, weights, signals, reports) -> None:
    """Explore in a process of its own until told to stop; report what goes wrong."""
    try:
        env = gymnasium.make(options.env)
        local_fields = row_fields(env) | {"priority": {}}
        with rb, mpbuffer.ReplayBuffer(LOCAL_ROWS, local_fields) as local:
            explore(number, options, env, local, rb, weights, signals, reports)
    except BrokenPipeError:
        pass  # the learner no longer listens: it has stopped, or died
    except Exception:
        reports.send(traceback.format_exc())
        sys.exit(1)


def explore(number, options, env, local, rb, weights, signals, reports) -> None:
    torch.set_num_threads(1)
    learner, epsilon = multiprocessing.parent_process(), epsilon_of(number, options.explorers)
    rng = np.random.default_rng([options.seed, number])
    network = make_network(env)
    version = weights.fetch(network, have=0)

    @torch.inference_mode()
    def q_values(observation) -> np.ndarray:
        return network(torch.as_tensor(observation, dtype=torch.float32)[None]).numpy()[0]

    obs, _ = env.reset(seed=int(rng.integers(2**31)))
    q = q_values(obs)
    episode_return, rows_added = 0.0, 0
    while True:
        action = int(rng.integers(len(q)) if rng.random() < epsilon else q.argmax())
        next_obs, reward, terminated, truncated, _ = env.step(action)
        next_q = q_values(next_obs)  # for this row's TD error and for the next action

        # Nothing follows a termination. A truncation only stops the clock, so it bootstraps.
        target = reward + (0.0 if terminated else GAMMA * next_q.max())
        row = {"obs": obs, "act": action, "rew": reward, "next_obs": next_obs, "done": terminated}
        local.add(**row, priority=abs(target - q[action]))
        obs, q = next_obs, next_q
        episode_return += float(reward)
        if terminated or truncated:
            reports.send(episode_return)
            obs, _ = env.reset()
            q = q_values(obs)
            episode_return = 0.0

        if terminated or truncated or local.get_stored_size() == LOCAL_ROWS:
            rows = local.get_all_transitions()
            local.clear()
            rb.add(priorities=rows.pop("priority").ravel(), **rows)
            rows_added += len(rows["obs"])
            version = weights.fetch(network, version)

            # An explorer may be so many rows ahead of the learner, and no more. So the learner
            # gets its share of a small machine, and every explorer supplies as much as the others.
            while True:
                if signals.stop or not learner.is_alive():
                    return
                limit = WARM_UP_ROWS + ROWS_PER_CYCLE * signals.cycles
                if rows_added * options.explorers < limit:
                    break
                time.sleep(0.005)


class ExplorerFailed(RuntimeError):
    """An explorer raised an exception, or was killed."""


class Explorers:
    """The explorers' processes: started on entering the block, stopped on leaving it."""

    def __init__(self, options, rb, weights, context):
        self.context, self.count = context, options.explorers
        self.signals = context.RawValue(Signals)
        self.arguments = options, rb, weights, self.signals
        self.processes, self.reports = [], []
        self.returns = collections.deque(maxlen=5 * options.explorers)

    def __enter__(self):
        # Ctrl-C reaches the whole group of processes; only the learner is to answer it.
        answer = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for number in range(self.count):
                receiver, sender = self.context.Pipe(duplex=False)
                args = (number, *self.arguments, sender)
                process = self.context.Process(target=explorer_main, args=args, daemon=True)
                process.start()
                sender.close()  # the explorer has the only one left: we read EOF when it ends
                self.processes.append(process)
                self.reports.append(receiver)
        finally:
            signal.signal(signal.SIGINT, answer)
        return self

    def __exit__(self, *_):
        self.signals.stop = 1
        for receiver in self.reports:
            receiver.close()
        for process in self.processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
                process.join()

    def read_reports(self) -> None:
        """Take in the returns of finished episodes; raise if an explorer has failed."""
        for number, receiver in enumerate(self.reports):
            try:
                while receiver.poll():
                    report = receiver.recv()
                    if isinstance(report, str):
                        raise ExplorerFailed(f"explorer {number} failed:\n{report}")
                    self.returns.append(report)
            except (EOFError, OSError):
                self.processes[number].join(timeout=1)
                code = self.processes[number].exitcode
                raise ExplorerFailed(f"explorer {number} ended with exit code {code}") from None


# ---------------------------------------------------------------------------------------- learner
class Learner:
    """Prioritized double DQN with a slowly following target network."""

    def __init__(self, network: nn.Module):
        self.online, self.target = network, copy.deepcopy(network).requires_grad_(False)
        self.optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, fused=True)

    def cycle(self, rb) -> None:
        """Sample, train, update the priorities."""
        sample = rb.sample(BATCH_SIZE, beta=BETA)
        indexes = sample.pop("indexes")
        rows = {name: torch.from_numpy(values) for name, values in sample.items()}

        with torch.no_grad():  # the online network chooses the action, the target network rates it
            choice = self.online(rows["next_obs"]).argmax(1, keepdim=True)
            follows = self.target(rows["next_obs"]).gather(1, choice)
            target = rows["rew"] + GAMMA * (1 - rows["done"]) * follows
        q = self.online(rows["obs"]).gather(1, rows["act"])
        loss = nn.functional.smooth_l1_loss(q, target, reduction="none").squeeze(1)
        self.optimizer.zero_grad()
        (rows["weights"] * loss).mean().backward()
        self.optimizer.step()

        rb.update_priorities(indexes, (target - q.detach()).abs().squeeze(1).numpy())
        networks = self.target.parameters(), self.online.parameters()
        for follower, leader in zip(*networks, strict=True):
            follower.lerp_(leader.detach(), TARGET_RATE)


@torch.inference_mode()
def greedy_returns(network: nn.Module, env_name: str, rng, episodes: int) -> np.ndarray:
    """Play that many greedy episodes side by side, each with a seed of its own from `rng`."""
    envs = gymnasium.make_vec(env_name, num_envs=episodes, vectorization_mode="sync")
    observations, _ = envs.reset(seed=rng.integers(2**31, size=episodes).tolist())
    returns, running = np.zeros(episodes), np.ones(episodes, dtype=bool)
    while running.any():
        actions = network(torch.as_tensor(observations, dtype=torch.float32)).argmax(1).numpy()
        observations, rewards, terminated, truncated, _ = envs.step(actions)
        returns += rewards * running
        running &= ~(terminated | truncated)
    return returns


# --------------------------------------------------------------------------------------- main job
def train(options, learner, rb, weights, explorers, result) -> None:
    """Train until the task is solved or time is up; what happens goes into `result`."""
    evaluation_rng = np.random.default_rng([options.seed, 1_000])
    console.print("starting the explorers")
    start = last_time = time.monotonic()
    while rb.rows_added() < WARM_UP_ROWS and time.monotonic() - start < options.time_limit:
        explorers.read_reports()
        time.sleep(0.02)

    last_rows = 0
    while time.monotonic() - start < options.time_limit:
        learner.cycle(rb)
        cycles = result["cycles"] = explorers.signals.cycles = result["cycles"] + 1
        if cycles % PUBLISH_CYCLES == 0:
            weights.publish(learner.online)
            explorers.read_reports()
        if cycles % EVALUATE_CYCLES != 0:
            continue

        greedy = greedy_returns(learner.target, options.env, evaluation_rng, CRITERION_EPISODES)
        now, rows = time.monotonic(), rb.rows_added()
        record = {"seconds": round(now - start, 2), "rows": rows, "greedy": float(greedy.mean())}
        record["explorers"] = float(np.mean(explorers.returns)) if explorers.returns else None
        result["returns"].append(record)
        console.print(
            f"{record['seconds']:7.2f} s  {EVALUATE_CYCLES / (now - last_time):6,.0f} cycles/s"
            f"  {(rows - last_rows) / (now - last_time):7,.0f} transitions/s"
            f"  {rb.get_stored_size():8,} stored  mean return: greedy {record['greedy']:6.1f},"
            f" explorers {record['explorers'] or 0.0:6.1f}"
        )
        last_time, last_rows = now, rows

        # Twenty episodes may be good luck: a network that passes must pass over 100 others too.
        if record["greedy"] >= result["threshold"]:
            more = greedy_returns(learner.target, options.env, evaluation_rng, CONFIRMING_EPISODES)
            if more.mean() >= result["threshold"]:
                seconds = round(time.monotonic() - start, 2)
                result |= {"solved": True, "seconds_to_criterion": seconds}
                return


def save_plot(result: dict, path: pathlib.Path) -> None:
    from matplotlib.figure import Figure  # here, because explorers import this file too

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    seconds = [record["seconds"] for record in result["returns"]]
    for who in ("explorers", "greedy"):
        axes.plot(seconds, [record[who] for record in result["returns"]], marker=".", label=who)
    axes.axhline(result["threshold"], color="grey", linestyle="--", label="criterion")
    axes.set(xlabel="seconds", ylabel="mean return", title=result["env"])
    axes.legend()
    figure.savefig(path, dpi=120)


def parse_options() -> tuple[argparse.Namespace, gymnasium.Env]:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description="Ape-X on one machine.", formatter_class=formatter)
    parser.add_argument("--env", default="CartPole-v1", help="gymnasium name; discrete actions")
    parser.add_argument("--explorers", type=int, default=4, help="number of explorer processes")
    parser.add_argument("--seed", type=int, default=0, help="for networks, environments, draws")
    parser.add_argument("--out", type=pathlib.Path, default="apex-result", help="folder to write")
    parser.add_argument("--time-limit", type=float, default=170, help="seconds of training")
    parser.add_argument("--capacity", type=int, default=50_000, help="rows in the shared buffer")
    options = parser.parse_args()
    if options.explorers < 1:
        parser.error(f"--explorers: expected 1 or more, got {options.explorers}")
    env = gymnasium.make(options.env)
    discrete = isinstance(env.action_space, gymnasium.spaces.Discrete)
    if not discrete or not env.observation_space.shape or env.spec.reward_threshold is None:
        parser.error("--env: needs array observations, discrete actions and a reward threshold")
    return options, env


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop cleanly, as on Ctrl-C
    options, env = parse_options()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    learner = Learner(make_network(env))
    context = multiprocessing.get_context("spawn")
    weights = SharedWeights(context, learner.online)
    weights.publish(learner.online)
    result = {"env": options.env, "seed": options.seed, "threshold": env.spec.reward_threshold}
    result["epsilons"] = [epsilon_of(i, options.explorers) for i in range(options.explorers)]
    result |= {"solved": False, "seconds_to_criterion": None, "cycles": 0, "returns": []}
    exit_code, fields = 1, row_fields(env)
    with mpbuffer.PrioritizedReplayBuffer(options.capacity, fields, seed=options.seed) as rb:
        explorers = Explorers(options, rb, weights, context)
        try:
            with explorers, console.status("training; Ctrl-C ends it and keeps the result"):
                train(options, learner, rb, weights, explorers, result)
            exit_code = 0 if result["solved"] else 1
        except KeyboardInterrupt:
            console.print("interrupted")
            exit_code = 130
        except ExplorerFailed as failure:
            print(failure, file=sys.stderr)
        rows = {process.pid: process.rows for process in rb.processes()}
    result["rows"] = sum(rows.values())
    result["rows_per_explorer"] = [rows.get(process.pid, 0) for process in explorers.processes]

    # The network is frozen now; this is its one evaluation on seeds that nothing has used.
    rng = np.random.default_rng([options.seed, 2_000])
    final = greedy_returns(learner.target, options.env, rng, FINAL_EPISODES).mean()
    result["final_mean_return"] = float(final)
    result["versions"] = {m.__name__: m.__version__ for m in (mpbuffer, torch, gymnasium, np)}
    result["versions"]["python"] = sys.version.split()[0]

    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    save_plot(result, options.out / "returns.png")
    console.print(
        f"{'solved' if result['solved'] else 'not solved'} after {result['cycles']:,} cycles and"
        f" {result['rows']:,} rows, by explorer {result['rows_per_explorer']}\nfrozen network:"
        f" mean return {result['final_mean_return']:.1f} over {FINAL_EPISODES} new seeds\n"
        f"see {options.out}/result.json and {options.out}/returns.png"
    )
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
