"""How the learner's cycle grows with the buffer, from 10^4 to 10^7 rows.

    python bench/capacity.py --json capacity.json

A cycle is a prioritized sample(512) and the update of its 512 priorities, on a full buffer of
CartPole rows (44 bytes), without explorers and, where processes can share the buffer, while two
explorers add 2,000 rows/s each, one row a call.
"""

from interleaved import Bench, Point, run_alone
from peers import SHARED
from peers.rows import CARTPOLE

PEERS = "mpbuffer", "cpprb", "cpprb-mp", "torchrl", "tianshou"
MINUTES = 1.2
SAMPLE = 512
EXPLORERS = 2
THROTTLED = 2_000


def measure(bench: Bench) -> None:
    """Measure all capacities in turn."""
    seconds = 0.02 if bench.short else 0.1
    points = []
    for capacity in (1_000, 10_000) if bench.short else (10**4, 10**5, 10**6, 10**7):
        name = str(capacity)
        buffer = {"capacity": capacity, "fields": CARTPOLE}
        alone = [peer for peer in bench.peers if peer not in SHARED]
        together = [peer for peer in bench.peers if peer in SHARED]
        made = bench.make(name, alone, f"capacity {capacity:,}", **buffer)
        shared = bench.make(
            name,
            together,
            f"capacity {capacity:,}",
            shared=True,
            explorers=EXPLORERS,
            at_once=1,
            **buffer,
        )
        arguments = {"case": name, "rows": SAMPLE, "seconds": seconds}
        case = {"capacity": capacity, "explorers": 0}
        everybody = [peer for peer in bench.peers if peer in made or peer in shared]
        points.append(Point(case, everybody, "cycles", arguments))
        case = {"capacity": capacity, "explorers": EXPLORERS}
        arguments = arguments | {"explorers": EXPLORERS, "rate": THROTTLED}
        points.append(Point(case, shared, "learn", arguments))
    bench.repeat(points)


if __name__ == "__main__":
    run_alone("capacity", __doc__.partition("\n")[0], MINUTES, PEERS, measure)
