"""Hindsight experience replay: hand-worked episodes, the paper's choices, many explorers."""

import doctest
import importlib
import multiprocessing
import os
import pickle
import time

import hindsight_explorers as work
import numpy as np
import pytest
from watched_processes import DEADLINE, join_within, wait_for_child

import mpbuffer
from mpbuffer import HindsightReplayBuffer

FIELDS = {"obs": {}, "act": {}, "next_obs": {}}


def reached(next_states, actions, goals):
    return (next_states == goals) - 1.0


def made(strategy="final", size=1000, fields=FIELDS, longest=100, **kwargs):
    kwargs = {"prioritized": False, **kwargs}
    return HindsightReplayBuffer(size, fields, longest, reached, strategy=strategy, **kwargs)


def play(buffer, steps, goal=-1, start=0):
    for t in range(start, start + steps):
        buffer.add(obs=t, act=0, next_obs=t + 1)
    buffer.on_episode_end(goal)


def column(buffer, name):
    return buffer.get_all_transitions()[name].ravel().tolist()


def test_examples():
    tested = doctest.testmod(importlib.import_module("mpbuffer.replay.hindsight"))
    assert tested.attempted > 0 and tested.failed == 0


def test_rows_of_final_by_hand():
    with made() as buffer:
        play(buffer, 3, goal=2)
        rows = buffer.get_all_transitions()
        assert set(rows) == {"obs", "act", "next_obs", "rew", "goal"}
        assert rows["obs"].ravel().tolist() == [0, 1, 2] * 2
        assert rows["goal"].ravel().tolist() == [2, 2, 2, 3, 3, 3]
        assert rows["rew"].ravel().tolist() == [-1, 0, -1, -1, -1, 0]
        assert buffer.additional_goals == 1
        play(buffer, 1, goal=1, start=9)
        assert column(buffer, "goal")[6:] == [1, 10]
        assert column(buffer, "rew")[6:] == [-1, 0]


@pytest.mark.parametrize(
    ("strategy", "may_be"),
    [
        ("future", lambda t, steps: set(range(t + 1, steps + 1))),
        ("episode", lambda t, steps: set(range(1, steps + 1))),
    ],
)
def test_goals_are_states_that_the_strategy_allows_and_all_of_them(strategy, may_be):
    steps, goals = 5, 200
    with made(strategy, size=5000, additional_goals=goals, seed=1) as buffer:
        play(buffer, steps)
        rows = buffer.get_all_transitions()
        assert len(rows["goal"]) == steps * (1 + goals)
        assert rows["goal"][:steps].ravel().tolist() == [-1] * steps
        for t in range(steps):
            of_step = rows["goal"].ravel()[t::steps][1:]
            allowed = sorted(may_be(t, steps))
            counts = [int(np.sum(of_step == state)) for state in allowed]
            assert sum(counts) == goals
            expected = goals / len(allowed)
            assert all(abs(count - expected) < 5 * np.sqrt(expected) for count in counts)
        np.testing.assert_array_equal(rows["rew"], (rows["next_obs"] == rows["goal"]) - 1.0)


@pytest.mark.parametrize("prioritized", [False, True])
def test_random_goals_are_of_the_buffer_and_the_episode(prioritized):
    with made("random", size=100_000, longest=4000, prioritized=prioritized, seed=2) as buffer:
        buffer.additional_goals = 0
        play(buffer, 3000, start=10_000)
        buffer.additional_goals = 10
        play(buffer, 1000, start=0)
        goals = np.array(column(buffer, "goal"))[4000:]
        assert len(goals) == 10_000
        old = (goals > 10_000) & (goals <= 13_000)
        own = (goals > 0) & (goals <= 1000)
        assert (old | own).all()
        assert abs(old.mean() - 0.75) < 0.03
        assert len(set(goals[old])) > 2000 and len(set(goals[own])) > 800


def test_random_goals_of_the_first_episode_are_its_own():
    with made("random", additional_goals=20) as buffer:
        play(buffer, 3)
        assert set(column(buffer, "goal")[3:]) == {1, 2, 3}


def test_steps_are_no_rows_before_the_episode_ends():
    with made("future", additional_goals=2) as buffer:
        for t in range(3):
            buffer.add(obs=t, act=0, next_obs=t + 1)
        assert buffer.get_stored_size() == 0
        assert buffer.episode_rb.get_stored_size() == 3
        buffer.on_episode_end(0)
        assert buffer.get_stored_size() == 9
        buffer.on_episode_end(0)  # no steps: nothing
        assert buffer.get_stored_size() == 9
        buffer.add(obs=0, act=0, next_obs=1)
        buffer.clear()
        buffer.on_episode_end(0)
        assert buffer.get_stored_size() == 0


def test_a_batch_of_steps_is_as_single_steps():
    with made() as one, made() as many:
        play(one, 4)
        many.add(obs=range(3), act=[0] * 3, next_obs=range(1, 4))
        many.add(obs=3, act=0, next_obs=4)
        many.on_episode_end(-1)
        for name, values in one.get_all_transitions().items():
            np.testing.assert_array_equal(values, many.get_all_transitions()[name])


def test_reward_and_goal_of_add_are_ignored_without_a_warning(recwarn):
    with made() as buffer:
        buffer.add(obs=0, act=0, next_obs=1, rew=55, goal=66)
        buffer.on_episode_end(3)
        assert column(buffer, "goal") == [3, 1] and column(buffer, "rew") == [-1, 0]
    assert len(recwarn) == 0


def test_the_state_may_be_another_field_than_the_observation():
    """As in environments whose observation has parts: observation, achieved_goal, desired_goal."""
    fields = {"obs": {"shape": 4}, "act": {}, "achieved": {}, "next_obs": {"shape": 4}}
    names = {"state": "achieved", "next_state": "next_achieved"}
    with made(fields={**fields, "next_achieved": {}}, **names) as buffer:
        assert tuple(buffer.goal_shape) == (1,)
        for t in range(2):
            here, there = np.full(4, 9 - t), np.full(4, 8 - t)
            buffer.add(obs=here, act=0, achieved=t, next_obs=there, next_achieved=t + 1)
        buffer.on_episode_end(1)
        assert column(buffer, "goal") == [1, 1, 2, 2]
        assert column(buffer, "rew") == [0, -1, -1, 0]
        assert buffer.get_all_transitions()["next_obs"][:, 0].tolist() == [8, 7] * 2


def test_a_strict_buffer_refuses_unknown_fields_of_steps():
    with made(strict=True) as buffer:
        buffer.add(obs=0, act=0, next_obs=1, rew=0)
        with pytest.raises(TypeError, match="'done'"):
            buffer.add(obs=0, act=0, next_obs=1, done=0)
        assert len(buffer.episode_rb) == 1


def test_goals_have_their_own_shape_and_each_step_may_have_its_own():
    fields = {"obs": {"shape": 5}, "act": {}, "next_obs": {"shape": 5}}
    seen = []

    def goal_of(states):
        return states[:, :2]

    def reward(next_states, actions, goals):
        seen.append((next_states.shape, actions.shape, goals.shape))
        return (next_states[:, :2] == goals).all(axis=1)

    with HindsightReplayBuffer(
        100, fields, 10, reward, goal_func=goal_of, goal_shape=2, additional_goals=1
    ) as buffer:
        assert tuple(buffer.goal_shape) == (2,)
        for t in range(3):
            buffer.add(obs=[t] * 5, act=0, next_obs=[t + 1] * 5)
        buffer.on_episode_end([[1, 1], [9, 9], [3, 3]])
        assert seen == [((3, 5), (3, 1), (3, 2))] * 2
        rows = buffer.get_all_transitions()
        assert rows["goal"][:3].tolist() == [[1, 1], [9, 9], [3, 3]]
        assert rows["rew"].ravel().tolist()[:3] == [1, 0, 1]


def test_dtypes_of_goal_and_reward():
    fields = {
        "obs": {"shape": 4, "dtype": "u1"},
        "act": {},
        "next_obs": {"shape": 4, "dtype": "u1"},
    }

    def reward(next_states, actions, goals):
        assert goals.dtype == np.uint8
        return (next_states == goals).all(axis=1)

    with HindsightReplayBuffer(10, {**fields, "rew": {"dtype": "i2"}}, 5, reward) as buffer:
        buffer.add(obs=[0] * 4, act=0, next_obs=[255] * 4)
        buffer.on_episode_end([1] * 4)
        rows = buffer.get_all_transitions()
        assert rows["goal"].dtype == np.uint8 and rows["rew"].dtype == np.int16
        assert rows["rew"].ravel().tolist() == [0, 1, 1, 1, 1]
    precise = made(default_dtype=np.float64)
    precise.add(obs=0.1, act=0, next_obs=0.1)
    precise.on_episode_end(0.3)
    assert column(precise, "obs") == [0.1, 0.1]  # cpprb rounds it to float32 on the way
    precise.close()


def test_nstep_rows_keep_to_one_goal():
    fields = {**FIELDS, "done": {}}
    nstep = {"size": 2, "rew": "rew", "gamma": 0.5, "next": "next_obs", "discount": "discount"}
    with made(fields=fields, Nstep=nstep) as buffer:
        for t in range(3):
            buffer.add(obs=t, act=0, next_obs=t + 1, done=0)
        buffer.on_episode_end(2)
        assert column(buffer, "goal") == [2, 2, 2, 3, 3, 3]
        assert column(buffer, "next_obs") == [2, 3, 3] * 2
        assert column(buffer, "rew") == [-1.0, -0.5, -1.0, -1.5, -1.0, 0.0]
        assert column(buffer, "discount") == [0.25, 0.25, 0.5] * 2


def test_priorities():
    with made(prioritized=True) as buffer:
        play(buffer, 4)
        sample = buffer.sample(8, beta=0.5)
        assert buffer.update_priorities(sample["indexes"], np.full(8, 5.0)) == 0
        assert buffer.get_max_priority() == 5
    with made() as buffer:
        with pytest.raises(ValueError, match="prioritized=False"):
            buffer.update_priorities([], [])
        with pytest.raises(ValueError, match="prioritized=False"):
            buffer.get_max_priority()
        assert buffer.get_buffer_size() == 1000


# Bad input


def test_an_episode_that_is_too_long_changes_nothing():
    with made(longest=3) as buffer:
        buffer.add(obs=[0, 1], act=[0, 0], next_obs=[1, 2])
        with pytest.raises(ValueError, match="cannot add 2 steps: the episode has 2, and max_"):
            buffer.add(obs=[2, 3], act=[0, 0], next_obs=[3, 4])
        buffer.add(obs=2, act=0, next_obs=3)
        with pytest.raises(ValueError, match="cannot add 1 steps: the episode has 3"):
            buffer.add(obs=3, act=0, next_obs=4)
        buffer.on_episode_end(0)
        assert column(buffer, "obs") == [0, 1, 2] * 2


def fails(*_):
    raise RuntimeError("no reward today")


@pytest.mark.parametrize(
    ("reward", "goal_func", "goal", "error", "said"),
    [
        (fails, None, 0, RuntimeError, "no reward"),
        (reached, fails, 0, RuntimeError, "no reward"),
        (lambda s, a, g: [0.0], None, 0, ValueError, r"reward_func's result must have shape \(3"),
        (lambda s, a, g: s - g.ravel(), None, 0, ValueError, "reward_func's result must have"),
        (lambda s, a, g: [1e300] * 3, None, 0, ValueError, "reward_func's result: got 1e"),
        (lambda s, a, g: np.zeros((1, 3)), None, 0, ValueError, r"\(3, 1\), got \(1, 3\)"),
        (reached, lambda s: s[:2], 0, ValueError, "goal_func's result must have shape"),
        (reached, None, [1, 2], ValueError, r"goal must have shape \(3, 1\), got \(2,\)"),
        (reached, None, 1e300, ValueError, "goal: got 1e"),
    ],
)
def test_what_functions_do_wrong_changes_nothing(reward, goal_func, goal, error, said):
    buffer = HindsightReplayBuffer(100, FIELDS, 10, reward, goal_func=goal_func)
    for t in range(3):
        buffer.add(obs=t, act=0, next_obs=t + 1)
    with pytest.raises(error, match=said):
        buffer.on_episode_end(goal)
    assert buffer.get_stored_size() == 0 and buffer.episode_rb.get_stored_size() == 3
    buffer.reward_func, buffer.goal_func = reached, lambda states: states
    buffer.on_episode_end(0)
    assert buffer.get_stored_size() == 15
    buffer.close()


def test_an_episode_longer_than_the_buffer_changes_nothing():
    with made(size=3) as buffer:
        for t in range(4):
            buffer.add(obs=t, act=0, next_obs=t + 1)
        with pytest.raises(IndexError, match="cannot add 4 rows"):
            buffer.on_episode_end(0)
        assert buffer.get_stored_size() == 0 and buffer.episode_rb.get_stored_size() == 4


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"strategy": "past"}, ValueError, "strategy must be one of future, episode, random, fin"),
        ({"additional_goals": -1}, ValueError, "additional_goals must be at least 0"),
        ({"additional_goals": 1.5}, TypeError, "additional_goals must be an int"),
        ({"longest": 0}, ValueError, "max_episode_len must be at least 1"),
        ({"goal_func": 3}, TypeError, "goal_func must be callable"),
        ({"next_state": "after"}, ValueError, "env_dict must have the field 'after'"),
        ({"goal_shape": 0}, ValueError, "field 'goal'"),
    ],
)
def test_bad_arguments(arguments, error, said):
    with pytest.raises(error, match=said):
        made(**{"strategy": "future", **arguments})


def test_repr():
    with made("future", size=7) as buffer:
        shown = repr(buffer)
        assert shown.startswith("<HindsightReplayBuffer of goals 'future': <ReplayBuffer ")
        assert "0 of 7 rows" in shown


def test_a_closed_buffer_says_so():
    buffer = made()
    buffer.close()
    for call in (
        lambda: buffer.add(obs=0, act=0, next_obs=0),
        lambda: buffer.on_episode_end(0),
        lambda: buffer.sample(1),
        buffer.clear,
    ):
        with pytest.raises(mpbuffer.BufferClosed):
            call()


# Many processes


@pytest.mark.parametrize(
    ("way", "strategy"),
    [
        ("fork", "future"),
        ("fork", "episode"),
        ("fork", "final"),
        ("spawn", "future"),
        ("forkserver", "episode"),
        ("attach", "final"),
    ],
)
def test_four_explorers_write_the_rows_of_one_process(way, strategy):
    context = multiprocessing.get_context("fork" if way == "attach" else way)
    episodes, explorers = (40, 4)
    rules = {"goal_func": work.goals_of, "goal_shape": 2, "strategy": strategy}
    with HindsightReplayBuffer(
        50_000, work.FIELDS, work.LONGEST, work.rewards_of, additional_goals=work.GOALS, **rules
    ) as buffer:
        buffer.add(**work.play(0)[0][0])  # of this process's episode: no explorer has it
        processes = []
        for index in range(explorers):
            numbers = range(1 + index, 1 + episodes, explorers)
            target, handed = work.explore, (buffer,)
            if way == "attach":
                target, handed = work.explore_by_name, (buffer.rb.name, strategy)
            processes.append(context.Process(target=target, args=(*handed, numbers)))
        for process in processes:
            process.start()
        assert [join_within(process) for process in processes] == [0] * explorers
        rows = buffer.get_all_transitions()
        assert set(rows["episode"].ravel().tolist()) == set(range(1, 1 + episodes))
        for number in range(1, 1 + episodes):
            mine = rows["episode"].ravel() == number
            expected = work.oracle(number, strategy)
            assert mine.sum() == len(expected)
            for name in rows:
                wanted = np.array([row[name] for row in expected], rows[name].dtype)
                got = rows[name][mine]
                np.testing.assert_array_equal(got, wanted.reshape(got.shape))
        buffer.sample(32)
        assert buffer.episode_rb.get_stored_size() == 1


def test_killed_explorers_leave_whole_rows():
    context = multiprocessing.get_context("fork")
    rules = {"goal_func": work.goals_of, "goal_shape": 2, "additional_goals": work.GOALS}
    with HindsightReplayBuffer(3000, work.FIELDS, work.LONGEST, work.rewards_of, **rules) as buffer:
        processes = [
            context.Process(target=work.explore_without_end, args=(buffer, 10**6 * index))
            for index in range(1, 5)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + DEADLINE
        for process in processes:
            rows_before = buffer.rb.rows_added()
            while buffer.rb.rows_added() < rows_before + 2000 and time.monotonic() < deadline:
                batch = buffer.sample(64) if buffer.get_stored_size() else {}
                if batch:
                    rewards = work.rewards_of(batch["next_obs"], batch["act"], batch["goal"])
                    np.testing.assert_array_equal(batch["rew"].ravel(), rewards)
            process.kill()
            assert join_within(process) == -9
        rows = buffer.get_all_transitions()
        assert len(rows["rew"]) > 2990
        rewards = work.rewards_of(rows["next_obs"], rows["act"], rows["goal"])
        np.testing.assert_array_equal(rows["rew"].ravel(), rewards)
        work.explore(buffer, [1])
        rows = buffer.get_all_transitions()
        assert (rows["episode"] == 1).sum() == len(work.oracle(1, "future"))


def test_the_child_of_a_fork_has_an_episode_and_draws_of_its_own():
    with made("future", seed=3) as buffer:
        buffer.add(obs=0, act=0, next_obs=1)
        draws = buffer.rng.bit_generator.state
        child = os.fork()
        if child == 0:
            fine = False
            try:
                fine = len(buffer.episode_rb) == 0 and buffer.rng.bit_generator.state != draws
                play(buffer, 2, start=100)
            finally:
                os._exit(0 if fine else 1)
        assert wait_for_child(child) == 0
        assert buffer.get_stored_size() == 10
        buffer.on_episode_end(0)
        assert column(buffer, "obs")[10:] == [0] * 5


def test_a_seed_makes_the_goals_reproducible():
    with made("future", seed=3) as one, made("future", seed=3) as two, made("future") as other:
        for buffer in (one, two, other):
            play(buffer, 50)
        assert column(one, "goal") == column(two, "goal") != column(other, "goal")


@pytest.mark.filterwarnings("ignore:.* was pickled")
def test_a_pickle_holds_no_steps():
    with made() as buffer:
        buffer.add(obs=0, act=0, next_obs=1)
        copy = pickle.loads(pickle.dumps(buffer))
        assert copy.episode_rb.get_stored_size() == 0
        play(copy, 1)
        assert buffer.get_stored_size() == 2
        copy.close()


def test_attach_refuses_rows_of_another_kind():
    with (
        mpbuffer.ReplayBuffer(10, FIELDS, name=f"no-goals-{os.getpid()}") as rows,
        pytest.raises(ValueError, match=r"its rows have no fields \['goal', 'rew'\]"),
    ):
        HindsightReplayBuffer.attach(rows.name, 10, reached)
