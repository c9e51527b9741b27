#!/usr/bin/env python3
"""Decides C11 litmus tests (herd7's C syntax, a small part of it) by trying every execution.

An execution is a choice of the store that each load reads, and of the order of the stores to each
location. It counts unless C11 (as repaired by Lahav et al., "RC11", PLDI 2017) forbids it:

    synchronises-with  release store or fence -> acquire load or fence, through release sequences
                       as of C++20 (a store and the read-modify-writes that follow on it)
    happens-before     program order and synchronises-with, transitively
    coherence          happens-before never against reads-from, store order, or from-reads
    atomicity          nothing comes between the two halves of a read-modify-write
    fences             seq_cst fences have one order that agrees with all of these

Weaker than RC11 on purpose: loads may read from stores that are later in program order (no axiom
about out-of-thin-air values, so load buffering is allowed, as on Arm), and seq_cst on anything but
a fence counts as acq_rel only. What this forbids, RC11 forbids. No statement is conditional, so no
control dependency helps a test.

Lines that end in `// needed: NAME` carry the orderings under test. The forbidden outcome must be
unreachable as written, and reachable as soon as any one of these is weakened: to relaxed (acq_rel
to its other half, where `// needed: NAME acquire` or `release` says which half is under test) or,
a fence, left out. A test with a line `// reachable` shows what is known not to be forbidden.
`witness` below `exists` is an outcome that must be reachable, so that no test is vacuous.

Long as one file, because a quarter of it is the checker's own tests, which run first.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import re
import sys
import time

HERE = pathlib.Path(__file__).parent
ACQUIRE = {"acquire", "acq_rel", "seq_cst"}
RELEASE = {"release", "acq_rel", "seq_cst"}


@dataclasses.dataclass(frozen=True)
class Line:
    """One statement of one thread."""

    thread: int
    kind: str  # load, store, exchange, fetch_add, fence
    order: str
    location: str = ""
    value: int = 0
    register: str = ""
    needed: str = ""  # which ordering this is, where it is under test
    half: str = ""  # the half of an acq_rel that is


@dataclasses.dataclass(frozen=True)
class Test:
    """A parsed litmus test."""

    name: str
    initial: dict[str, int]
    lines: tuple[Line, ...]
    exists: str
    witness: str
    known_reachable: bool = False


@dataclasses.dataclass
class Event:
    """A load, a store or a fence of a test; a read-modify-write is a load and a store."""

    thread: int  # -1: initial store
    at: int  # position in the thread
    is_read: bool
    is_write: bool
    order: str
    location: str = ""
    value: int | None = None
    register: str = ""
    partner: int = -1  # of a read-modify-write: the other half
    adds: bool = False


PATTERNS = [
    ("load", r"int (?P<r>\w+) = atomic_load_explicit\((?P<l>\w+), memory_order_(?P<o>\w+)\);"),
    ("store", r"atomic_store_explicit\((?P<l>\w+), (?P<v>\d+), memory_order_(?P<o>\w+)\);"),
    (
        "exchange",
        r"int (?P<r>\w+) = atomic_exchange_explicit\((?P<l>\w+), (?P<v>\d+), "
        r"memory_order_(?P<o>\w+)\);",
    ),
    (
        "fetch_add",
        r"int (?P<r>\w+) = atomic_fetch_add_explicit\((?P<l>\w+), (?P<v>\d+), "
        r"memory_order_(?P<o>\w+)\);",
    ),
    ("fence", r"atomic_thread_fence\(memory_order_(?P<o>\w+)\);"),
]


def parse(text: str) -> Test:
    """Read a litmus test; raises ValueError at what it does not know."""
    text = re.sub(r"\(\*.*?\*\)", "", text, flags=re.S)
    name = re.search(r"^C (\S+)", text)[1]
    start = re.search(r"\{(.*?)\}", text, re.S)[1]
    initial = {place: int(value) for place, value in re.findall(r"(\w+)\s*=\s*(\d+);", start)}
    lines = []
    for thread, body in re.findall(r"^P(\d+)\s*\([^)]*\)\s*\{\n(.*?)^\}", text, re.S | re.M):
        for raw in body.splitlines():
            statement, _, comment = raw.partition("//")
            statement = statement.strip()
            if not statement:
                continue
            label = re.search(r"needed: (\S+)(?: (acquire|release))?", comment)
            for kind, pattern in PATTERNS:
                found = re.fullmatch(pattern, statement)
                if found:
                    got = found.groupdict()
                    lines.append(
                        Line(
                            int(thread),
                            kind,
                            got["o"],
                            got.get("l") or "",
                            int(got.get("v") or 0),
                            got.get("r") or "",
                            label[1] if label else "",
                            (label[2] or "") if label else "",
                        )
                    )
                    break
            else:
                raise ValueError(f"cannot parse a line of {name}: {statement!r}")
    exists = re.search(r"^exists\s*\((.*?)\)\s*$", text, re.S | re.M)[1]
    witness = re.search(r"^// witness\s*\((.*?)\)\s*$", text, re.S | re.M)
    return Test(
        name,
        initial,
        tuple(lines),
        exists,
        witness[1] if witness else "",
        "\n// reachable\n" in text,
    )


def predicate(condition: str):
    r"""Compile `0:r0=1 /\ x=2`; registers by thread, locations by their last value."""
    python = condition.replace("/\\", " and ").replace("\\/", " or ").replace("~", " not ")
    python = re.sub(r"(\d+):(\w+)\s*=\s*(\d+)", r"(registers[(\1, '\2')] == \3)", python)
    python = re.sub(r"(?<![\w'(])(\b[a-z]\w*)\s*=\s*(\d+)", r"(final['\1'] == \2)", python)
    return eval(f"lambda registers, final: {' '.join(python.split())}")  # our own files


def events_of(test: Test) -> list[Event]:
    """Return the initial stores, then all threads' events in program order."""
    events = [
        Event(-1, 0, False, True, "relaxed", place, value) for place, value in test.initial.items()
    ]
    for at, line in enumerate(test.lines):
        if line.kind == "fence":
            events.append(Event(line.thread, at, False, False, line.order))
            continue
        reads, writes = line.kind != "store", line.kind != "load"
        if reads:
            events.append(
                Event(
                    line.thread, at, True, False, line.order, line.location, register=line.register
                )
            )
        if writes:
            value = None if line.kind == "fetch_add" else line.value
            events.append(Event(line.thread, at, False, True, line.order, line.location, value))
        if reads and writes:
            events[-1].partner, events[-2].partner = len(events) - 2, len(events) - 1
            events[-1].adds = line.kind == "fetch_add"
            if events[-1].adds:
                events[-1].value = line.value
    return events


def closure(rows: list[int]) -> list[int]:
    """Return the transitive closure of a relation, given and returned as a bit mask a row."""
    rows = list(rows)
    for middle in range(len(rows)):
        bit = 1 << middle
        through = rows[middle]
        for i, row in enumerate(rows):
            if row & bit:
                rows[i] = row | through
    return rows


def outcomes(test: Test):
    """Yield (registers, final values) of each execution that the model allows."""
    events = events_of(test)
    size = len(events)
    reads = [i for i, e in enumerate(events) if e.is_read]
    writes: dict[str, list[int]] = {}
    for i, e in enumerate(events):
        if e.is_write:
            writes.setdefault(e.location, []).append(i)

    def before(a: int, b: int) -> bool:
        one, two = events[a], events[b]
        if one.thread == -1:
            return two.thread != -1
        return one.thread == two.thread and a < b

    program = [sum(1 << b for b in range(size) if before(a, b)) for a in range(size)]
    releasing = {
        w: [
            a
            for a in range(size)
            if (a == w and events[w].order in RELEASE)
            or (not events[a].location and events[a].order in RELEASE and before(a, w))
        ]
        for ws in writes.values()
        for w in ws
    }
    acquiring = {
        r: [
            a
            for a in range(size)
            if (a == r and events[r].order in ACQUIRE)
            or (not events[a].location and events[a].order in ACQUIRE and before(r, a))
        ]
        for r in reads
    }

    store_orders = []
    for stores in writes.values():
        first, rest = stores[0], stores[1:]
        store_orders.append(
            [
                (first, *order)
                for order in itertools.permutations(rest)
                if not any(before(b, a) for a, b in itertools.combinations(order, 2))
            ]
        )

    choices = [
        [w for w in writes[events[r].location] if w != events[r].partner and not before(r, w)]
        for r in reads
    ]

    def value(w: int, read_from: dict[int, int], seen: tuple[int, ...] = ()) -> int | None:
        if not events[w].adds:
            return events[w].value
        if w in seen:
            return None
        base = value(read_from[events[w].partner], read_from, (*seen, w))
        return None if base is None else base + events[w].value

    for sources in itertools.product(*choices):
        read_from = dict(zip(reads, sources, strict=True))
        values = {r: value(read_from[r], read_from) for r in reads}
        if None in values.values():
            continue
        happens = list(program)
        for r, source in read_from.items():
            w, passed = source, set()
            while w not in passed:
                passed.add(w)
                for a in releasing[w]:
                    for b in acquiring[r]:
                        if events[a].thread != events[b].thread:
                            happens[a] |= 1 << b
                if events[w].partner < 0:
                    break
                w = read_from[events[w].partner]
        happens = closure(happens)
        if any(happens[i] >> i & 1 for i in range(size)):
            continue
        for orders in itertools.product(*store_orders):
            if allowed(events, happens, read_from, orders):
                registers = {(events[r].thread, events[r].register): values[r] for r in reads}
                final = {
                    events[order[-1]].location: value(order[-1], read_from) for order in orders
                }
                yield registers, final


def allowed(events, happens, read_from, orders) -> bool:
    """Say whether coherence, atomicity and fences admit the execution."""
    size = len(events)
    against = [0] * size  # reads-from, store order, from-reads
    rank = {}
    for order in orders:
        for at, w in enumerate(order):
            rank[w] = at
            for later in order[at + 1 :]:
                against[w] |= 1 << later
    for r, w in read_from.items():
        partner = events[r].partner
        if partner >= 0 and rank[partner] != rank[w] + 1:
            return False  # atomicity
        against[w] |= 1 << r
        for order in orders:
            if w in order:
                for later in order[rank[w] + 1 :]:
                    if later != partner:
                        against[r] |= 1 << later
                if partner >= 0:
                    against[r] |= 1 << partner
    against = closure(against)
    if any(happens[a] >> b & 1 and against[b] >> a & 1 for a in range(size) for b in range(size)):
        return False
    fences = [i for i, e in enumerate(events) if not e.location and e.order == "seq_cst"]
    if len(fences) < 2:
        return True
    # happens-before, or happens-before; against; happens-before, from fence to fence
    composed = [0] * size
    for fence in fences:
        reached = happens[fence]
        for a in range(size):
            if happens[fence] >> a & 1:
                for b in range(size):
                    if against[a] >> b & 1:
                        reached |= happens[b]
        composed[fence] = reached & sum(1 << f for f in fences)
    return not any(row >> i & 1 for i, row in enumerate(closure(composed)))


def reachable(test: Test, condition: str) -> bool:
    """Say whether an execution that the model allows ends in the condition."""
    holds = predicate(condition)
    return any(holds(registers, final) for registers, final in outcomes(test))


def weakenings(test: Test):
    """Yield (what was weakened, the test with it weakened) for every ordering under test."""
    for at, line in enumerate(test.lines):
        if not line.needed:
            continue
        if line.kind == "fence":
            yield (
                f"{line.needed}: no {line.order} fence",
                dataclasses.replace(test, lines=test.lines[:at] + test.lines[at + 1 :]),
            )
            continue
        weaker = {"acquire": "release", "release": "acquire"}.get(line.half, "relaxed")
        if line.order != "acq_rel":
            weaker = "relaxed"
        changed = dataclasses.replace(line, order=weaker)
        yield (
            f"{line.needed}: {line.kind} {line.order} -> {weaker}",
            dataclasses.replace(test, lines=(*test.lines[:at], changed, *test.lines[at + 1 :])),
        )


# The checker itself, held against verdicts that everybody agrees on.
KNOWN = [
    (
        "message passing, relaxed",
        True,
        "S x 1 relaxed; S y 1 relaxed | L y relaxed; L x relaxed",
        "1:r0=1 /\\ 1:r1=0",
    ),
    (
        "message passing",
        False,
        "S x 1 relaxed; S y 1 release | L y acquire; L x relaxed",
        "1:r0=1 /\\ 1:r1=0",
    ),
    (
        "message passing, release only",
        True,
        "S x 1 relaxed; S y 1 release | L y relaxed; L x relaxed",
        "1:r0=1 /\\ 1:r1=0",
    ),
    (
        "message passing, fences",
        False,
        "S x 1 relaxed; F release; S y 1 relaxed | L y relaxed; F acquire; L x relaxed",
        "1:r0=1 /\\ 1:r1=0",
    ),
    (
        "message passing, one fence",
        True,
        "S x 1 relaxed; F release; S y 1 relaxed | L y relaxed; L x relaxed",
        "1:r0=1 /\\ 1:r1=0",
    ),
    (
        "store buffering, acq_rel",
        True,
        "S x 1 release; L y acquire | S y 1 release; L x acquire",
        "0:r0=0 /\\ 1:r0=0",
    ),
    (
        "store buffering, seq_cst fences",
        False,
        "S x 1 relaxed; F seq_cst; L y relaxed | S y 1 relaxed; F seq_cst; L x relaxed",
        "0:r0=0 /\\ 1:r0=0",
    ),
    (
        "store buffering, one seq_cst fence",
        True,
        "S x 1 relaxed; F seq_cst; L y relaxed | S y 1 relaxed; L x relaxed",
        "0:r0=0 /\\ 1:r0=0",
    ),
    (
        "independent reads, seq_cst fences",
        False,
        "S x 1 relaxed | S y 1 relaxed | L x relaxed; F seq_cst; L y relaxed | "
        "L y relaxed; F seq_cst; L x relaxed",
        "2:r0=1 /\\ 2:r1=0 /\\ 3:r0=1 /\\ 3:r1=0",
    ),
    (
        "load buffering, relaxed",
        True,
        "L x relaxed; S y 1 relaxed | L y relaxed; S x 1 relaxed",
        "0:r0=1 /\\ 1:r0=1",
    ),
    (
        "load buffering, acq_rel",
        False,
        "L x acquire; S y 1 release | L y acquire; S x 1 release",
        "0:r0=1 /\\ 1:r0=1",
    ),
    ("read coherence", False, "S x 1 relaxed | L x relaxed; L x relaxed", "1:r0=1 /\\ 1:r1=0"),
    (
        "read coherence, two writers",
        False,
        "S x 1 relaxed | S x 2 relaxed | L x relaxed; L x relaxed | L x relaxed; L x relaxed",
        "2:r0=1 /\\ 2:r1=2 /\\ 3:r0=2 /\\ 3:r1=1",
    ),
    (
        "independent reads of independent writes",
        True,
        "S x 1 release | S y 1 release | L x acquire; L y acquire | L y acquire; L x acquire",
        "2:r0=1 /\\ 2:r1=0 /\\ 3:r0=1 /\\ 3:r1=0",
    ),
    (
        "write to read causality, released",
        False,
        "S x 1 release | L x acquire; S y 1 release | L y acquire; L x relaxed",
        "1:r0=1 /\\ 2:r0=1 /\\ 2:r1=0",
    ),
    (
        "2+2 writes",
        True,
        "S x 1 release; S y 2 release | S y 1 release; S x 2 release",
        "x=1 /\\ y=1",
    ),
    (
        "release sequence over an exchange",
        False,
        "S x 1 relaxed; S y 1 release | X y 2 relaxed | L y acquire; L x relaxed",
        "1:r0=1 /\\ 2:r0=2 /\\ 2:r1=0",
    ),
    (
        "a store ends a release sequence (C++20)",
        True,
        "S x 1 relaxed; S y 1 release; S y 2 relaxed | L y acquire; L x relaxed",
        "1:r0=2 /\\ 1:r1=0",
    ),
    ("two increments", False, "A x 1 relaxed | A x 1 relaxed", "x=1"),
    ("two exchanges of one value", False, "X x 1 relaxed | X x 2 relaxed", "0:r0=0 /\\ 1:r0=0"),
]


def short_test(name: str, program: str, condition: str) -> Test:
    """Make a test of the shorthand of KNOWN."""
    kinds = {"S": "store", "L": "load", "X": "exchange", "A": "fetch_add", "F": "fence"}
    lines = []
    for thread, body in enumerate(program.split("|")):
        registers = 0
        for statement in body.split(";"):
            kind, *rest = statement.split()
            place = rest[0] if kind != "F" else ""
            amount = int(rest[1]) if kind in "SXA" else 0
            register = f"r{registers}" if kind in "LXA" else ""
            registers += bool(register)
            lines.append(Line(thread, kinds[kind], rest[-1], place, amount, register))
    return Test(name, {"x": 0, "y": 0}, tuple(lines), condition, "")


def main() -> int:
    """Check the checker, then every test beside this file."""
    started = time.monotonic()
    bad = 0

    def report(good: bool, text: str) -> None:
        nonlocal bad
        bad += not good
        print(f"{'ok  ' if good else 'BAD '} {text}")

    for name, expected, program, condition in KNOWN:
        got = reachable(short_test(name, program, condition), condition)
        report(got == expected, f"checker: {name}: {'allowed' if got else 'forbidden'}")
    for path in sorted(HERE.glob("*.litmus")):
        test = parse(path.read_text())
        count = sum(1 for _ in outcomes(test))
        reached = reachable(test, test.exists)
        report(
            reached == test.known_reachable,
            f"{test.name}: {'reachable, as is known' if reached else 'forbidden'}, "
            f"{count} executions",
        )
        if test.witness:
            report(reachable(test, test.witness), f"{test.name}: witness reachable")
        for what, weaker in weakenings(test):
            report(reachable(weaker, weaker.exists), f"{test.name}: {what} lets it happen")
    print(f"{bad} bad, {time.monotonic() - started:.1f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
