"""An explorer process: it adds batches when told to, and sleeps on its pipe otherwise."""

import contextlib
import os
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from peers.rows import Fields, random_priorities, random_rows

PREBUILT_BYTES = 8 << 20
CHUNK_SECONDS = 0.5e-3  # at full speed an explorer looks at the clock about that often


def explore(
    number: int, view: Any, fields: Fields, at_once: int, orders: Connection, counts: Any
) -> None:
    """Obey orders until None comes.

    Parameters
    ----------
    number : int
        Of the explorer; also the seed of its rows, which are made before it says that it is ready.
    view : object
        What the adapter's `for_explorer()` returned.
    fields, at_once
        Of the rows, and how many are added by a call.
    orders : Connection
        Gives ("run", start, number of the run, rows per second or 0, cpus) or ("add", batches);
        gets the answer.
    counts : array of int64
        Rows added by each explorer so far, eight numbers apart; the last is the number of the run
        that has ended.
    """
    rng = np.random.default_rng(number)
    row = random_rows(fields, 1, rng)
    batch_bytes = at_once * sum(values.nbytes for values in row.values())
    view.open()
    batches = [
        view.batch_of(random_rows(fields, at_once, rng), random_priorities(rng, at_once))
        for _ in range(max(1, min(8, PREBUILT_BYTES // batch_bytes)))
    ]
    counted = np.frombuffer(counts, np.int64)
    mine = 8 * number
    orders.send("ready")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while (order := orders.recv()) is not None:
            if order[0] == "add":
                for lap in range(order[1]):
                    view.add(batches[lap % len(batches)])
                counted[mine] += order[1] * at_once
            else:
                _, start, run, rate, cpus = order
                os.sched_setaffinity(0, cpus)
                time.sleep(max(0.0, start - time.monotonic()))
                if rate:
                    _run_throttled(view.add, batches, run, at_once, rate, counted, mine)
                else:
                    _run(view.add, batches, run, at_once, counted, mine)
            orders.send("done")


def _run_throttled(
    add: Any, batches: list, run: int, at_once: int, rate: float, counted: Any, mine: int
) -> None:
    """Add each batch at a time that was fixed at the start; what comes late is caught up with."""
    start, lap = time.monotonic(), 0
    offset = (mine * 0.618034) % 1.0  # so that explorers do not all add at the same moment
    while True:
        due = start + (lap + offset) * at_once / rate
        time.sleep(max(0.0, due - time.monotonic()))
        if counted[-1] >= run:
            return
        add(batches[lap % len(batches)])
        counted[mine] += at_once
        lap += 1


def _run(add: Any, batches: list, run: int, at_once: int, counted: Any, mine: int) -> None:
    """Add batches without pause."""
    chunk, now = 1, time.monotonic()
    while counted[-1] < run:
        for lap in range(chunk):
            add(batches[lap % len(batches)])
        counted[mine] += chunk * at_once
        before, now = now, time.monotonic()
        if now - before < CHUNK_SECONDS and chunk < 64:
            chunk *= 2
        elif now - before > 4 * CHUNK_SECONDS and chunk > 1:
            chunk //= 2
