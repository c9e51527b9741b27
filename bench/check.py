"""Is this build of mpbuffer slower than another one? Fails above 3 %.

    python bench/check.py /path/to/the/other/environment/bin/python

Each round measures both builds in turn, each in a process of its own, pinned to one processor. The
best of all rounds counts: what a busy machine adds is never negative. Use rounds enough that two
runs of one build agree.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

FIELDS = {
    "obs": {"shape": 4},
    "act": {"dtype": "i4"},
    "rew": {},
    "next_obs": {"shape": 4},
    "done": {},
}
BATCH = 256


def best_of(call: Callable[[], object], calls: int, passes: int = 60) -> float:
    """Return the least time of one call over some passes, in microseconds."""
    least = float("inf")
    for _ in range(passes):
        begin = time.perf_counter_ns()
        for _ in range(calls):
            call()
        least = min(least, (time.perf_counter_ns() - begin) / calls / 1e3)
    return least


def measure(rows: int) -> dict[str, float]:
    """Time the calls of one process on a buffer of `rows` rows, which is full."""
    import numpy as np

    import mpbuffer

    def some(count: int) -> dict[str, np.ndarray]:
        shapes = {name: field.get("shape", 1) for name, field in FIELDS.items()}
        return {name: np.zeros((count, shape)) for name, shape in shapes.items()}

    rng = np.random.default_rng(0)
    with mpbuffer.PrioritizedReplayBuffer(rows, FIELDS, seed=1) as buffer:
        for first in range(0, rows, 100_000):
            count = min(100_000, rows - first)
            buffer.add(**some(count), priorities=rng.random(count) + 0.1)
        one, many = some(1), some(100)
        priorities = rng.random(BATCH) + 0.1

        def cycle() -> None:
            indexes = buffer.sample(BATCH, 0.4)["indexes"]
            buffer.update_priorities(indexes, priorities)

        return {
            "sample(256)": best_of(lambda: buffer.sample(BATCH, 0.4), 50),
            "sample(256) and update": best_of(cycle, 50),
            "sample_uniform(256)": best_of(lambda: buffer.sample_uniform(BATCH), 50),
            "add of 1 row": best_of(lambda: buffer.add(**one), 200),
            "add of 100 rows": best_of(lambda: buffer.add(**many), 50),
        }


def measured_by(python: str, rows: int) -> dict[str, float]:
    """Measure the build that this Python imports."""
    processor = str(max(os.sched_getaffinity(0)))
    command = ["taskset", "-c", processor, python, __file__, "--measure", str(rows)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    if done.returncode != 0:
        raise SystemExit(f"cannot measure with {python}:\n{done.stderr}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    """Measure both builds in turn, print the ratios, and fail if one is too high."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("other", nargs="?", help="the Python of the build to compare with")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=1.03, help="the highest ratio that passes")
    parser.add_argument("--measure", type=int, metavar="ROWS", help="print this build's figures")
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure)))
        return
    if options.other is None:
        parser.error("name the Python of the build to compare with")
    slower = 0
    print(f"{'rows':>9}  {'call':<24}{'other':>10}{'this':>10}{'ratio':>8}")
    for rows in options.rows:
        least: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for which, python in enumerate((options.other, sys.executable)):
                for call, figure in measured_by(python, rows).items():
                    both = least.setdefault(call, [float("inf")] * 2)
                    both[which] = min(both[which], figure)
        for call, (other, this) in least.items():
            too_slow = this / other > options.limit
            slower += too_slow
            mark = "  slower" if too_slow else ""
            print(
                f"{rows:>9,}  {call:<24}{other:>7.2f} us{this:>7.2f} us{this / other:>8.3f}{mark}"
            )
    if slower:
        raise SystemExit(f"{slower} calls are slower than {options.limit} times the other build")


if __name__ == "__main__":
    main()
