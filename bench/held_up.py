"""How long a call keeps the program's other threads from running.

    python bench/held_up.py --rows 15000000 --json held_up.json

A thread of pure Python looks at the clock again and again, with a switch interval of 0.1 ms; the
longest time between two looks during a call is how long it was held up. In turn with each call the
same is measured beside a thread of pure Python that runs as long. Of all repetitions the shortest
counts: whatever else the machine does only makes it longer. Ends with status 1 if a call holds the
thread up by more than 5 ms longer.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
from machine import describe_machine

import mpbuffer

FIELDS = {"a": {"shape": ()}}
AT_ONCE = 1_000_000
MOST_ALLOWED = 5.0  # milliseconds longer than beside pure Python
SHORTEST_SPIN = 0.05

Step = Callable[[], object]


class Ticker:
    """A thread that looks at the clock, and knows its longest time between two looks."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._ended = False
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        last = time.perf_counter()
        while not self._ended:
            now = time.perf_counter()
            if now - last > self.longest:
                self.longest = now - last
            last = now

    def during(self, call: Step) -> tuple[float, float]:
        """Return the milliseconds of a call, and of the longest time between looks meanwhile."""
        time.sleep(0.002)
        self.longest = 0.0
        start = time.perf_counter()
        call()
        took = time.perf_counter() - start
        time.sleep(0.002)  # what began in the call ends
        return took * 1e3, self.longest * 1e3

    def end(self) -> None:
        """Wait for the thread's end."""
        self._ended = True
        self._thread.join()


def spin(seconds: float) -> None:
    """Run pure Python."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def fill(buffer: mpbuffer.ReplayBuffer, rows: int) -> None:
    """Add so many rows, in few calls."""
    values = np.random.default_rng(0).random(AT_ONCE, np.float32)
    for first in range(0, rows, AT_ONCE):
        buffer.add(a=values[: min(AT_ONCE, rows - first)])


def add_for_ever(buffer: mpbuffer.ReplayBuffer) -> None:
    """In a process that will be killed inside a call."""
    while True:
        buffer.add(a=np.zeros(1_000, np.float32))


def leave_a_doubt(buffer: mpbuffer.ReplayBuffer) -> None:
    """Kill a process that adds: the next len() counts all rows."""
    process = multiprocessing.get_context("fork").Process(target=add_for_ever, args=(buffer,))
    process.start()
    time.sleep(0.05)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()


class Calls:
    """The calls on a full buffer: what comes before each one, and the call."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.buffer = mpbuffer.PrioritizedReplayBuffer(rows, FIELDS)
        fill(self.buffer, rows)
        self.buffer.sample(1)
        many = min(AT_ONCE, rows)
        self.batch = self.buffer.sample(many)
        self.priorities = np.random.default_rng(1).random(many)
        self.values = np.zeros(many, np.float32)
        self.other = self.buffer

    def steps(self) -> Iterator[tuple[str, Step, Step]]:
        """Yield the name of a call, what has to be done before it, and the call."""
        buffer, many = self.buffer, len(self.values)
        name = f"{many:,}"
        indexes = self.batch["indexes"]

        def nothing() -> None:
            pass

        def refill() -> None:
            fill(buffer, self.rows)

        def cleared() -> None:
            refill()
            buffer.clear()

        def cleared_and_new() -> None:
            buffer.clear()
            fill(buffer, 1_000)

        def learn() -> None:
            refill()
            buffer.sample(1)

        def draw() -> None:
            buffer.sample(32)

        yield "first `sample(32)`: takes the role", buffer.release_learner, draw
        yield "`sample(32)` after all rows are new", refill, draw
        yield f"`sample({name})`", nothing, lambda: buffer.sample(many)
        yield f"`sample_uniform({name})`", nothing, lambda: buffer.sample_uniform(many)
        yield (
            f"`update_priorities`, {name}",
            nothing,
            lambda: buffer.update_priorities(indexes, self.priorities),
        )
        yield f"`get_generations`, {name}", nothing, lambda: buffer.get_generations(indexes)
        yield f"`add`, {name}", nothing, lambda: buffer.add(a=self.values)
        yield "`get_all_transitions()`", nothing, buffer.get_all_transitions
        yield "`clear()`", learn, buffer.clear
        yield "`len` after a clear", cleared, lambda: len(buffer)
        yield (
            "`sample(32)` after a clear and new rows",
            cleared_and_new,
            lambda: buffer.sample(32),
        )
        yield "`len` after a death in `add`", lambda: leave_a_doubt(buffer), lambda: len(buffer)
        yield "`len`", refill, lambda: len(buffer)
        yield "`rows_added()`", nothing, buffer.rows_added
        yield "`processes()`", nothing, buffer.processes
        yield "`learner_status()`", nothing, buffer.learner_status
        yield "pickled", nothing, lambda: pickle.loads(pickle.dumps(buffer)).close()
        yield "`attach`", self.close_other, self.attach_other
        yield "`close` of an attached one", self.attach_other, self.close_other
        yield "`release_learner()`", lambda: buffer.sample(1), buffer.release_learner
        yield "creation", self.close_other, self.create_other
        yield "`close` of the learner", self.learn_with_other, self.close_other

    def attach_other(self) -> None:
        """Open a second handle."""
        self.close_other()
        self.other = mpbuffer.attach(self.buffer.name)

    def create_other(self) -> None:
        """Make a second buffer."""
        self.other = mpbuffer.PrioritizedReplayBuffer(self.rows, FIELDS)

    def learn_with_other(self) -> None:
        """Make, fill and sample a second buffer."""
        self.close_other()
        self.create_other()
        fill(self.other, self.rows)
        self.other.sample(1)

    def close_other(self) -> None:
        """Close the second handle."""
        if self.other is not self.buffer:
            self.other.close()

    def close(self) -> None:
        """Close all."""
        self.close_other()
        self.buffer.close()


def measure(rows: int, repetitions: int) -> list[dict]:
    """Measure each call and, in turn with it, pure Python."""
    ticker = Ticker()
    calls = Calls(rows)
    figures = []
    try:
        for name, before, call in calls.steps():
            took, held, beside = [], [], []
            for _ in range(repetitions):
                before()
                milliseconds, longest = ticker.during(call)
                took.append(milliseconds)
                held.append(longest)
                seconds = max(SHORTEST_SPIN, milliseconds / 1e3)
                beside.append(ticker.during(lambda seconds=seconds: spin(seconds))[1])
            figures.append(
                {
                    "call": name,
                    "took": float(np.median(took)),
                    "held": min(held),
                    "beside": min(beside),
                }
            )
            print(row_of(figures[-1]), flush=True)
    finally:
        ticker.end()
        calls.close()
    return figures


def row_of(figure: dict) -> str:
    """Return a line of the table."""
    longer = figure["held"] - figure["beside"]
    numbers = (figure["took"], figure["held"], figure["beside"], longer)
    return f"| {figure['call']} | " + " | ".join(f"{number:.1f}" for number in numbers) + " |"


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=15_000_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    sys.setswitchinterval(1e-4)
    print(f"| {options.rows:,} rows, milliseconds | took | held up | beside Python | longer |")
    print("|---|---|---|---|---|")
    figures = measure(options.rows, options.repetitions)
    worst = max(figures, key=lambda figure: figure["held"] - figure["beside"])
    longest = worst["held"] - worst["beside"]
    print(f"\nat most {longest:.1f} ms longer ({worst['call']}); {MOST_ALLOWED:g} ms are allowed")
    if options.json is not None:
        result = {"machine": describe_machine(), "rows": options.rows, "figures": figures}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if longest > MOST_ALLOWED else 0


if __name__ == "__main__":
    sys.exit(main())
