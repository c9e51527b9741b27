"""What one call costs: add, sample, sample and update, in one process.

    python bench/calls.py --json calls.json

Buffers are full. Single adds go through 1,000 different transitions, of the types that gymnasium's
CartPole-v1 gives (float32 observations, np.int64 action, float reward, bool flag) or with five
float32 arrays. A batch of 100 is one call; for SB3 and tianshou, a step of 100 environments.
"""

from interleaved import Bench, Point, run_alone
from peers.rows import CARTPOLE, GYMNASIUM

PEERS = "mpbuffer", "cpprb", "cpprb-mp", "sb3", "tianshou", "torchrl"
MINUTES = 1.8
BATCH = 100
SAMPLE = 256


def measure(bench: Bench) -> None:
    """Measure all calls in turn."""
    seconds = 0.01 if bench.short else 0.06
    capacity = 10_000 if bench.short else 10**6
    prioritized = (1_000, 10_000) if bench.short else (10**5, 10**6, 10**7)
    points = []

    for types, fields in (("gymnasium", GYMNASIUM), ("float32", CARTPOLE)):
        name = f"single {types}"
        made = bench.make(name, bench.peers, name, capacity=capacity, fields=fields, kind="uniform")
        case = {"call": "single adds", "types": types, "capacity": capacity}
        arguments = {"case": name, "types": types, "seconds": seconds}
        points.append(Point(case, made, "single_adds", arguments, "rows/s"))
        if types == "float32":
            case = {"call": f"uniform sample({SAMPLE})", "capacity": capacity}
            arguments = {"case": name, "rows": SAMPLE, "seconds": seconds}
            points.append(Point(case, made, "uniform_samples", arguments, "calls/s"))

    batches = {"capacity": capacity, "fields": CARTPOLE, "kind": "uniform", "at_once": BATCH}
    made = bench.make("batches", bench.peers, f"batches of {BATCH}", **batches)
    case = {"call": f"batches of {BATCH}", "capacity": capacity}
    arguments = {"case": "batches", "seconds": seconds}
    points.append(Point(case, made, "batch_adds", arguments, "rows/s"))

    for size in prioritized:
        name = f"prioritized {size}"
        candidates = [peer for peer in bench.peers if peer != "sb3"]
        made = bench.make(name, candidates, name, capacity=size, fields=CARTPOLE)
        case = {"call": f"prioritized sample + update({SAMPLE})", "capacity": size}
        arguments = {"case": name, "rows": SAMPLE, "seconds": seconds}
        points.append(Point(case, made, "cycles", arguments))

    bench.repeat(points)


if __name__ == "__main__":
    run_alone("calls", __doc__.partition("\n")[0], MINUTES, PEERS, measure)
