"""The examples run as they are documented, and leave nothing behind however they end."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from watched_processes import run_python

import mpbuffer

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def learning_packages():
    for package in ("gymnasium", "torch", "matplotlib", "rich"):
        pytest.importorskip(package)


def output_of(example, *arguments, seconds=60):
    ended = run_python(str(EXAMPLES / example), *arguments, seconds=seconds)
    assert ended.returncode == 0, ended.stderr.decode()
    assert ended.stderr.decode() == ""
    return ended.stdout.decode()


def processes_of_session(session):
    """Pids of the living processes of a session, whoever their parents are by now."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(after_name[3]) == session and after_name[0] not in "ZX":
                    found.append(int(entry.name))
    return found


class ApexRun:
    """examples/apex.py as a program of its own session, so that none of its processes hides."""

    def __init__(self, out, *arguments):
        self.out = out
        self.process = subprocess.Popen(
            [sys.executable, EXAMPLES / "apex.py", "--out", out, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # What runs in the background of a script ignores Ctrl-C, and hands that down.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def wait(self, seconds=60):
        """Wait for its end; return what it printed; nothing of it may still be running."""
        output, errors = self.process.communicate(timeout=seconds)
        deadline = time.monotonic() + 10
        while left := processes_of_session(self.process.pid):
            assert time.monotonic() < deadline, f"still running: {left}\n{output}\n{errors}"
            time.sleep(0.05)
        return output, errors

    def wait_for_explorers(self, count, seconds=60):
        """Wait until so many explorers have opened the buffer, and all are started."""
        deadline = time.monotonic() + seconds
        while len(self.explorers()) < count or self.ignores_interrupts():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, "the explorers do not start"
            time.sleep(0.05)

    def ignores_interrupts(self):
        """Whether the learner ignores Ctrl-C, as it does while it starts the explorers."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        ignored = int(re.search(r"^SigIgn:\s*(\w+)$", status, re.MULTILINE).group(1), 16)
        return bool(ignored >> (signal.SIGINT - 1) & 1)

    def explorers(self):
        """Pids of its processes that have a buffer's segment mapped, but the learner's.

        A segment that was made without a name keeps its number for one in that listing.
        """
        mapped = []
        for pid in processes_of_session(self.process.pid):
            with contextlib.suppress(OSError):
                if re.search("/dev/shm/(mpbuffer-|#)", Path(f"/proc/{pid}/maps").read_text()):
                    mapped.append(pid)
        return [pid for pid in mapped if pid != self.process.pid]


def test_attach_by_name():
    output = output_of("attach_by_name.py")
    assert "squared is" in output and "1,000 rows" in output


@pytest.mark.parametrize("program", ["uniform", "prioritized"])
def test_quickstart(program, learning_packages):
    output = output_of("quickstart.py", "--program", program, "--steps", "1500")
    assert f"{program}: 1,500 steps" in output


def test_soft_actor_critic_learns_from_vector_environments(tmp_path, learning_packages):
    # Solved as soon as the first evaluation: a random policy gets -1,200.
    output = output_of("sac_vector.py", "--solved-at", "-2000", "--out", tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["solved"] and "mean greedy return" in output
    (evaluated,) = result["returns"]
    assert 1_000 < evaluated["rows"] < 3_000  # explorers keep to the learner's pace


def test_apex_tells_its_options(learning_packages):
    output = output_of("apex.py", "--help")
    assert all(each in output for each in ("--env", "--explorers", "--seed", "--out"))


def test_apex_stops_cleanly_when_its_time_is_up(tmp_path, learning_packages):
    with ApexRun(tmp_path, "--explorers", "2", "--time-limit", "6") as run:
        output, errors = run.wait()
    assert run.process.returncode == 1, errors
    assert errors == "" and "not solved" in output
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["solved"] is False and result["seconds_to_criterion"] is None
    assert sum(result["rows_per_explorer"]) == result["rows"]
    assert (tmp_path / "returns.png").stat().st_size > 1_000


def test_apex_stops_cleanly_on_ctrl_c(tmp_path, learning_packages):
    with ApexRun(tmp_path, "--explorers", "2") as run:
        run.wait_for_explorers(2)
        time.sleep(0.5)
        os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does
        _, errors = run.wait()
    assert run.process.returncode not in (0, -signal.SIGINT), errors
    assert "Traceback" not in errors


def test_apex_stops_and_tells_when_an_explorer_is_killed(tmp_path, learning_packages):
    with ApexRun(tmp_path, "--explorers", "2") as run:
        run.wait_for_explorers(2)
        os.kill(run.explorers()[0], signal.SIGKILL)
        _, errors = run.wait()
    assert run.process.returncode not in (0, -signal.SIGKILL)
    assert "explorer" in errors
    # A local buffer that only the killed process had goes with whatever is created next.
    mpbuffer.ReplayBuffer(1, {"x": {}}).close()
