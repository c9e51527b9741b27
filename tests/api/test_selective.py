"""Episodes that can be read and deleted, against a list of them."""

import doctest
import importlib
import multiprocessing
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watched_processes import join_within, receive_within

import mpbuffer
from mpbuffer import SelectiveReplayBuffer


def steps(first, count, done_at=()):
    t = np.arange(first, first + count)
    return t, t * 10, t / 2, t + 1, np.isin(np.arange(count), done_at)


def add(buffer, first, count, done_at=()):
    return buffer.add(*steps(first, count, done_at))


def observations(buffer):
    count = buffer.get_stored_episode_size()
    return [buffer.get_episode(i)["obs"].ravel().tolist() for i in range(count)]


def test_examples():
    tested = doctest.testmod(importlib.import_module("mpbuffer.replay.selective"))
    assert tested.attempted > 0 and tested.failed == 0


def test_fields_are_float64_of_the_dimensions():
    with SelectiveReplayBuffer(5, 3, 2, Nepisodes=4, rew_dim=2) as buffer:
        assert buffer.get_buffer_size() == 20
        dims = buffer.get_obs_dim(), buffer.get_act_dim(), buffer.get_rew_dim()
        assert dims == (3, 2, 2) and buffer.get_obs_shape() is None
        buffer.add([1, 2, 3], [4, 5], [6, 7], [8, 9, 10], 0)
        rows = buffer.sample(7)
        shapes = {name: values.shape for name, values in rows.items()}
        assert shapes == {
            "obs": (7, 3),
            "act": (7, 2),
            "rew": (7, 2),
            "next_obs": (7, 3),
            "done": (7, 1),
        }
        assert all(values.dtype == np.float64 for values in rows.values())
        assert rows["next_obs"][0].tolist() == [8, 9, 10]
    with SelectiveReplayBuffer(5, obs_shape=(2, 3)) as buffer:
        assert buffer.get_obs_shape() == (2, 3) and buffer.get_obs_dim() == 6
        buffer.add(np.zeros((4, 2, 3)), np.zeros(4), np.zeros(4), np.zeros((4, 2, 3)), np.zeros(4))
        assert buffer.get_episode(0)["obs"].shape == (4, 2, 3)


def test_every_done_of_a_batch_ends_an_episode():
    """cpprb takes the first one for the only one."""
    with SelectiveReplayBuffer(10) as buffer:
        assert add(buffer, 0, 6, done_at=(1, 3)) == 0
        assert add(buffer, 6, 1, done_at=(0,)) == 6
        assert observations(buffer) == [[0, 1], [2, 3], [4, 5, 6]]
        assert buffer.get_next_index() == buffer.get_stored_size() == 7


def test_fields_of_an_episode_belong_together():
    with SelectiveReplayBuffer(10) as buffer:
        add(buffer, 0, 6, done_at=(1, 4))
        rows = buffer.get_episode(1)
        *wanted, _ = steps(2, 3)
        for name, values in zip(("obs", "act", "rew", "next_obs"), wanted, strict=True):
            np.testing.assert_array_equal(rows[name].ravel(), values)
        assert rows["done"].ravel().tolist() == [0, 0, 1]


def test_there_is_nothing_beyond_the_last_episode():
    with SelectiveReplayBuffer(10, 3) as buffer:
        assert buffer.get_stored_episode_size() == 0
        assert buffer.get_episode(0)["obs"].shape == (0, 3)
        assert buffer.delete_episode(0) == 0
        for call in (buffer.get_episode, buffer.delete_episode):
            with pytest.raises(ValueError, match="number of the episode must be at least 0"):
                call(-1)


def test_steps_beyond_its_size_are_left_out_with_one_warning():
    with SelectiveReplayBuffer(3, Nepisodes=2) as buffer:
        add(buffer, 0, 4, done_at=(1,))
        with pytest.warns(UserWarning, match="1 steps are left out: .* is full; call delete_epi"):
            add(buffer, 4, 3)
        add(buffer, 4, 3)  # no second warning: it would be an error here
        assert observations(buffer) == [[0, 1], [2, 3, 4, 5]]
        assert buffer.get_next_index() == 6
        assert buffer.delete_episode(0) == 2
        add(buffer, 6, 1)
        assert observations(buffer) == [[2, 3, 4, 5, 6]]
        buffer.clear()
        assert observations(buffer) == []


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(1, 6), st.frozensets(st.integers(0, 5))),
            st.tuples(st.just("delete"), st.integers(0, 5)),
        ),
        max_size=25,
    )
)
def test_episodes_are_those_of_a_list(calls):
    with SelectiveReplayBuffer(8, Nepisodes=5) as buffer:
        flat, first = [], 0  # (observation, done)
        for call in calls:
            episodes = split(flat)
            if call[0] == "delete":
                gone = episodes[call[1]] if call[1] < len(episodes) else []
                flat = [each for each in flat if each not in gone]
                assert buffer.delete_episode(call[1]) == len(gone)
            elif len(flat) + call[0] <= 40:
                add(buffer, first, call[0], list(call[1]))
                flat += [(first + i, i in call[1]) for i in range(call[0])]
                first += call[0]
            assert observations(buffer) == [[obs for obs, _ in each] for each in split(flat)]


def split(flat):
    episodes = [[]]
    for each in flat:
        episodes[-1].append(each)
        if each[1]:
            episodes.append([])
    return episodes if episodes[-1] else episodes[:-1]


def delete_elsewhere(buffer, connection):
    connection.send((observations(buffer), buffer.delete_episode(0)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_see_the_same_episodes(method):
    context = multiprocessing.get_context(method)
    with SelectiveReplayBuffer(10) as buffer:
        add(buffer, 0, 5, done_at=(1,))
        ours, theirs = context.Pipe()
        process = context.Process(target=delete_elsewhere, args=(buffer, theirs))
        process.start()
        assert receive_within(ours) == ([[0, 1], [2, 3, 4]], 2)
        assert join_within(process) == 0
        assert observations(buffer) == [[2, 3, 4]]


def test_it_is_opened_by_name():
    name = f"episodes-{os.getpid()}"
    with SelectiveReplayBuffer(10, obs_shape=(1, 1), name=name) as buffer:
        add(buffer, 0, 5, done_at=(1,))
        with SelectiveReplayBuffer.attach(name) as other:
            assert observations(other) == [[0, 1], [2, 3, 4]]
            assert other.get_obs_shape() == (1, 1)
            assert other.delete_episode(1) == 3
        assert observations(buffer) == [[0, 1]]
    with (
        mpbuffer.ReplayBuffer(10, {"obs": {}}, name=name),
        pytest.raises(ValueError, match="its rows are of no SelectiveReplayBuffer"),
    ):
        SelectiveReplayBuffer.attach(name)


def test_bad_steps_change_nothing():
    with SelectiveReplayBuffer(10, 2) as buffer:
        for arguments, said in (
            (([0, 0], 0, 0, [0, 0], [0, 0]), "different numbers: .*'done': 2"),
            (([0, 0, 0], 0, 0, [0, 0], 0), r"obs must have shape \(2,\).*got \(3,\)"),
        ):
            with pytest.raises(ValueError, match=said):
                buffer.add(*arguments)
        assert buffer.get_stored_size() == 0
        with pytest.raises(mpbuffer.EmptyBuffer):
            buffer.sample(1)
    with pytest.raises(ValueError, match="episode_len must be at least 1"):
        SelectiveReplayBuffer(0)
    with pytest.raises(TypeError, match="is_discrete_action"):
        SelectiveReplayBuffer(10, is_discrete_action=True)
