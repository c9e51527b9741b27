"""mpbuffer's output without new memory: sample(..., out=) and batches(..., prefetch=)."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from peers.adapter import Unsupported
from peers.compiled import RowCopy, library
from peers.rows import random_priorities

LAPS = 16  # samples whose rows the C loop copies, so that they are not in the cache
COMPUTING_NS = 5_000_000


def samplers(adapter: Any, rows: int) -> dict[str, Callable[[int], float] | str]:
    """Return what times so many samples, by how; a str says why one cannot be timed."""
    rb = adapter.rb
    batch = rb.sample(rows, beta=0.4)

    def fresh(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            rb.sample(rows, beta=0.4)
        return time.perf_counter() - start

    try:
        rb.sample(rows, beta=0.4, out=batch)
    except TypeError:
        why = "this mpbuffer's sample() has no out="
        return {"new": fresh, "out": why, "c loop": why}

    def into_batch(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            rb.sample(rows, beta=0.4, out=batch)
        return time.perf_counter() - start

    drawn = [rb.sample(rows, beta=0.4)["indexes"].astype(np.int64) for _ in range(LAPS)]
    addresses, stride = adapter.records()
    copy = RowCopy(addresses, stride, {name: batch[name] for name in addresses})
    _check(rb, rows, batch, copy, list(addresses))

    def copied(calls: int) -> float:
        start = time.perf_counter()
        for lap in range(calls):
            copy(drawn[lap % LAPS])
        return time.perf_counter() - start

    return {"new": fresh, "out": into_batch, "c loop": copied}


def _check(rb: Any, rows: int, batch: dict, copy: RowCopy, names: list[str]) -> None:
    """Make sure that the loop copies what the sample does."""
    slots = rb.sample(rows, beta=0.4, out=batch)["indexes"].astype(np.int64)
    expected = {name: batch[name].copy() for name in names}
    for name in names:
        batch[name].fill(0)
    copy(slots)
    for name in names:
        if not np.array_equal(batch[name], expected[name]):
            raise AssertionError(f"the C loop copies something else than field {name!r}")


def wait_share(adapter: Any, rows: int, how: str, computing: str, batches: int) -> dict[str, float]:
    """Run a learner's loop: get a batch, compute 5 ms, update priorities.

    Parameters
    ----------
    adapter : Mpbuffer
        Whose buffer is drawn from.
    rows : int
        Of a batch.
    how : str
        "new" (sample into new arrays), "out" (into the same ones), "prefetch=N" (batches()).
    computing : str
        "core" (a loop in C that keeps its core and holds no Python lock) or "sleep" (as when a GPU
        computes).
    batches : int
        Laps of the loop.

    Returns
    -------
    dict
        Shares of the loop's time: "waiting" for rows, "updating" priorities; and "loops/s".
    """
    rb = adapter.rb
    priorities = random_priorities(np.random.default_rng(2), rows)
    compute = library().compute
    clock = time.perf_counter_ns

    def computed() -> None:
        if computing == "core":
            compute(COMPUTING_NS)
        else:
            time.sleep(COMPUTING_NS / 1e9)

    if how.startswith("prefetch="):
        if not hasattr(rb, "batches"):
            raise Unsupported("this mpbuffer has no batches()")
        source = rb.batches(rows, beta=0.4, prefetch=int(how.partition("=")[2]))
        draw = source.__next__
    elif how == "out":
        batch = rb.sample(rows, beta=0.4)
        try:
            rb.sample(rows, beta=0.4, out=batch)
        except TypeError as error:
            raise Unsupported("this mpbuffer's sample() has no out=") from error
        source = None

        def draw() -> dict:
            return rb.sample(rows, beta=0.4, out=batch)

    else:
        source = None

        def draw() -> dict:
            return rb.sample(rows, beta=0.4)

    waiting = updating = total = 0
    for lap in range(batches + 5):
        start = clock()
        drawn = draw()
        got = clock()
        computed()
        done = clock()
        rb.update_priorities(drawn["indexes"], priorities)
        end = clock()
        drawn = None
        if lap >= 5:
            waiting += got - start
            updating += end - done
            total += end - start
    if hasattr(source, "close"):
        source.close()
    return {
        "waiting": waiting / total,
        "updating": updating / total,
        "loops/s": batches / total * 1e9,
    }
