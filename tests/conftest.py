"""What every test runs under: a clean /dev/shm, a watchdog, the three start methods."""

import gc
import multiprocessing
import os
import sys
import time
from pathlib import Path

import pytest

SHARED_MEMORY = Path("/dev/shm")


def segments_of_this_user():
    prefix = f"mpbuffer-{os.getuid()}-"
    return {entry.name for entry in SHARED_MEMORY.iterdir() if entry.name.startswith(prefix)}


def started_at(stat):
    """When a process started, by CLOCK_BOOTTIME, from the text of its /proc/PID/stat."""
    return int(stat.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")


def is_used_elsewhere(segment, begun):
    """Whether another program has it mapped: no descendant of this process.

    One whose parent has ended may be a descendant, unless it is older than the test.
    """
    try:
        inode = str((SHARED_MEMORY / segment).stat().st_ino)
    except FileNotFoundError:
        return True
    for process in Path("/proc").glob("[0-9]*"):
        try:
            maps = [line.split() for line in (process / "maps").read_text().splitlines()]
            if not any(line[4] == inode and line[5:6] for line in maps):
                continue
            ancestor = child = int(process.name)
            old = started_at((process / "stat").read_text()) < begun
            while ancestor not in (0, 1, os.getpid()):
                stat = Path(f"/proc/{ancestor}/stat").read_text()
                ancestor, child = int(stat.rpartition(")")[2].split()[1]), ancestor
        except OSError:
            continue
        if ancestor != os.getpid() and (old or child != int(process.name)):
            return True
    return not (SHARED_MEMORY / segment).exists()  # its user removed it meanwhile


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: the full size of a test that also has a fast form")
    if not config.pluginmanager.hasplugin("timeout"):
        raise pytest.UsageError("these tests wait for processes: install pytest-timeout")
    # Else each process that is spawned would import pytest first, as its main module.
    main = sys.modules["__main__"]
    main.__spec__ = main.__file__ = None


def pytest_collection_finish():
    """A full collection, of which there are hundreds, passes over what lives to the end anyway."""
    gc.collect()
    gc.freeze()


call_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call":
        item.stash[call_failed] = report.failed
    return report


@pytest.fixture(autouse=True)
def shared_memory_is_left_as_found(request):
    """No test leaves a segment behind; a failed one may, since its traceback holds its buffers."""
    before = segments_of_this_user()
    begun = time.clock_gettime(time.CLOCK_BOOTTIME)
    yield
    if request.node.stash.get(call_failed, True) or segments_of_this_user() <= before:
        return
    gc.collect()
    new = segments_of_this_user() - before
    left = {name for name in new if not is_used_elsewhere(name, begun)}
    assert not left, f"left in {SHARED_MEMORY}: {sorted(left)}"


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def start_method(request):
    return request.param


@pytest.fixture
def context(start_method):
    """A multiprocessing context of each start method in turn."""
    return multiprocessing.get_context(start_method)


@pytest.fixture
def segment_file():
    """The path in /dev/shm of the buffer of that name."""
    return lambda name: SHARED_MEMORY / f"mpbuffer-{os.getuid()}-{name}"
