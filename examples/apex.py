"""Ape-X on one machine: several explorers, one learner, one prioritized buffer in shared memory.

    python examples/apex.py              # CartPole-v1 until it is solved; see --help
    python examples/apex.py --resume     # goes on where a run ended, or all of it was killed

After Horgan et al., "Distributed Prioritized Experience Replay" (2018): double, dueling, three-step
deep Q-learning from what many processes experience.

* An explorer acts epsilon-greedily with a copy of the network, each explorer with another epsilon.
  It stages its steps; about every 50 rows they go to the shared buffer in one call, as three-step
  transitions whose initial priorities |TD error| follow from the Q values that it acted by.
* The learner (this process) samples by priority, trains, and gives the new |TD errors| back to the
  buffer. Now and then it publishes its weights. It never adds.

mpbuffer starts the explorers, replaces killed ones, ends them with the learner, and carries weights
and rows. Result, plot, checkpoints and rows go to --out; the exit code is 0 only if the task is
solved.
"""

import argparse
import contextlib
import copy
import functools
import json
import os
import pathlib
import signal
import sys
import time

import gymnasium
import numpy as np
import rich.console
import torch
from apex_tasks import TASKS, DuelingNetwork, Task, make_env
from torch import nn

import mpbuffer

console = rich.console.Console(highlight=False, markup=False, soft_wrap=True)


def explore(explorer: mpbuffer.Explorer, env_name: str, weights, returns) -> None:
    """Play with the newest weights until told to stop: the work of each explorer's process."""
    task, env = TASKS[env_name], make_env(env_name, training=True)
    network = DuelingNetwork(env)
    version = weights.load_into(network)
    first_cycle = int(network.cycles)

    @torch.inference_mode()
    def q_values(obs: np.ndarray) -> np.ndarray:
        return network(torch.as_tensor(obs)[None])[0].numpy()

    obs, _ = env.reset(seed=int(explorer.rng.integers(2**31)))
    q, episode_return = q_values(obs), 0.0
    with explorer.buffer.writer(flush_every=50, priorities="td") as writer:
        while not explorer.should_stop():
            random = explorer.rng.random() < explorer.epsilon
            act = int(explorer.rng.integers(len(q)) if random else q.argmax())
            next_obs, rew, terminated, truncated, _ = env.step(act)
            next_q = q_values(next_obs)
            row = {"obs": obs, "act": act, "rew": rew, "next_obs": next_obs}
            ends = {"terminated": terminated, "truncated": truncated}
            values = {"q": q[act], "v": q.max(), "next_v": next_q.max()}
            written = writer.add(**row, **ends, **values)
            obs, q, episode_return = next_obs, next_q, episode_return + float(rew)
            if terminated or truncated:
                returns.add(ret=episode_return, at=time.monotonic())
                obs, _ = env.reset()
                q, episode_return = q_values(obs), 0.0

            # An explorer may be so many rows ahead of the learner, and no more. So the learner gets
            # its share of a small machine, and every explorer supplies as much as the others.
            while written and not explorer.should_stop():
                version = weights.load_into(network, newer_than=version) or version
                rows = task.rows_per_cycle * (int(network.cycles) - first_cycle)
                if writer.rows_written * explorer.n <= task.warm_up_rows + rows:
                    break
                explorer.stopping.wait(0.005)


class Learner:
    """Double Q-learning from prioritized batches, with a target network that follows."""

    def __init__(self, network: nn.Module, task: Task, device: str):
        self.task, self.device, self.online = task, torch.device(device), network.to(device)
        self.target = copy.deepcopy(network).requires_grad_(False)
        self.pairs = list(zip(self.target.parameters(), network.parameters(), strict=True))
        self.optimizer = task.optimizer(network.parameters())
        self.cycles = 0

    def cycle(self, rb: mpbuffer.PrioritizedReplayBuffer, batch: dict[str, torch.Tensor]) -> None:
        """Train on a batch, and update its priorities."""
        rows = {name: each.to(self.device, non_blocking=True) for name, each in batch.items()}
        q, next_q = self.online(torch.cat([rows["obs"], rows["next_obs"]])).chunk(2)
        with torch.no_grad():  # the online network chooses the action, the target network rates it
            follows = self.target(rows["next_obs"]).gather(1, next_q.argmax(1, keepdim=True))
            target = rows["rew"] + rows["discount"] * follows
        q = q.gather(1, rows["act"])
        loss = nn.functional.smooth_l1_loss(q, target, reduction="none").squeeze(1)
        self.optimizer.zero_grad()
        (rows["weights"] * loss).mean().backward()
        nn.utils.clip_grad_norm_([leader for _, leader in self.pairs], self.task.largest_gradient)
        self.optimizer.step()
        td_errors = (target - q.detach()).abs().flatten().cpu().numpy()
        rb.update_priorities(batch["indexes"].numpy(), td_errors)

        self.cycles += 1
        if self.cycles % self.task.target_cycles == 0:
            for follower, leader in self.pairs:
                follower.lerp_(leader.detach(), self.task.target_share)

    def weights(self) -> dict[str, torch.Tensor]:
        """Return what explorers need: the network, and how many cycles it was trained for."""
        self.online.cycles.fill_(self.cycles)
        return self.online.state_dict()

    def save(self, path: pathlib.Path, **others) -> None:
        """Replace the checkpoint by a whole new one, whenever this process may be killed."""
        parts = {"target": self.target.state_dict(), "optimizer": self.optimizer.state_dict()}
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save({"online": self.weights(), **parts, **others}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def load(self, path: pathlib.Path) -> dict:
        """Become the learner that the checkpoint is of; return what else is in it."""
        saved = torch.load(path, map_location=self.device)
        for name in ("online", "target", "optimizer"):
            getattr(self, name).load_state_dict(saved[name])
        self.cycles = int(self.online.cycles)
        return saved


@torch.inference_mode()
def greedy_returns(learner: Learner, env_name: str, rng, episodes: int) -> np.ndarray:
    """Play that many greedy episodes side by side, each with a seed of its own from `rng`."""
    envs = gymnasium.vector.SyncVectorEnv([functools.partial(make_env, env_name)] * episodes)
    observations, _ = envs.reset(seed=rng.integers(2**31, size=episodes).tolist())
    returns, running = np.zeros(episodes), np.ones(episodes, dtype=bool)
    while running.any():
        q = learner.target(torch.as_tensor(observations, device=learner.device))
        observations, rewards, terminated, truncated, _ = envs.step(q.argmax(1).cpu().numpy())
        returns += rewards * running
        running &= ~(terminated | truncated)
    envs.close()
    return returns


def last_returns(returns: mpbuffer.ReplayBuffer, n: int) -> np.ndarray:
    """Return what the explorers' last episodes earned; a full buffer's rows are in no order."""
    episodes = returns.get_all_transitions()
    return episodes["ret"][episodes["at"].ravel().argsort()[-n:]]


def save(options, learner: Learner, rb: mpbuffer.ReplayBuffer, result: dict) -> None:
    """Save what --resume needs. Whenever all processes are killed, the last one stays whole."""
    if options.save_rows:
        rb.snapshot(options.rows)
    learner.save(options.checkpoint, buffer=rb.name, result=result)


def open_buffer(task: Task, env: gymnasium.Env, seed: int, name: str | None, rows: pathlib.Path):
    """Open the buffer that an earlier learner left, in memory or saved; else make one that fits."""
    if name is not None:
        with contextlib.suppress(mpbuffer.SegmentNotFound):
            return mpbuffer.attach(name)
        try:
            return mpbuffer.restore(rows)
        except mpbuffer.SnapshotNotFound:
            console.print("the rows of the earlier run are gone: starting with an empty buffer")
    nstep = {"size": task.steps, "rew": "rew", "gamma": task.gamma, "next": "next_obs"}
    nstep |= {"discount": "discount"}  # gamma^3, or 0 where an episode ended: made for each row
    fields, cls = mpbuffer.schema_from(env), mpbuffer.PrioritizedReplayBuffer
    fits, frames = functools.partial(cls.largest_size, fields, 0.5, Nstep=nstep), {}
    if len(env.observation_space.shape) == 3:  # stacks of frames: each frame is stored once
        frames = {"next_of": "obs", "stack_compress": "obs"}
        console.print(
            f"half of the free memory holds {fits(**frames):,} rows; {fits():,} if each had frames"
            f" of its own"
        )
    size = min(task.capacity, fits(**frames))
    return cls(size, fields, alpha=task.alpha, seed=seed, Nstep=nstep, **frames)


def train(options, learner, rb, weights, returns, explorers, result, status) -> None:
    """Train until the task is solved or time is up; what happens goes into `result`."""
    task, rng = learner.task, np.random.default_rng([options.seed, 1_000, learner.cycles])
    start, seconds_before = time.monotonic(), result["seconds"]
    rows_before = result["rows"] - rb.rows_added()
    while len(rb) < min(task.warm_up_rows, rb.get_buffer_size()):
        explorers.check()
        status.update(f"filling the buffer: {len(rb):,} of {task.warm_up_rows:,} rows")
        result["rows"] = rows_before + rb.rows_added()
        if time.monotonic() - start > options.time_limit:
            return
        time.sleep(0.02)

    on_gpu = learner.device.type == "cuda"
    last_time, last_cycles = time.monotonic(), learner.cycles
    for batch in rb.batches(
        task.batch_size, task.beta, tensors=True, prefetch=2 * on_gpu, pin_memory=on_gpu
    ):
        learner.cycle(rb, batch)
        if learner.cycles % task.publish_cycles == 0:
            weights.publish(learner.weights())
            explorers.check()  # raises what an explorer raised, replaces those that were killed
            now = time.monotonic()
            result |= {"cycles": learner.cycles, "seconds": round(seconds_before + now - start, 2)}
            result["rows"] = rows_before + rb.rows_added()
            speed = f"{(learner.cycles - last_cycles) / (now - last_time):,.0f} cycles/s"
            status.update(f"training: {learner.cycles:,} cycles, {speed}, {result['rows']:,} rows")
            if now - start > options.time_limit:
                return
        if learner.cycles % task.evaluate_cycles != 0:
            continue

        greedy = float(greedy_returns(learner, options.env, rng, task.episodes).mean())
        played = last_returns(returns, 5 * options.explorers)
        record = {key: result[key] for key in ("seconds", "cycles", "rows")} | {"greedy": greedy}
        record["explorers"] = float(played.mean()) if len(played) else None
        result["returns"].append(record)
        console.print(
            f"{record['seconds']:7.2f} s  {record['cycles']:9,} cycles  {speed:>14}"
            f"  {record['rows']:9,} rows  mean return: greedy {greedy:6.1f},"
            f" explorers {record['explorers'] or 0.0:6.1f}"
        )
        # So few episodes may be good luck: a network that passes must pass over others too.
        if greedy >= task.solved_at:
            more = greedy_returns(learner, options.env, rng, 5 * task.episodes)
            if more.mean() >= task.solved_at:
                result |= {"solved": True, "seconds_to_criterion": result["seconds"]}
                return
        save(options, learner, rb, result)
        last_time, last_cycles = time.monotonic(), learner.cycles


def save_plot(result: dict, path: pathlib.Path) -> None:
    from matplotlib.figure import Figure  # here, because explorers import this file too

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    seconds = [record["seconds"] for record in result["returns"]]
    for who in ("explorers", "greedy"):
        axes.plot(seconds, [record[who] for record in result["returns"]], marker=".", label=who)
    axes.axhline(result["threshold"], color="grey", linestyle="--", label="criterion")
    axes.set(xlabel="seconds", ylabel="mean return", title=result["env"])
    figure.legend()
    figure.savefig(path, dpi=120)


def parse_options() -> argparse.Namespace:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description="Ape-X on one machine.", formatter_class=formatter)
    add = parser.add_argument
    add("--env", default="CartPole-v1", choices=TASKS, help="the task")
    add("--explorers", type=int, default=4, help="number of explorer processes")
    add("--seed", type=int, default=0, help="for networks, environments, draws")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to train")
    add("--out", type=pathlib.Path, default="apex-result", help="folder to write")
    add("--time-limit", type=float, default=170, help="seconds of training")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add("--linger", type=float, default=0, help="seconds that rows stay in memory after the end")
    switch = argparse.BooleanOptionalAction
    add("--save-rows", action=switch, default=True, help="save rows with each checkpoint, in --out")
    options = parser.parse_args()
    if options.explorers < 1:
        parser.error(f"--explorers: expected 1 or more, got {options.explorers}")
    if options.seed < 0:
        parser.error(f"--seed: expected 0 or more, got {options.seed}")
    options.checkpoint, options.rows = options.out / "checkpoint.pt", options.out / "rows"
    if options.resume and not options.checkpoint.exists():
        parser.error(f"--resume: there is no {options.checkpoint}")
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop cleanly, as on Ctrl-C
    options = parse_options()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    task, env = TASKS[options.env], make_env(options.env)
    learner = Learner(DuelingNetwork(env), task, options.device)
    result = {"env": options.env, "seed": options.seed, "threshold": task.solved_at, "runs": 0}
    result |= {"solved": False, "seconds_to_criterion": None, "returns": []}
    result |= {"seconds": 0.0, "cycles": 0, "rows": 0}
    buffer_name = None
    if options.resume:
        saved = learner.load(options.checkpoint)
        result, buffer_name = saved["result"], saved["buffer"]
        result |= {"solved": False, "seconds_to_criterion": None}  # which is for this run to show
        console.print(f"resuming after {learner.cycles:,} cycles")
    result["runs"] += 1
    options.out.mkdir(parents=True, exist_ok=True)

    with (
        open_buffer(task, env, options.seed, buffer_name, options.rows) as rb,
        mpbuffer.ReplayBuffer(1_000, {"ret": {}, "at": {"dtype": float}}) as returns,  # episodes'
        mpbuffer.SharedWeights(learner.weights()) as weights,
    ):
        if options.linger > 0:
            rb.keep_after_exit(options.linger)
        shared = (options.env, weights, returns)
        seed = [options.seed, result["runs"]]
        explorers = mpbuffer.Explorers(explore, options.explorers, rb, args=shared, seed=seed)
        try:
            with console.status("starting the explorers") as status, explorers:
                train(options, learner, rb, weights, returns, explorers, result, status)
            exit_code = 0 if result["solved"] else 1
        except KeyboardInterrupt:
            return 130
        except mpbuffer.ExplorerFailed as failure:
            print(failure, file=sys.stderr)
            exit_code = 1
        finally:
            save(options, learner, rb, result)
        result["buffer"] = {"rows": rb.get_buffer_size(), "stored": len(rb)}
        result["epsilons"] = [each.epsilon for each in explorers.status()]
        result["restarts"] = [each.restarts for each in explorers.status()]

    # The network is frozen now; this is its one evaluation on seeds that nothing has used.
    rng = np.random.default_rng([options.seed, 2_000])
    final = greedy_returns(learner, options.env, rng, 5 * task.episodes).mean()
    result["final_mean_return"] = float(final)
    versions = {each.__name__: each.__version__ for each in (mpbuffer, torch, gymnasium, np)}
    result["versions"] = versions | {"python": sys.version.split()[0]}
    (options.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    save_plot(result, options.out / "returns.png")
    console.print(
        f"{'solved' if result['solved'] else 'not solved'} after {result['cycles']:,} cycles,"
        f" {result['rows']:,} rows and {result['seconds']:.1f} s; frozen network: mean return"
        f" {final:.1f} over {5 * task.episodes} new seeds\n"
        f"see {options.out}/result.json and {options.out}/returns.png"
    )
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
