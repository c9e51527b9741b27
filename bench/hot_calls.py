"""What one call costs: add, sample and update_priorities, in one process.

    python bench/hot_calls.py --json hot_calls.json

CPU time of the calling thread per call, in microseconds, on full buffers of CartPole rows (11
numbers). No call waits, so this is wall time on an idle machine; on a busy one the others' share
does not count. Every repetition times all cases in turn; the table gives medians and quartiles over
the repetitions. The times contain the Python loop around the call, some 20 ns.
"""

import argparse
import gc
import itertools
import json
import pathlib
import time
from collections.abc import Callable

import numpy as np
from machine import describe_machine

import mpbuffer

CAPACITIES = 10**4, 10**6
BATCH = 100
SAMPLE = 512
UNIFORM_SAMPLE = 256

OBSERVATION = {"shape": 4}
FLOAT_FIELDS = {"obs": OBSERVATION, "act": {}, "rew": {}, "next_obs": OBSERVATION, "done": {}}
GYMNASIUM_FIELDS = FLOAT_FIELDS | {"act": {"dtype": np.int64}, "done": {"dtype": np.bool_}}

Case = tuple[str, int, Callable[[int], float]]  # name, calls per repetition, seconds for n calls


def random_rows(rng: np.random.Generator, rows: int, fields: dict) -> dict[str, np.ndarray]:
    """Return `rows` random rows, whose values suit a CartPole buffer's fields."""
    values = {
        name: rng.standard_normal((rows, field.get("shape", 1)), np.float32)
        for name, field in fields.items()
    }
    values["act"] = rng.integers(2, size=(rows, 1)).astype(fields["act"].get("dtype", np.float32))
    values["done"] = np.zeros((rows, 1), fields["done"].get("dtype", np.float32))
    return values


def fill(rb: mpbuffer.ReplayBuffer, rng: np.random.Generator, fields: dict) -> None:
    """Add rows until every slot was written, with priorities where the buffer takes them."""
    rows = 10_000
    for _ in range(-(-rb.get_buffer_size() // rows)):
        values = random_rows(rng, rows, fields)
        if isinstance(rb, mpbuffer.PrioritizedReplayBuffer):
            rb.add(priorities=rng.exponential(size=rows), **values)
        else:
            rb.add(**values)


def one_row_as_arrays() -> dict:
    """Return a transition whose five values are float32 arrays."""
    obs, next_obs = np.full(4, 0.1, np.float32), np.full(4, 0.2, np.float32)
    act, rew, done = np.ones(1, np.float32), np.ones(1, np.float32), np.zeros(1, np.float32)
    return {"obs": obs, "act": act, "rew": rew, "next_obs": next_obs, "done": done}


def one_row_from_gymnasium() -> dict:
    """Return a transition of the types that gymnasium's CartPole-v1 gives."""
    observations = {"obs": np.full(4, 0.1, np.float32), "next_obs": np.full(4, 0.2, np.float32)}
    return observations | {"act": np.int64(1), "rew": 1.0, "done": False}


def time_add_one(rb: mpbuffer.ReplayBuffer, row: dict) -> Callable[[int], float]:
    """Return what times so many adds of one row, its fields written out as a user does."""
    obs, act, rew, next_obs, done = (row[name] for name in FLOAT_FIELDS)

    def seconds(calls: int) -> float:
        add = rb.add
        start = time.thread_time()
        for _ in itertools.repeat(None, calls):
            add(obs=obs, act=act, rew=rew, next_obs=next_obs, done=done)
        return time.thread_time() - start

    return seconds


def time_add_batch(rb: mpbuffer.ReplayBuffer, rows: dict) -> Callable[[int], float]:
    """Return what times so many adds of a batch."""
    obs, act, rew, next_obs, done = (rows[name] for name in FLOAT_FIELDS)

    def seconds(calls: int) -> float:
        add = rb.add
        start = time.thread_time()
        for _ in itertools.repeat(None, calls):
            add(obs=obs, act=act, rew=rew, next_obs=next_obs, done=done)
        return time.thread_time() - start

    return seconds


def time_sample(sample: Callable[[int], dict], rows: int) -> Callable[[int], float]:
    """Return what times so many samples, each dropped before the next."""

    def seconds(calls: int) -> float:
        start = time.thread_time()
        for _ in itertools.repeat(None, calls):
            sample(rows)
        return time.thread_time() - start

    return seconds


def time_update(
    rb: mpbuffer.PrioritizedReplayBuffer, rng: np.random.Generator
) -> Callable[[int], float]:
    """Return what times so many updates of samples drawn just before, outside the timing."""

    def seconds(calls: int) -> float:
        samples = [rb.sample(SAMPLE)["indexes"] for _ in range(calls)]
        priorities = [rng.exponential(size=SAMPLE).astype(np.float32) for _ in range(calls)]
        update = rb.update_priorities
        start = time.thread_time()
        for indexes, values in zip(samples, priorities, strict=True):
            update(indexes, values)
        return time.thread_time() - start

    return seconds


def cases_at(capacity: int, rng: np.random.Generator) -> list[Case]:
    """Return the cases on buffers of that capacity, full of rows."""
    uniform = mpbuffer.ReplayBuffer(capacity, FLOAT_FIELDS, seed=1)
    typed = mpbuffer.ReplayBuffer(capacity, GYMNASIUM_FIELDS, seed=1)
    prioritized = mpbuffer.PrioritizedReplayBuffer(capacity, FLOAT_FIELDS, seed=1)
    fill(uniform, rng, FLOAT_FIELDS)
    fill(typed, rng, GYMNASIUM_FIELDS)
    fill(prioritized, rng, FLOAT_FIELDS)
    prioritized.sample(1)  # takes the learner's role and folds the rows

    row, batch = one_row_as_arrays(), random_rows(rng, BATCH, FLOAT_FIELDS)
    return [
        ("add, float32 arrays", 5_000, time_add_one(uniform, row)),
        ("add, gymnasium's types", 5_000, time_add_one(typed, one_row_from_gymnasium())),
        ("add, float32 arrays, prioritized buffer", 5_000, time_add_one(prioritized, row)),
        (f"add of {BATCH} rows", 500, time_add_batch(uniform, batch)),
        (f"sample({SAMPLE}), prioritized", 50, time_sample(prioritized.sample, SAMPLE)),
        (f"update_priorities({SAMPLE})", 50, time_update(prioritized, rng)),
        (f"sample({UNIFORM_SAMPLE}), uniform", 100, time_sample(uniform.sample, UNIFORM_SAMPLE)),
    ]


def measure(cases: list[Case], repetitions: int) -> list[np.ndarray]:
    """Return for each case the microseconds per call of each repetition."""
    for _, calls, seconds in cases:
        seconds(calls)
    costs = np.empty((repetitions, len(cases)))
    gc.disable()
    for repetition in range(repetitions):
        for number, (_, calls, seconds) in enumerate(cases):
            costs[repetition, number] = seconds(calls) / calls * 1e6
    gc.enable()
    return list(costs.T)


def main() -> None:
    """Measure, print a table, and write the same as JSON if wanted."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=200, help="of all cases in turn")
    parser.add_argument("--json", type=pathlib.Path, help="file to write the figures to")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    cases = {capacity: cases_at(capacity, rng) for capacity in CAPACITIES}
    flat = [case for of_capacity in cases.values() for case in of_capacity]
    costs = iter(measure(flat, options.repetitions))
    quartiles = {
        capacity: {name: np.percentile(next(costs), [25, 50, 75]) for name, _, _ in of_capacity}
        for capacity, of_capacity in cases.items()
    }

    machine = describe_machine()
    print("\n".join(f"{key}: {value}" for key, value in machine.items()))
    print(f"\nus of CPU per call: median (quartiles) of {options.repetitions} repetitions\n")
    print(f"{'':42}" + "".join(f"{f'capacity {capacity:,}':>26}" for capacity in CAPACITIES))
    for name in quartiles[CAPACITIES[0]]:
        columns = (quartiles[capacity][name] for capacity in CAPACITIES)
        cells = (f"{mid:.3f} ({low:.3f}-{high:.3f})" for low, mid, high in columns)
        print(f"{name:42}" + "".join(f"{cell:>26}" for cell in cells))
    if options.json:
        figures = [
            {"capacity": capacity, "call": name, "us_q1": low, "us_median": mid, "us_q3": high}
            for capacity, of_capacity in quartiles.items()
            for name, (low, mid, high) in of_capacity.items()
        ]
        result = {"machine": machine, "repetitions": options.repetitions, "figures": figures}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
