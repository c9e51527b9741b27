"""How long it takes until a buffer can be used.

    python bench/start_up.py --json start_up.json

Milliseconds of creation, of the first 50 rows, of the first sample and update, and for buffers that
processes share, from the start of an explorer process until its first batch is in; for mpbuffer
also of opening the buffer once more by name. Imports are not in it.
"""

from interleaved import Bench, Point, run_alone
from peers import SHARED
from peers.rows import CARTPOLE

PEERS = "mpbuffer", "cpprb", "cpprb-mp", "torchrl", "reverb", "queue"
MINUTES = 0.5


def measure(bench: Bench) -> None:
    """Measure all capacities in turn."""
    points = []
    for capacity in (1_000,) if bench.short else (10**4, 10**6, 10**7):
        for shared in (False, True):
            case = {"capacity": capacity, "shared": shared}
            arguments = {"capacity": capacity, "fields": CARTPOLE, "shared": shared}
            peers = [peer for peer in bench.peers if (peer in SHARED) == shared]
            points.append(Point(case, peers, "start_up", arguments))
    bench.repeat(points)


if __name__ == "__main__":
    run_alone("start_up", __doc__.partition("\n")[0], MINUTES, PEERS, measure)
