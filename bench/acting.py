"""What storing costs an explorer: rows per second of several that act in CartPole at random.

    python bench/acting.py --json acting.json

Each explorer is a process with an environment of its own and the same loop for all ways of storing:
gymnasium's step and reset, a random action, and the call that stores, or none. All explorers do one
way for a while, at the same time, then all the next one, and so on; the order is another in each
repetition. A ratio is taken within a repetition, to the steps of that repetition's loop that stores
nothing; its median counts. Beside other programs, steps by CPU time tell more than those by wall
time. Exits with 1 if the ratio of staged n-step rows, by wall time, is below what is asked.
"""

import argparse
import json
import multiprocessing
import pathlib
import sys
import time

import gymnasium
import numpy as np
from machine import describe_machine

import mpbuffer

LEAST_ALLOWED = 0.9
NSTEP = {"size": 3, "rew": "rew", "gamma": 0.99, "next": "next_obs", "discount": "discount"}
WAYS = {
    "nothing": "nothing stored",
    "staged, 3-step": "`writer()`, 3-step rows",
    "staged": "`writer()`",
    "added, 3-step": "`add`, 3-step rows",
    "added": "`add`",
}


def act(env: gymnasium.Env, store, seconds: float) -> tuple[float, float]:
    """Act for so long; return steps per second, by wall and by CPU time."""
    sample, step = env.action_space.sample, env.step
    obs, _ = env.reset()
    steps = 0
    cpu = time.process_time()
    start = now = time.perf_counter()
    while now - start < seconds:
        for _ in range(200):
            act = sample()
            next_obs, rew, terminated, truncated, _ = step(act)
            if store is not None:
                store(
                    obs=obs,
                    act=act,
                    rew=rew,
                    next_obs=next_obs,
                    terminated=terminated,
                    truncated=truncated,
                )
            obs = next_obs
            if terminated or truncated:
                obs, _ = env.reset()
        steps += 200
        now = time.perf_counter()
    return steps / (now - start), steps / (time.process_time() - cpu)


def explore(number: int, one_step, n_step, connection) -> None:
    """Act in the ways that come through the connection; return the rates."""
    env = gymnasium.make("CartPole-v1")
    env.reset(seed=number)
    env.action_space.seed(number)
    staged, staged_n = one_step.writer(), n_step.writer()
    stores = {
        "nothing": None,
        "staged, 3-step": staged_n.add,
        "staged": staged.add,
        "added, 3-step": n_step.add,
        "added": one_step.add,
    }
    while (asked := connection.recv()) is not None:
        way, seconds = asked
        rates = act(env, stores[way], seconds)
        for each in (staged, staged_n, n_step):
            each.on_episode_end()
        connection.send(rates)


def measure(explorers: int, repetitions: int, seconds: float) -> dict[str, np.ndarray]:
    """Return for each way what act() says, of all explorers together: (repetitions, 2)."""
    context = multiprocessing.get_context("spawn")
    fields = mpbuffer.schema_from(gymnasium.make("CartPole-v1"))
    rates: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
    with (
        mpbuffer.PrioritizedReplayBuffer(100_000, fields) as one_step,
        mpbuffer.PrioritizedReplayBuffer(100_000, fields, Nstep=NSTEP) as n_step,
    ):
        pipes = [context.Pipe() for _ in range(explorers)]
        processes = [
            context.Process(target=explore, args=(number, one_step, n_step, theirs), daemon=True)
            for number, (_, theirs) in enumerate(pipes)
        ]
        for process in processes:
            process.start()

        def all_act(way: str, seconds: float) -> np.ndarray:
            for ours, _ in pipes:
                ours.send((way, seconds))
            each = np.array([ours.recv() for ours, _ in pipes])
            return np.array([each[:, 0].sum(), each[:, 1].mean()])

        for way in WAYS:
            all_act(way, min(seconds, 0.2))  # imports, caches, the buffers' pages
        random = np.random.default_rng(1)
        for _ in range(repetitions):
            for way in random.permutation(list(WAYS)):
                rates[str(way)].append(all_act(str(way), seconds))
        for ours, _ in pipes:
            ours.send(None)
        for process in processes:
            process.join()
    return {way: np.array(each) for way, each in rates.items()}


def main() -> int:
    """Measure, print the table, and exit with 1 if storing costs more than it may."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--explorers", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each way in a repetition")
    parser.add_argument("--short", action="store_true", help="smoke run: says nothing about speed")
    parser.add_argument("--json", type=pathlib.Path, help="file to write the figures to")
    options = parser.parse_args()
    if options.short:
        options.repetitions, options.seconds = 1, 0.05

    rates = measure(options.explorers, options.repetitions, options.seconds)
    machine = describe_machine() | {"gymnasium": gymnasium.__version__}
    print("\n".join(f"{key}: {value}" for key, value in machine.items()) + "\n")
    print(
        f"| {options.explorers} explorers | steps/s | to nothing stored | steps per second of CPU "
        "| to nothing stored |\n|---|---|---|---|---|"
    )
    figures = {}
    for way, said in WAYS.items():
        line, figures[way] = f"| {said}", {}
        for i, by in enumerate(("wall", "cpu")):
            each = rates[way][:, i]
            low, ratio, high = np.percentile(each / rates["nothing"][:, i], [25, 50, 75])
            line += f" | {np.median(each):,.0f} | {ratio:.3f} ({low:.3f}-{high:.3f})"
            figures[way][by] = {"rates": each.tolist(), "ratio": ratio, "q1": low, "q3": high}
        print(line + " |")
    ratio = figures["staged, 3-step"]["wall"]["ratio"]
    print(f"\nstaged 3-step rows: {ratio:.3f}, at least {LEAST_ALLOWED} asked")
    if options.json:
        result = {"machine": machine, "explorers": options.explorers, "figures": figures}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if options.short or ratio >= LEAST_ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
