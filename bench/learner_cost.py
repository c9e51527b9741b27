"""What the learner pays for a larger buffer: its CPU time per cycle, while explorers add.

    python bench/learner_cost.py --json learner_cost.json

A cycle is sample(512) and update_priorities(512); its cost is what time.thread_time says of the
learner's thread. Two explorer processes add 2,000 rows a second each, one row a call, to the buffer
that the learner is using. The learner turns from the small buffer to the large one and back every
round, so that a slow moment of the machine hits both. The ratio is that of the rounds' mean costs
per cycle, large over small; the median over the rounds counts.
"""

import argparse
import json
import math
import multiprocessing
import pathlib
import sys
import time

import numpy as np
from machine import describe_machine

import mpbuffer

CAPACITIES = 10**4, 10**6
EXPLORERS = 2
ROWS_PER_SECOND = 2_000  # of each explorer
ROWS_AT_ONCE = 10  # added in a row before an explorer looks at its clock
SAMPLE = 512
MOST_ALLOWED = 2.0

OBSERVATION = {"shape": 4}
FIELDS = {"obs": OBSERVATION, "act": {}, "rew": {}, "next_obs": OBSERVATION, "done": {}}


def explore(buffers, in_use, stop) -> None:
    """Add rows at the rate given to the buffer in use, until told to stop."""
    obs, one = np.full(4, 0.1, np.float32), np.ones(1, np.float32)
    due = time.monotonic()
    while not stop.value:
        rb = buffers[in_use.value]
        for _ in range(ROWS_AT_ONCE):
            rb.add(obs=obs, act=one, rew=one, next_obs=obs, done=one, priorities=1.0)
        due += ROWS_AT_ONCE / ROWS_PER_SECOND
        time.sleep(max(0.0, due - time.monotonic()))


def fill(rb: mpbuffer.PrioritizedReplayBuffer, rng: np.random.Generator) -> None:
    """Add rows with random priorities until every slot was written."""
    rows = 10_000
    values = {name: np.ones((rows, field.get("shape", 1))) for name, field in FIELDS.items()}
    for _ in range(-(-rb.get_buffer_size() // rows)):
        rb.add(priorities=rng.exponential(size=rows), **values)


def cycle_costs(
    rb: mpbuffer.PrioritizedReplayBuffer, rng: np.random.Generator, seconds: float
) -> np.ndarray:
    """Return the microseconds of thread CPU time of each cycle within so many seconds."""
    priorities = rng.exponential(size=(64, SAMPLE)).astype(np.float32)
    costs = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        values = priorities[len(costs) % len(priorities)]
        start = time.thread_time_ns()
        sample = rb.sample(SAMPLE)
        rb.update_priorities(sample["indexes"], values)
        costs.append(time.thread_time_ns() - start)
    return np.array(costs) / 1e3


def measure(rounds: int, seconds: float) -> dict:
    """Return cycle costs and explorers' rates, by capacity and round."""
    rng = np.random.default_rng(0)
    buffers = [
        mpbuffer.PrioritizedReplayBuffer(capacity, FIELDS, seed=1) for capacity in CAPACITIES
    ]
    for rb in buffers:
        fill(rb, rng)
        rb.sample(1)  # takes the learner's role and folds the rows
    context = multiprocessing.get_context("spawn")
    in_use, stop = context.RawValue("i", 0), context.RawValue("i", 0)
    explorers = [
        context.Process(target=explore, args=(buffers, in_use, stop), daemon=True)
        for _ in range(EXPLORERS)
    ]
    costs: list[list[np.ndarray]] = [[] for _ in CAPACITIES]
    rates: list[list[float]] = [[] for _ in CAPACITIES]
    for explorer in explorers:
        explorer.start()
    before = buffers[0].rows_added()
    while buffers[0].rows_added() < before + 4 * EXPLORERS * ROWS_AT_ONCE:
        if not all(explorer.is_alive() for explorer in explorers):
            raise RuntimeError("an explorer ended before it had added its first rows")
        time.sleep(0.01)
    for _ in range(rounds):
        for number, rb in enumerate(buffers):
            in_use.value = number
            time.sleep(4 * ROWS_AT_ONCE / ROWS_PER_SECOND)
            rb.sample(SAMPLE)
            before, start = rb.rows_added(), time.monotonic()
            costs[number].append(cycle_costs(rb, rng, seconds))
            rates[number].append((rb.rows_added() - before) / (time.monotonic() - start))
    stop.value = 1
    for explorer in explorers:
        explorer.join()
    statuses = [rb.learner_status() for rb in buffers]
    for rb in buffers:
        rb.close()
    return {
        "costs": costs,
        "rates": [float(np.median(of_buffer)) for of_buffer in rates],
        "lines_per_draw": [status.nodes_visited / status.draws for status in statuses],
    }


def main() -> int:
    """Measure, print the figures, and exit with 1 if the large buffer costs too much."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="of both buffers in turn")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each buffer in a round")
    parser.add_argument("--json", type=pathlib.Path, help="file to write the figures to")
    options = parser.parse_args()

    measured = measure(options.rounds, options.seconds)
    machine = describe_machine()
    print("\n".join(f"{key}: {value}" for key, value in machine.items()) + "\n")
    figures = []
    for number, capacity in enumerate(CAPACITIES):
        of_cycles = np.concatenate(measured["costs"][number])
        figures.append(
            {
                "capacity": capacity,
                "us_per_cycle_median": float(np.median(of_cycles)),
                "us_per_cycle_mean": float(of_cycles.mean()),
                "cycles": len(of_cycles),
                "rows_per_second": measured["rates"][number],
                "lines_per_draw": measured["lines_per_draw"][number],
                "lines_per_draw_allowed": math.ceil(math.log(capacity, 8)) + 1,
            }
        )
        print(
            f"capacity {capacity:9,}: median {figures[-1]['us_per_cycle_median']:6.1f} us, "
            f"mean {figures[-1]['us_per_cycle_mean']:6.1f} us of CPU a cycle, "
            f"{len(of_cycles):,} cycles while {measured['rates'][number]:,.0f} rows/s came in; "
            f"{figures[-1]['lines_per_draw']:.2f} lines of the tree a draw "
            f"(at most {figures[-1]['lines_per_draw_allowed']})"
        )
    small, large = (np.array([c.mean() for c in costs]) for costs in measured["costs"])
    low, ratio, high = np.percentile(large / small, [25, 50, 75])
    print(f"ratio {ratio:.2f} (quartiles {low:.2f}-{high:.2f}), at most {MOST_ALLOWED} allowed")
    if options.json:
        ratios = {"q1": low, "median": ratio, "q3": high}
        result = {"machine": machine, "figures": figures, "ratio": ratios}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if ratio <= MOST_ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
