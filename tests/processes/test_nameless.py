"""Buffers and weights made without a name: nothing of them is left, and they are found."""

import contextlib
import fcntl
import os
import pickle
import re
import select
import signal
import stat
import subprocess
import sys
import time
import warnings
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest

import mpbuffer
from mpbuffer import NotEnoughMemory, PrioritizedReplayBuffer, ReplayBuffer, SharedWeights
from mpbuffer.inspect.inspection import inspect, list_segments, remove_dead_segments

FIELDS = {"a": {}}


def descriptor_of(handle):
    """The number of the handle's mapped descriptor in this process."""
    for number in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if f"-{handle.name} (deleted)" in os.readlink(f"/proc/self/fd/{number}"):
                return number
    raise AssertionError("no descriptor has the name")


def run(script, *arguments, prefix=(), seconds=60):
    return subprocess.run(
        [*prefix, sys.executable, "-c", script, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def made():
    return (
        PrioritizedReplayBuffer(10, FIELDS),
        ReplayBuffer(10, FIELDS),
        SharedWeights({"w": np.zeros(3)}),
    )


def test_nothing_of_it_is_in_shared_memory():
    before = set(os.listdir("/dev/shm"))
    for handle in made():
        with handle:
            assert set(os.listdir("/dev/shm")) <= before
            assert handle.name


def test_only_its_user_can_open_it_and_nobody_can_resize_it():
    for handle in made():
        with handle:
            descriptor = descriptor_of(handle)
            facts = os.fstat(descriptor)
            assert stat.S_IMODE(facts.st_mode) == 0o600 and facts.st_nlink == 0
            for size in (0, facts.st_size + 4096):
                with pytest.raises(PermissionError):
                    os.ftruncate(descriptor, size)
            seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
            assert not seals & (fcntl.F_SEAL_WRITE | 0x10), "later handles need to write"
            with pytest.raises(PermissionError):
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_a_program_of_the_same_user_attaches_by_the_generated_name():
    script = "import mpbuffer, sys; mpbuffer.attach(sys.argv[1]).add(a=5)"
    with ReplayBuffer(10, FIELDS) as buffer:
        ended = run(script, buffer.name)
        assert ended.returncode == 0, ended.stderr
        assert buffer.get_all_transitions()["a"].tolist() == [[5.0]]


def test_it_is_found_while_anybody_has_it_open():
    buffer = ReplayBuffer(10, FIELDS)
    name = buffer.name
    with mpbuffer.attach(name) as second:
        buffer.close()
        second.add(a=1)
        with mpbuffer.attach(name) as third:
            assert len(third) == 1
    with pytest.raises(mpbuffer.SegmentNotFound, match=f"{name}.*give|{name}.*name="):
        mpbuffer.attach(name)


def test_what_is_not_published_yet_is_not_found():
    """Memory of the right name that carries no id, or another one, is passed over."""
    name = f"{os.getpid()}-0123456789ab"
    for carried in (0, 0x123456789AC):
        impostor = os.memfd_create(f"mpbuffer-{os.getuid()}-{name}")
        try:
            os.fchmod(impostor, 0o600)
            os.ftruncate(impostor, 8192)
            os.pwrite(impostor, b"mpbuffer", 0)
            os.pwrite(impostor, carried.to_bytes(8, "little"), 4088)
            with pytest.raises(mpbuffer.SegmentNotFound):
                mpbuffer.attach(name)
            with pytest.raises(mpbuffer.SegmentNotFound):
                inspect(name)
        finally:
            os.close(impostor)


def test_an_impostor_does_not_hide_it():
    with ReplayBuffer(10, FIELDS) as buffer:
        impostors = [os.memfd_create(f"mpbuffer-{os.getuid()}-{buffer.name}") for _ in range(3)]
        try:
            with mpbuffer.attach(buffer.name) as other:
                other.add(a=1)
        finally:
            for impostor in impostors:
                os.close(impostor)
        assert len(buffer) == 1


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_users_buffer_is_not_found_and_the_error_says_what_to_do():
    script = (
        "import mpbuffer, os, sys; os.setuid(65534)\n"
        "try: mpbuffer.attach(sys.argv[1])\n"
        "except mpbuffer.SegmentNotFound as error: print(error)"
    )
    with ReplayBuffer(10, FIELDS) as buffer:
        ended = run(script, buffer.name)
    assert "another user" in ended.stdout and "name=" in ended.stdout, ended


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_process_that_becomes_another_user_is_told_why_a_fork_cannot_use_it():
    script = """
import os, mpbuffer
buffer = mpbuffer.ReplayBuffer(10, {"a": {}})
os.setuid(65534)
buffer.add(a=1)
if os.fork() == 0:
    try: buffer.add(a=2)
    except OSError as error: print(error, flush=True)
    os._exit(0)
os.wait()
"""
    ended = run(script)
    assert "of user 0" in ended.stdout and "become user 65534" in ended.stdout, ended


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount and become another user")
def test_a_shared_memory_that_may_not_be_used_is_named_and_not_needed():
    script = """
import os, mpbuffer
os.setuid(65534)
with mpbuffer.ReplayBuffer(10, {"a": {}}) as buffer:
    buffer.add(a=1)
try: mpbuffer.ReplayBuffer(10, {"a": {}}, name="named")
except OSError as error: print(type(error).__name__, error)
"""
    mounted = [
        "unshare",
        "-m",
        "sh",
        "-c",
        'mount -t tmpfs -o mode=0700 tmpfs /dev/shm && exec "$@"',
    ]
    ended = run(script, prefix=[*mounted, "sh"])
    if "unshare" in ended.stderr or "mount" in ended.stderr:
        pytest.skip("may not mount here")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("PermissionError") and "/dev/shm" in ended.stdout, ended.stdout


def memory_group():
    """The folder of this process's cgroup of memory, and which of its files is the limit."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return Path("/sys/fs/cgroup/memory") / path.lstrip("/"), "memory.limit_in_bytes"
    return Path("/sys/fs/cgroup") / path.lstrip("/"), "memory.max"


@pytest.fixture
def limited_group():
    """A new cgroup that may use 300 MB."""
    parent, limit = memory_group()
    folder = parent / f"mpbuffer-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("may not make a cgroup here")
    try:
        try:
            (folder / limit).write_text(str(300 << 20))
        except OSError:
            pytest.skip("cgroups do not limit memory here")
        yield folder
    finally:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.01)


CREATES_IN_A_GROUP = """
import os, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
import mpbuffer
print("ready", flush=True)
sys.stdin.readline()
made, refused = 0, 0
for size in map(int, sys.argv[2:]):
    try:
        with mpbuffer.ReplayBuffer((size << 20) // 4096, {"a": {"shape": 4032, "dtype": "u1"}}):
            made += 1
    except mpbuffer.NotEnoughMemory as error:
        assert "cgroup" in str(error), error
        refused += 1
print(made, refused)
"""


def test_the_limit_of_a_cgroup_is_an_error_and_no_kill(limited_group):
    ended = run(CREATES_IN_A_GROUP, str(limited_group), "100", "350", "100")
    assert ended.stdout == "ready\n2 1\n", ended


@pytest.mark.slow
def test_creators_that_share_a_cgroup_are_refused_and_not_killed(limited_group):
    """Each sees room for its buffer at first, and both together have none."""
    arguments = [sys.executable, "-c", CREATES_IN_A_GROUP, str(limited_group), *["110"] * 10]
    creators = [
        subprocess.Popen(arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True)
        for _ in range(3)
    ]
    for creator in creators:
        assert creator.stdout.readline() == "ready\n"
    for creator in creators:
        creator.stdin.write("\n")
        creator.stdin.flush()
    for creator in creators:
        said, errors = creator.communicate(timeout=60)
        assert creator.returncode == 0, (creator.returncode, errors)
        assert sum(map(int, said.split())) == 10


def test_ls_and_inspect_show_it():
    with (
        PrioritizedReplayBuffer(10, FIELDS) as buffer,
        SharedWeights({"w": np.zeros(3)}) as weights,
    ):
        buffer.add(a=1)
        reports = {report["name"]: report for report in list_segments()}
        for handle in (buffer, weights):
            for report in (reports[handle.name], inspect(handle.name)):
                assert report["nameless"] and report["live"] and not report["damage"], report
                assert re.fullmatch(r"/proc/\d+/fd/\d+", report["path"])
        assert reports[buffer.name]["rows"] == 1
        assert buffer.name not in remove_dead_segments()
    assert buffer.name not in {report["name"] for report in list_segments()}


def test_the_rows_are_kept_after_exit():
    script = """
import mpbuffer
buffer = mpbuffer.ReplayBuffer(10, {"a": {}})
buffer.add(a=7)
print(buffer.name, buffer.keep_after_exit(30))
"""
    ended = run(script)
    assert ended.returncode == 0, ended.stderr
    name, keeper = ended.stdout.split()
    try:
        with mpbuffer.attach(name) as buffer:
            assert buffer.get_all_transitions()["a"].tolist() == [[7.0]]
    finally:
        os.kill(int(keeper), signal.SIGKILL)


def test_a_pickle_warns_once_and_opens_the_same_rows():
    script = """
import pickle, warnings, mpbuffer
with mpbuffer.ReplayBuffer(10, {"a": {}}) as buffer, warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for _ in range(3):
        pickle.loads(pickle.dumps(buffer)).add(a=1)
    assert len(buffer) == 3
    [only] = told
    assert "attach" in str(only.message) and only.filename == "<string>", only
"""
    ended = run(script)
    assert ended.returncode == 0, ended.stderr


def adds(handle):
    handle.add(a=3)


def test_handing_it_to_a_process_does_not_warn(context):
    with warnings.catch_warnings(), ReplayBuffer(10, FIELDS) as buffer:
        warnings.simplefilter("error")
        process = context.Process(target=adds, args=(buffer,))
        process.start()
        process.join(60)
        assert process.exitcode == 0 and len(buffer) == 1


def test_a_pickle_without_its_memory_says_so():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ReplayBuffer(10, FIELDS) as buffer:
            data = pickle.dumps(buffer)
    with pytest.raises(mpbuffer.SegmentNotFound, match="name="):
        pickle.loads(data)


# Memory, and its end


def shared_bytes():
    with open("/proc/meminfo") as file:
        [line] = [each for each in file if each.startswith("Shmem:")]
    return int(line.split()[1]) << 10


LEARNER = """
import multiprocessing, sys, time
import numpy as np
import mpbuffer

FILLER = np.zeros(4092, "u1")

def explore(buffer, connection):
    buffer.add(a=1, filler=FILLER)
    connection.send(None)
    time.sleep(1000)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    rows = int(sys.argv[2]) // 4096
    fields = {"a": {}, "filler": {"shape": 4092, "dtype": "u1"}}
    buffer = mpbuffer.PrioritizedReplayBuffer(rows, fields)
    ours, theirs = context.Pipe()  # a queue's semaphores would have names
    count = int(sys.argv[3])
    explorers = [context.Process(target=explore, args=(buffer, theirs)) for _ in range(count)]
    for each in explorers: each.start()
    for each in explorers: ours.recv()
    print("ready", flush=True)
    time.sleep(1000)
"""


def kill_a_session_in_the_middle(tmp_path, method, size, explorers):
    """Start a learner and explorers, kill all of them at once; return what was shared meanwhile."""
    program = tmp_path / "learner.py"
    program.write_text(LEARNER)
    with subprocess.Popen(
        [sys.executable, str(program), method, str(size), str(explorers)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as learner:
        try:
            assert select.select([learner.stdout], [], [], 60)[0], "the explorers did not start"
            assert learner.stdout.readline() == b"ready\n"
            return shared_bytes()
        finally:
            os.killpg(learner.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "size, times",
    [
        (64 << 20, 3),
        pytest.param(64 << 20, int(os.environ.get("MPBUFFER_KILLS", 1000)), marks=pytest.mark.slow),
        pytest.param(2 << 30, 10, marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(4000)
def test_nothing_is_left_when_all_its_processes_are_killed(tmp_path, size, times):
    names = set(os.listdir("/dev/shm"))
    before = shared_bytes()
    for number in range(times):
        method = ("fork", "spawn", "forkserver")[number % 3]
        assert kill_a_session_in_the_middle(tmp_path, method, size, 2) > before + size // 2
    deadline = time.monotonic() + 10
    while shared_bytes() > before + (1 << 20) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert shared_bytes() <= before + (1 << 20)
    assert {name for name in os.listdir("/dev/shm") if "mpbuffer" in name} <= names


IN_A_SMALL_CONTAINER = """
import multiprocessing, os, sys
import numpy as np
import mpbuffer

FILLER = np.zeros(4092, "u1")

def adds(buffer):
    buffer.add(a=1, filler=FILLER)

if __name__ == "__main__":
    assert os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize == 64 << 20
    rows = (int(sys.argv[1]) << 20) // 4096
    fields = {"a": {}, "filler": {"shape": 4092, "dtype": "u1"}}
    with mpbuffer.ReplayBuffer(rows, fields) as buffer:
        for method in ("fork", "spawn", "forkserver"):
            process = multiprocessing.get_context(method).Process(target=adds, args=(buffer,))
            process.start()
            process.join()
            assert process.exitcode == 0
        assert len(buffer) == 3
"""


@pytest.mark.parametrize("megabytes", [200, pytest.param(2048, marks=pytest.mark.slow)])
def test_a_container_of_64_mb_has_room_for_it(tmp_path, megabytes):
    mounted = [
        "unshare",
        "-m",
        "sh",
        "-c",
        'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"',
    ]
    tried = subprocess.run([*mounted, "sh", "true"], capture_output=True, timeout=30)
    if tried.returncode != 0:
        pytest.skip("may not mount a file system of its own over /dev/shm here")
    program = tmp_path / "program.py"
    program.write_text(IN_A_SMALL_CONTAINER)
    ended = subprocess.run(
        [*mounted, "sh", sys.executable, str(program), str(megabytes)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stderr


def test_too_much_is_an_error_before_anything_is_allocated():
    before = shared_bytes()
    with pytest.raises(NotEnoughMemory, match=r"needs .*(MemAvailable|cgroup)"):
        ReplayBuffer(10**9, {"a": {"shape": 1000}})
    assert shared_bytes() < before + (64 << 20)


# Names


def test_attach_waits_for_the_name():
    script = """
import sys, time, mpbuffer
time.sleep(0.3)
with mpbuffer.ReplayBuffer(10, {"a": {}}, name=sys.argv[1]) as buffer:
    buffer.add(a=4)
    sys.stdin.read()
"""
    name = f"waited-for-{os.getpid()}"
    with subprocess.Popen([sys.executable, "-c", script, name], stdin=subprocess.PIPE) as maker:
        with mpbuffer.attach(name, timeout=60) as buffer:
            while not len(buffer):
                time.sleep(0.01)
        maker.communicate(timeout=60)
    for attach in (mpbuffer.attach, SharedWeights.attach):
        begun = time.monotonic()
        with pytest.raises(mpbuffer.SegmentNotFound):
            attach(name, timeout=0.2)
        assert time.monotonic() - begun >= 0.2
        for wrong in (-1, float("nan")):
            with pytest.raises(ValueError, match="timeout"):
                attach(name, timeout=wrong)


def test_overwrite_takes_the_name_and_leaves_the_others_their_rows():
    with ReplayBuffer(10, FIELDS, name="rerun") as first:
        first.add(a=1)
        with pytest.raises(mpbuffer.SegmentExists, match="overwrite=True"):
            ReplayBuffer(10, FIELDS, name="rerun")
        with ReplayBuffer(20, FIELDS, name="rerun", overwrite=True) as second:
            assert len(first) == 1 and len(second) == 0
            first.add(a=2)
            with mpbuffer.attach("rerun") as other:
                assert other.get_buffer_size() == 20
            first.close()
            with mpbuffer.attach("rerun") as other:
                assert other.get_buffer_size() == 20
    with SharedWeights({"w": np.zeros(1)}, name="rerun", overwrite=True) as weights:
        with SharedWeights({"w": np.ones(1)}, name="rerun", overwrite=True):
            assert SharedWeights.attach("rerun").read()["w"] == 1
        assert weights.read()["w"] == 0


def test_overwrite_takes_nothing_from_others(segment_file):
    path = segment_file("somebodys")
    path.write_bytes(b"not a segment")
    try:
        with pytest.raises(mpbuffer.SegmentExists, match="no mpbuffer segment"):
            ReplayBuffer(10, FIELDS, name="somebodys", overwrite=True)
        assert path.read_bytes() == b"not a segment"
    finally:
        path.unlink()
    with pytest.raises(ValueError, match="name="):
        ReplayBuffer(10, FIELDS, overwrite=True)


def test_a_creation_that_fails_leaves_the_name_to_its_owner():
    with ReplayBuffer(10, FIELDS, name="kept-name") as first:
        with pytest.raises(NotEnoughMemory):
            ReplayBuffer(10**9, {"a": {"shape": 1000}}, name="kept-name", overwrite=True)
        with mpbuffer.attach("kept-name") as other:
            other.add(a=1)
        assert len(first) == 1


def test_the_learners_role_is_taken_before_the_first_sample():
    with PrioritizedReplayBuffer(10, FIELDS) as learner, mpbuffer.attach(learner.name) as other:
        learner.add(a=1)
        learner.acquire_learner()
        learner.acquire_learner()
        with pytest.raises(mpbuffer.LearnerBusy):
            other.sample(1)
        with pytest.raises(mpbuffer.LearnerBusy):
            other.acquire_learner()
        learner.release_learner()
        other.acquire_learner()
