"""Buffers of one process: ``shared=False``."""

import io
import multiprocessing
import os
import pickle

import numpy as np
import pytest

import mpbuffer
from mpbuffer import PrioritizedReplayBuffer, ReplayBuffer

FIELDS = {"obs": {"shape": 2}, "rew": {}, "next_obs": {"shape": 2}, "done": {}}
both_classes = pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplayBuffer])


def step(number, done=0):
    return {"obs": [number, 0], "rew": number, "next_obs": [number + 1, 0], "done": done}


def add_steps(buffer, count):
    for number in range(count):
        buffer.add(**step(number, done=number % 5 == 4))


def answer_of_fork(function):
    """What `function` says in a forked child, as text."""
    out, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(end, repr(function()).encode())
        except BaseException as error:
            os.write(end, repr(error).encode())
        finally:
            os._exit(0)
    os.close(end)
    os.waitpid(pid, 0)
    with os.fdopen(out, "rb") as file:
        return file.read().decode()


@both_classes
def test_it_opens_no_descriptor_and_no_file(cls):
    descriptors, files = len(os.listdir("/proc/self/fd")), os.listdir("/dev/shm")
    with cls(10, FIELDS, shared=False) as buffer:
        add_steps(buffer, 12)
        buffer.sample(4)
        assert len(buffer) == 10 and not buffer.shared and buffer.max_handles == 1
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert os.listdir("/dev/shm") == files
    with cls(10, FIELDS) as buffer:
        assert buffer.shared


@both_classes
def test_it_takes_a_few_kilobytes_beside_its_rows(cls):
    with cls(10, FIELDS, shared=False) as buffer:
        assert buffer.nbytes <= 12_288
    with cls(100_000, FIELDS, shared=False) as buffer:
        leaves = 8 * 100_000 if cls is PrioritizedReplayBuffer else 0
        assert buffer.nbytes <= 100_000 * 64 + leaves + 12_288


def test_the_same_seed_draws_the_same_rows_as_from_a_shared_one():
    batches = []
    for shared in (True, False):
        with PrioritizedReplayBuffer(50, FIELDS, seed=3, shared=shared) as buffer:
            add_steps(buffer, 70)
            for _ in range(5):
                sample = buffer.sample(16, beta=0.5)
                buffer.update_priorities(sample["indexes"], sample["rew"].ravel() + 1)
                batches.append(sample)
            buffer.clear()
            assert len(buffer) == 0 and buffer.get_max_priority() == 1
    for one, other in zip(batches[:5], batches[5:], strict=True):
        for key, values in one.items():
            assert np.array_equal(values, other[key]), key


@pytest.mark.parametrize(
    "rule",
    [
        {"Nstep": {"size": 3, "gamma": 0.5, "rew": "rew", "next": "next_obs"}},
        {"next_of": "obs"},
        {"sequence": {"length": 4, "period": 2}},
    ],
    ids=["nstep", "frames", "sequences"],
)
@both_classes
def test_rows_of_every_kind_are_those_of_a_shared_buffer(cls, rule):
    fields = dict(FIELDS)
    if "next_of" in rule:
        del fields["next_obs"]
    found = []
    for shared in (True, False):
        with cls(40, fields, shared=shared, **rule) as buffer:
            with buffer.writer() as writer:
                for number in range(60):
                    row = step(number, done=number % 7 == 6)
                    writer.add(**row)
            add_steps(buffer, 10)
            buffer.on_episode_end()
            found.append(buffer.get_all_transitions())
            assert next(buffer.batches(4, prefetch=2))["obs"].shape[0] == 4
    assert found[0].keys() == found[1].keys()
    for key, values in found[0].items():
        assert np.array_equal(values, found[1][key]), key


@both_classes
def test_files_and_snapshots(cls, tmp_path):
    with cls(10, FIELDS, shared=False) as buffer:
        add_steps(buffer, 13)
        rows = buffer.get_all_transitions()
        file = io.BytesIO()
        buffer.save_transitions(file)
        buffer.snapshot(tmp_path)
    with cls(10, FIELDS, shared=False) as again:
        file.seek(0)
        again.load_transitions(file)
        assert sorted(again.get_all_transitions()["rew"]) == sorted(rows["rew"])
    with mpbuffer.restore(tmp_path) as again:
        assert again.shared and again.max_handles == 62
        assert np.array_equal(again.get_all_transitions()["obs"], rows["obs"])


@both_classes
def test_a_forked_child_has_a_copy_of_its_own(cls):
    with cls(4, {"a": {}}, shared=False) as buffer:
        buffer.add(a=[1, 2])
        buffer.sample(1)

        def in_child():
            buffer.add(a=3)
            buffer.sample(1)
            rows = buffer.get_all_transitions()["a"].ravel().tolist()
            return (
                rows,
                buffer.rows_added(),
                [each.pid == os.getpid() for each in buffer.processes()],
            )

        assert answer_of_fork(in_child) == "([1.0, 2.0, 3.0], 3, [True])"
        buffer.add(a=9)
        assert buffer.get_all_transitions()["a"].ravel().tolist() == [1, 2, 9]
        assert answer_of_fork(lambda: answer_of_fork(in_child)) == repr(
            "([1.0, 2.0, 9.0, 3.0], 4, [True])"
        )


def test_snapshots_of_two_copies_do_not_mix(tmp_path):
    """Both have the same positions, of other rows."""
    with ReplayBuffer(4, {"a": {}}, shared=False) as buffer:

        def in_child():
            buffer.add(a=5)
            buffer.snapshot(tmp_path)

        assert answer_of_fork(in_child) == "None"
        buffer.add(a=6)
        buffer.snapshot(tmp_path)
    with mpbuffer.restore(tmp_path) as again:
        assert again.get_all_transitions()["a"] == [[6]]


def test_a_child_that_only_closes_its_copy_leaves_the_parents():
    with ReplayBuffer(4, {"a": {}}, shared=False) as buffer:
        buffer.add(a=1)
        assert answer_of_fork(buffer.close) == "None"
        assert buffer.sample(1)["a"] == 1


def nothing(_):
    pass


@both_classes
def test_what_needs_another_process_says_what_to_do(cls):
    remedy = "leave shared=False away"
    with cls(4, {"a": {}}, shared=False) as buffer:
        with pytest.raises(TypeError, match=f"cannot pickle.*private.*{remedy}"):
            pickle.dumps(buffer)
        with pytest.raises(TypeError, match=remedy):
            multiprocessing.get_context("spawn").Process(target=nothing, args=(buffer,)).start()
        with pytest.raises(TypeError, match="cannot copy"):
            buffer.__copy__()
        with pytest.raises(ValueError, match=f"cannot keep.*private.*{remedy}"):
            buffer.keep_after_exit(1)
        for method in ("spawn", "fork"):
            with pytest.raises(ValueError, match=f"cannot start explorers.*private.*{remedy}"):
                mpbuffer.Explorers(nothing, 1, buffer, start_method=method)
        with pytest.raises(mpbuffer.SegmentNotFound, match="shared=False"):
            mpbuffer.attach(buffer.name)
        buffer.add(a=1)
        assert len(buffer) == 1


@both_classes
@pytest.mark.parametrize("argument", [{"name": "private"}, {"max_handles": 2}], ids=str)
def test_what_only_shared_buffers_have_is_refused(cls, argument):
    with pytest.raises(
        ValueError, match=r"cannot create a private buffer with .* shared=False away"
    ):
        cls(4, {"a": {}}, shared=False, **argument)


def test_too_many_rows_are_refused_before_memory_is_taken():
    with pytest.raises(mpbuffer.NotEnoughMemory):
        ReplayBuffer(10**10, FIELDS, shared=False)


def test_after_close_it_says_so():
    buffer = PrioritizedReplayBuffer(4, {"a": {}}, shared=False)
    buffer.close()
    buffer.close()
    for call in (lambda: buffer.add(a=1), lambda: buffer.sample(1), lambda: pickle.dumps(buffer)):
        with pytest.raises(mpbuffer.BufferClosed):
            call()
