#!/usr/bin/env python3
"""Runs the spin models of the protocols: every configuration to its end, every flaw until it shows.

A configuration passes if spin's search completed (nothing cut off by depth, memory or time) with
0 errors. A flaw passes if the assertion named beside it, or a cycle without progress, is reported.
Needs spin and a C compiler. `--short`: the small configurations and the flaws that show fast.
`--write-tables`: puts what came out into README.md, between the lines that say so. Half of this
file is the table of configurations and flaws.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import pathlib
import re
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
README = HERE / "README.md"


@dataclasses.dataclass(frozen=True)
class Case:
    """One run: macros of the model, and what has to come out."""

    name: str
    macros: str
    fails: str = ""  # name of the assertion that must fail; "cycle"; "" for none
    short: bool = False
    cycles: bool = False  # look for endless loops as well (a process that never comes back)
    model: str = "protocol.pml"


TREE = "LEARNERS=2 "
COUNT = "LEARNERS=0 OBSERVERS=1 "
READ = "LEARNERS=0 OBSERVERS=1 ASKS=0 "

CONFIGURATIONS = [
    # The tree: claim, commit, steal, fold, pending recheck, draw, update, clear, take_over.
    Case("tree, capacity 1", TREE + "CAP=1 DEATHS=2", short=True),
    Case("tree, capacity 1, clear", TREE + "CAP=1 DEATHS=2 CLEARS=1 LEARNER_OPS=1"),
    Case("tree, capacity 1, three rows", TREE + "CAP=1 EXTRA_CALLS=1 DEATHS=1 LEARNER_OPS=1"),
    Case(
        "tree, capacity 1, number taken again",
        "LEARNERS=1 LEARNER_OPS=0 CAP=1 EXTRA_CALLS=1 DEATHS=2 RESTARTS=1",
    ),
    Case("tree, capacity 1, two learner deaths", "LEARNERS=3 LEARNER_OPS=1 CAP=1 DEATHS=2"),
    Case("tree, capacity 1, writers stopped", TREE + "CAP=1 STALLS=2 DEATHS=1 LEARNER_OPS=1"),
    Case(
        "tree, capacity 1, another pid namespace",
        "LEARNERS=1 LEARNER_OPS=1 CAP=1 ABROAD=1 CLOSES=1 DEATHS=1",
        short=True,
    ),
    Case("tree, capacity 1, execs", "LEARNERS=1 LEARNER_OPS=1 CAP=1 EXECS=2", short=True),
    Case("tree, capacity 1, own rows", TREE + "CAP=1 DEATHS=2 OWN_ROWS", short=True),
    Case("tree, capacity 2", TREE + "CAP=2 DEATHS=2", short=True),
    Case("tree, capacity 2, own rows", TREE + "CAP=2 DEATHS=1 OWN_ROWS"),
    Case("tree, capacity 2, batches of two", TREE + "CAP=2 ROWS=2 BATCH=2 DEATHS=2"),
    Case("tree, capacity 2, clear", TREE + "CAP=2 DEATHS=2 CLEARS=1 LEARNER_OPS=1"),
    # The count: `filled`, its stamp, requests to recount, busy flags, recount.
    Case("count, capacity 1", COUNT + "CAP=1 DEATHS=2", short=True),
    Case("count, capacity 1, clear", COUNT + "CAP=1 DEATHS=2 CLEARS=1"),
    Case("count, capacity 1, clear, two who ask", "LEARNERS=0 OBSERVERS=2 CAP=1 CLEARS=1"),
    Case(
        "count, capacity 1, number taken again", COUNT + "CAP=1 DEATHS=1 RESTARTS=1 EXTRA_CALLS=1"
    ),
    Case("count, capacity 1, two who ask and die", "LEARNERS=0 OBSERVERS=2 CAP=1 DEATHS=2"),
    Case("count, capacity 2", COUNT + "CAP=2 DEATHS=2 ROWS=2 CLAIMS=3", short=True),
    Case("count, capacity 2, clear", COUNT + "CAP=2 DEATHS=2 CLEARS=1"),
    # Uniform reads.
    Case("read, capacity 1, clear", READ + "READS=1 CAP=1 DEATHS=2 CLEARS=1", short=True),
    Case("read, capacity 3, clear", READ + "READS=1 CAP=3 DEATHS=1 CLEARS=1"),
    Case(
        "read, capacity 2, clear, batches",
        READ + "READS=1 CAP=2 ROWS=2 BATCH=2 DEATHS=2 CLEARS=1",
    ),
    # Claims after clears: the cursor may be several claims behind.
    Case("claims, capacity 3, clears", "LEARNERS=0 CAP=3 CLEARS=2 DEATHS=1 EXTRA_CALLS=1 CLAIMS=4"),
    # No endless loop, with writers dead and stopped.
    Case("cycles, capacity 1", "CAP=1 LEARNERS=2 LEARNER_OPS=1 STALLS=1 DEATHS=1", cycles=True),
    Case("cycles, capacity 2", "CAP=2 LEARNERS=1 LEARNER_OPS=1 STALLS=1 DEATHS=1", cycles=True),
    # Everything at once, with one writer.
    Case(
        "everything, capacity 1, one writer",
        "WRITERS=1 CAP=1 EXTRA_CALLS=1 LEARNERS=2 LEARNER_OPS=1 OBSERVERS=1 CLEARS=1 DEATHS=1",
    ),
]

WEIGHTS = [
    ("weights, one reader", "READERS=1 READS=2 VERSIONS=4 PUBLISHERS=2", False),
    ("weights, one reader, stopped", "READERS=1 READS=2 VERSIONS=4 STOPS=1", False),
    ("weights, one reader, stopped twice", "READERS=1 STOPS=2 PUBLISHERS=2", False),
    ("weights, one reader, stopped, killed", "READERS=1 STOPS=1 DEATHS=1 PUBLISHERS=2", True),
    ("weights, four slots", "SLOTS=4 READERS=1 STOPS=1 READS=2", True),
    ("weights, two readers", "", False),
    ("weights, two readers, publisher killed", "PUBLISHERS=2", False),
    ("weights, two readers, killed", "DEATHS=2", False),
]
CONFIGURATIONS += [
    Case(name, macros, short=short, model="weights.pml") for name, macros, short in WEIGHTS
]
CONFIGURATIONS.append(
    Case("weights, cycles", "READERS=1 STOPS=1", short=True, cycles=True, model="weights.pml")
)

FRAMES = [
    ("frames, writers killed", "DEATHS=2 WASTE=2", False),
    ("frames, writers stopped, killed", "STALLS=1 DEATHS=1 WASTE=1", True),
    ("frames, two rows", "N=2 M=4 WASTE=2", False),
    ("frames, two rows, one writer", "N=2 M=4 WRITERS=1 EXTRA_ROWS=2 WASTE=3", False),
    ("frames, two rows, clear", "N=2 M=4 WRITERS=1 RETIRES=1 WASTE=3 CLEARS=1", True),
    ("frames, read", "READS=1 WASTE=2", False),
    ("frames, read, killed", "READS=1 DEATHS=2", True),
    ("frames, read, stopped", "READS=1 EXTRA_ROWS=1 STALLS=1", False),
    ("frames, two rows, read", "READS=1 N=2 M=4", False),
    ("frames, read, clear", "READS=1 CLEARS=1", False),
    ("frames, two who retire", "WRITERS=1 EXTRA_ROWS=1 WASTE=2 OBSERVERS=2 RETIRES=1", False),
]
CONFIGURATIONS += [
    Case(name, macros, short=short, model="frames.pml") for name, macros, short in FRAMES
]

SEEN = "OUTCOMES CAP=1 "  # what a user sees; assertions about the inside are off
READER = SEEN + "LEARNERS=0 OBSERVERS=1 ASKS=0 READS=1 "
COUNTER = SEEN + "LEARNERS=0 OBSERVERS=1 "


def flaw(macro: str, macros: str, fails: str, short: bool = True, cycles: bool = False) -> Case:
    """Make a case with one mistake put in."""
    return Case(macro, macros + " " + macro, fails, short, cycles)


FLAWS = [
    # The flaws of simpler designs, by their numbers in the design.
    flaw("FLAW_EXPLORER_WRITES_LEAF", SEEN, "no_leaf_of_another_row"),  # 1
    flaw("FLAW_HOLE_TIMED_OUT", "CAP=1", "I5_row_is_in_the_tree_or_awaited", short=False),  # 2
    flaw("FLAW_HOLE_TIMED_OUT", SEEN, "no_committed_row_is_missing_in_the_tree"),
    flaw("FLAW_PENDING_DROPPED", SEEN, "no_committed_row_is_missing_in_the_tree"),
    flaw("FLAW_SLEEPING_CLAIMER", "CAP=1", "I1_seq_of_a_slot_only_grows", short=False),  # 3
    flaw("FLAW_SLEEPING_CLAIMER", SEEN, "no_committed_row_is_missing_in_the_tree"),
    flaw("FLAW_STEAL_BY_TIMEOUT", "CAP=1", "I3_claim_taken_only_from_the_dead", short=False),  # 4
    flaw("FLAW_STEAL_BY_TIMEOUT", READER, "I4_read_returns_one_whole_row"),
    flaw(
        "FLAW_FORKED_CHILD_KEEPS_IDENTITY", "CAP=1", "I2_one_live_writer_of_a_slot", short=False
    ),  # 5
    flaw("FLAW_FORKED_CHILD_KEEPS_IDENTITY", READER, "I4_read_returns_one_whole_row"),
    flaw(
        "FLAW_NUMBER_REUSED_WITHOUT_EPOCH",
        "CAP=1 LEARNERS=0 DEATHS=1 RESTARTS=1",
        "given_up_only_to_the_living",
    ),  # 8
    flaw("FLAW_NUMBER_TAKEN_WHILE_HELD", "CAP=1", "I2_one_live_writer_of_a_slot", short=False),
    flaw("FLAW_NUMBER_TAKEN_WHILE_HELD", READER, "I4_read_returns_one_whole_row"),
    flaw(
        "FLAW_ZOMBIE_PASSES_FOR_ALIVE", "CAP=1 LEARNERS=0 DEATHS=1", "given_up_only_to_the_living"
    ),  # 9
    flaw(
        "FLAW_FREE_BYTE_PROVES_DEATH",
        "CAP=1 LEARNERS=0 ABROAD=1 CLOSES=1",
        "I3_claim_taken_only_from_the_dead",
    ),
    flaw("FLAW_FREE_BYTE_PROVES_DEATH", READER + "CLOSES=1", "I4_read_returns_one_whole_row"),
    flaw("FLAW_START_TIME_PROVES_LIFE", "CAP=1 LEARNERS=0 EXECS=1", "given_up_only_to_the_living"),
    flaw(
        "FLAW_REDRAW_WITHOUT_BOUND", "CAP=1 LEARNERS=1 LEARNER_OPS=1 STALLS=1", "cycle", cycles=True
    ),  # 10
    flaw("FLAW_SKIPPED_ROW_IS_DROPPED", "CAP=1 LEARNERS=0", "no_row_is_dropped"),
    flaw(
        "FLAW_LEAF_SEQ_BEFORE_LEAF",
        SEEN + "LEARNERS=2 LEARNER_OPS=1",
        "no_leaf_of_another_row",
        short=False,
    ),  # 11
    flaw("FLAW_PUBLISH_BEFORE_COPY", READER, "I4_read_returns_one_whole_row"),  # 12
    flaw("FLAW_ROW_WITHOUT_SECOND_LOOK", READER, "I4_read_returns_one_whole_row"),
    # Our own: claims.
    flaw("FLAW_CLAIM_WITHOUT_COMPARING", "CAP=1", "I1_seq_of_a_slot_only_grows"),
    flaw("FLAW_CLAIM_WITHOUT_COMPARING", SEEN, "no_leaf_of_another_row", short=False),
    # The count.
    flaw(
        "FLAW_EQUAL_COUNT_NEEDS_NO_STAMP",
        COUNTER + "DEATHS=1 CLEARS=1",
        "stored_size_is_exact",
        short=False,
    ),
    flaw("FLAW_FRESH_NOT_INHERITED", COUNTER + "DEATHS=1", "stored_size_is_exact"),
    flaw("FLAW_RAISE_WITHOUT_STAMP", COUNTER + "DEATHS=1", "stored_size_is_exact"),
    flaw("FLAW_RECOUNT_WITHOUT_STAMP", COUNTER + "CAP=2 DEATHS=1", "stored_size_is_exact"),
    flaw("FLAW_NO_BUSY_FLAG", COUNTER + "DEATHS=1", "stored_size_is_exact"),
    flaw(
        "FLAW_BUSY_FORGOTTEN_BEFORE_REQUEST",
        COUNTER + "OBSERVERS=2 DEATHS=2",
        "stored_size_is_exact",
        short=False,
    ),
    flaw("FLAW_CLEAR_SEEN_WITHOUT_REQUEST", COUNTER + "CLEARS=1", "stored_size_is_exact"),
    flaw("FLAW_CLEAR_NOT_SEEN_BY_COUNT", COUNTER + "CLEARS=1", "stored_size_is_exact"),
    # A clear.
    flaw(
        "FLAW_CLEAR_IN_TWO_STORES",
        SEEN + "CAP=2 CLEARS=1 LEARNER_OPS=1",
        "nobody_awaits_a_position_that_nobody_took",
    ),
    flaw(
        "FLAW_CLEAR_IN_TWO_STORES",
        READER + "CAP=2 CLEARS=1",
        "nobody_awaits_a_position_that_nobody_took",
    ),
    flaw(
        "FLAW_CURSOR_READ_AFTER_CLEAR",
        READER + "CAP=3 CLEARS=1",
        "nobody_awaits_a_position_that_nobody_took",
    ),
    flaw(
        "FLAW_NOBODY_MOVES_THE_CURSOR",
        "LEARNERS=0 CAP=3 CLEARS=1",
        "a_clear_costs_an_add_one_claim",
    ),
    flaw(
        "FLAW_CLEAR_OVERLOOKED_BY_ADD",
        "LEARNERS=0 CAP=2 CLEARS=1",
        "no_row_is_added_behind_a_clear",
    ),
    # The learner.
    flaw("FLAW_CLEAR_LEAVES_THE_LEAVES", SEEN + "CLEARS=1 LEARNER_OPS=1", "no_leaf_without_a_row"),
    flaw("FLAW_FOLD_TAKES_SETTLED_ROWS_AGAIN", SEEN, "no_update_is_lost"),
    flaw("FLAW_HOLE_LOSES_ITS_OLD_ROW", SEEN + "DEATHS=1", "no_update_is_lost", short=False),
    flaw(
        "FLAW_TAKE_OVER_TRUSTS_LEAVES",
        SEEN + "LEARNERS=2",
        "no_committed_row_is_missing_in_the_tree",
    ),
    flaw(
        "FLAW_TAKE_OVER_EXPECTS_NOTHING",
        SEEN + "LEARNERS=2",
        "no_committed_row_is_missing_in_the_tree",
    ),
    flaw(
        "FLAW_TAKE_OVER_READS_CURSOR_AFTER_SCAN",
        SEEN + "LEARNERS=2",
        "no_committed_row_is_missing_in_the_tree",
    ),
    flaw(
        "FLAW_UPDATE_UNCHECKED",
        SEEN + "LEARNERS=1 LEARNER_OPS=3",
        "no_leaf_of_another_row",
        short=False,
    ),
    flaw(
        "FLAW_OWN_ROW_IS_NOT_SETTLED",
        SEEN + "LEARNERS=2 OWN_ROWS",
        "no_update_is_lost",
    ),
    # Not flaws: what the code does twice over. Each of these alone may go, and nothing fails.
    flaw("SPARE_UPDATE_TRUSTS_WORD", "CAP=1 LEARNERS=2", "", short=False),
    flaw("SPARE_UPDATE_TRUSTS_LEAF_SEQ", "CAP=1 LEARNERS=2", "", short=False),
    flaw("SPARE_FAILED_DRAW_EXPECTS_NOTHING", "CAP=1 LEARNERS=2", "", short=False),
    flaw("SPARE_LEAF_IN_WITHOUT_SECOND_LOOK", "CAP=1 LEARNERS=2", "", short=False),
]
ONE_READER = "READERS=1 READS=2"
FLAWS += [
    Case(macros.split()[-1], macros, fails, short=True, model="weights.pml")
    for macros, fails in (
        (f"{ONE_READER} FLAW_MARKS_IGNORED", "a_slot_rests_while_it_is_copied"),
        (f"{ONE_READER} FLAW_OFFER_NOT_LOOKED_AT_AGAIN", "a_read_is_one_copy"),
        (f"{ONE_READER} FLAW_OFFERED_SLOT_TAKEN", "the_offered_slot_is_not_written"),
        (
            f"OUTCOMES {ONE_READER} FLAW_OFFERED_BEFORE_IT_IS_WRITTEN",
            "a_read_is_as_new_as_what_was_offered",
        ),
        (
            f"OUTCOMES {ONE_READER} FLAW_READERS_LEAVE_IT_PENDING",
            "the_newest_version_is_offered_at_rest",
        ),
        (
            "OUTCOMES READERS=1 DEATHS=1 FLAW_DEAD_HOLD_THEIR_SLOTS",
            "the_newest_version_is_offered_at_rest",
        ),
        ("VERSIONS=4 FLAW_NEVER_PENDING", "a_slot_rests_while_it_is_copied"),
        (
            "VERSIONS=4 FLAW_PENDING_TAKEN_WITHOUT_COMPARING",
            "the_offered_slot_is_not_written",
        ),
        # A read is whole whatever went wrong with the slots: both looks at the number, or neither.
        (f"OUTCOMES {ONE_READER} STOPS=1 FLAW_MARKS_IGNORED", ""),
        (f"OUTCOMES {ONE_READER} FLAW_OFFERED_SLOT_TAKEN", ""),
        (
            f"OUTCOMES {ONE_READER} FLAW_MARKS_IGNORED FLAW_NUMBER_KEPT",
            "a_read_is_one_whole_version",
        ),
        (
            f"OUTCOMES {ONE_READER} FLAW_MARKS_IGNORED FLAW_NUMBER_NOT_LOOKED_AT_AGAIN",
            "a_read_is_one_whole_version",
        ),
        (f"{ONE_READER} VERSIONS=4 SPARE_NO_LOOK_AFTER_PENDING", ""),
    )
]


FLAWS += [
    Case(macros.split()[-1], macros, fails, short=True, model="frames.pml")
    for macros, fails in (
        (
            "OUTCOMES READS=1 EXTRA_ROWS=1 FLAW_FRAME_WITHOUT_SECOND_LOOK",
            "no_row_has_another_frame",
        ),
        (
            "OUTCOMES READS=1 WRITERS=1 EXTRA_ROWS=1 M=5 FLAW_ROW_WITHOUT_SECOND_LOOK",
            "no_row_has_another_frame",
        ),
        ("OUTCOMES EXTRA_ROWS=1 FLAW_NOTHING_IS_TOO_OLD", "every_row_at_rest_has_its_frames"),
        (
            "N=2 M=4 EXTRA_ROWS=1 RETIRES=1 FLAW_AGE_SEEN_BEFORE_CLAIM",
            "what_is_not_due_has_its_frames",
        ),
        ("OUTCOMES N=2 M=4 WASTE=4 FLAW_BORN_AFTER_CLAIM", "every_row_at_rest_has_its_frames"),
        ("OUTCOMES READS=1 FLAW_FRAME_AFTER_ROW", "every_row_at_rest_has_its_frames"),
        (
            "OUTCOMES N=2 M=4 WASTE=5 STALLS=1 FLAW_RETIRE_STOPS_AT_A_HOLE",
            "every_row_at_rest_has_its_frames",
        ),
        (
            "N=2 M=4 WRITERS=1 RETIRES=1 WASTE=4 CLEARS=1 FLAW_RETIRE_WITHOUT_COMPARING",
            "a_clear_is_never_undone",
        ),
        (
            "OUTCOMES READS=1 EXTRA_ROWS=1 STALLS=1 FLAW_OLDER_LAP_STAYS",
            "a_row_without_its_frames_is_gone",
        ),
    )
]


def output_of(arguments: list[str], where: pathlib.Path) -> str:
    """Return what a command prints, whatever its exit status."""
    done = subprocess.run(
        arguments, cwd=where, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.stdout


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one case."""

    good: bool
    states: int
    seconds: float
    text: str


def run(case: Case, memory_mb: int) -> Outcome:
    """Generate, compile and run one verifier; say whether the outcome is the wanted one."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        where = pathlib.Path(folder)
        chosen = dict(macro.partition("=")[::2] for macro in case.macros.split())
        macros = [f"-D{name}={value}" if value else f"-D{name}" for name, value in chosen.items()]
        text = output_of(["spin", *macros, "-a", str(HERE / case.model)], where)
        if not (where / "pan.c").exists():
            return Outcome(False, 0, 0, "spin: " + text.strip())
        kind = "-DNP" if case.cycles else "-DSAFETY"
        level = "-O0" if case.fails else "-O2"  # most flaws show before -O2 has paid
        options = f"{level} -w {kind} -DCOLLAPSE -DNOFAIR -DMEMLIM={memory_mb} -o pan"
        text = output_of(["cc", *options.split(), "pan.c"], where)
        if not (where / "pan").exists():
            return Outcome(False, 0, 0, "cc: " + text.strip())
        text = output_of(["./pan", "-m1000000", *(["-l"] if case.cycles else [])], where)
    stored = re.search(r"(\d+) states, stored", text)
    errors = re.search(r"errors: (\d+)", text)
    states = int(stored[1]) if stored else 0
    broken = re.search(r"assertion violated (\S+)", text)
    found = broken[1] if broken else "cycle" if re.search(r"pan:\d+: non-progress", text) else ""
    completed = (
        errors is not None
        and "Search not completed" not in text
        and "max search depth" not in text
        and "out of memory" not in text
    )
    if case.fails:
        good = found == case.fails
        outcome = f"fails: {found}" if found else "NOT FOUND"
    else:
        good = completed and errors is not None and int(errors[1]) == 0
        outcome = "completed, 0 errors" if good else f"FAILED: {found or text[-300:]}"
    return Outcome(good, states, time.monotonic() - start, outcome)


def tables(results: list[tuple[Case, Outcome]]) -> dict[str, str]:
    """Return the README's tables, by the names that its marked lines give them."""
    rows: dict[str, list[str]] = {
        "configurations": ["| configuration | macros | states | s |", "|---|---|---:|---:|"],
        "flaws": ["| flaw | macros beside it | fails |", "|---|---|---|"],
        "spare": ["| spare | macros beside it | states | s |", "|---|---|---:|---:|"],
    }
    for case, outcome in results:
        macros = case.macros.removesuffix(case.name).replace("OUTCOMES", "").split()
        values = dict(each.partition("=")[::2] for each in macros)
        named = " ".join(f"{k}={v}" if v else k for k, v in values.items())
        shown = f"`{named}`" if named else "none"
        measured = f"{outcome.states:,} | {outcome.seconds:.0f}"
        if case in CONFIGURATIONS:
            rows["configurations"].append(f"| {case.name} | {shown} | {measured} |")
        elif case.fails:
            seen = ", seen outside" if "OUTCOMES" in case.macros else ""
            rows["flaws"].append(f"| `{case.name}` | {shown}{seen} | {case.fails} |")
        else:
            rows["spare"].append(f"| `{case.name}` | {shown} | {measured} |")
    return {name: "\n".join(lines) for name, lines in rows.items()}


def write_tables(results: list[tuple[Case, Outcome]]) -> None:
    """Put the tables into the README, each between its two marked lines."""
    text = README.read_text()
    for name, table in tables(results).items():
        begin, end = f"<!-- {name}: by run.py --write-tables -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = before + begin + table + "\n" + end + after
    README.write_text(text)


def main() -> int:
    """Run the chosen cases; return the exit status."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--short", action="store_true", help="a minute's selection")
    options.add_argument("--only", default="", help="runs whose name or macros contain this")
    options.add_argument("--jobs", type=int, default=1, help="runs at a time")
    options.add_argument("--memory", type=int, default=12000, help="limit of one run, MB")
    options.add_argument("--write-tables", action="store_true", help="of a whole run, to README")
    chosen = options.parse_args()
    if chosen.write_tables and (chosen.short or chosen.only):
        options.error("--write-tables wants a whole run")
    cases = [
        case
        for case in CONFIGURATIONS + FLAWS
        if (case.short or not chosen.short) and chosen.only in case.name + " " + case.macros
    ]
    all_results = []
    with concurrent.futures.ThreadPoolExecutor(chosen.jobs) as pool:
        results = pool.map(lambda case: run(case, chosen.memory), cases)
        for case, outcome in zip(cases, results, strict=True):
            all_results.append((case, outcome))
            print(
                f"{'ok  ' if outcome.good else 'BAD '} {case.name:<40} "
                f"{outcome.states:>11,} states  {outcome.seconds:6.1f} s  {outcome.text}",
                flush=True,
            )
    failures = sum(not outcome.good for _, outcome in all_results)
    if chosen.write_tables and not failures:
        write_tables(all_results)
    print(f"{len(cases) - failures} of {len(cases)} as wanted")
    return 1 if failures or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
