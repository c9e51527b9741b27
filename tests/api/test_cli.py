"""The `mpbuffer` command: ls, gc and inspect, in a terminal's absence."""

import json
import os
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from segment_places import Places
from watched_processes import BufferElsewhere, run_python

import mpbuffer
from mpbuffer import PrioritizedReplayBuffer, ReplayBuffer

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from mpbuffer.inspect.commands import commands

FIELDS = {
    "obs": {"shape": 4},
    "act": {"dtype": np.int64},
    "frame": {"shape": (2, 3), "dtype": np.uint8},
}
ROW = {"obs": [1, 2, 3, 4], "act": 5, "frame": np.ones((2, 3))}


def run(*arguments):
    return CliRunner().invoke(commands, list(arguments), catch_exceptions=False)


def listed(*options):
    """What `ls --json` tells, by name."""
    outcome = run("ls", "--json", *options)
    assert outcome.exit_code == 0
    return {report["name"]: report for report in json.loads(outcome.stdout)}


def inspected(name, status):
    outcome = run("inspect", "--json", name)
    assert outcome.exit_code == status, outcome.output
    return json.loads(outcome.stdout)


def line_of(name, text):
    lines = [line for line in text.splitlines() if line.startswith(name + " ")]
    assert len(lines) == 1, text
    return lines[0]


@pytest.fixture
def stale(segment_file):
    """Makes a buffer whose only process ends without closing it; returns its name."""
    names = []

    def make(name, kind="PrioritizedReplayBuffer", rows=3):
        script = f"""
import os
import mpbuffer
buffer = mpbuffer.{kind}(10, {{"a": {{}}}}, name={name!r})
for number in range({rows}):
    buffer.add(a=number)
os._exit(0)
"""
        assert run_python(script=script).returncode == 0
        assert segment_file(name).exists()
        names.append(name)
        return name

    yield make
    for name in names:
        segment_file(name).unlink(missing_ok=True)


def test_ls_shows_a_buffer():
    with PrioritizedReplayBuffer(100, FIELDS, name="cli.shown") as buffer:
        for _ in range(25):
            buffer.add(**ROW)
        buffer.sample(4)
        line = line_of("cli.shown", run("ls", "--interval", "0").stdout)
        for word in ("live", "PrioritizedReplayBuffer", "100", "25 (25%)", "KB"):
            assert word in line
        assert f"pid {os.getpid()} (" in line
        assert "obs:float32[4] act:int64[1] frame:uint8[2x3]" in line


def test_ls_in_json():
    with (
        PrioritizedReplayBuffer(100, FIELDS, name="cli.one", alpha=0.5, eps=0.1) as one,
        ReplayBuffer(7, {"a": {"shape": ()}}, name="cli.two") as two,
    ):
        one.add(**ROW)
        two.add(a=1)
        reports = listed("--interval", "0")
        first, second = reports["cli.one"], reports["cli.two"]
        assert first["class"] == "PrioritizedReplayBuffer"
        assert second["class"] == "ReplayBuffer"
        assert (first["size"], first["rows"], first["rows_added"]) == (100, 1, 1)
        assert (first["alpha"], first["eps"]) == (0.5, 0.1)
        assert first["fields"][2] == {"name": "frame", "dtype": "uint8", "shape": [2, 3]}
        assert second["fields"] == [{"name": "a", "dtype": "float32", "shape": []}]
        assert first["learner"]["role_held"] is False
        assert first["alive"] == 1
        assert first["processes"][0]["pid"] == os.getpid()
        assert first["live"] and not first["damage"] and not first["notes"]
        assert "rows_per_second" not in first
        assert time.time() - 60 < first["created_at"] <= time.time()
        one.sample(1)
        learner = listed("--interval", "0")["cli.one"]["learner"]
        assert learner["role_held"] and learner["pid"] == os.getpid()
        assert learner["sampleable"] == 1


def test_ls_counts_rows_per_second():
    script = """
import sys, threading, time
import mpbuffer
with mpbuffer.ReplayBuffer(1000, {"a": {}}, name="cli.rate") as buffer:
    print("ready", flush=True)
    ends = time.monotonic() + 60
    stopped = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stopped.set())).start()
    while not stopped.is_set() and time.monotonic() < ends:
        buffer.add(a=[1] * 100)
        time.sleep(0.001)
"""
    adder = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=os.path.dirname(__file__),
    )
    try:
        assert adder.stdout.readline() == b"ready\n"
        rate = listed("--interval", "0.5")["cli.rate"]["rows_per_second"]
        assert 1 < rate < 1e8
    finally:
        adder.communicate(timeout=60)
    assert adder.returncode == 0


def test_processes_of_a_buffer(context):
    with (
        PrioritizedReplayBuffer(100, FIELDS, name="cli.processes") as buffer,
        BufferElsewhere(context, buffer) as other,
    ):
        other.add(**ROW)
        other.sample(1)
        report = listed("--interval", "0")["cli.processes"]
        assert report["alive"] == 2
        assert {each["pid"] for each in report["processes"]} == {os.getpid(), other.pid}
        assert report["learner"]["pid"] == other.pid
        other.kill()
        report = listed("--interval", "0")["cli.processes"]
        assert report["alive"] == 1
        assert not report["learner"]["role_held"]
        assert any("without giving up its role" in note for note in report["notes"])
        text = run("inspect", "cli.processes").stdout
        assert "nobody" in line_of("learner", text)
        assert any(str(other.pid) in line and "gone" in line for line in text.splitlines())


def test_looking_changes_nothing(segment_file):
    with PrioritizedReplayBuffer(100, FIELDS, name="cli.untouched") as buffer:
        buffer.add(**ROW)
        before = segment_file(buffer.name).read_bytes()
        run("ls")
        run("inspect", buffer.name)
        run("gc")
        assert segment_file(buffer.name).read_bytes() == before
        assert [each.pid for each in buffer.processes()] == [os.getpid()]


@pytest.fixture
def copy_of_stale(segment_file):
    names = []

    def copy(name, copied):
        path = segment_file(copied)
        path.touch(0o600)
        path.write_bytes(segment_file(name).read_bytes())
        names.append(copied)
        return copied

    yield copy
    for name in names:
        segment_file(name).unlink(missing_ok=True)


def test_gc_removes_what_is_dead_and_nothing_else(stale, copy_of_stale, segment_file):
    foreign = segment_file("cli.foreign")
    foreign.write_bytes(b"not a segment of this library")
    try:
        with ReplayBuffer(10, {"a": {}}, name="cli.alive") as buffer:
            # Without a creation from here on: each of them sweeps.
            dead, dead_too = stale("cli.dead"), copy_of_stale("cli.dead", "cli.dead-too")
            reports = listed("--interval", "0")
            assert not reports[dead]["live"] and reports["cli.alive"]["live"]
            assert "stale" in line_of(dead, run("ls", "--interval", "0").stdout)

            promised = run("gc", "--dry-run")
            assert promised.exit_code == 0
            assert {f"would remove {dead}", f"would remove {dead_too}"} <= set(
                promised.stdout.splitlines()
            )
            assert segment_file(dead).exists() and segment_file(dead_too).exists()

            done = run("gc")
            assert done.exit_code == 0
            assert {f"removed {dead}", f"removed {dead_too}"} <= set(done.stdout.splitlines())
            assert "cli.alive" not in done.stdout and "cli.foreign" not in done.stdout
            assert not segment_file(dead).exists() and not segment_file(dead_too).exists()
            assert foreign.exists()
            buffer.add(a=1)
            assert len(mpbuffer.attach("cli.alive")) == 1
            assert dead not in run("gc").stdout
    finally:
        foreign.unlink()


def test_gc_leaves_what_only_a_stopped_process_has_open(context):
    buffer = ReplayBuffer(10, {"a": {}}, name="cli.stopped")
    with BufferElsewhere(context, buffer) as other:
        buffer.close()
        os.kill(other.pid, 19)
        try:
            assert "cli.stopped" not in run("gc").stdout
            report = listed("--interval", "0")["cli.stopped"]
            assert report["live"]
        finally:
            os.kill(other.pid, 18)
        other.add(a=1)
        assert other.get_stored_size() == 1


def test_inspect_a_sound_buffer():
    with PrioritizedReplayBuffer(50, FIELDS, name="cli.sound") as buffer:
        buffer.acquire_learner()
        for _ in range(120):
            buffer.add(**ROW)
        sample = buffer.sample(20)
        buffer.update_priorities(sample["indexes"], np.linspace(0, 3, 20))
        outcome = run("inspect", "cli.sound")
        assert outcome.exit_code == 0
        assert "sound" in outcome.stdout and "damage" not in outcome.stdout
        assert "50 complete" in outcome.stdout
        assert not any(line != line.rstrip() for line in outcome.stdout.splitlines())
        report = inspected("cli.sound", 0)
        assert (report["rows"], report["claims"], report["abandoned_claims"]) == (50, 0, 0)
        assert report["learner"]["updates"] == 20 - buffer.learner_status().stale
        assert report["learner"]["rows_folded"] == buffer.learner_status().rows_folded == 50
        assert "50 rows folded, 20 draws" in outcome.stdout
        assert report["position"] == 50 + 120
        buffer.clear()
        assert inspected("cli.sound", 0)["rows"] == 0
        buffer.add(**ROW)
        assert inspected("cli.sound", 0)["rows"] == 1


@pytest.mark.parametrize("kind", ["ReplayBuffer", "PrioritizedReplayBuffer"])
def test_inspect_a_stale_buffer(stale, segment_file, kind):
    name = stale("cli.left", kind)
    report = inspected(name, 0)
    assert not report["live"]
    assert report["rows"] == 3
    assert "stale" in run("inspect", name).stdout
    assert segment_file(name).exists()


@pytest.mark.parametrize("seconds", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_inspect_while_others_add_and_sample(seconds):
    """What is in motion is not damage."""
    script = """
import sys, threading
import numpy as np
import mpbuffer
buffer = mpbuffer.attach("cli.motion")
stopped = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stopped.set()), daemon=True).start()
while not stopped.is_set():
    buffer.add(a=np.arange(20))
    if sys.argv[1] == "learner":
        sample = buffer.sample(16)
        buffer.update_priorities(sample["indexes"], np.random.rand(16))
        if np.random.rand() < 0.01:
            buffer.clear()
            buffer.add(a=1)
buffer.close()
"""
    with PrioritizedReplayBuffer(100, {"a": {}}, name="cli.motion"):
        others = [
            subprocess.Popen([sys.executable, "-c", script, role], stdin=subprocess.PIPE)
            for role in ("learner", "explorer", "explorer")
        ]
        try:
            while inspected("cli.motion", 0)["rows_added"] < 1000:
                assert all(other.poll() is None for other in others)
            ends = time.monotonic() + seconds
            looks = 0
            while time.monotonic() < ends or looks < 20:
                assert inspected("cli.motion", 0)["damage"] == []
                looks += 1
            assert all(other.poll() is None for other in others)
        finally:
            for other in others:
                other.communicate(timeout=60)
        assert [other.returncode for other in others] == [0, 0, 0]


def word(seq, owner=0, epoch=0, fresh=0):
    return seq << 16 | owner << 6 | epoch << 1 | fresh


DAMAGE = {
    "a row of another slot": (lambda at: (at.word(3), "Q", word(21)), "slot 3: it holds"),
    "a row of the future": (lambda at: (at.word(3), "Q", word(93)), "beyond the position"),
    "a word without a row": (lambda at: (at.word(3), "Q", word(0, 1)), "without a row"),
    "a word of a strange process": (
        lambda at: (at.word(3), "Q", word(13, 77, 1)),
        "never was there",
    ),
    "a word of no process": (
        lambda at: (at.word(3), "Q", word(13, 1023, 1)),
        "never was there",
    ),
    "a word of neither": (lambda at: (at.word(3), "Q", word(13, 0, 3)), "no claim and no"),
    "a leaf in that is no number": (
        lambda at: (at.leaf_in(3), "f", float("nan")),
        "came with leaf nan",
    ),
    "a leaf that is no number": (lambda at: (at.leaf(3), "f", float("nan")), "leaf is"),
    "a negative leaf": (lambda at: (at.leaf(3), "f", -1.0), "its leaf is -1"),
    "an infinite leaf": (lambda at: (at.leaf(3), "f", float("inf")), "its leaf is inf"),
    "a row that has no leaf": (lambda at: (at.leaf(3), "f", 0.0), "has leaf 0"),
    "a leaf of the future": (lambda at: (at.lap(3), "I", 3), "only come to lap"),
    "a leaf behind the last slot": (lambda at: (at.leaf(11), "f", 1.0), "behind the last"),
    "an absurd position": (lambda at: (at.cursor, "Q", 2**63), "the position is"),
    "a position of long ago": (lambda at: (at.cursor, "Q", 3), "the position is 3"),
    "an odd clear": (lambda at: (at.clear_before, "Q", 13), "the last clear is"),
    "a clear in the future": (lambda at: (at.clear_before, "Q", 900), "comes after"),
    "more rows than fit": (lambda at: (at.filled, "Q", 11), "the count of rows is 11"),
    "a wrong count": (lambda at: (at.filled, "Q", 7), "7 rows are counted, 10 are there"),
    "a largest priority of NaN": (
        lambda at: (at.max_priority, "d", float("nan")),
        "largest priority",
    ),
    "a largest priority below 1": (lambda at: (at.max_priority, "d", 0.5), "largest priority"),
    "a process with an absurd pid": (
        lambda at: (at.process(1) + 8, "Q", 2**40),
        "process 1 has pid",
    ),
    "a process that lost rows": (
        lambda at: (at.process(1) + 64 + 32, "Q", 10**6),
        "process 1 counts",
    ),
    "an absurd learner": (lambda at: (at.role_line + 8, "Q", 2000), "the learner's process"),
    "a fold of the future": (lambda at: (at.role_line + 32, "Q", 10**9), "the learner has"),
    "a total of NaN": (lambda at: (at.role_line + 48, "d", float("nan")), "the tree's total"),
}


@pytest.mark.parametrize("what", DAMAGE, ids=str)
def test_inspect_finds_damage(what, segment_file):
    change, sentence = DAMAGE[what]
    with PrioritizedReplayBuffer(10, {"a": {}}, name="cli.damaged") as buffer:
        for number in range(14):
            buffer.add(a=number)
        buffer.sample(4)
        assert inspected("cli.damaged", 0)["damages"] == 0
        path = segment_file("cli.damaged")
        offset, kind, value = change(Places(path.read_bytes()))
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(struct.pack("<" + kind, value))
        report = inspected("cli.damaged", 1)
        assert any(sentence in each for each in report["damage"]), report["damage"]
        outcome = run("inspect", "cli.damaged")
        assert outcome.exit_code == 1
        assert "damage: " in outcome.stdout and "sound" not in outcome.stdout
        assert (
            "damaged" in line_of("cli.damaged", run("ls", "--interval", "0").stdout)
            or "slot" in sentence
            or (report["damage"][0] not in listed("--interval", "0")["cli.damaged"]["damage"])
        )


def first_frames(buffer):
    """14 rows that have frames in common."""
    frames = np.random.default_rng(0).integers(0, 256, (20, 16, 16), np.uint8)
    for i in range(14):
        buffer.add(obs=frames[i : i + 3], next_obs=frames[i + 1 : i + 4])


def frames_buffer(name):
    fields = {"obs": {"shape": (3, 16, 16), "dtype": np.uint8}}
    return ReplayBuffer(10, fields, name=name, next_of="obs", stack_compress="obs", sources=40)


def test_inspect_tells_of_frames():
    with frames_buffer("cli.frames") as buffer:
        first_frames(buffer)
        report = inspected("cli.frames", 0)
        assert report["sources"] == [
            {
                "sources": 40,
                "bytes": 256,
                "claimed": 17,
                "written": 17,
                "stored": 17,
                "claims": 0,
                "abandoned_claims": 0,
            }
        ]
        assert report["early"] == 0 and report["sequence"] is None
        for _ in range(3):
            first_frames(buffer)
        assert inspected("cli.frames", 0)["early"] == buffer.stats()["early"]
        told = run("inspect", "cli.frames").stdout
        assert "40 of 256 bytes fit" in told and "sequences" not in told


def test_inspect_tells_of_sequences():
    rule = {"length": 6, "period": 4, "burn_in": 2, "state": "h", "pad": False}
    fields = {"obs": {}, "h": {}, "done": {}}
    with PrioritizedReplayBuffer(10, fields, sequence=rule, name="cli.sequences") as buffer:
        for i in range(14):
            buffer.add(obs=i, h=i, done=i == 13)
        report = inspected("cli.sequences", 0)
        assert report["sequence"] == {
            "length": 6,
            "period": 4,
            "pad": False,
            "state": ["h"],
            "burn_in": 2,
            "episodes": False,
        }
        (steps,) = report["sources"]
        assert steps["written"] == buffer.stats()["sources_written"] == 14
        told = run("inspect", "cli.sequences").stdout
        assert "6 steps, a new one every 4; burn-in 2; none shorter; state h" in told
        assert "14 are there" in told


DAMAGE_OF_SOURCES = {
    "a source of another slot": (
        lambda rows, at: (at.word(3), "Q", word(84)),
        "source ring 1, slot 3: it holds source 84, which belongs to slot 4",
    ),
    "a source of the future": (
        lambda rows, at: (at.word(3), "Q", word(40 * 9 + 3)),
        "beyond the position",
    ),
    "a word of a strange process": (
        lambda rows, at: (at.word(3), "Q", word(43, 77, 1)),
        "process 77 is writing it, and never was there",
    ),
    "an absurd position": (
        lambda rows, at: (at.cursor, "Q", 2**63),
        "source ring 1: the position is",
    ),
    "a position of long ago": (
        lambda rows, at: (at.cursor, "Q", 42),
        "source ring 1: the count of sources is 17, at position 42",
    ),
    "a clear": (lambda rows, at: (at.clear_before, "Q", 80), "source ring 1: the last clear"),
    "a row born in the future": (
        lambda rows, at: (rows.row(3), "Q", 10**6),
        "slot 3: its row was born at position 1000000 of source ring 1, expected 40 to 57",
    ),
    "more sources than claimed": (
        lambda rows, at: (rows.process(1) + 128, "Q", 10**6),
        "source ring 1: the count of sources is 1000000",
    ),
}


@pytest.mark.parametrize("what", DAMAGE_OF_SOURCES, ids=str)
def test_inspect_finds_damage_of_sources(what, segment_file):
    change, sentence = DAMAGE_OF_SOURCES[what]
    with frames_buffer("cli.damaged") as buffer:
        first_frames(buffer)
        path = segment_file("cli.damaged")
        header = path.read_bytes()
        offset, kind, value = change(Places(header), Places(header, ring=1))
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(struct.pack("<" + kind, value))
        report = inspected("cli.damaged", 1)
        assert any(sentence in each for each in report["damage"]), report["damage"]


def test_much_damage_is_counted_and_not_all_told(segment_file):
    with ReplayBuffer(1000, {"a": {}}, name="cli.ruined") as buffer:
        buffer.add(a=np.arange(1000))
        path = segment_file("cli.ruined")
        places = Places(path.read_bytes())
        with open(path, "r+b") as file:
            for slot in range(1000):
                file.seek(places.word(slot))
                file.write(b"\xff" * 16)
        report = inspected("cli.ruined", 1)
        assert report["damages"] >= 1000
        assert len(report["damage"]) == 100
        assert "more findings" in run("inspect", "cli.ruined").stdout


@pytest.mark.parametrize("length", [0, 5, 100, 4095, 4096, 40_000])
def test_inspect_a_truncated_file(length, segment_file):
    with ReplayBuffer(10, {"a": {}}, name="cli.whole"):
        whole = segment_file("cli.whole").read_bytes()
    path = segment_file("cli.cut")
    path.touch(0o600)
    try:
        path.write_bytes(whole[:length])
        report = inspected("cli.cut", 1)
        assert not report["readable"]
        assert "bytes" in report["damage"][0]
        assert "damaged" in line_of("cli.cut", run("ls", "--interval", "0").stdout)
        assert path.exists()
    finally:
        path.unlink()


def test_what_cannot_be_inspected(segment_file, tmp_path):
    outcome = run("inspect", "cli.nobody")
    assert outcome.exit_code == 2
    assert "there is no" in outcome.stderr and not outcome.stdout
    assert run("inspect").exit_code == 2
    assert run("inspect", "no/name").exit_code == 2
    assert run("inspect", "\udcff").exit_code == 2
    assert run("nonsense").exit_code == 2
    assert run("ls", "--interval", "-1").exit_code == 2
    path = segment_file("cli.elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    try:
        outcome = run("inspect", "cli.elsewhere")
        assert outcome.exit_code == 2
        assert "symbolic link" in outcome.stderr
        assert run("ls").exit_code == 0
        assert run("gc").exit_code == 0
        assert path.is_symlink()
    finally:
        path.unlink()


@pytest.mark.parametrize("name", [b"\xff\xfe", b"two words", b"\x1b[31mred", "ä".encode()])
def test_files_whose_names_are_no_buffers(name, segment_file):
    path = os.fsencode(segment_file("")) + name
    with open(path, "wb") as file:
        file.write(b"mpbuffer" + bytes(5000))
    try:
        os.chmod(path, 0o600)
        outcome = run("ls", "--interval", "0")
        assert outcome.exit_code == 0
        assert "\x1b" not in outcome.stdout
        assert run("ls", "--json", "--interval", "0").exit_code == 0
        outcome = run("gc")
        assert outcome.exit_code == 0
        assert "\x1b" not in outcome.stdout
        assert not os.path.exists(path)
    finally:
        if os.path.exists(path):
            os.unlink(path)


def test_the_installed_command_in_a_pipe():
    command = os.path.join(os.path.dirname(sys.executable), "mpbuffer")
    if not os.path.exists(command):
        pytest.skip("the command is not installed beside this interpreter")
    fields = {f"field_with_a_long_name_{i}": {"shape": (i + 1, 7)} for i in range(30)}
    with ReplayBuffer(10, fields, name="cli.piped"):
        done = subprocess.run([command, "ls"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0
        assert "field_with_a_long_name_29:float32[30x7]" in line_of("cli.piped", done.stdout)
        done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60)
        assert mpbuffer.__version__ in done.stdout


@pytest.mark.parametrize("package", ["click", "rich"])
def test_without_its_packages_the_command_says_what_to_install(package):
    script = f"""
import sys
sys.modules[{package!r}] = None
from mpbuffer.inspect.cli import main
main()
"""
    done = run_python(script=script)
    assert done.returncode == 2
    assert done.stdout == b""
    message = done.stderr.decode()
    assert message.count("\n") == 1
    assert package in message and "mpbuffer[cli]" in message


# snapshot and restore


def test_a_buffer_is_saved_and_restored_by_name(tmp_path):
    saved, name = f"cli-saved-{os.getpid()}", f"cli-restored-{os.getpid()}"
    with PrioritizedReplayBuffer(100, FIELDS, name=saved) as buffer:
        for _ in range(60):
            buffer.add(**ROW)
        for written in ("snapshot 1 of", "snapshot 2 of"):
            outcome = run("snapshot", saved, str(tmp_path), "--keep", "2")
            assert outcome.exit_code == 0 and outcome.stdout.startswith(written)
            assert "60 rows" in outcome.stdout
    command = [sys.executable, "-c", "from mpbuffer.inspect.cli import main; main()", "restore"]
    with subprocess.Popen([*command, tmp_path, name], stdout=subprocess.PIPE, text=True) as process:
        assert "60 of 100 rows" in process.stdout.readline()
        with mpbuffer.attach(name) as attached:
            assert len(attached) == 60
        process.terminate()
        assert process.wait(30) == 0
    outcome = run("restore", str(tmp_path), name, "--size", "20", "--for", "0")
    assert outcome.exit_code == 0 and "20 of 20 rows" in outcome.stdout


def test_what_cannot_be_saved_or_restored_is_told(tmp_path):
    for arguments, why in (
        (("snapshot", "no.such.buffer", str(tmp_path)), "cannot attach"),
        (("restore", str(tmp_path), "any"), "there is no snapshot"),
    ):
        outcome = run(*arguments)
        assert outcome.exit_code == 2 and why in outcome.stderr
