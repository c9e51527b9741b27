"""How fast sequences are sampled, and what they take: against stacking them from single steps.

    python bench/sequences.py --json sequences.json

CartPole-sized steps (obs, act, rew, done; 25 bytes), sequences of 80 that overlap by 40, batch 64,
while one explorer process adds 2,000 steps/s, one a call. Stacking is what a program does that has
a buffer of steps: draw 64 starts, read 64 x 80 rows in one call, and find by the flags where each
episode ends; here from cpprb's buffer for many processes, by the call that its own sample() makes,
and from mpbuffer's rows in the same way. All ways are measured for a while one after the other, in
another order in each repetition; a ratio is taken within a repetition, and its median counts. Bytes
a step are those of the whole segment, over the steps that its sequences or rows cover. Exits with 1
if a ratio is not what is asked.
"""

import argparse
import json
import multiprocessing
import pathlib
import sys
import time
from collections.abc import Callable

import numpy as np
from machine import describe_machine

import mpbuffer

FIELDS = {"obs": {"shape": 4}, "act": {"dtype": np.int32}, "rew": {}, "done": {"dtype": bool}}
LENGTH, PERIOD, BATCH = 80, 40, 64
SEQUENCE = {"length": LENGTH, "period": PERIOD}
EPISODE = 500
STEPS_PER_SECOND = 2_000
LEAST_RATIO = 5.0
MOST_BYTES = {64: 1.35, 1024: 1.05}  # of a step: most bytes, as a multiple of single rows'


def steps_from(first: int, n: int) -> dict[str, np.ndarray]:
    """Return consecutive steps of episodes of EPISODE steps each."""
    numbers = np.arange(first, first + n)
    return {
        "obs": np.repeat(numbers[:, None], 4, axis=1).astype(np.float32),
        "act": (numbers % 2).astype(np.int32),
        "rew": np.ones(n, np.float32),
        "done": numbers % EPISODE == EPISODE - 1,
    }


def explore(rb, stopping) -> None:
    """Add steps at a steady rate until told to stop."""
    start, added = time.monotonic(), 0
    while not stopping.is_set():
        while added < STEPS_PER_SECOND * (time.monotonic() - start):
            rb.add(**{name: values[0] for name, values in steps_from(added, 1).items()})
            added += 1
        time.sleep(0.001)


class Stacked:
    """Sequences that are read from a ring of single steps, by a function that reads rows."""

    def __init__(self, rb, rows_at: Callable) -> None:
        self.rb, self.rows_at, self.rng = rb, rows_at, np.random.default_rng(1)
        self.offsets = np.arange(LENGTH)

    def sample(self) -> dict[str, np.ndarray]:
        """Return a batch as mpbuffer's sequences have it, padded behind the end of an episode."""
        size = self.rb.get_buffer_size()
        newest = self.rb.get_next_index()
        starts = newest + self.rng.integers(size - LENGTH, size=BATCH)
        slots = (starts[:, None] + self.offsets) % size
        rows = self.rows_at(slots.ravel())
        batch = {
            name: values.reshape(BATCH, LENGTH, *values.shape[1:]) for name, values in rows.items()
        }
        ended = np.cumsum(batch["done"][..., 0] != 0, axis=1)
        mask = np.ones((BATCH, LENGTH), bool)
        mask[:, 1:] = ended[:, :-1] == 0
        for values in batch.values():
            values[~mask] = 0
        batch["mask"] = mask
        return batch


def sampling_rates(steps: int, repetitions: int, seconds: float) -> dict[str, list[float]]:
    """Return samples per second of each way, one figure for each repetition."""
    import cpprb

    context = multiprocessing.get_context("fork")
    buffers = {
        "sequences": mpbuffer.ReplayBuffer(steps // PERIOD, FIELDS, sequence=SEQUENCE),
        "prioritized": mpbuffer.PrioritizedReplayBuffer(steps // PERIOD, FIELDS, sequence=SEQUENCE),
        "mpbuffer rows": mpbuffer.ReplayBuffer(steps, FIELDS),
        "cpprb rows": cpprb.MPReplayBuffer(steps, FIELDS),
    }
    for rb in buffers.values():
        for first in range(0, steps, EPISODE):
            rb.add(**steps_from(first, EPISODE))
    ours, theirs = buffers["mpbuffer rows"], buffers["cpprb rows"]
    from_ours, from_cpprb = Stacked(ours, ours._rows_at), Stacked(theirs, theirs._encode_sample)
    ways = {
        "sequences": lambda: buffers["sequences"].sample(BATCH),
        "prioritized": lambda: buffers["prioritized"].sample(BATCH),
        "mpbuffer rows": from_ours.sample,
        "cpprb rows": from_cpprb.sample,
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    random = np.random.default_rng(2)
    for _ in range(repetitions):
        for way in random.permutation(list(ways)):
            stopping = context.Event()
            explorer = context.Process(target=explore, args=(buffers[way], stopping), daemon=True)
            explorer.start()
            time.sleep(0.02)
            calls, start = 0, time.perf_counter()
            while (now := time.perf_counter()) - start < seconds:
                ways[way]()
                calls += 1
            rates[way].append(calls / (now - start))
            stopping.set()
            explorer.join()
    for rb in buffers.values():
        if isinstance(rb, mpbuffer.ReplayBuffer):
            rb.close()
    return rates


def bytes_a_step(step_bytes: int, steps: int) -> dict[str, float]:
    """Return the segment's bytes for each step, as sequences and as single rows."""
    fields = {"obs": {"shape": step_bytes, "dtype": np.uint8}}
    with mpbuffer.ReplayBuffer(steps // PERIOD, fields, sequence=SEQUENCE) as rb:
        sequences = rb.nbytes / steps
    with mpbuffer.ReplayBuffer(steps, fields) as rb:
        single = rb.nbytes / steps
    return {"sequences": sequences, "single": single, "ratio": sequences / single}


def main() -> int:
    """Measure, print the tables, and exit with 1 if a ratio is not what is asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200_000, help="that the buffers hold")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each way in a repetition")
    parser.add_argument("--short", action="store_true", help="smoke run: says nothing about speed")
    parser.add_argument("--json", type=pathlib.Path, help="file to write the figures to")
    options = parser.parse_args()
    if options.short:
        options.repetitions, options.seconds, options.steps = 1, 0.02, 20_000

    sizes = {each: bytes_a_step(each, options.steps) for each in MOST_BYTES}
    rates = sampling_rates(options.steps, options.repetitions, options.seconds)
    machine = describe_machine()
    print("\n".join(f"{key}: {value}" for key, value in machine.items()) + "\n")
    print(
        f"| sample({BATCH}) of {LENGTH} steps | samples/s | to stacking from cpprb |\n|---|---|---|"
    )
    stacked = np.array(rates["cpprb rows"])
    ratios = {}
    for way, each in rates.items():
        low, ratios[way], high = np.percentile(np.array(each) / stacked, [25, 50, 75])
        print(f"| {way} | {np.median(each):,.0f} | {ratios[way]:.1f} ({low:.1f}-{high:.1f}) |")
    print("\n| a step | as sequences | as rows | ratio | asked |\n|---|---|---|---|---|")
    for size, each in sizes.items():
        print(
            f"| {size:,} bytes | {each['sequences']:,.0f} | {each['single']:,.0f} "
            f"| {each['ratio']:.3f} | {MOST_BYTES[size]} |"
        )
    if options.json:
        result = {"machine": machine, "rates": rates, "ratios": ratios, "bytes": sizes}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    met = min(ratios["sequences"], ratios["prioritized"]) >= LEAST_RATIO
    met = met and all(each["ratio"] <= MOST_BYTES[size] for size, each in sizes.items())
    return 0 if options.short or met else 1


if __name__ == "__main__":
    sys.exit(main())
