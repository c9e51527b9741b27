"""Explorers under supervision: how they start, fail, die, come back, and end with the learner."""

import contextlib
import importlib
import json
import logging
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import explorers_processes
import numpy as np
import pytest
from explorers_processes import FIELDS, tell
from multiprocess import forkserver
from watched_processes import DEADLINE, SUPPORT, python_started, run_python

import mpbuffer
from mpbuffer import ExplorerFailed, Explorers
from mpbuffer._segment.process_identity import ProcessIdentity
from mpbuffer.explorers.place import Place
from mpbuffer.explorers.process import THREAD_VARIABLES, WatchedName, _limit_threads

pytestmark = pytest.mark.timeout(90)


def methods(*fast):
    """All start methods; those that are not named under ``-m slow`` only."""
    return [
        each if each in fast else pytest.param(each, marks=pytest.mark.slow)
        for each in ("fork", "spawn", "forkserver")
    ]


@pytest.fixture
def buffer():
    with mpbuffer.PrioritizedReplayBuffer(20_000, FIELDS) as buffer:  # none is overwritten
        yield buffer


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    left = [each for each in children_of(os.getpid()) if not is_server(each)]
    assert not left, left


def stat_of(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return None


def pids_where(matches):
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := stat_of(entry)) is not None and matches(stat):
            found.append(int(entry))
    return found


def children_of(pid):
    """Zombies too."""
    return pids_where(lambda stat: int(stat[1]) == pid)


def living_of_session(session):
    return pids_where(lambda stat: int(stat[3]) == session and stat[0] not in "ZX")


def is_server(pid):
    """Whether it is one of the two that multiprocess has for a whole program."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    return b"resource_tracker" in command or b"forkserver" in command


def until(condition, explorers=None, seconds=DEADLINE):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "did not come to pass"
        if explorers is not None:
            explorers.check()
        time.sleep(0.005)
    return value


def last_rows(buffer):
    """The last row of each explorer, by index."""
    rows = buffer.get_all_transitions()
    fields = {name: values.ravel() for name, values in rows.items()}
    return {
        int(index): {name: values[at].item() for name, values in fields.items()}
        for at, index in enumerate(fields["index"])
    }


def wait_for_rows(buffer, explorers, n):
    return until(lambda: len(rows := last_rows(buffer)) == n and rows, explorers)


def test_they_play_come_back_and_stop_when_told(buffer, start_method, caplog):
    def expected(index, restart, status):
        seeds = np.random.SeedSequence([1, 2], spawn_key=(index, restart))
        draw = np.random.default_rng(seeds).random()
        who = {"index": index, "pid": status[index].pid, "restart": restart}
        return who | {"epsilon": status[index].epsilon, "draw": draw}

    with Explorers(
        explorers_processes.play, 2, buffer, start_method=start_method, backoff=0.05, seed=[1, 2]
    ) as explorers:
        rows = wait_for_rows(buffer, explorers, 2)
        explorers.check()
        before = explorers.status()
        assert explorers.alive == len(explorers) == 2
        assert [each.state for each in before] == ["running"] * 2
        assert rows == {index: expected(index, 0, before) for index in range(2)}
        until(lambda: len({line.pid for line in buffer.processes()}) == 3)

        with caplog.at_level(logging.WARNING, "mpbuffer"):
            os.kill(before[1].pid, signal.SIGKILL)
            until(lambda: explorers.status()[1].state == "waiting", explorers)
            assert (explorers.alive, explorers.status()[1].exit_code) == (1, -signal.SIGKILL)
            assert not explorers.join(0)
            until(lambda: last_rows(buffer)[1]["restart"] == 1, explorers)
        assert "explorer 1 was killed by SIGKILL; restarting it in 0.05 s" in caplog.text
        explorers.check()
        after = explorers.status()
        assert after[0] == before[0]
        assert last_rows(buffer)[1] == expected(1, 1, after)
        assert after[1].epsilon == before[1].epsilon and after[1].pid != before[1].pid
    assert explorers.alive == 0
    ended = [(each.state, each.exit_code, each.restarts) for each in explorers.status()]
    assert ended == [("finished", 0, 0), ("finished", 0, 1)]
    assert [line.pid for line in buffer.processes()] == [os.getpid()]
    explorers.check()
    explorers.stop()


def test_closures_and_lambdas(buffer, start_method):
    factor = np.arange(3.0)

    def within(explorer, *args, **kwargs):
        tell(explorer, factor.sum() + args[0] + kwargs["more"])

    with Explorers(
        lambda explorer, *args, **kwargs: within(explorer, factor.size * args[0], **kwargs),
        1,
        buffer,
        args=[10],
        kwargs={"more": 100},
        start_method=start_method,
    ) as explorers:
        assert explorers.join(DEADLINE)
    assert buffer.get_all_transitions()["draw"].ravel() == [3.0 + 30 + 100]


def test_what_the_main_module_has_goes_by_reference(tmp_path):
    program = tmp_path / "learner.py"
    program.write_text("""
import threading
import mpbuffer

class Policy:
    def act(self):
        with lock:
            return 1.0

def explore(explorer, policy, more):
    assert type(policy) is Policy
    explorer.buffer.add(a=policy.act() + more())

lock = threading.Lock()  # which cannot be pickled

if __name__ == "__main__":
    with mpbuffer.ReplayBuffer(10, {"a": {}}) as buffer:
        for start_method in ("spawn", "forkserver"):
            with mpbuffer.Explorers(
                explore, 1, buffer, args=(Policy(), lambda: 10), start_method=start_method
            ) as explorers:
                explorers.join()
        print(*buffer.get_all_transitions()["a"].ravel())
""")
    ended = run_python(str(program))
    assert (ended.stdout, ended.stderr) == (b"11.0 11.0\n", b"")


def test_an_exception_comes_with_its_traceback(buffer, start_method, capfd):
    with Explorers(
        explorers_processes.raise_from_depth, 2, buffer, args=(1,), start_method=start_method
    ) as explorers:
        with pytest.raises(ExplorerFailed, match=r"explorer 1 .* raised") as caught:
            until(lambda: False, explorers)
        wait_for_rows(buffer, explorers, 1)  # told once; the other goes on
        assert explorers.alive == 1
    failure = caught.value
    assert (failure.index, failure.exit_code) == (1, 1)
    lines = failure.remote_traceback.splitlines()
    assert lines[-1] == "LookupError: no way out of 1"
    assert 'raise LookupError(f"no way' in failure.remote_traceback
    assert "explorers_processes.py" in lines[1], "the package's own frames are not of interest"
    assert str(failure).endswith(lines[-1])
    assert str(pickle.loads(pickle.dumps(failure))) == str(failure)
    assert capfd.readouterr() == ("", "")
    assert [each.state for each in explorers.status()] == ["finished", "failed"]


def test_an_exception_at_the_end_is_raised_at_the_end(buffer):
    def fail_late(explorer):
        tell(explorer)
        explorer.stopping.wait()
        raise KeyError("late")

    def run(error=None):
        buffer.clear()
        with Explorers(fail_late, 1, buffer, start_method="fork") as explorers:
            wait_for_rows(buffer, explorers, 1)
            if error is not None:
                raise error

    with pytest.raises(ExplorerFailed, match="KeyError: 'late'"):
        run()
    with pytest.raises(ZeroDivisionError):
        run(ZeroDivisionError("the learner's own error comes first"))


def test_system_exit(buffer):
    with Explorers(
        lambda explorer: sys.exit(explorer.index * 3), 2, buffer, start_method="fork"
    ) as explorers:
        with pytest.raises(ExplorerFailed, match="SystemExit: 3"):
            until(lambda: False, explorers)
        assert explorers.join(DEADLINE)
    assert [each.state for each in explorers.status()] == ["finished", "failed"]


def test_a_long_traceback_keeps_its_end(buffer):
    def fail(explorer):
        raise ValueError("x" * 100_000 + "the end")

    with Explorers(fail, 1, buffer, start_method="fork") as explorers:
        with pytest.raises(ExplorerFailed, match="xthe end") as caught:
            explorers.join(DEADLINE)
        assert 10_000 < len(caught.value.remote_traceback) < 20_000


def test_modules_of_ones_own_go_by_name(buffer, tmp_path, monkeypatch):
    text = "import threading\n\nlock = threading.Lock()\nnumber = 3\n"
    (tmp_path / "module_of_my_own.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("module_of_my_own")
    module.number = 4  # which is not what another process imports
    fields = list(buffer.get_all_transitions())

    def play(explorer):
        with module.lock:
            explorer.buffer.add(**dict.fromkeys(fields, module.number))

    try:
        with Explorers(play, 1, buffer) as explorers:
            assert explorers.join(DEADLINE)
        assert buffer.get_all_transitions()[fields[0]].ravel().tolist() == [3]
    finally:
        del sys.modules["module_of_my_own"]


@pytest.mark.parametrize("start_method", methods("spawn"))
def test_the_working_directory_may_hold_another_package_of_this_name(tmp_path, start_method):
    (tmp_path / "mpbuffer").mkdir()
    (tmp_path / "mpbuffer" / "__init__.py").write_text("raise ImportError('the wrong one')\n")
    (tmp_path / "programs").mkdir()
    program = tmp_path / "programs" / "program.py"
    program.write_text(
        "import mpbuffer\n"
        "def explore(explorer):\n"
        "    explorer.buffer.add(x=explorer.index)\n"
        "if __name__ == '__main__':\n"
        "    with mpbuffer.ReplayBuffer(8, {'x': {}}) as buffer:\n"
        f"        how = {{'start_method': {start_method!r}}}\n"
        "        with mpbuffer.Explorers(explore, 2, buffer, **how) as explorers:\n"
        f"            assert explorers.join({DEADLINE})\n"
        "        assert len(buffer) == 2\n"
    )
    ended = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, capture_output=True, timeout=DEADLINE
    )
    assert ended.returncode == 0, ended.stderr.decode()


def test_an_explorer_looks_for_modules_where_the_learner_does():
    name = WatchedName("explorer-0")
    name.learner = ProcessIdentity.of(os.getpid())
    script = (
        "import pickle, sys; name = pickle.loads(sys.stdin.buffer.read());"
        "print(name, *sys.path, sep='\\n')"
    )
    ended = run_python(script=script, stdin=pickle.dumps(name))
    assert ended.stderr == b""
    assert ended.stdout.decode().splitlines() == ["explorer-0", *sys.path]


def test_what_cannot_be_unpickled_is_told(buffer):
    class Bad:
        def __reduce__(self):
            return int, ("not a number",)

    explorers = Explorers(lambda explorer, _: None, 1, buffer, args=(Bad(),))
    with explorers, pytest.raises(ExplorerFailed, match="invalid literal for int"):
        explorers.join(DEADLINE)


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_what_cannot_be_pickled_is_told_at_once(buffer, start_method):
    class Unpicklable:
        def __reduce__(self):
            raise TypeError("stays here")

    explorers = Explorers(
        lambda explorer, _: None, 2, buffer, args=(Unpicklable(),), start_method=start_method
    )
    with pytest.raises(TypeError, match="stays here"), explorers:
        pass
    assert explorers.alive == 0


def test_one_whose_child_lives_on_comes_back(buffer, tmp_path):
    """The child has copies of whatever the explorer inherited from the learner."""

    def play_with_a_child(explorer):
        if explorer.restart == 0 and (pid := os.fork()):
            (tmp_path / "child").write_text(str(pid))
        elif explorer.restart == 0:
            time.sleep(DEADLINE)
            os._exit(0)
        explorers_processes.play(explorer)

    with Explorers(play_with_a_child, 1, buffer, start_method="fork", backoff=0) as explorers:
        os.kill(wait_for_rows(buffer, explorers, 1)[0]["pid"], signal.SIGKILL)
        child = int((tmp_path / "child").read_text())
        try:
            until(lambda: last_rows(buffer)[0]["restart"] == 1, explorers)
            assert stat_of(child)[0] not in "ZX"
        finally:
            os.kill(child, signal.SIGKILL)
            until(lambda: (stat := stat_of(child)) is None or stat[0] in "ZX")


@pytest.mark.parametrize("start_method", methods("fork"))
def test_a_restart_for_which_there_are_no_descriptors_comes_later(buffer, start_method, caplog):
    with Explorers(
        explorers_processes.play, 1, buffer, start_method=start_method, backoff=0.02
    ) as explorers:
        os.kill(wait_for_rows(buffer, explorers, 1)[0]["pid"], signal.SIGKILL)
        until(lambda: explorers.status()[0].state == "waiting", explorers)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            until(lambda: "could not be restarted ([Errno 24]" in caplog.text, explorers)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        until(lambda: last_rows(buffer)[0]["restart"] > 1, explorers)


@pytest.mark.parametrize("start_method", methods("fork", "forkserver"))
def test_a_death_ends_the_run_if_asked(buffer, start_method):
    def run():
        with Explorers(
            explorers_processes.play, 2, buffer, start_method=start_method, on_death="raise"
        ) as explorers:
            pid = wait_for_rows(buffer, explorers, 2)[0]["pid"]
            os.kill(pid, signal.SIGALRM)
            until(lambda: False, explorers)

    with pytest.raises(ExplorerFailed, match=r"explorer 0 .* was killed by SIGALRM") as caught:
        run()
    assert caught.value.exit_code == -signal.SIGALRM
    assert caught.value.remote_traceback == ""


def test_a_restart_waits_twice_as_long_after_each_death_in_succession():
    place = Place(0, 0.4, None)
    waits = [place.seconds_to_restart(lived, 0.25, 1.5) for lived in (0, 1.5, 0, 0, 1.6, 0, 0)]
    assert waits == [0.25, 0.5, 1.0, 1.5, 0.25, 0.5, 1.0]
    assert {place.seconds_to_restart(0, 0.25, 10) for _ in range(5_000)} == {2.0, 4.0, 8.0, 10.0}


@pytest.mark.parametrize("start_method", methods("fork"))
def test_restarts_come_later_and_later_and_end(buffer, start_method, caplog):
    explorers = Explorers(
        explorers_processes.leave_at_once,
        1,
        buffer,
        args=(3,),
        start_method=start_method,
        max_restarts=3,
        backoff=0.02,
    )
    with explorers, pytest.raises(ExplorerFailed, match="exit code 3 after 3 restarts"):
        explorers.join(DEADLINE)
    assert explorers.status()[0].restarts == 3
    assert [record.args[-1] for record in caplog.records] == [0.02, 0.04, 0.08]


def test_leaving_without_a_word_is_no_return(buffer):
    explorers = Explorers(
        explorers_processes.leave_at_once, 1, buffer, args=(0,), start_method="fork", max_restarts=0
    )
    with explorers, pytest.raises(ExplorerFailed, match="exit code 0 after 0 restarts"):
        explorers.join(DEADLINE)


def test_one_that_never_returns_is_terminated_and_then_killed(buffer, caplog, monkeypatch):
    monkeypatch.setattr(mpbuffer.explorers.explorers, "_SECONDS_TO_TERMINATE", 0.2)
    for function, exit_code in (
        (explorers_processes.play_deaf, -signal.SIGTERM),
        (explorers_processes.play_and_ignore_signals, -signal.SIGKILL),
    ):
        with Explorers(function, 1, buffer, start_method="fork", stop_timeout=0.1) as explorers:
            wait_for_rows(buffer, explorers, 1)
        assert explorers.status()[0].exit_code == exit_code
        assert explorers.status()[0].state == "stopped"
        assert "did not return within 0.1 s" in caplog.text
        buffer.clear()


def test_one_may_take_its_time_to_return(buffer, monkeypatch):
    monkeypatch.setattr(mpbuffer.explorers.process, "_SECONDS_TO_RETURN", 0.05)

    def play_on(explorer):
        tell(explorer)
        explorer.stopping.wait()
        time.sleep(0.3)
        tell(explorer, 1.0)

    with Explorers(play_on, 1, buffer, start_method="fork") as explorers:
        wait_for_rows(buffer, explorers, 1)
    assert last_rows(buffer)[0]["draw"] == 1.0
    assert explorers.status()[0].exit_code == 0


def test_a_stopped_one_is_killed(buffer, monkeypatch):
    monkeypatch.setattr(mpbuffer.explorers.explorers, "_SECONDS_TO_TERMINATE", 0.2)
    with Explorers(
        explorers_processes.play, 1, buffer, start_method="fork", stop_timeout=0.1
    ) as explorers:
        os.kill(wait_for_rows(buffer, explorers, 1)[0]["pid"], signal.SIGSTOP)
    assert explorers.status()[0].exit_code == -signal.SIGKILL


def test_start_and_stop_at_once(buffer, start_method, capfd):
    with Explorers(explorers_processes.play, 3, buffer, start_method=start_method) as explorers:
        pass
    assert explorers.alive == 0
    assert capfd.readouterr().err == ""
    with pytest.raises(RuntimeError, match="started before"):
        explorers.start()


def test_a_forked_child_of_the_learner_does_not_stop_them(buffer):
    with Explorers(explorers_processes.play, 1, buffer, start_method="fork") as explorers:
        wait_for_rows(buffer, explorers, 1)
        pid = os.fork()
        if pid == 0:
            explorers.stop()
            os._exit(0)
        os.waitpid(pid, 0)
        time.sleep(0.1)
        explorers.check()
        assert explorers.alive == 1


def test_epsilons(buffer):
    for explorers, expected in (
        (Explorers(print, 1, buffer), [0.4]),
        (Explorers(print, 1, buffer, epsilon=0.1), [0.1]),
        (Explorers(print, 2, buffer, epsilon=0.5, alpha=1), [0.5, 0.25]),
        (Explorers(print, 3, buffer), [0.4, 0.4**4.5, 0.4**8]),
    ):
        assert [each.epsilon for each in explorers.status()] == pytest.approx(expected)
        assert [each.state for each in explorers.status()] == ["new"] * len(explorers)


def test_a_seed_is_chosen_if_none_is_given(buffer):
    seeds = {Explorers(print, 1, buffer).seed for _ in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"function": 3}, "function must be callable, got 3"),
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"n": 1.5}, "n must be an int, got 1.5"),
        ({"n": True}, "n must be an int"),
        ({"buffer": []}, r"buffer must be a replay buffer, got \[\]"),
        ({"epsilon": 1.5}, r"epsilon must be in \[0, 1\], got 1.5"),
        ({"alpha": -1}, "alpha must be a finite number"),
        ({"start_method": "thread"}, "start_method must be one of fork, spawn, forkserver"),
        ({"on_death": "ignore"}, "on_death must be one of restart, raise, got 'ignore'"),
        ({"max_restarts": -1}, "max_restarts must be at least 0"),
        ({"backoff": -1}, "backoff must be a finite number of seconds"),
        ({"max_backoff": np.inf}, "max_backoff must be a finite"),
        ({"stop_timeout": np.nan}, "stop_timeout must be"),
        ({"pin": [100_000]}, r"pin must name cores of \[0.*got \[100000\]"),
        ({"pin": []}, "pin must name cores"),
        ({"nice": 20}, r"nice must be in \[0, 19\], got 20"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"seed": -1}, "non-negative"),
    ],
)
def test_wrong_arguments(buffer, arguments, error):
    with pytest.raises((TypeError, ValueError), match=error):
        Explorers(**{"function": print, "n": 2, "buffer": buffer} | arguments)


def test_cores_niceness_and_threads(buffer, start_method, tmp_path, monkeypatch, request):
    for variable in THREAD_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "2")
    before = dict(os.environ)
    path = str(tmp_path / "{}.json")
    if start_method == "forkserver":
        request.addfinalizer(forkserver._forkserver._stop)
        forkserver._forkserver._stop()  # it has the environment of the first to need it
    with Explorers(
        explorers_processes.tell_of_place,
        2,
        buffer,
        args=(path,),
        start_method=start_method,
        pin=True,
        nice=1,
    ) as explorers:
        assert explorers.join(DEADLINE)
    assert dict(os.environ) == before
    usable = sorted(os.sched_getaffinity(0))
    for index in range(2):
        place = json.loads(Path(path.format(index)).read_text())
        core = (usable[1:] + usable[:1])[index % len(usable)]
        assert len(place["cores"]) > 1, "the watch is a thread, too"
        assert all(cores == [core] for cores in place["cores"])
        assert set(place["nice"]) == {os.getpriority(os.PRIO_PROCESS, 0) + 1}
        expected = ["2" if each == "MKL_NUM_THREADS" else "1" for each in THREAD_VARIABLES]
        assert place["variables"] == expected
        assert place["interrupt"] == str(signal.SIG_IGN) and not place["blocked"]
        if start_method != "fork":
            assert place["at_exec"]["OMP_NUM_THREADS"] == "1", "set before anything is imported"
            assert place["at_exec"]["MKL_NUM_THREADS"] == "2"


def test_torch_uses_one_thread(buffer, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for threads, expected in ((1, 1), (None, 2)):
            buffer.clear()
            with Explorers(
                lambda explorer: tell(explorer, torch.get_num_threads()),
                1,
                buffer,
                start_method="fork",
                threads=threads,
            ) as explorers:
                assert explorers.join(DEADLINE)
            assert buffer.get_all_transitions()["draw"] == [expected]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("start_method", methods("fork", "spawn"))
def test_the_users_number_of_threads_wins(buffer, start_method, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with Explorers(
        explorers_processes.tell_threads_of_torch, 1, buffer, start_method=start_method
    ) as explorers:
        assert explorers.join(DEADLINE)
    assert buffer.get_all_transitions()["draw"] == [min(2, os.cpu_count())]


def test_linear_algebra_follows_its_variables(monkeypatch):
    """By threadpoolctl, which need not be there."""
    libraries = [
        types.SimpleNamespace(internal_api=name, set_num_threads=[].append)
        for name in ("openblas", "mkl", "flexiblas")
    ]
    found = types.SimpleNamespace(lib_controllers=libraries)
    fake = types.SimpleNamespace(ThreadpoolController=lambda: found)
    monkeypatch.setitem(sys.modules, "threadpoolctl", fake)
    for variable in THREAD_VARIABLES:
        monkeypatch.setenv(variable, "4")
    monkeypatch.setenv("MKL_NUM_THREADS", "2")
    _limit_threads(1, {})
    assert [each.set_num_threads.__self__ for each in libraries] == [[4], [2], [4]]


def test_an_identity_is_a_process_and_not_a_pid():
    own = ProcessIdentity.of(os.getpid())
    assert own.is_alive()
    assert not own._replace(started=own.started - 1).is_alive()
    pid = os.fork()
    if pid == 0:
        signal.pause()
    child = ProcessIdentity.of(pid)
    assert child.is_alive()
    os.kill(pid, signal.SIGKILL)
    until(lambda: stat_of(pid)[0] == "Z")
    assert not child.is_alive()
    os.waitpid(pid, 0)
    assert not child.is_alive() and ProcessIdentity.of(pid) is None


class Learner:
    """A learner as a program of its own, in a session of its own."""

    def __init__(self, process):
        self.process = process

    def read_line(self):
        line = self.process.stdout.readline().decode().split()
        assert line, self.process.communicate(timeout=DEADLINE)
        return line

    def wait_until_gone(self, seconds):
        """Wait for the whole session to end; the processes that do not are told."""
        self.process.wait(DEADLINE)
        deadline = time.monotonic() + seconds
        while left := living_of_session(self.process.pid):
            assert time.monotonic() < deadline, left
            time.sleep(0.01)


@contextlib.contextmanager
def learner_started(start_method, function, n=2):
    with python_started(
        str(SUPPORT / "explorers_processes.py"),
        start_method,
        function,
        str(n),
        stderr=subprocess.PIPE,
        # What runs in the background of a script ignores Ctrl-C, and hands that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        yield Learner(process)


@pytest.mark.parametrize(
    "cases",
    [
        [("fork", signal.SIGKILL), ("spawn", signal.SIGKILL), ("forkserver", signal.SIGTERM)],
        pytest.param(
            [("fork", signal.SIGTERM), ("spawn", signal.SIGTERM), ("forkserver", signal.SIGKILL)],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_no_explorer_outlives_the_learner(cases):
    with contextlib.ExitStack() as stack:
        learners = []
        for start_method, killed_by in cases:
            function = "play_and_end_slowly" if start_method == "spawn" else "play_deaf"
            learner = stack.enter_context(learner_started(start_method, function))
            learners.append((learner, start_method, killed_by))
        for learner, start_method, killed_by in learners:
            assert learner.read_line() == ["starting"]
            pids = list(map(int, learner.read_line()[1:]))
            assert len(pids) == 2 and all(stat_of(pid) for pid in pids)
            if start_method == "fork":
                os.kill(pids[1], signal.SIGSTOP)  # it holds copies of its siblings' pipes
                os.kill(learner.process.pid, killed_by)
                until(
                    lambda p=pids[0], s=learner.process.pid: p not in living_of_session(s), None, 2
                )
                os.kill(pids[1], signal.SIGCONT)
            else:
                os.kill(learner.process.pid, killed_by)
        for learner, *_ in learners:
            learner.wait_until_gone(2)
            assert learner.process.stderr.read() == b""


@pytest.mark.parametrize(
    "cases",
    [
        [("spawn", "end_stuck", 3), ("fork", "play_stuck", 2)],
        pytest.param([("forkserver", "play_stuck", 2)], marks=pytest.mark.slow),
    ],
)
def test_no_explorer_outlives_the_learner_where_python_is_stuck(cases):
    with contextlib.ExitStack() as stack:
        learners = [(stack.enter_context(learner_started(*case)), case[2]) for case in cases]
        for learner, n in learners:
            said = sorted(learner.read_line()[0] for _ in range(2 + n))
            assert said == ["playing", "starting"] + ["stuck"] * n
        for learner, _ in learners:
            learner.process.kill()
        for learner, _ in learners:
            learner.wait_until_gone(2)
            assert learner.process.stderr.read() == b""
    mpbuffer.ReplayBuffer(1, {"x": {}}).close()  # removes what nobody was left to close


def test_no_explorer_outlives_the_learner_while_it_imports(tmp_path):
    program = tmp_path / "learner.py"
    program.write_text("""
import time
import mpbuffer

if __name__ == "__mp_main__":
    print("importing", flush=True)
    time.sleep(60)

if __name__ == "__main__":
    with mpbuffer.ReplayBuffer(10, {"a": {}}) as buffer:
        with mpbuffer.Explorers(print, 1, buffer) as explorers:
            explorers.join()
""")
    with python_started(str(program), stderr=subprocess.PIPE) as process:
        learner = Learner(process)
        assert learner.read_line() == ["importing"]
        process.kill()
        learner.wait_until_gone(2)
        assert process.stderr.read() == b""
    mpbuffer.ReplayBuffer(1, {"x": {}}).close()  # removes what nobody was left to close


@pytest.mark.parametrize(
    "cases",
    [
        [
            ("fork", "playing"),
            ("spawn", "starting"),
            ("forkserver", "playing"),
            ("fork", "starting"),
        ],
        pytest.param([("spawn", "playing"), ("forkserver", "starting")], marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_ends_everything_once_and_quietly(cases):
    with contextlib.ExitStack() as stack:
        learners = []
        for start_method, when in cases:
            learner = stack.enter_context(learner_started(start_method, "play"))
            learner.read_line()
            if when == "playing":
                learner.read_line()
            else:
                time.sleep(0.05)
            os.killpg(learner.process.pid, signal.SIGINT)  # as a terminal does
            learners.append(learner)
        for learner in learners:
            out, err = learner.process.communicate(timeout=DEADLINE)
            assert out.decode().splitlines()[-1] == "interrupted 1"
            assert err == b"" and learner.process.returncode == 0
            learner.wait_until_gone(2)


def test_a_second_ctrl_c_ends_the_waiting():
    with learner_started("fork", "play_and_ignore_signals") as learner:
        learner.read_line()
        learner.read_line()
        os.killpg(learner.process.pid, signal.SIGINT)
        time.sleep(0.3)
        os.killpg(learner.process.pid, signal.SIGINT)
        learner.process.communicate(timeout=DEADLINE)
        learner.wait_until_gone(2)


NOTEBOOK = [
    """
import numpy as np
import mpbuffer
scale = 3.0
""",
    """
def reward(action):
    return scale * np.float64(action)

def explore(explorer):
    while not explorer.should_stop():
        action = int(explorer.rng.integers(2))
        explorer.buffer.add(obs=np.ones(4), act=action, rew=reward(action))
""",
    """
fields = {"obs": {"shape": 4}, "act": {"dtype": int}, "rew": {}}
values = np.zeros(2)
with mpbuffer.PrioritizedReplayBuffer(1_000, fields) as buffer:
    with mpbuffer.Explorers(explore, 2, buffer) as explorers:
        while buffer.get_stored_size() < 500:
            explorers.check()
        for _ in range(300):
            explorers.check()
            sample = buffer.sample(32, beta=0.4)
            act, rew = sample["act"].ravel(), sample["rew"].ravel()
            errors = rew - values[act]
            np.add.at(values, act, 0.05 * errors)
            buffer.update_priorities(sample["indexes"], np.abs(errors))
assert np.allclose(values, [0, 3], atol=0.01), values
print("trained", explorers.alive)
""",
]


def test_a_notebook_trains_with_explorers_from_a_cell():
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    cells = [nbformat.v4.new_code_cell(source) for source in NOTEBOOK]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = nbclient.NotebookClient(
        notebook, timeout=60, kernel_name="python3", shutdown_kernel="immediate"
    )
    notebook = client.execute()
    assert notebook.cells[-1].outputs[0]["text"] == "trained 0\n"
