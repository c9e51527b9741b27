"""The process that has one peer's buffers and times their calls.

    python -m peers.worker PEER

Reads a JSON object a line from standard input, {"do": NAME, ...}, and answers each by a line:
{"value": ...}, {"unsupported": WHY} or {"error": WHY}. What the peer itself prints goes to
standard error. Commands are the public methods of `Worker`.
"""

import contextlib
import gc
import importlib
import json
import multiprocessing
import multiprocessing.connection
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from peers import ADAPTERS
from peers.adapter import Adapter, Unsupported, proportional_set_size
from peers.explorer import explore
from peers.rows import (
    Fields,
    payload_bytes,
    random_priorities,
    random_rows,
    single_transitions,
)

FILL_BYTES = 64 << 20  # at most so much is made at once to fill a buffer
PATIENCE = 120.0  # seconds until explorers must have answered


def start_context(adapter: type[Adapter]) -> Any:
    """Return the multiprocessing context that this peer's explorers are started by."""
    context = multiprocessing.get_context(adapter.start_method)
    if adapter.start_method == "forkserver":
        context.set_forkserver_preload(list(adapter.preload))
    return context


class Explorers:
    """The processes that add to one buffer."""

    def __init__(self, adapter: Adapter, count: int, fields: Fields, at_once: int) -> None:
        self.adapter = adapter
        self.at_once = at_once
        context = start_context(type(adapter))
        shared_counts = context.RawArray("q", 8 * count + 8)
        self.counts = np.frombuffer(shared_counts, np.int64)
        self.runs = 0
        self.orders, self.processes = [], []
        for number in range(count):
            ours, theirs = context.Pipe()
            view = adapter.for_explorer()
            arguments = number, view, fields, at_once, theirs, shared_counts
            process = context.Process(target=explore, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self.orders.append(ours)
            self.processes.append(process)
        self._gather(count)

    def send(self, count: int, order: tuple) -> None:
        """Give the first `count` explorers an order."""
        for connection in self.orders[:count]:
            connection.send(order)

    def wait(self, count: int) -> None:
        """Wait until they have carried it out, serving them meanwhile."""
        self._gather(count)

    def _gather(self, count: int) -> None:
        deadline = time.monotonic() + PATIENCE
        waiting = self.orders[:count]
        while waiting:
            self.adapter.serve()
            ready = set(multiprocessing.connection.wait(waiting, timeout=0.01))
            for connection in ready:
                connection.recv()
            waiting = [connection for connection in waiting if connection not in ready]
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(waiting)} explorers do not answer")

    @contextlib.contextmanager
    def adding(self, count: int, rate: float, cpus: set[int]) -> Iterator[float]:
        """Let `count` of them add while the block runs; gives the time at which they start."""
        start = time.monotonic() + 0.01 + 0.001 * count
        self.runs += 1
        self.send(count, ("run", start, self.runs, rate, cpus))
        try:
            yield start
        finally:
            self.counts[-1] = self.runs
            self.wait(count)

    def arrived(self) -> int:
        """Return the rows that have come in through them."""
        rows = self.adapter.rows_arrived()
        return int(self.counts[:-8].sum()) if rows is None else rows

    def stop(self) -> None:
        """End them."""
        for connection, process in zip(self.orders, self.processes, strict=True):
            try:
                connection.send(None)
            except OSError:
                process.kill()
        deadline = time.monotonic() + 5.0
        for process in self.processes:
            while process.is_alive() and time.monotonic() < deadline:
                self.adapter.serve()
                process.join(0.01)
            if process.is_alive():
                process.kill()
                process.join()


class Case:
    """One buffer, full of rows, and what its measurements need."""

    def __init__(
        self,
        adapter: Adapter,
        fields: Fields,
        filled: int,
        at_once: int,
        explorers: Explorers | None,
    ) -> None:
        self.adapter = adapter
        self.fields = fields
        self.filled = filled
        self.at_once = at_once
        self.explorers = explorers
        self.rng = np.random.default_rng(1)
        self.calls_per_second: dict[str, float] = {}
        self.kept: dict[str, Any] = {}

    def keep(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what was made under that name before, or make it."""
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    def rate(self, name: str, seconds: float, timed: Callable[[int], float]) -> float:
        """Return calls per second, measured for about so long; `timed` says how long calls took.

        The first time, as many calls are made before as are then measured.
        """
        if name not in self.calls_per_second:
            timed(1)
            self.calls_per_second[name] = 1 / timed(1)
            self.rate(name, seconds, timed)
        calls, spent = 0, 0.0
        while spent < 0.9 * seconds:
            expected = self.calls_per_second[name]
            chunk = max(1, min(round((seconds - spent) * expected), 8 * calls + 8))
            spent += timed(chunk)
            calls += chunk
            self.calls_per_second[name] = calls / spent
        return calls / spent

    def adding(
        self, explorers: int, rate: float, cpus: set[int]
    ) -> contextlib.AbstractContextManager[float]:
        """Let so many explorers add while the block runs; gives the time at which they start."""
        if self.explorers is not None and explorers:
            return self.explorers.adding(explorers, rate, cpus)
        return contextlib.nullcontext(time.monotonic())

    def close(self) -> None:
        """End explorers, release memory."""
        if self.explorers is not None:
            self.explorers.stop()
        self.kept.clear()
        self.adapter.close()


@contextlib.contextmanager
def own_core(wanted: bool) -> Iterator[set[int]]:
    """Keep this thread on one core, if wanted; gives the cores for everybody else."""
    cpus = os.sched_getaffinity(0)
    if not wanted:
        yield cpus
        return
    if len(cpus) < 2:
        raise Unsupported("there is one core only")
    os.sched_setaffinity(0, {min(cpus)})
    try:
        yield cpus - {min(cpus)}
    finally:
        os.sched_setaffinity(0, cpus)


def cycle(adapter: Adapter, rows: int, priorities: np.ndarray) -> None:
    """Do what the learner does once."""
    sampled = adapter.sample(rows)
    adapter.update(sampled, priorities)


class Worker:
    """One peer, and all its buffers."""

    def __init__(self, peer: str) -> None:
        module, name, _ = ADAPTERS[peer]
        self.adapter_class: type[Adapter] = getattr(importlib.import_module(module), name)
        self.cases: dict[str, Case] = {}

    def versions(self) -> dict[str, str]:
        """Return the versions of the peer and of what it stands on."""
        python = ".".join(map(str, sys.version_info[:3]))
        return {"python": python} | self.adapter_class.versions()

    def make(
        self,
        case: str,
        *,
        capacity: int,
        fields: Fields,
        kind: str = "prioritized",
        explorers: int = 0,
        shared: bool = False,
        at_once: int = 1,
    ) -> dict[str, Any]:
        """Make a buffer, fill it with random rows, and start explorers that wait."""
        if capacity > self.adapter_class.most_capacity:
            raise Unsupported(f"not at this capacity: {self.adapter_class.slow_because}")
        adapter = self._create(capacity, fields, kind, shared, at_once)
        filled = min(capacity, adapter.most_filled)
        row_bytes = payload_bytes(fields)
        at_most = max(1, min(adapter.rows_per_fill, FILL_BYTES // row_bytes, filled))
        rng = np.random.default_rng(0)
        rows = random_rows(fields, at_most, rng)
        for _ in range(-(-filled // at_most)):
            priorities = random_priorities(rng, at_most) if kind == "prioritized" else None
            adapter.fill(rows, priorities)
        count = min(explorers, adapter.most_explorers)
        crowd = Explorers(adapter, count, fields, at_once) if count else None
        self.cases[case] = Case(adapter, fields, filled, at_once, crowd)
        if kind == "prioritized":
            cycle(adapter, 32, random_priorities(rng, 32))
        return {"filled": filled, "explorers": count, "start_method": adapter.start_method}

    def _create(
        self, capacity: int, fields: Fields, kind: str, shared: bool, at_once: int
    ) -> Adapter:
        return self.adapter_class(capacity, fields, kind=kind, shared=shared, at_once=at_once)

    def drop(self, case: str) -> None:
        """Release a buffer."""
        self.cases.pop(case).close()
        gc.collect()

    def single_adds(self, case: str, *, types: str, seconds: float) -> float:
        """Return rows/s of adds of one CartPole transition a call."""
        one = self.cases[case]
        lap = 1_000
        transitions = one.keep(types, lambda: single_transitions(types, lap, one.rng))
        few = one.keep(types + " few", lambda: transitions[:10])

        def timed(tens: int) -> float:
            if tens < 100:
                return one.adapter.seconds_of_single_adds(few, tens)
            return one.adapter.seconds_of_single_adds(transitions, tens // 100) * (
                tens / (tens // 100 * 100)
            )

        return 10 * one.rate("single " + types, seconds, timed)

    def batch_adds(self, case: str, *, seconds: float) -> float:
        """Return rows/s of adds of as many rows a call as the buffer was made for."""
        one = self.cases[case]
        at_once = one.at_once

        def batches() -> list[Any]:
            made = (random_rows(one.fields, at_once, one.rng) for _ in range(8))
            return [one.adapter.batch_of(rows, None) for rows in made]

        prebuilt = one.keep("batches", batches)

        def timed(calls: int) -> float:
            add = one.adapter.add
            start = time.perf_counter()
            for lap in range(calls):
                add(prebuilt[lap & 7])
            return time.perf_counter() - start

        return at_once * one.rate("batches", seconds, timed)

    def uniform_samples(self, case: str, *, rows: int, seconds: float) -> float:
        """Return samples/s, each dropped before the next."""
        one = self.cases[case]

        def timed(calls: int) -> float:
            sample = one.adapter.sample_uniform
            start = time.perf_counter()
            for _ in range(calls):
                sample(rows)
            return time.perf_counter() - start

        return one.rate(f"uniform {rows}", seconds, timed)

    def cycles(self, case: str, *, rows: int, seconds: float) -> dict[str, float]:
        """Return prioritized samples with updates per second, and thread CPU time of each."""
        one = self.cases[case]
        priorities = one.keep(f"priorities {rows}", lambda: random_priorities(one.rng, 64, rows))
        cpu_of: list[tuple[float, int]] = []

        def timed(calls: int) -> float:
            adapter = one.adapter
            cpu, start = time.thread_time(), time.perf_counter()
            for lap in range(calls):
                cycle(adapter, rows, priorities[lap & 63])
            wall = time.perf_counter() - start
            cpu_of.append((time.thread_time() - cpu, calls))
            return wall

        rate = one.rate(f"cycles {rows}", seconds, timed)
        cpu_seconds, calls = (sum(each) for each in zip(*cpu_of, strict=True))
        measured = {"cycles/s": rate, "cpu us": cpu_seconds / calls * 1e6}
        if hasattr(one.adapter, "lines_per_draw"):
            measured["lines/draw"] = one.adapter.lines_per_draw()
        return measured

    def learn(
        self,
        case: str,
        *,
        explorers: int,
        rate: float,
        rows: int,
        seconds: float,
        pinned: bool = False,
    ) -> dict[str, float]:
        """Cycle while explorers add; `rate` is each one's rows/s, 0 for as many as it can.

        Returns cycles/s, percentiles of a cycle, rows/s that came in, and thread CPU time of a
        cycle, all over the same stretch of time. `pinned` gives the learner a core to itself.
        """
        one = self.cases[case]
        crowd = one.explorers
        if explorers and (crowd is None or explorers > len(crowd.processes)):
            raise Unsupported(f"{explorers} explorers are too many: {one.adapter.slow_because}")
        priorities = one.keep(f"priorities {rows}", lambda: random_priorities(one.rng, 64, rows))
        with own_core(pinned) as others, one.adding(explorers, rate, others) as start:
            warmed = start + 0.1 + 0.2 * seconds
            while time.monotonic() < warmed:
                cycle(one.adapter, rows, priorities[0])
            return self._timed_cycles(one, rows, priorities, seconds)

    def _timed_cycles(
        self, one: Case, rows: int, priorities: np.ndarray, seconds: float
    ) -> dict[str, float]:
        adapter, crowd = one.adapter, one.explorers
        sample, update, clock = adapter.sample, adapter.update, time.perf_counter_ns
        times: list[int] = []
        gc.disable()
        arrived = crowd.arrived() if crowd else 0
        cpu = time.thread_time_ns()
        before = first = clock()
        end = first + int(seconds * 1e9)
        while before < end:
            update(sample(rows), priorities[len(times) & 63])
            now = clock()
            times.append(now - before)
            before = now
        cpu = time.thread_time_ns() - cpu
        arrived = (crowd.arrived() if crowd else 0) - arrived
        gc.enable()
        wall = (before - first) / 1e9
        p50, p99 = np.percentile(times, [50, 99]) / 1e3
        return {
            "cycles/s": len(times) / wall,
            "p50 us": float(p50),
            "p99 us": float(p99),
            "p99/p50": float(p99 / p50),
            "rows/s": arrived / wall,
            "cpu us": cpu / len(times) / 1e3,
        }

    def cycle_cost(
        self, case: str, *, explorers: int, rows: int, seconds: float, pinned: bool
    ) -> dict[str, float]:
        """Return the CPU time of the learner's cycle beside explorers at full speed.

        And the rows that a cycle folds, in however many folds; each takes in one lap of the buffer
        at most, however many rows were added. "half in" is the size such that half of all rows come
        in folds at least that large. `fold_alone` makes folds of the sizes that were seen here.
        """
        one = self.cases[case]
        adapter, crowd = one.adapter, one.explorers
        if crowd is None or not hasattr(adapter, "rows_folded"):
            raise Unsupported("it has no fold")
        priorities = one.keep(f"priorities {rows}", lambda: random_priorities(one.rng, 64, rows))
        sizes, costs = [], []
        with own_core(pinned) as others, one.adding(explorers, 0, others) as start:
            while time.monotonic() < start + 0.1 + 0.2 * seconds:
                cycle(adapter, rows, priorities[0])
            before = adapter.rows_folded()
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                cpu = time.thread_time_ns()
                cycle(adapter, rows, priorities[len(costs) & 63])
                costs.append(time.thread_time_ns() - cpu)
                now = adapter.rows_folded()
                sizes.append(now - before)
                before = now
        if explorers:
            one.kept[f"fold sizes, pinned {pinned}"] = np.array(sizes, np.float64)
        largest_first = np.sort(sizes)[::-1]
        passed = np.searchsorted(np.cumsum(largest_first), largest_first.sum() / 2)
        return {
            "cpu us": float(np.mean(costs)) / 1e3,
            "median cpu us": float(np.median(costs)) / 1e3,
            "folded/cycle": float(np.mean(sizes)),
            "half in": float(largest_first[passed]),
        }

    def fold_alone(
        self, case: str, *, explorers: int, rows: int, seconds: float, pinned: bool
    ) -> dict[str, float]:
        """Return the CPU time of taking in a row, ns, while nobody adds.

        Explorers add as many rows as a fold of `cycle_cost` took in and stop, then the learner
        cycles once; what a cycle with nothing to take in costs is taken off. A fold is picked with
        a chance in proportion to its rows, so that the mean of the costs per row is all folds' cost
        over all their rows.
        """
        one = self.cases[case]
        adapter, crowd = one.adapter, one.explorers
        sizes = one.kept.get(f"fold sizes, pinned {pinned}")
        if crowd is None or sizes is None or not sizes.sum():
            raise Unsupported("no folds were seen")
        priorities = random_priorities(one.rng, rows)
        costs, taken = [], []
        end = time.monotonic() + seconds
        with own_core(pinned):
            while time.monotonic() < end or len(costs) < 5:
                fold = one.rng.choice(sizes, p=sizes / sizes.sum())
                crowd.send(explorers, ("add", max(1, round(fold / explorers / one.at_once))))
                crowd.wait(explorers)
                before, cpu = adapter.rows_folded(), time.thread_time_ns()
                cycle(adapter, rows, priorities)
                cpu = time.thread_time_ns() - cpu
                taken.append(adapter.rows_folded() - before)
                for _ in range(3):
                    cycle(adapter, rows, priorities)
                plain = time.thread_time_ns()
                for _ in range(4):
                    cycle(adapter, rows, priorities)
                plain = (time.thread_time_ns() - plain) / 4
                costs.append((cpu - plain) / taken[-1])
        return {"ns/row": float(np.mean(costs)), "rows": float(np.mean(taken))}

    def start_up(self, *, capacity: int, fields: Fields, shared: bool) -> dict[str, float]:
        """Time creation, the first rows, the first sample, another handle, an explorer."""
        rng = np.random.default_rng(0)
        rows, priorities = random_rows(fields, 50, rng), random_priorities(rng, 50)
        if shared:
            self._start_forkserver()
        times = {}
        start = time.perf_counter()
        adapter = self._create(capacity, fields, "prioritized", shared, 50)
        times["create"] = time.perf_counter() - start
        try:
            start = time.perf_counter()
            adapter.fill(rows, priorities)
            times["first 50 rows"] = time.perf_counter() - start
            start = time.perf_counter()
            cycle(adapter, 32, priorities[:32])
            times["first sample and update"] = time.perf_counter() - start
            if hasattr(adapter, "seconds_to_attach"):
                times["attach"] = adapter.seconds_to_attach()
            if shared:
                start = time.perf_counter()
                crowd = Explorers(adapter, 1, fields, 50)
                crowd.send(1, ("add", 1))
                crowd.wait(1)
                times["explorer"] = time.perf_counter() - start
                crowd.stop()
        finally:
            adapter.close()
        gc.collect()
        return {name: seconds * 1e3 for name, seconds in times.items()}

    def _start_forkserver(self) -> None:
        """Let the forkserver, if that is the start method, do its imports."""
        context = start_context(self.adapter_class)
        first = context.Process(target=gc.collect)
        first.start()
        first.join()

    def memory(self, *, capacity: int, fields: Fields, shared: bool) -> dict[str, float]:
        """Return the bytes that a full buffer takes per row; how many rows; bytes of values."""
        capacity = min(capacity, self.adapter_class.most_filled)
        gc.collect()
        before = proportional_set_size()
        self.make("memory", capacity=capacity, fields=fields, shared=shared, at_once=50)
        gc.collect()
        taken = proportional_set_size() - before
        self.drop("memory")
        return {"bytes/row": taken / capacity, "rows": capacity, "payload": payload_bytes(fields)}

    def recycled(self, case: str, *, rows: int, how: str, seconds: float) -> float:
        """Return rows/s of samples into the same arrays ("out") or into new ones ("new").

        Or ("c loop") of a loop in C that copies the rows of such samples to those arrays.
        """
        from peers.recycled import samplers

        one = self.cases[case]
        timed = one.keep(f"recycled {rows}", lambda: samplers(one.adapter, rows))[how]
        if isinstance(timed, str):
            raise Unsupported(timed)
        return rows * one.rate(f"recycled {how}", seconds, timed)

    def wait_share(
        self, case: str, *, rows: int, how: str, computing: str, batches: int
    ) -> dict[str, float]:
        """Return which share of its loop a learner waits for rows; see `peers.recycled`."""
        from peers.recycled import wait_share

        return wait_share(self.cases[case].adapter, rows, how, computing, batches)

    def release(self) -> None:
        """Release all buffers."""
        for case in list(self.cases):
            self.drop(case)

    def close(self) -> None:
        """Release everything; the last command."""
        self.release()


def main() -> None:
    """Answer commands until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.set_inheritable(answers.fileno(), False)
    os.dup2(2, 1)
    worker: Worker | None = None
    for line in sys.stdin:
        command = json.loads(line)
        name = command.pop("do")
        try:
            if worker is None:
                worker = Worker(sys.argv[1])
            answer = {"value": getattr(worker, name)(**command)}
        except Unsupported as why:
            answer = {"unsupported": str(why)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".partition("\n")[0]}
        answers.write(json.dumps(answer) + "\n")
        if name == "close":
            break


if __name__ == "__main__":
    main()
