"""How much memory a row takes, beyond its values.

    python bench/memory.py --json memory.json

By how much the process's proportional set size grows when a buffer is created and filled, per row.
"""

from interleaved import Bench, Point, run_alone
from peers import SHARED
from peers.rows import CARTPOLE, Fields, fields_of_bytes, payload_bytes

PEERS = "mpbuffer", "cpprb", "cpprb-mp", "torchrl", "tianshou", "reverb"
MINUTES = 0.5


def measure(bench: Bench) -> None:
    """Measure two row sizes in turn."""
    capacity = 10_000 if bench.short else 10**6
    sizes: list[tuple[int, Fields]] = [
        (capacity, CARTPOLE),
        (capacity // 20, fields_of_bytes(4_000)),
    ]
    points = []
    for size, fields in sizes:
        for shared in (False, True):
            case = {"payload": payload_bytes(fields), "capacity": size, "shared": shared}
            arguments = {"capacity": size, "fields": fields, "shared": shared}
            peers = [peer for peer in bench.peers if (peer in SHARED) == shared]
            points.append(Point(case, peers, "memory", arguments))
    bench.repeat(points)


if __name__ == "__main__":
    run_alone("memory", __doc__.partition("\n")[0], MINUTES, PEERS, measure)
