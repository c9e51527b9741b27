"""cpprb's training loop: what it calls, with what, in which order; environments of both kinds."""

import doctest
import importlib
import logging

import numpy as np
import pytest

from mpbuffer import PrioritizedReplayBuffer, ReplayBuffer, train

FIELDS = {"obs": {}, "act": {}, "rew": {}, "next_obs": {}, "done": {}}


class Counting:
    """Observation: the step since the reset. Episodes end after `length` steps."""

    def __init__(self, length=4, cut_off=False):
        self.length, self.cut_off, self.resets, self.t = length, cut_off, 0, 0

    def reset(self):
        self.t = 0
        self.resets += 1
        return self.first()

    def step(self, action):
        assert self.t < self.length, "stepped beyond the end"
        self.t += 1
        return self.returned(self.t, 2.0 * action, self.t == self.length)


class Today(Counting):
    def first(self):
        return 0.0, {}

    def returned(self, obs, reward, over):
        return obs, reward, over and not self.cut_off, over and self.cut_off, {}


class Early(Counting):
    def first(self):
        return 0.0

    def returned(self, obs, reward, over):
        return obs, reward, over, {"TimeLimit.truncated": over and self.cut_off}


def act_one(obs, step, episode, is_warmup):
    return 1.0


def nothing(sample, step, episode):
    return None


every_kind = pytest.mark.parametrize("kind", [Today, Early])


def test_examples():
    pytest.importorskip("gymnasium", minversion="1.0")
    tested = doctest.testmod(importlib.import_module("mpbuffer.replay.training"))
    assert tested.attempted > 0 and tested.failed == 0


@every_kind
def test_what_is_called_with_what(kind):
    acted, learned, ended = [], [], []

    def get_action(obs, step, episode, is_warmup):
        acted.append((obs, step, episode, is_warmup))
        return step + 1.0

    def update(sample, step, episode):
        assert sample["obs"].shape == (3, 1)
        learned.append((step, episode))

    env = kind(2)
    with ReplayBuffer(100, FIELDS) as buffer:
        train(
            buffer,
            env,
            get_action,
            update,
            max_steps=5,
            batch_size=3,
            n_warmups=2,
            episode_callback=lambda *told: ended.append(told),
        )
        assert acted == [
            (0, 0, 0, True),
            (1, 1, 0, True),
            (0, 2, 1, False),
            (1, 3, 1, False),
            (0, 4, 2, False),
        ]
        assert learned == [(2, 1), (3, 1), (4, 2)]
        assert ended == [(0, 1, 6), (1, 1, 14)]  # the sum of rewards; cpprb: the last one
        assert env.resets == 3
        rows = buffer.get_all_transitions()
    assert rows["obs"].ravel().tolist() == [0, 1, 0, 1, 0]
    assert rows["act"].ravel().tolist() == [1, 2, 3, 4, 5]
    assert rows["rew"].ravel().tolist() == [2, 4, 6, 8, 10]
    assert rows["next_obs"].ravel().tolist() == [1, 2, 1, 2, 1]
    assert rows["done"].ravel().tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("kind", "done", "terminated", "truncated"),
    [(Today, 0, 0, 1), (Early, 1, 0, 1)],
)
def test_flags_of_an_episode_that_a_time_limit_cut_off(kind, done, terminated, truncated):
    fields = {**FIELDS, "terminated": {}, "truncated": {}}
    with ReplayBuffer(100, fields) as buffer:
        seen = []

        def update_obs(transition):
            seen.append(transition["next_obs"])
            return transition["next_obs"]

        train(buffer, kind(3, True), act_one, nothing, max_steps=7, obs_update=update_obs)
        rows = buffer.get_all_transitions()
    assert rows["done"].ravel().tolist() == [0, 0, done, 0, 0, done, 0]
    assert rows["terminated"].ravel().tolist() == [0, 0, terminated, 0, 0, terminated, 0]
    assert rows["truncated"].ravel().tolist() == [0, 0, truncated, 0, 0, truncated, 0]
    assert seen == [1, 2, 1, 2, 1]  # not after the ends


@every_kind
def test_only_fields_of_the_buffer_are_added(kind, recwarn):
    with ReplayBuffer(100, {"obs": {}, "rew": {}}, strict=True) as buffer:
        checked = []

        def check(transition):
            checked.append(transition)
            return transition["done"]

        train(buffer, kind(3), act_one, nothing, max_steps=4, done_check=check)
        assert len(buffer) == 4
    assert [set(each) for each in checked] == [
        {"obs", "act", "rew", "next_obs", "done", "terminated", "truncated"}
    ] * 4
    assert len(recwarn) == 0


@every_kind
def test_functions_replace_the_parts_of_the_loop(kind):
    def after_step(obs, action, returned, step, episode):
        return {"s": obs, "n": returned[0], "r": returned[1], "e": episode, "t": step}

    sums = []
    with ReplayBuffer(100, {name: {} for name in "snret"}) as buffer:
        train(
            buffer,
            kind(100),
            act_one,
            nothing,
            max_steps=6,
            after_step=after_step,
            done_check=lambda transition: transition["n"] == 3,
            obs_update=lambda transition: transition["n"] * 10,
            rew_sum=lambda total, transition: total + 1,
            episode_callback=lambda *told: sums.append(told),
        )
        rows = buffer.get_all_transitions()
        rows = {name: values.ravel().tolist() for name, values in rows.items()}
    assert rows["s"] == [0, 10, 20, 0, 10, 20]
    assert rows["e"] == [0, 0, 0, 1, 1, 1] and rows["t"] == [0, 1, 2, 3, 4, 5]
    assert sums == [(0, 2, 3), (1, 2, 3)]


def test_the_environment_s_end_counts_where_after_step_keeps_no_flag():
    with ReplayBuffer(100, {"obs": {}}) as buffer:
        train(
            buffer,
            Today(2, cut_off=True),
            act_one,
            nothing,
            max_steps=5,
            after_step=lambda obs, action, returned, step, episode: {"obs": obs},
            obs_update=lambda transition: transition["obs"] + 1,
            rew_sum=lambda total, transition: total,
        )
        assert buffer.get_all_transitions()["obs"].ravel().tolist() == [0, 1, 0, 1, 0]


def test_priorities_are_what_the_update_returns():
    with PrioritizedReplayBuffer(100, FIELDS, eps=0) as buffer:
        train(buffer, Today(), act_one, lambda sample, step, episode: np.full(64, 7.0), max_steps=3)
        assert buffer.get_max_priority() == 7
        with pytest.raises(TypeError):
            train(buffer, Today(), act_one, nothing, max_steps=3)


def test_nstep_rows_do_not_join_episodes_or_calls():
    nstep = {"size": 3, "rew": "rew", "gamma": 1.0, "next": "next_obs"}
    with ReplayBuffer(100, FIELDS, Nstep=nstep) as buffer:
        sampled = []
        for _ in range(2):
            train(
                buffer,
                Today(4, cut_off=True),
                act_one,
                lambda sample, step, episode: sampled.append(step),
                max_steps=6,
            )
        rows = buffer.get_all_transitions()
    assert len(rows["obs"]) == 12 and sampled[0] == 2
    assert rows["rew"].ravel().tolist() == [6, 6, 4, 2, 4, 2] * 2
    assert rows["next_obs"].ravel().tolist() == [3, 4, 4, 4, 2, 2] * 2


def test_max_episodes_ends_it():
    env = Today(3)
    with ReplayBuffer(100, FIELDS) as buffer:
        train(buffer, env, act_one, nothing, max_episodes=2)
        assert len(buffer) == 6 and env.resets == 2
        train(buffer, env, act_one, nothing, max_episodes=0)
        train(buffer, env, act_one, nothing, max_steps=0)
        assert len(buffer) == 6 and env.resets == 2


def test_a_line_for_each_episode_is_logged(caplog):
    with ReplayBuffer(100, FIELDS) as buffer, caplog.at_level(logging.INFO):
        train(buffer, Today(2), act_one, nothing, max_steps=1e1)
        assert len(buffer) == 10
        train(buffer, Today(2), act_one, nothing, max_steps=2, logger=logging.getLogger("mine"))
    assert [record.name for record in caplog.records] == ["mpbuffer"] * 5 + ["mine"]
    assert "episode 4: 2 steps (10 in all), reward 4.0" in caplog.records[4].getMessage()


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"max_steps": 10**32}, ValueError, "max_steps must be in"),
        ({"max_steps": -1}, ValueError, "max_steps must be"),
        ({"max_steps": 1.5}, TypeError, "max_steps must be an int"),
        ({"max_episodes": -1}, ValueError, "max_episodes must be"),
        ({"n_warmups": -1}, ValueError, "n_warmups must be"),
        ({"batch_size": 0}, ValueError, "batch_size must be"),
    ],
)
def test_bad_arguments_do_nothing(arguments, error, said):
    env = Today()
    with ReplayBuffer(100, FIELDS) as buffer:
        with pytest.raises(error, match=said):
            train(buffer, env, act_one, nothing, **arguments)
        assert env.resets == 0 and len(buffer) == 0


def test_only_the_buffers_whose_add_takes_a_transition_can_be_trained_from():
    env = Today()
    with pytest.raises(TypeError, match="buffer must be a ReplayBuffer, got 7"):
        train(7, env, act_one, nothing)
    assert env.resets == 0


def test_an_environment_of_other_returns_needs_after_step():
    class Odd(Early):
        def returned(self, obs, reward, over):
            return obs, reward, over

    with ReplayBuffer(100, FIELDS) as buffer, pytest.raises(ValueError, match="3 values, expected"):
        train(buffer, Odd(), act_one, nothing, max_steps=1)
