"""Programs at the interpreter's edge, by the thousand: no freeze, abort, leak or wrong row.

    python tests/support/edge_campaign.py [--short] [--only KIND] [--seed S] [--jobs N]
        [--calls N] [--signals N] [--forks N] [--kept N] [--exits N] [--python EXECUTABLE]

Starts programs (edge_program.py) until so many calls were made, signals handled, processes forked
and interpreters ended, and watches them: a thread whose call does not end within --patience seconds
is frozen, and the stacks of all threads are printed, Python's and, where gdb is there, the native
ones. Ends with status 0 if there was no fault, else at the first one, with the seed of the program.
"""

import argparse
import collections
import contextlib
import json
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = Path(__file__).with_name("edge_program.py")
PLACES = 9  # eight threads and the main one
ENDED = 2**63
EXIT_STATUS = (0, 7)
TABLE = ("calls", "signals", "forks", "exits", "kept")
# What programs of a kind are run for, how much of it, and calls of each of their threads; both in
# the full form and in the short one.
KINDS = {
    "threads": ("calls", (10**6, 2_500), (3_000, 400)),
    "handlers": ("signals", (10**4, 250), (150, 60)),
    "forks": ("forks", (10**3, 300), (20, 40)),
    "kept": ("kept", (2 * 10**4, 500), (400, 60)),
    "exits": ("exits", (10**3, 10**9), (10, 10**9)),
}


class Fault(Exception):
    pass


class Running:
    """A program, with the file that it counts its calls in."""

    def __init__(self, kind, seed, options, folder):
        self.kind, self.seed, self.options = kind, seed, options
        self.prefix = f"edge.{os.getpid()}.{kind}.{seed}"
        self.watched = folder / f"{kind}.{seed}"
        self.watched.write_bytes(bytes(8 * PLACES))
        self.output = folder / f"{kind}.{seed}.said"
        self.command = [options.python, str(PROGRAM), kind, "--seed", str(seed)]
        self.command += ["--calls", str(KINDS[kind][2 if options.short else 1][1])]
        self.command += ["--leave-batches"] if options.leave_batches else []
        more = ["--prefix", self.prefix, "--watch", str(self.watched)]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                self.command + more, stdout=output, stderr=output, start_new_session=True
            )
        self.begun = time.monotonic()
        self.seen, self.moved = [None] * PLACES, [self.begun] * PLACES

    def counts(self):
        return struct.unpack(f"{PLACES}Q", self.watched.read_bytes())

    def frozen_thread(self):
        """The number of a thread that has been in one call for too long; None if there is none."""
        now = time.monotonic()
        counts = self.counts()
        for place, count in enumerate(counts):
            if count != self.seen[place] or count >= ENDED:
                self.seen[place], self.moved[place] = count, now
            idle_main = place == PLACES - 1 and self.kind in ("threads", "kept", "exits")
            if not idle_main and now - self.moved[place] > self.options.patience:
                return place
        if now - min(self.moved) > 4 * self.options.patience:
            return PLACES - 1  # all threads have ended, and the program has not
        return None

    def text(self):
        return self.output.read_text(errors="replace")

    def stacks(self):
        """All stacks; afterwards the program is dead."""
        self.process.send_signal(signal.SIGUSR2)
        time.sleep(1)
        native = "(no gdb)"
        if shutil.which("gdb"):
            command = ["gdb", "-batch", "-p", str(self.process.pid)]
            command += ["-ex", "thread apply all bt 30"]
            try:
                native = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
            except subprocess.TimeoutExpired:
                native = "(gdb did not answer)"
        self.kill()
        return f"{self.text()}\nnative stacks:\n{native}"

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def finish(self):
        """What it counted, or None while it runs; raises Fault."""
        if self.process.poll() is None:
            place = self.frozen_thread()
            if place is None:
                return None
            raise Fault(f"thread {place} froze\n{self.stacks()}")
        said = self.text()
        if self.kind == "exits":
            if self.process.returncode not in EXIT_STATUS or said:
                raise Fault(f"ended by {self.process.returncode}\n{said}")
            return {"exits": 1, "calls": {"": sum(count % ENDED for count in self.counts())}}
        if self.process.returncode != 0:
            raise Fault(f"ended by {self.process.returncode}\n{said}")
        reports = [line for line in said.splitlines() if line.startswith('{"calls"')]
        if len(reports) != 1:
            raise Fault(f"ended without a report\n{said}")
        counted = json.loads(reports[0])
        if self.kind == "kept":
            counted["kept"] = counted["calls"].get("Batches.__next__", 0)
        return counted

    def close(self):
        self.kill()
        self.output.unlink()
        self.watched.unlink()


def leftovers(options, prefix):
    """Names of segments that no sweep removes though all their processes have ended."""
    script = f"""
import os
from mpbuffer import _core
_core.sweep()
print(*(name for name in os.listdir("/dev/shm") if "-{prefix}." in name))
"""
    return subprocess.check_output([options.python, "-c", script], text=True).split()


def run_campaign(options, totals, methods, programs):
    """Count in all three until enough is done, or a fault has come; returns the exit status."""
    wanted = {}
    for kind in options.kinds:
        name, *forms = KINDS[kind]
        given = getattr(options, name)
        wanted[name] = forms[options.short][0] if given is None else given
    seed = options.seed
    running = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            while True:
                missing = [
                    kind
                    for kind in options.kinds
                    if totals[KINDS[kind][0]] < wanted[KINDS[kind][0]]
                ]
                if not missing and not running:
                    break
                while missing and len(running) < options.jobs:
                    # The kind of which the smallest share is done, or on its way.
                    share = {
                        kind: (
                            totals[KINDS[kind][0]] / max(1, wanted[KINDS[kind][0]]),
                            sum(each.kind == kind for each in running),
                        )
                        for kind in missing
                    }
                    kind = min(missing, key=lambda each: (share[each][1], share[each][0]))
                    running.append(Running(kind, seed, options, Path(folder)))
                    seed += 1
                time.sleep(0.02)
                for each in list(running):
                    try:
                        counted = each.finish()
                    except Fault as fault:
                        print(f"FAULT: {each.kind}, seed {each.seed}: {fault}")
                        print("the program:", shlex.join(each.command))
                        return 1
                    if counted is not None:
                        running.remove(each)
                        each.close()
                        programs[each.kind] += 1
                        methods.update(counted.get("calls", {}))
                        totals["calls"] += sum(counted.get("calls", {}).values())
                        for name in TABLE[1:]:
                            totals[name] += counted.get(name, 0)
        finally:
            for each in running:
                each.close()
        left = leftovers(options, f"edge.{os.getpid()}")
        if left:
            print(f"FAULT: segments that nobody uses stay: {left}")
            return 1
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for kind, (name, full, _) in KINDS.items():
        parser.add_argument(f"--{name}", type=int, help=f"by programs of kind {kind}: {full[0]:,}")
    parser.add_argument("--short", action="store_true", help="a little of everything")
    parser.add_argument("--only", action="append", choices=KINDS, help="programs of this kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="programs at a time")
    parser.add_argument("--patience", type=float, default=60, help="seconds that a call may take")
    parser.add_argument("--python", default=sys.executable, help="where the package is installed")
    parser.add_argument("--leave-batches", action="store_true", help="as for edge_program.py")
    options = parser.parse_args()
    options.kinds = options.only or list(KINDS)
    begun = time.monotonic()
    counts = [collections.Counter() for _ in range(3)]
    try:
        status = run_campaign(options, *counts)
    except KeyboardInterrupt:
        print("interrupted")
        status = 130
    totals, methods, programs = counts
    print(f"\nseed {options.seed}, {time.monotonic() - begun:.0f} s, programs: {dict(programs)}")
    for name in TABLE:
        print(f"  {name:8} {totals[name]:>9,}")
    quiet = [name for name, _ in methods.most_common()[-5:]]
    print(f"  methods  {len(methods):>9,}, least often {quiet}")
    print("FAULTS: see above" if status == 1 else "no freeze, no abort, no leak, no wrong row")
    return status


if __name__ == "__main__":
    sys.exit(main())
