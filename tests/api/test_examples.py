"""The examples run as they are documented, and leave nothing behind however they end."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from watched_processes import end_process, run_python

import mpbuffer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


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


learners = set()  # of the current test, ended ones too: their pids, as text


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
        learners.add(str(self.process.pid).encode())
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

    def wait_until(self, condition, what, seconds=60):
        """Wait until something about the running program is so."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, f"in vain: {what}"
            time.sleep(0.05)

    def wait_for_explorers(self, count):
        """Wait until so many explorers have opened the buffer."""
        self.wait_until(lambda: len(self.explorers()) >= count, "the explorers start")

    def wait_for_checkpoint(self, newer_than=0.0):
        """Wait for a checkpoint to be written; return when that was."""
        path = self.out / "checkpoint.pt"
        self.wait_until(lambda: path.exists() and path.stat().st_mtime > newer_than, "a checkpoint")
        return path.stat().st_mtime

    def kill(self):
        """Kill the learner; everything else must end within two seconds."""
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + 2
        while left := processes_of_session(self.process.pid):
            assert time.monotonic() < deadline, f"still running: {left}"
            time.sleep(0.02)

    def explorers(self):
        """Pids of its processes that have a buffer's segment mapped, but the learner's."""
        mapped = []
        for pid in processes_of_session(self.process.pid):
            with contextlib.suppress(OSError):
                if re.search("/memfd:mpbuffer-", Path(f"/proc/{pid}/maps").read_text()):
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


@pytest.mark.parametrize("memory", [True, False])
def test_recurrent_q_learning_replays_sequences_of_explorers(tmp_path, learning_packages, memory):
    # Solved as soon as the first evaluation: whoever guesses passes half of the doors.
    file = tmp_path / "result.json"
    options = ["--evaluate", "20", *([] if memory else ["--memoryless"])]
    output = output_of("r2d2.py", "--solved-at", "0.3", "--out", file, *options)
    result = json.loads(file.read_text())
    assert result["solved"] and "mean greedy return" in output
    assert result["memoryless"] is not memory
    assert len(result["returns"]) == 1 and 0.3 <= result["final_return"] <= 1


def test_doors_of_the_corridor_open_to_the_side_of_the_cue(learning_packages):
    remembers, guesses = lines_of("""
import r2d2
for by_cue in (True, False):
    rng = np.random.default_rng(1)
    corridor = r2d2.Corridor(500, rng)
    obs, all_returns = corridor.reset(), []
    cue = (obs[:, 0] > 0).astype(int)
    for t in range(corridor.length):
        act = cue if by_cue else rng.integers(2, size=500)
        obs, rew, ended, returns = corridor.step(act)
        assert ended.all() == ended.any() == (t == corridor.length - 1)
        all_returns.extend(returns)
    print(np.mean(all_returns))
""")
    assert float(remembers) == 1 and 0.45 < float(guesses) < 0.55


def test_explorers_add_to_the_buffer_of_stable_baselines3(learning_packages):
    pytest.importorskip("stable_baselines3")
    output = output_of("sb3_explorers.py", "--explorers", "1", "--steps", "600")
    own, added = (int(each.replace(",", "")) for each in re.findall(r"[\d,]*\d", output))
    assert own == 600 < added


def test_programs_that_have_no_time_end_in_order(tmp_path, learning_packages):
    for example in ("sac_vector.py", "apex.py", "r2d2.py"):
        out = str(tmp_path / example)
        ended = run_python(str(EXAMPLES / example), "--time-limit", "0", "--out", out)
        assert (ended.returncode, ended.stderr) == (1, b""), ended.stderr.decode()
        assert b"not solved" in ended.stdout


def test_programs_refuse_numbers_that_make_no_sense(learning_packages):
    for example, option, value in (
        ("sac_vector.py", "--explorers", "0"),
        ("sac_vector.py", "--envs", "0"),
        ("apex.py", "--seed", "-1"),
        ("quickstart.py", "--steps", "0"),
        ("r2d2.py", "--explorers", "0"),
    ):
        ended = run_python(str(EXAMPLES / example), option, value)
        assert ended.returncode == 2 and f"{option}: expected" in ended.stderr.decode()


IN_EXAMPLES = f"""
import sys, threading, types
sys.path.insert(0, {str(EXAMPLES)!r})
import numpy as np, torch, mpbuffer
"""


def lines_of(script):
    ended = run_python(script=IN_EXAMPLES + script)
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout.decode().split()


def test_apex_shows_the_last_episodes_once_its_ring_has_wrapped(learning_packages):
    assert lines_of("""
import apex
with mpbuffer.ReplayBuffer(10, {"ret": {}, "at": {"dtype": float}}) as returns:
    for number in range(13):
        returns.add(ret=number, at=number)
    print(*apex.last_returns(returns, 4).ravel())
""") == ["9.0", "10.0", "11.0", "12.0"]


def test_apex_stores_each_frame_of_a_stack_once(learning_packages):
    """The tasks on Atari have observations like these."""
    told = lines_of("""
import dataclasses
import gymnasium, numpy as np
import apex

class Screens(gymnasium.Env):
    action_space = gymnasium.spaces.Discrete(3)
    observation_space = gymnasium.spaces.Box(0, 255, (84, 84), np.uint8)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}
    def step(self, action):
        return self.observation_space.sample(), 1.0, bool(action == 2), False, {}

env = gymnasium.wrappers.FrameStackObservation(Screens(), 4)
task = dataclasses.replace(apex.TASKS["ALE/Pong-v5"], capacity=300)
with apex.open_buffer(task, env, 0, None, None) as rb:
    (obs, _), added = env.reset(seed=1), []
    with rb.writer(flush_every=50) as writer:
        for act in [0] * 99 + [2]:
            next_obs, rew, terminated, truncated, _ = env.step(act)
            ends = {"terminated": terminated, "truncated": truncated}
            writer.add(obs=obs, act=act, rew=rew, next_obs=next_obs, **ends)
            added, obs = [*added, obs], next_obs
    rows = rb.get_all_transitions()
    assert (rows["obs"] == np.array(added)).all() and (rows["next_obs"][-1] == next_obs).all()
    assert (rows["next_obs"][:-3] == rows["obs"][3:]).all()
    assert rb.stats()["sources_written"] == 101  # 4 equal ones first
    assert rb.nbytes < 100_000_000
""")
    shared, plain = (
        int(told[told.index(word) + 1].replace(",", "")) for word in ("holds", "rows;")
    )
    assert shared > 6 * plain


def test_apex_that_resumes_a_solved_run_has_to_solve_it_again(tmp_path, learning_packages):
    torch = pytest.importorskip("torch")
    arguments = str(EXAMPLES / "apex.py"), "--time-limit", "0", "--out", str(tmp_path)
    run_python(*arguments)
    saved = torch.load(tmp_path / "checkpoint.pt")
    saved["result"]["solved"] = True
    torch.save(saved, tmp_path / "checkpoint.pt")
    ended = run_python(*arguments, "--resume")
    assert ended.returncode == 1 and b"not solved" in ended.stdout, ended.stderr.decode()


def test_a_restarted_explorer_of_soft_actor_critic_keeps_to_the_learners_pace(learning_packages):
    (rows,) = lines_of("""
import gymnasium, sac_vector
env = gymnasium.make("Pendulum-v1")
policy = sac_vector.Policy(env.observation_space, env.action_space)
with (
    mpbuffer.ReplayBuffer(10_000, mpbuffer.schema_from(env)) as buffer,
    mpbuffer.SharedWeights(policy.state_dict()) as weights,
):
    for _ in range(100):
        weights.publish(policy.state_dict())
    stopping = threading.Event()
    explorer = types.SimpleNamespace(
        buffer=buffer, n=1, rng=np.random.default_rng(1), stopping=stopping,
        should_stop=stopping.is_set,
    )
    threading.Timer(2, stopping.set).start()
    sac_vector.explore(explorer, weights, types.SimpleNamespace(env="Pendulum-v1", envs=8))
    print(buffer.rows_added())
""")
    assert 8 <= int(rows) < 100


def test_apex_tells_its_options(learning_packages):
    output = output_of("apex.py", "--help")
    assert all(each in output for each in ("--env", "--explorers", "--resume", "--out"))


def test_apex_stops_cleanly_on_ctrl_c(tmp_path, learning_packages):
    with ApexRun(tmp_path, "--explorers", "2") as run:
        run.wait_for_explorers(2)
        time.sleep(0.5)
        os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does
        _, errors = run.wait()
    assert run.process.returncode not in (0, -signal.SIGINT), errors
    assert "Traceback" not in errors


@pytest.fixture
def no_keeper_stays():
    """What keeps the rows of an ended learner would do so for a while longer."""
    learners.clear()
    yield
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().split(b"\0")
            if b"mpbuffer._segment.keeper" in b"".join(command) and learners & set(command):
                end_process(int(entry.name))
    mpbuffer.ReplayBuffer(1, {"x": {}}).close()  # removes what nobody was left to close


def test_apex_outlives_its_explorers_and_its_learner(tmp_path, learning_packages, no_keeper_stays):
    options = ("--explorers", "2", "--linger", "60")
    with ApexRun(tmp_path, *options) as run:
        run.wait_for_explorers(2)
        killed = run.explorers()[0]
        os.kill(killed, signal.SIGKILL)
        run.wait_until(lambda: len(set(run.explorers()) - {killed}) == 2, "it is replaced")
        run.wait_for_checkpoint()
        run.kill()

    with ApexRun(tmp_path, *options, "--resume", "--time-limit", "1.5") as run:
        output, errors = run.wait()
    assert run.process.returncode == 1 and errors == "", errors
    assert "resuming after" in output and "not solved" in output
    assert "the rows of the earlier run are gone" not in output
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["solved"] is False and result["runs"] == 2
    assert result["cycles"] > result["returns"][0]["cycles"] > 0
    assert (tmp_path / "returns.png").stat().st_size > 1_000


def test_apex_goes_on_from_its_snapshot_when_all_processes_are_killed(
    tmp_path, learning_packages, no_keeper_stays
):
    with ApexRun(tmp_path, "--explorers", "2") as run:
        run.wait_for_explorers(2)
        run.wait_for_checkpoint()
        os.killpg(run.process.pid, signal.SIGKILL)
    with mpbuffer.restore(tmp_path / "rows") as rows:
        saved = rows.rows_added()
    assert saved > 1_000

    with ApexRun(tmp_path, "--explorers", "2", "--resume", "--time-limit", "1.5") as run:
        output, errors = run.wait()
    assert run.process.returncode == 1 and errors == "", errors
    assert "resuming after" in output and "are gone" not in output
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["runs"] == 2 and result["cycles"] >= result["returns"][0]["cycles"] > 0
    assert result["buffer"]["stored"] >= min(saved, result["buffer"]["rows"])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_apex_solves_its_task_though_everybody_is_killed(
    tmp_path, learning_packages, no_keeper_stays
):
    """Explorers and the learner are killed again and again; MPBUFFER_KILLS says how often."""
    rng = random.Random(1)
    kills, wanted = {"explorer": 0, "learner": 0}, int(os.environ.get("MPBUFFER_KILLS", "100"))
    options = ("--explorers", "2", "--linger", "60", "--time-limit", "600")
    resume, solved = (), 0
    while sum(kills.values()) < wanted or not solved:
        with ApexRun(tmp_path, *options, *resume, "--seed", str(solved)) as run:
            begun, learner_at = time.time(), rng.uniform(1, 20)
            with contextlib.suppress(AssertionError):  # it may have solved the task meanwhile
                run.wait_for_checkpoint(begun)
            while run.process.poll() is None:
                time.sleep(rng.uniform(0.1, 2))
                if sum(kills.values()) >= wanted:
                    run.wait(600)
                elif learner_at < time.time() - begun - 5:
                    run.kill()
                    kills["learner"] += 1
                elif pids := run.explorers():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(rng.choice(pids), signal.SIGKILL)
                        kills["explorer"] += 1
            if run.process.returncode == -signal.SIGKILL:
                resume = ("--resume",)
            else:
                output, errors = run.wait()
                assert run.process.returncode == 0, output + errors
                solved, resume = solved + 1, ()
    print(kills, solved)
    assert min(kills.values()) > 0
