"""Single-line mutants of the protocol: each passes the plain functional tests and fails one more.

    python cpp/verify/mutants/protocol.py [--only TEXT] [--list] [--keep DIRECTORY] [--jobs N]

Copies the C++ tree, builds the functional tests and the harness of stop points once, then applies
one mutant after the other, rebuilds what it touches, and runs two things: the functional tests that
look at one process without deaths, stops or races, which have to pass, and the test that is named
beside the mutant, which has to fail. Ends with status 0 if every mutant was caught.

A swap of two neighbouring lines counts as one line.
"""

import argparse
import dataclasses
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
BUILD_SECONDS = 900
TEST_SECONDS = 300

# What doctest cases are called that play a death, a stop or a race: they are no plain tests.
NOT_PLAIN = (
    "*dead*,*die*,*kill*,*stop*,*thread*,*fork*,*flaw*,*race*,*slept*,*overtaken*,*owner*,*while*,"
    "*same time*,*among*,*successor*,*hole*,*writ*,*stand*,*child*,*under the copy*,*straddles*,"
    "*error ends*,*middle*,*nobody claims*,*taken over*,*every slot*,*each step*,*at once*,*meets*,"
    "*when its name is gone*,*other's name*,*first calls*,*sandbox*,*/dev/shm*,*refused*,"
    "*random operations*,*between a clear*"
)


@dataclasses.dataclass(frozen=True)
class Mutant:
    name: str
    flaw: str  # of the design document's list, or in words
    file: str  # in cpp/core
    old: str
    new: str
    caught_by: str  # "mpbuffer_stops ARGUMENTS", or a file of doctest cases and a case


MUTANTS = [
    Mutant(
        "a claimer overwrites a newer row",
        "flaw 3",
        "ring/slot_ring.hpp",
        "            if (slot_word::seq(seen) >= seq) return false;\n",
        "",
        "mpbuffer_stops --only position_taken --hits 200",
    ),
    Mutant(
        "the claim of a living owner is taken over",
        "flaw 4",
        "ring/slot_ring.hpp",
        "if (!mine && !is_dead(owner, slot_word::epoch(seen))) return false;",
        "(void)mine, (void)owner, (void)is_dead;",
        "mpbuffer_stops --only claim_taken --hits 100",
    ),
    Mutant(
        "an abandoned claim is never taken over",
        "flaw 9",
        "ring/slot_ring.hpp",
        "if (!mine && !is_dead(owner, slot_word::epoch(seen))) return false;",
        "(void)is_dead; if (!mine) return false;",
        "mpbuffer_stops --only claim_taken --hits 100",
    ),
    Mutant(
        "the claim looks committed: the word is published before the copy",
        "flaw 12",
        "ring/slot_ring.hpp",
        "const std::uint64_t mine = slot_word::claimed(seq, writer.number, writer.epoch, fresh);",
        "const std::uint64_t mine = slot_word::committed(seq);",
        "mpbuffer_stops --only field_copied --hits 100",
    ),
    Mutant(
        "the word is not looked at again after a read",
        "flaw 12",
        "base/shared_copy.hpp",
        "    return guard.load(std::memory_order_relaxed) == seen;\n",
        "    (void)guard, (void)seen; return true;\n",
        "mpbuffer_stops --only row_copied --hits 200",
    ),
    Mutant(
        "the word is committed before its leaf",
        "order of commit",
        "ring/slot_ring.hpp",
        "        head.leaf_in.store(leaf, std::memory_order_relaxed);\n"
        "        stop_point(StopPoint::leaf_in_stored);\n"
        "        head.word.store(slot_word::committed(seq), std::memory_order_release);  // W2\n",
        "        head.word.store(slot_word::committed(seq), std::memory_order_release);  // W2\n"
        "        stop_point(StopPoint::leaf_in_stored);\n"
        "        head.leaf_in.store(leaf, std::memory_order_relaxed);\n",
        "mpbuffer_stops --only leaf_in_stored --hits 200",
    ),
    Mutant(
        "who takes a claim over forgets that its slot was empty",
        "stored size",
        "ring/slot_ring.hpp",
        "                fresh = fresh || slot_word::fresh(seen);\n",
        "",
        "mpbuffer_stops --only claim_taken --hits 300",
    ),
    Mutant(
        "add does not raise its busy flag",
        "stored size",
        "ring/slot_ring.hpp",
        "        writer.busy->store(writer.epoch, std::memory_order_relaxed);\n"
        "        std::atomic_signal_fence(std::memory_order_seq_cst);\n"
        "        stop_point(StopPoint::busy_raised);\n",
        "        std::atomic_signal_fence(std::memory_order_seq_cst);\n"
        "        stop_point(StopPoint::busy_raised);\n",
        "mpbuffer_stops --only filled_to_raise --hits 300",
    ),
    Mutant(
        "a clear is two stores: it moves the cursor itself",
        "clear",
        "ring/slot_ring.hpp",
        "        stop_point(StopPoint::clear_position_seen);\n",
        "        raise_to(counters_->cursor, next);\n"
        "        stop_point(StopPoint::clear_position_seen);\n",
        "test_slot_ring a clear is one store*",
    ),
    Mutant(
        "nobody moves the cursor after a clear",
        "clear",
        "ring/slot_ring.hpp",
        "        raise_to(counters_->cursor, cleared);  // C1\n",
        "",
        "test_slot_ring the first claim after a clear*",
    ),
    Mutant(
        "a raise that straddles a recount counts twice",
        "stored size",
        "ring/slot_ring.hpp",
        "while (filled_word::recount(now) == filled_word::recount(before)) {",
        "(void)before; while (true) {",
        "test_slot_ring a raise that straddles a recount*",
    ),
    Mutant(
        "add never gives up",
        "flaw 10",
        "buffer/adding.cpp",
        "if (now >= deadline) throw_slots_held(added, n);",
        "if (now >= deadline && added > n) throw_slots_held(added, n);",
        "mpbuffer_stops --only all_slots_held --hits 50",
    ),
    Mutant(
        "a zombie passes for alive",
        "flaw 9",
        "os/process_stat.cpp",
        " || (is_zombie(stat->state) && stat->threads <= 1);",
        ";",
        "mpbuffer_stops --only claim_taken --hits 100",
    ),
    Mutant(
        "a free byte alone proves death",
        "pid namespaces",
        "segment/process_table.cpp",
        "return !names_living_process(records_[number - 1]);",
        "return true;",
        "mpbuffer_stops --namespaces --kills 60",
    ),
    Mutant(
        "a process of another pid namespace is looked for in this one",
        "pid namespaces",
        "segment/process_table.cpp",
        "    if (!can_be_inspected(record)) return true;\n",
        "",
        "mpbuffer_stops --namespaces --kills 60",
    ),
    Mutant(
        "pid and start time prove life",
        "exec",
        "segment/process_table.cpp",
        "    return !ours || ours->inode == 0 || !theirs || *theirs == *ours;\n",
        "    return true;\n",
        "mpbuffer_stops --execs --kills 60",
    ),
    Mutant(
        "an exec at the same addresses keeps the handle",
        "exec",
        "segment/process_table.cpp",
        "    leave_for_earlier_selves(lock_fd, self);\n",
        "",
        "test_process_table a program that replaces itself*",
    ),
    Mutant(
        "a number's old claims pass for those of its new holder",
        "flaw 8",
        "segment/process_table.cpp",
        "if (((epoch ^ epoch_low_bits) & mask) != 0) return true;",
        "if (((epoch ^ epoch_low_bits) & mask) != 0) return false;",
        "mpbuffer_stops --only claim_taken --hits 200",
    ),
    Mutant(
        "a number is taken though its holder lives without its lock",
        "flaw 8",
        "segment/process_table.cpp",
        "        if (lock_fd != no_file && names_living_process(mine)) {\n",
        "        if (false) {\n",
        "test_process_table flaw 8:*",
    ),
    Mutant(
        "a forked child goes on as its parent",
        "flaw 5",
        "segment/handle.cpp",
        "    if (!here()) [[unlikely]]\n        adopt();\n",
        "",
        "mpbuffer_stops --only busy_raised --hits 50",
    ),
    Mutant(
        "a forked child keeps its parent's locks",
        "flaw 6",
        "segment/handle.cpp",
        "    lock_fd_.close();\n    identity_ = {};",
        "    (void)new OwnedDescriptor(std::move(lock_fd_));\n    identity_ = {};",
        "test_replay_buffer a child that never uses its copy*",
    ),
    Mutant(
        "the dead holder of a number was busy, and its successor tells nobody",
        "stored size",
        "buffer/replay_buffer.cpp",
        "        ring_.request_recount();\n        processes_.forget_busy",
        "        processes_.forget_busy",
        "mpbuffer_stops --only filled_to_raise --hits 800",
    ),
    Mutant(
        "the last one out removes whatever has the name now",
        "names",
        "segment/segment_file.cpp",
        "if (nobody_left.held() && resolves_to(path_, lock_fd) &&",
        "if (nobody_left.held() &&",
        "mpbuffer_stops --only segment_unmapped --hits 100",
    ),
    Mutant(
        "an attach keeps a segment whose name is gone",
        "names",
        "segment/segment_file.cpp",
        "if (presence.held() && fstat(file.number(), &facts) == 0 && facts.st_nlink > 0) {",
        "if (presence.held() && fstat(file.number(), &facts) == 0) {",
        "mpbuffer_stops --only attach_opened --hits 100",
    ),
    Mutant(
        "a creator under a temporary name does not say that it is there",
        "names",
        "segment/segment_file.cpp",
        "            present = take_presence(file.number());  // at once, before a sweep comes\n",
        "            present = true;\n",
        "mpbuffer_stops --only segment_allocated --hits 100",
    ),
    Mutant(
        "a descriptor is closed whatever its number stands for by now",
        "descriptors",
        "os/descriptor.cpp",
        "    if (ours()) ::close(fd_);\n",
        "    if (fd_ >= 0) ::close(fd_);\n",
        "test_descriptor numbers that the program took*",
    ),
    Mutant(
        "a descriptor of the same file passes for ours",
        "descriptors",
        "os/descriptor.cpp",
        "load(std::memory_order_relaxed) == ticket_;",
        "load(std::memory_order_relaxed) != 0;",
        "test_descriptor a handle whose descriptors were closed*",
    ),
    Mutant(
        "a child keeps what another thread is making",
        "forks",
        "segment/segment_file.cpp",
        "    let_go();\n    unwatch_in_child();\n",
        "    unwatch_in_child();\n",
        "test_segment_file a child that another thread forks*",
    ),
    Mutant(
        "a child keeps a descriptor that another thread is passing through",
        "forks",
        "os/descriptor.hpp",
        "        ::close(std::exchange(fd_, -1));\n",
        "        (void)fd_;\n",
        "test_segment_file a child that is forked at any moment*",
    ),
    Mutant(
        "lap before leaf",
        "flaw 11",
        "select/fold.cpp",
        "    store_leaf(slot, leaf, sampleable);\n"
        "    stop_point(StopPoint::leaf_stored);\n"
        "    ring_.head(slot).lap.store(lap, std::memory_order_release);  // L1\n",
        "    ring_.head(slot).lap.store(lap, std::memory_order_release);  // L1\n"
        "    stop_point(StopPoint::leaf_stored);\n"
        "    store_leaf(slot, leaf, sampleable);\n",
        "mpbuffer_stops --only leaf_stored --hits 200",
    ),
    Mutant(
        "an own row is taken for the one that was sampled in its slot",
        "copied indexes",
        "select/prioritized.cpp",
        "return memory_.recent.seq_in(slot) == 0 && memory_.own_rows.has(seq);",
        "return memory_.own_rows.has(seq);",
        "test_prioritized after an overwritten row was sampled*",
    ),
    Mutant(
        "a hole is given up",
        "flaw 2",
        "select/fold.cpp",
        "                mark_pending(slot, seq);\n",
        "",
        "mpbuffer_stops --only claim_taken --hits 200",
    ),
    Mutant(
        "a successor does not wait for what is being written",
        "flaw 2",
        "select/fold.cpp",
        "if (newest >= cleared_ && !(present && seq >= newest)) mark_pending(slot, newest);\n",
        "(void)newest;\n",
        "mpbuffer_stops --only claim_taken --hits 800",
    ),
    Mutant(
        "a fold forgets what is claimed while it runs",
        "fold",
        "select/fold.cpp",
        "    move_to(std::max(position, folded_));\n",
        "    move_to(std::max(ring_.position(), folded_));\n",
        "mpbuffer_stops --only filled_raised --hits 500",
    ),
    Mutant(
        "a frame is not looked at again",
        "frames",
        "ring/frames.cpp",
        "return unchanged(word, expected);  // R2",
        "return (void)word, (void)expected, true;",
        "mpbuffer_stops --only frame_copied --hits 600",
    ),
    Mutant(
        "what is too old is referred to",
        "frames",
        "ring/source_writer.hpp",
        "return position + sources_.age(ring) < cursors_[ring];",
        "return position + sources_.ring(ring).capacity() < cursors_[ring];",
        "mpbuffer_stops --only sources_born --hits 600",
    ),
    Mutant(
        "age is judged by the cursor of before the claim",
        "frames",
        "ring/frame_writer.cpp",
        "    writer_.look();  // after the claim: see sources.hpp\n",
        "",
        "mpbuffer_stops --only position_taken --hits 800",
    ),
    Mutant(
        "a row refers to a frame that is not committed",
        "frames",
        "ring/slot_ring.hpp",
        "            commit(slot, seq, 0);\n            stop_point(StopPoint::source_committed);\n",
        "            stop_point(StopPoint::source_committed);\n",
        "mpbuffer_stops --only source_committed --hits 50",
    ),
    Mutant(
        "a retirement stops at a claim",
        "frames",
        "ring/sources.cpp",
        "            if (!there) continue;\n",
        "            if (!there) break;\n",
        "mpbuffer_stops --only reference_stored --hits 600",
    ),
    Mutant(
        "rows of the lap before stay without their frames",
        "frames",
        "ring/sources.cpp",
        "        rows.retire(cleared, seq + 1, 1);\n",
        "        (void)cleared;\n",
        "mpbuffer_stops --only claim_taken --hits 800",
    ),
]


def run(command, seconds, **more):
    return subprocess.run(
        command,
        timeout=seconds,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **more,
    )


# One executable for each file of doctest cases, so that a mutant costs what its tests need.
MORE_TARGETS = """
foreach(name prioritized descriptor process_table replay_buffer segment_file slot_ring)
  add_executable(test_${name} EXCLUDE_FROM_ALL ../tests/cpp/main.cpp ../tests/cpp/test_${name}.cpp)
  target_link_libraries(test_${name} PRIVATE mpbuffer_core)
endforeach()
set_target_properties(mpbuffer_stops PROPERTIES UNITY_BUILD ON)
"""
PLAIN_TESTS = ("test_replay_buffer", "test_prioritized")


class Workshop:
    """A copy of the tree with one build directory, to try mutants in."""

    def __init__(self, folder, jobs):
        self.folder, self.jobs = Path(folder), jobs
        for part in ("cpp", "tests/cpp"):
            shutil.copytree(ROOT / part, self.folder / part, dirs_exist_ok=True)
        with (self.folder / "cpp/CMakeLists.txt").open("a") as recipe:
            recipe.write(MORE_TARGETS)
        for mutant in MUTANTS:  # a run that was cut short left objects of a mutant
            (self.folder / "cpp/core" / mutant.file).touch()
        self.build_folder = self.folder / "build"
        options = ["-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O0"]
        options += ["-DMPBUFFER_BUILD_EXTENSION=OFF", "-DMPBUFFER_STOP_POINTS=ON"]
        if shutil.which("ninja") and not (self.build_folder / "CMakeCache.txt").exists():
            options += ["-G", "Ninja"]
        configured = run(
            ["cmake", "-S", str(self.folder / "cpp"), "-B", str(self.build_folder), *options], 300
        )
        if configured.returncode != 0:
            raise SystemExit(configured.stdout)

    def build(self, tests):
        """Build the plain tests and the programs of the named tests."""
        programs = {*PLAIN_TESTS, *(test.split()[0] for test in tests)}
        built = run(
            ["cmake", "--build", str(self.build_folder), "-j", str(self.jobs)]
            + [word for program in sorted(programs) for word in ("--target", program)],
            BUILD_SECONDS,
        )
        return built.returncode == 0, built.stdout

    def plain_tests(self):
        for program in PLAIN_TESTS:
            outcome = run([str(self.build_folder / program), f"-tce={NOT_PLAIN}"], TEST_SECONDS)
            if outcome.returncode != 0:
                break
        return outcome

    def catching_test(self, named):
        program, _, rest = named.partition(" ")
        command = [str(self.build_folder / program)]
        if program == "mpbuffer_stops":
            command += [*rest.split(), "--jobs", str(self.jobs), "--slack", "5"]
        else:
            command += [f"-tc={rest}"]
        try:
            return run(command, TEST_SECONDS)
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 124, "did not end", "")

    def try_mutant(self, mutant):
        path = self.folder / "cpp/core" / mutant.file
        text = path.read_text()
        if text.count(mutant.old) != 1:
            return f"NOT APPLIED: {mutant.file} has the line {text.count(mutant.old)} times"
        path.write_text(text.replace(mutant.old, mutant.new))
        try:
            built, log = self.build([mutant.caught_by])
            if not built:
                return "NOT BUILT\n" + log[-2000:]
            if (plain := self.plain_tests()).returncode != 0:
                return "NOT PLAIN: the functional tests fail\n" + plain.stdout[-1500:]
            caught = self.catching_test(mutant.caught_by)
            return "MISSED" if caught.returncode == 0 else "caught"
        finally:
            path.write_text(text)

    def check_unchanged(self, mutants):
        """Without a mutant everything passes, or catching means nothing."""
        built, log = self.build([mutant.caught_by for mutant in mutants])
        if not built:
            raise SystemExit(log[-3000:])
        if (plain := self.plain_tests()).returncode != 0:
            raise SystemExit("without a mutant: " + plain.stdout[-3000:])
        for test in sorted({mutant.caught_by for mutant in mutants}):
            if (outcome := self.catching_test(test)).returncode != 0:
                raise SystemExit(f"without a mutant, {test}: {outcome.stdout[-3000:]}")


def try_mutants(description, mutants, workshop_in, line_of):
    """The command line of a program that tries mutants: its exit status.

    `workshop_in(folder, jobs)` has check_unchanged(mutants) and try_mutant(mutant), which says
    "caught" first where that is so; `line_of(mutant)` is its line in the list.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--only", action="append", help="mutants whose name or file has this in it")
    parser.add_argument("--list", action="store_true", help="print the table, run nothing")
    parser.add_argument("--keep", help="work in this directory and leave it")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--unchecked", action="store_true", help="skip the runs without a mutant")
    arguments = parser.parse_args()
    chosen = [
        mutant
        for mutant in mutants
        if any(text in mutant.name or text in mutant.file for text in arguments.only or [""])
    ]
    if arguments.list:
        for mutant in chosen:
            print(line_of(mutant))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        workshop = workshop_in(arguments.keep or scratch, arguments.jobs)
        if not arguments.unchecked:
            workshop.check_unchanged(chosen)
        failures = 0
        for mutant in chosen:
            start = time.monotonic()
            outcome = workshop.try_mutant(mutant)
            failures += not outcome.startswith("caught")
            seconds = time.monotonic() - start
            print(f"{mutant.name} ({mutant.caught_by}): {outcome} [{seconds:.0f} s]", flush=True)
    print(f"{len(chosen) - failures} of {len(chosen)} mutants caught")
    return 1 if failures or not chosen else 0


def main():
    return try_mutants(
        __doc__.partition("\n")[0],
        MUTANTS,
        Workshop,
        lambda each: f"{each.file:20} {each.flaw:16} {each.name}: {each.caught_by}",
    )


if __name__ == "__main__":
    sys.exit(main())
