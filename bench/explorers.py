"""How fast the learner cycles, and how many rows come in, beside 0 to 64 explorer processes.

    python bench/explorers.py --json explorers.json

A cycle is a prioritized sample(512) and the update of its 512 priorities, at 10^6 CartPole rows
(44 bytes). Explorers add batches of 50 rows that were made beforehand, at full speed or throttled
to 2,000 rows/s each: batch n is due at a time that was fixed at the start, so that lateness does
not add up. Rows/s are those that came in while the learner was timed.

The learner's cost with explorers is its thread's CPU time per cycle. What it spends on rows that
came in is taken off: rows folded, times the cost of folding a row, which is measured in the same
run: explorers add as many rows as a fold was seen to take in, and stop; then the learner folds.
"""

import os

from interleaved import Bench, Point, run_alone
from peers import SHARED
from peers.rows import CARTPOLE

PEERS = SHARED
MINUTES = 4.2
SAMPLE = 512
BATCH = 50
THROTTLED = 2_000  # rows/s of each explorer


def measure(bench: Bench) -> None:
    """Measure all numbers of explorers in turn."""
    capacity = 10_000 if bench.short else 10**6
    seconds = 0.1 if bench.short else 0.4
    counts = (0, 2) if bench.short else (0, 1, 4, 16, 64)
    buffer = {"capacity": capacity, "fields": CARTPOLE, "shared": True, "at_once": BATCH}
    made = bench.make("shared", bench.peers, "", explorers=max(counts), **buffer)

    def point(explorers: int, rate: int, pinned: bool, peers: list[str]) -> Point:
        speed = "none" if not explorers else "throttled" if rate else "full"
        case = {"explorers": explorers, "speed": speed, "own core": pinned}
        arguments = {"case": "shared", "rows": SAMPLE, "seconds": seconds}
        arguments |= {"explorers": explorers, "rate": rate, "pinned": pinned}
        return Point(case, peers, "learn", arguments)

    points = [point(0, 0, False, made)]
    for count in counts[1:]:
        points += [point(count, THROTTLED, False, made), point(count, 0, False, made)]
    few = min(4, max(counts))
    if len(os.sched_getaffinity(0)) > 1:
        points.append(point(few, THROTTLED, True, made))
    many = min(16, max(counts))
    ours = {"case": "shared", "rows": SAMPLE, "seconds": seconds}
    for pinned in (False, True) if len(os.sched_getaffinity(0)) > 1 else (False,):
        of = {"own core": pinned}
        for count in (0, many):
            arguments = ours | {"explorers": count, "pinned": pinned}
            case = {"cost beside": count} | of
            points.append(Point(case, ["mpbuffer"], "cycle_cost", arguments))
        case = {"fold of": many} | of
        points.append(Point(case, ["mpbuffer"], "fold_alone", arguments))
    bench.repeat(points)


if __name__ == "__main__":
    run_alone("explorers", __doc__.partition("\n")[0], MINUTES, PEERS, measure)
