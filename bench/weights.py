"""What publishing weights costs, and what many readers get while it goes on.

    python bench/weights.py --json weights.json

First, readers idle: thread CPU time of publish() on 40 MB against one memcpy (numpy.copyto) between
two warmed private arrays of that size, in turn, in the same thread; the ratio of the medians
counts. Then 16 reader processes take every new version in place while the publisher publishes 10 a
second, until they have read 10,000 versions; every word of every read is checked. A version is 20
arrays of one number, its own: any mixture shows.
"""

import argparse
import json
import multiprocessing
import pathlib
import sys
import time

import numpy as np
from machine import describe_machine

import mpbuffer

MEGABYTES = 40
ARRAYS = 20
MOST_ALLOWED = 1.3


def version_of(number: int) -> dict[str, np.ndarray]:
    """Return arrays that hold this number in each word."""
    words = MEGABYTES * 2**20 // 8 // ARRAYS
    return {f"layer{i}": np.full(words, number, np.int64) for i in range(ARRAYS)}


def quartiles(values: list[float]) -> dict[str, float]:
    """Return the quartiles and the largest."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"q1": low, "median": median, "q3": high, "largest": max(values)}


def cost_of_publishing(repetitions: int) -> dict:
    """Return milliseconds of thread CPU time of publish() and of memcpy."""
    weights = version_of(1)
    source = np.concatenate(list(weights.values()))
    target = np.empty_like(source)
    costs: dict[str, list[float]] = {"publish": [], "memcpy": []}
    with mpbuffer.SharedWeights(weights) as shared:
        for repetition in range(-10, repetitions):
            for name, call in (
                ("memcpy", lambda: np.copyto(target, source)),
                ("publish", lambda: shared.publish(weights)),
            ):
                start = time.thread_time_ns()
                call()
                if repetition >= 0:
                    costs[name].append((time.thread_time_ns() - start) / 1e6)
    result = {name: quartiles(values) for name, values in costs.items()}
    result["ratio"] = result["publish"]["median"] / result["memcpy"]["median"]
    return result


def read_versions(shared, begin, done, reads_made, connection) -> None:
    """Read each new version in place until told to stop; send what was seen."""
    out = version_of(0)
    shared.read(out)  # touches the pages
    version = mixed = 0
    times, ages = [], []
    connection.send("ready")
    begin.wait()
    while not done.is_set():
        start = time.perf_counter()
        got = shared.read(out, newer_than=version)
        if got is None:
            time.sleep(0.002)
            continue
        times.append((time.perf_counter() - start) * 1e3)
        ages.append(got.age * 1e3)
        extremes = {each(array) for array in out.values() for each in (np.min, np.max)}
        mixed += extremes != {got.version} or got.version <= version
        version = got.version
        with reads_made.get_lock():
            reads_made.value += 1
    connection.send((times, ages, mixed, shared._handle.repeated_reads()))


def readers_at_work(readers: int, reads: int, rate: float, seconds: float) -> dict:
    """Return what publisher and readers saw."""
    context = multiprocessing.get_context("spawn")
    begin, done, reads_made = context.Event(), context.Event(), context.Value("q", 0)
    versions = [version_of(number) for number in (1, 2)]
    with mpbuffer.SharedWeights(versions[0]) as shared:
        pipes = [context.Pipe() for _ in range(readers)]
        processes = [
            context.Process(
                target=read_versions, args=(shared, begin, done, reads_made, theirs), daemon=True
            )
            for _, theirs in pipes
        ]
        for process in processes:
            process.start()
        for ours, _ in pipes:
            ours.recv()
        begin.set()
        cpu, wall, number = [], [], 1
        start = due = time.monotonic()
        while reads_made.value < reads and time.monotonic() - start < seconds:
            number += 1
            weights = versions[number % 2]
            for array in weights.values():
                array.fill(number)
            started, cpu_started = time.perf_counter(), time.thread_time_ns()
            if shared.publish(weights) != number:
                raise RuntimeError("a version was not the next one: the arrays do not tell it")
            cpu.append((time.thread_time_ns() - cpu_started) / 1e6)
            wall.append((time.perf_counter() - started) * 1e3)
            due = max(due + 1 / rate, time.monotonic() - 1 / rate)
            time.sleep(max(0.0, due - time.monotonic()))
        elapsed = time.monotonic() - start
        done.set()
        told = [ours.recv() for ours, _ in pipes]
        for process in processes:
            process.join()
    return {
        "readers": readers,
        "seconds": elapsed,
        "publications": len(cpu),
        "publications_per_second": len(cpu) / elapsed,
        "reads": sum(len(times) for times, *_ in told),
        "mixed": sum(mixed for _, _, mixed, _ in told),
        "copied_again": sum(repeats for *_, repeats in told),
        "publish_cpu_ms": quartiles(cpu),
        "publish_wall_ms": quartiles(wall),
        "read_wall_ms": quartiles([each for times, *_ in told for each in times]),
        "age_when_read_ms": quartiles([each for _, ages, *_ in told for each in ages]),
    }


def main() -> int:
    """Measure, print the figures, and exit with 1 if one is not what it must be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=100, help="of publish and memcpy")
    parser.add_argument("--readers", type=int, default=16)
    parser.add_argument("--reads", type=int, default=10_000, help="of all readers together")
    parser.add_argument("--rate", type=float, default=10.0, help="publications a second")
    parser.add_argument("--seconds", type=float, default=600.0, help="at most, for the reads")
    parser.add_argument("--json", type=pathlib.Path, help="file to write the figures to")
    options = parser.parse_args()

    def show(name: str, of: dict[str, float]) -> None:
        print(
            f"{name}: {of['median']:.2f} ms ({of['q1']:.2f}-{of['q3']:.2f}), "
            f"largest {of['largest']:.2f}"
        )

    idle = cost_of_publishing(options.repetitions)
    machine = describe_machine()
    print("\n".join(f"{key}: {value}" for key, value in machine.items()) + "\n")
    show(f"publish of {MEGABYTES} MB, CPU", idle["publish"])
    show(f"memcpy of {MEGABYTES} MB, CPU", idle["memcpy"])
    print(f"ratio {idle['ratio']:.2f}, at most {MOST_ALLOWED} allowed\n", flush=True)

    busy = readers_at_work(options.readers, options.reads, options.rate, options.seconds)
    print(
        f"{busy['readers']} readers, {busy['publications_per_second']:.1f} publications/s, "
        f"{busy['seconds']:.0f} s: {busy['reads']:,} reads, {busy['mixed']} mixed, "
        f"{busy['copied_again']} copied again"
    )
    for name in ("publish_cpu_ms", "publish_wall_ms", "read_wall_ms", "age_when_read_ms"):
        show(name.replace("_ms", "").replace("_", " "), busy[name])
    if options.json:
        result = {"machine": machine, "readers_idle": idle, "readers_at_work": busy}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    whole = busy["mixed"] == 0 and busy["reads"] >= options.reads
    return 0 if whole and idle["ratio"] <= MOST_ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
