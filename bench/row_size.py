"""How the learner's cycle depends on the size of a row, from 40 bytes to Atari's 56 KB.

    python bench/row_size.py --json row_size.json

A cycle is a prioritized sample(512) and the update of its 512 priorities, without explorers and
while four add 2,000 rows/s each in batches of 50. The capacity is 10^6 rows, or as many as the
memory that is there lets all peers have at the same time, at most 50,000 Atari rows.

Atari rows are then sampled into the same arrays again and again, beside a loop in C that copies the
rows of such samples, in the same order, from the same memory to the same arrays.
"""

import os

from interleaved import Bench, Point, run_alone
from peers import SHARED
from peers.rows import ATARI, Fields, fields_of_bytes, payload_bytes

PEERS = SHARED
MINUTES = 3.0
SAMPLE = 512
BATCH = 50
EXPLORERS = 4
THROTTLED = 2_000
MOST_BYTES = 50_000 * 56_500


def memory_available() -> int:
    """Return the bytes that can be used without swapping, in /dev/shm too."""
    with open("/proc/meminfo") as file:
        lines = dict(line.split(":") for line in file)
    shared = os.statvfs("/dev/shm")
    return min(
        int(lines["MemAvailable"].split()[0]) * 1024,
        shared.f_bavail * shared.f_frsize,
    )


def measure(bench: Bench) -> None:
    """Measure one row size after the other; the peers in turn."""
    seconds = 0.1 if bench.short else 0.4
    fields: dict[str, Fields] = {
        str(size): fields_of_bytes(size) for size in ((44,) if bench.short else (44, 400, 4_000))
    }
    fields["Atari"] = ATARI
    most_bytes = 30 << 20 if bench.short else MOST_BYTES
    most_bytes = min(most_bytes, int(0.6 * memory_available() / max(1, len(bench.peers))))
    for stages_left, (name, of_row) in zip(range(len(fields), 0, -1), fields.items(), strict=True):
        row_bytes = payload_bytes(of_row)
        capacity = min(10_000 if bench.short else 10**6, most_bytes // row_bytes)
        made = bench.make(
            "rows",
            bench.peers,
            f"rows of {row_bytes:,} bytes",
            capacity=capacity,
            fields=of_row,
            shared=True,
            explorers=EXPLORERS,
            at_once=BATCH,
        )
        points = []
        for explorers in (0, EXPLORERS):
            case = {"row": name, "bytes": row_bytes, "capacity": capacity, "explorers": explorers}
            arguments = {"case": "rows", "rows": SAMPLE, "seconds": seconds}
            arguments |= {"explorers": explorers, "rate": THROTTLED}
            points.append(Point(case, made, "learn", arguments))
        if name == "Atari":
            for how in ("out", "c loop", "new"):
                case = {"row": name, "capacity": capacity, "sample into": how}
                arguments = {"case": "rows", "rows": SAMPLE, "how": how, "seconds": seconds / 4}
                points.append(Point(case, ["mpbuffer"], "recycled", arguments, "rows/s"))
        bench.repeat(points, stages_left)
        bench.drop("rows", made)


if __name__ == "__main__":
    run_alone("row_size", __doc__.partition("\n")[0], MINUTES, PEERS, measure)
