"""How many handles a buffer has room for, and what few rows take."""

import os

import numpy as np
import pytest

import mpbuffer
from mpbuffer import PrioritizedReplayBuffer, ProcessTableFull, ReplayBuffer
from mpbuffer.inspect.inspection import inspect

CARTPOLE = {
    "obs": {"shape": 4},
    "act": {"dtype": "i8"},
    "rew": {},
    "next_obs": {"shape": 4},
    "done": {},
}
both_classes = pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplayBuffer])


@both_classes
def test_ten_rows_take_at_most_64_kib(cls):
    with cls(10, CARTPOLE, name="small.ten") as buffer:
        assert buffer.nbytes <= 64 << 10
        assert os.stat(f"/dev/shm/mpbuffer-{os.getuid()}-small.ten").st_size == buffer.nbytes
        assert buffer.max_handles == 62


@both_classes
def test_many_rows_have_room_for_all_handles_by_default(cls):
    with cls(200_000, CARTPOLE) as buffer:
        assert buffer.max_handles == 1022
    with cls(20_000, CARTPOLE) as buffer:  # a sixteenth of their 64 bytes each
        assert buffer.max_handles == 20_000 * 64 // 16 // 576


@both_classes
def test_so_many_handles_may_be_open_and_one_more_is_refused(cls):
    with cls(4, {"a": {}}, max_handles=2) as buffer:
        with mpbuffer.attach(buffer.name) as other:
            assert other.max_handles == 2
            other.add(a=1)
            with pytest.raises(ProcessTableFull, match=r"got 2 open handles.* max_handles="):
                mpbuffer.attach(buffer.name)
            assert len(buffer.processes()) == 2
        with mpbuffer.attach(buffer.name) as other:
            other.add(a=2)
        assert len(buffer) == 2 and buffer.rows_added() == 2


def test_one_handle_alone():
    with ReplayBuffer(4, {"a": {}}, max_handles=1) as buffer:
        buffer.add(a=1)
        with pytest.raises(ProcessTableFull):
            mpbuffer.attach(buffer.name)
        assert buffer.sample(1)["a"] == 1


@both_classes
@pytest.mark.parametrize("wrong", [0, -1, 1023, 2**70])
def test_a_number_of_handles_that_cannot_be(cls, wrong):
    with pytest.raises(ValueError, match=r"max_handles must be in \[1, 1022\]"):
        cls(4, {"a": {}}, max_handles=wrong)
    with pytest.raises(ValueError, match="max_handles"):
        mpbuffer.SharedWeights({"w": np.zeros(2)}, max_handles=wrong)


@pytest.mark.parametrize("wrong", [2.0, "2", True])
def test_handles_that_are_no_number(wrong):
    with pytest.raises(TypeError, match="max_handles must be an int"):
        ReplayBuffer(4, {"a": {}}, max_handles=wrong)


def test_inspect_tells_the_number():
    with ReplayBuffer(4, {"a": {}}, name="small.told", max_handles=7):
        assert inspect("small.told")["max_handles"] == 7


def test_a_restored_buffer_has_the_default_or_what_is_given(tmp_path):
    with ReplayBuffer(4, {"a": {}}, max_handles=7) as buffer:
        buffer.add(a=1)
        buffer.snapshot(tmp_path)
    with mpbuffer.restore(tmp_path) as again:
        assert again.max_handles == 62
    with mpbuffer.restore(tmp_path, max_handles=3) as again:
        assert again.max_handles == 3 and again.sample(1)["a"] == 1


def test_weights_have_room_for_as_many_handles_as_they_are_told():
    with mpbuffer.SharedWeights({"w": np.zeros(2)}, name="small.weights", max_handles=2) as weights:
        assert os.stat(f"/dev/shm/mpbuffer-{os.getuid()}-small.weights").st_size <= 32 << 10
        with mpbuffer.SharedWeights.attach(weights.name) as reader:
            weights.publish({"w": np.ones(2)})
            assert reader.read()["w"].tolist() == [1, 1]
            with pytest.raises(ProcessTableFull, match="got 2 open handles"):
                mpbuffer.SharedWeights.attach(weights.name)


def test_explorers_that_cannot_all_have_a_handle_are_refused_at_once():
    with ReplayBuffer(4, {"a": {}}, max_handles=3) as buffer:
        with pytest.raises(ValueError, match=r"got n=3, expected at most 2; .*max_handles=4"):
            mpbuffer.Explorers(print, 3, buffer)
        mpbuffer.Explorers(print, 2, buffer)
