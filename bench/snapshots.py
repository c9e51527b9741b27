"""How fast a buffer is saved, what explorers lose meanwhile, and what a second snapshot costs.

    python bench/snapshots.py --json snapshots.json --folder DIRECTORY

A buffer of `--gigabytes` is filled with rows of 1 KB. In turn, `--repetitions` times: a snapshot
into an empty directory; then, after 1 % new rows, a second one into the same directory; and
``dd conv=fdatasync`` of as many bytes as the first one has, on the same file system. The ratio of
the medians counts. Then two explorers add as fast as they can: their rows per second of their own
processor time, without and during snapshots, in turn.
"""

import argparse
import json
import multiprocessing
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
from machine import describe_machine

import mpbuffer

FIELDS = {
    "obs": {"shape": 120},
    "next_obs": {"shape": 120},
    "act": {"dtype": np.int64},
    "rew": {},
    "done": {"dtype": bool},
}
LEAST_OF_DD, MOST_OF_FIRST, LEAST_OF_EXPLORERS = 0.6, 0.05, 0.9
ROWS_AT_ONCE = 50


def rows_of(count: int, rng: np.random.Generator) -> dict:
    """Return random rows."""
    obs = rng.random((count, 120), np.float32)
    return {
        "obs": obs,
        "next_obs": obs[::-1].copy(),
        "act": rng.integers(0, 6, count),
        "rew": rng.random(count, np.float32),
        "done": rng.random(count) < 0.01,
        "priorities": rng.random(count),
    }


def filled(gigabytes: float) -> mpbuffer.PrioritizedReplayBuffer:
    """Return a full buffer."""
    rng = np.random.default_rng(0)
    size = int(gigabytes * 1e9 / 977)
    buffer = mpbuffer.PrioritizedReplayBuffer(size, FIELDS)
    rows = rows_of(min(size, 10_000), rng)
    for first in range(0, size, 10_000):
        count = min(10_000, size - first)
        buffer.add(**{name: values[:count] for name, values in rows.items()})
    buffer.sample(32)
    return buffer


def seconds_of(call) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def cost_of_snapshots(buffer, folder: pathlib.Path, repetitions: int) -> dict:
    """Return the seconds of snapshots and of dd, and what share of the bytes was written."""
    path, copy = folder / "snapshot", folder / "dd"
    few = rows_of(buffer.get_buffer_size() // 100, np.random.default_rng(1))
    seconds: dict[str, list[float]] = {"first": [], "second": [], "dd": []}
    result: dict = {}
    for _ in range(repetitions):
        shutil.rmtree(path, ignore_errors=True)
        seconds["first"].append(seconds_of(lambda: result.update(first=buffer.snapshot(path))))
        buffer.add(**few)
        seconds["second"].append(seconds_of(lambda: result.update(second=buffer.snapshot(path))))
        megabytes = result["first"].nbytes >> 20
        command = ["dd", "if=/dev/zero", f"of={copy}", "bs=1M", f"count={megabytes}"]
        command += ["conv=fdatasync", "status=none"]
        seconds["dd"].append(seconds_of(lambda cmd=command: subprocess.run(cmd, check=True)))
        copy.unlink()
    shutil.rmtree(path)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return {
        "seconds": seconds,
        "median": medians,
        "bytes": result["first"].nbytes,
        "bytes of the second": result["second"].written,
        "of dd": medians["dd"] / medians["first"],
        "second of first": medians["second"] / medians["first"],
    }


def explore(buffer, number, stop, counts) -> None:
    """Add rows as fast as they go, and tell rows and processor time."""
    rows = rows_of(ROWS_AT_ONCE, np.random.default_rng(number))
    added = 0
    while not stop.is_set():
        for _ in range(20):
            buffer.add(**rows)
        added += 20 * ROWS_AT_ONCE
        with counts.get_lock():
            counts[2 * number : 2 * number + 2] = [added, time.process_time()]


def cost_to_explorers(buffer, folder: pathlib.Path, repetitions: int) -> dict:
    """Return the explorers' rows per second of processor time, without and during snapshots."""
    context = multiprocessing.get_context("fork")
    stop, counts = context.Event(), context.Array("d", 4)
    explorers = [
        context.Process(target=explore, args=(buffer, i, stop, counts), daemon=True)
        for i in range(2)
    ]
    rates: dict[str, list[float]] = {"without": [], "during": []}

    def measure(name: str, call) -> None:
        rows, seconds = counts[0] + counts[2], counts[1] + counts[3]
        call()
        rows, seconds = counts[0] + counts[2] - rows, counts[1] + counts[3] - seconds
        rates[name].append(rows / seconds)

    for process in explorers:
        process.start()
    time.sleep(1.0)
    path = folder / "snapshot"
    for _ in range(repetitions):
        measure("without", lambda: time.sleep(2.0))
        measure("during", lambda: buffer.snapshot(path))
        shutil.rmtree(path)
    stop.set()
    for process in explorers:
        process.join()
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    return {"rates": rates, "median": medians, "ratio": medians["during"] / medians["without"]}


def main() -> int:
    """Measure, print, and return 1 if it is worse than it may be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("."))
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="show that it runs")
    options = parser.parse_args()
    if options.short:
        options.gigabytes, options.repetitions = 0.02, 1
    with filled(options.gigabytes) as buffer:
        cost = cost_of_snapshots(buffer, options.folder, options.repetitions)
        explorers = cost_to_explorers(buffer, options.folder, options.repetitions)
    result = {"machine": describe_machine(), "snapshots": cost, "explorers": explorers}
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    median = cost["median"]
    print(
        f"{cost['bytes'] / 1e9:.2f} GB: first {median['first']:.2f} s, dd {median['dd']:.2f} s "
        f"(written at {cost['of dd']:.2f} of dd, at least {LEAST_OF_DD})\n"
        f"second after 1 % new rows {median['second']:.3f} s, {cost['second of first']:.1%} of the "
        f"first (at most {MOST_OF_FIRST:.0%}), {cost['bytes of the second'] / 1e6:.1f} MB written\n"
        f"explorers: {explorers['median']['without']:,.0f} rows per CPU second, "
        f"{explorers['median']['during']:,.0f} during snapshots "
        f"({explorers['ratio']:.2f}, at least {LEAST_OF_EXPLORERS})"
    )
    good = (
        cost["of dd"] >= LEAST_OF_DD
        and cost["second of first"] <= MOST_OF_FIRST
        and explorers["ratio"] >= LEAST_OF_EXPLORERS
    )
    return 0 if good or options.short else 1


if __name__ == "__main__":
    sys.exit(main())
