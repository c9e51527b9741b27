"""How long a learner waits for its next batch, with and without prefetch.

    python bench/prefetch.py --json prefetch.json

Atari rows (56 KB), batch 512. The learner's loop: get a batch, compute 5 ms, update priorities.
"core" computes in C, keeping its core and without Python's lock; "sleep" stands for a GPU that
computes while the processor is free. Waiting is the time within sample() or the iterator's next().
"""

from interleaved import Bench, Point, run_alone
from peers.rows import ATARI, payload_bytes
from row_size import memory_available

PEERS = ("mpbuffer",)
MINUTES = 0.5
SAMPLE = 512


def measure(bench: Bench) -> None:
    """Measure every way to get a batch, in turn."""
    most_bytes = 30 << 20 if bench.short else int(0.4 * memory_available())
    capacity = min(1_000 if bench.short else 50_000, most_bytes // payload_bytes(ATARI))
    bench.make("atari", bench.peers, "", capacity=capacity, fields=ATARI, shared=True)
    points = [
        Point(
            {"batches": how, "computing": computing, "capacity": capacity},
            ["mpbuffer"],
            "wait_share",
            {
                "case": "atari",
                "rows": SAMPLE,
                "how": how,
                "computing": computing,
                "batches": 10 if bench.short else 60,
            },
        )
        for computing in ("core", "sleep")
        for how in ("new", "out", "prefetch=2")
    ]
    bench.repeat(points)


if __name__ == "__main__":
    run_alone("prefetch", __doc__.partition("\n")[0], MINUTES, PEERS, measure)
