"""The writer of steps: rows against a slow oracle, flushes, forks, kills, initial priorities."""

import collections
import contextlib
import doctest
import gc
import importlib
import multiprocessing
import os
import pickle
import signal
import struct
import threading
import time
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nstep_streams import (
    ALL_FIELDS,
    FIELDS,
    NSTEP,
    as_bytes,
    ends,
    explore_many,
    explore_one,
    explore_until_killed,
    oracle_rows,
    rows_in,
    steps_of,
    terminates,
)
from segment_places import Places
from watched_processes import (
    DEADLINE,
    join_within,
    killed_at_the_end,
    receive_within,
    run_python,
    wait_for_child,
)

import mpbuffer
from mpbuffer import BufferClosed, PrioritizedReplayBuffer, ReplayBuffer, StepWriter

SMALL = {"t": {}, "rew": {}, "next_obs": {}, "done": {}}
SMALL_NSTEP = {"size": 3, "rew": "rew", "gamma": 0.5, "next": "next_obs"}
KILLS = int(os.environ.get("MPBUFFER_STAGING_KILLS", "300"))


def step(t, done=0, **more):
    return {"t": t, "rew": 2.0**t, "next_obs": t + 1, "done": done, **more}


def column(buffer, name):
    return buffer.get_all_transitions()[name].ravel().tolist()


def as_columns(steps):
    return {name: np.array([one[name] for one in steps]) for name in steps[0]}


def leaves_of(buffer):
    """Leaves of all rows, in the order of slots: with alpha 1 and eps 0, their priorities."""
    buffer.sample(1)
    return buffer._leaves()[: len(buffer)]


# Rows, against the oracle


@st.composite
def courses(draw):
    """What several environments do, in which order their steps come, and where some are cut off."""
    envs = draw(st.integers(1, 8))
    flags = draw(st.sampled_from([("terminated", "truncated"), ("done",), ("done", "truncated")]))
    fields = {"env": {"dtype": "i2"}, "t": {"dtype": "i8"}, "rew": {}, "next_obs": {}}
    fields |= {flag: {"dtype": "?"} for flag in flags}
    reward = st.floats(width=32, allow_nan=False, allow_infinity=False)
    raised = st.sampled_from([False, False, False, True])
    calls = []
    steps = [[] for _ in range(envs)]
    cuts = [set() for _ in range(envs)]
    for _ in range(draw(st.integers(0, 14))):
        kind = draw(st.sampled_from(["all", "some", "some", "batch", "cut", "flush"]))
        if kind == "cut":
            which = draw(st.none() | st.lists(st.integers(0, envs - 1), max_size=3))
            for env in range(envs) if which is None else which:
                cuts[env].add(len(steps[env]) - 1)
            calls.append((kind, which))
        elif kind == "flush":
            calls.append((kind, None))
        else:
            which = {
                "all": range(envs) if envs > 1 else [0],
                "some": draw(st.lists(st.integers(0, envs - 1), max_size=envs, unique=True)),
                "batch": draw(st.lists(st.integers(0, envs - 1), max_size=12)),
            }[kind]
            rows = []
            for env in which:
                one = {"env": env, "t": len(steps[env]), "rew": np.float32(draw(reward))}
                one["next_obs"] = np.float32(one["t"] + 0.25)
                one |= {flag: draw(raised) for flag in flags}
                steps[env].append(one)
                rows.append(one)
            calls.append(("all" if kind == "all" else "some", rows))
    nstep = {"size": draw(st.integers(1, 6)), "gamma": draw(st.sampled_from([0.0, 0.9, 0.99, 1.0]))}
    nstep |= {"rew": "rew", "next": "next_obs"}
    if draw(st.booleans()):
        nstep["discount"] = "disc"
    return envs, fields, calls, steps, cuts, nstep


@settings(max_examples=60, deadline=None)
@given(courses(), st.integers(1, 20), st.booleans())
def test_rows_are_those_of_the_oracle(course, flush_every, own):
    """Of each environment in order, whoever has the n-step rule; and none waits for too long."""
    envs, fields, calls, steps, cuts, nstep = course
    known = fields | ({"disc": {}} if "discount" in nstep else {})
    with ReplayBuffer(400, fields if own else known, Nstep=nstep if own else None) as buffer:
        writer = buffer.writer(flush_every, n_envs=envs, Nstep=None if own else nstep)
        taken, written, ended = 0, 0, False
        for kind, what in calls:
            if kind == "cut":
                written += writer.on_episode_end(what)
                ended = True
            elif kind == "flush":
                written += writer.flush()
                ended = True
            else:
                rows = {name: np.array([one[name] for one in what]) for name in fields}
                which = {} if kind == "all" else {"envs": [one["env"] for one in what]}
                written += writer.add(**rows, **which)
                taken += len(what)
                ended = any(ends([one], 0, ()) for one in what)
            assert (writer.steps, writer.rows_written) == (taken, written)
            assert writer.rows_staged == taken - written and len(buffer) == written
            waiting = envs * (nstep["size"] - 1)
            assert writer.rows_staged <= waiting + (0 if ended else flush_every - 1)
        writer.close()
        assert writer.closed and writer.rows_written == len(buffer) == taken
        got = rows_in(buffer.get_all_transitions())
        for env in range(envs):
            expected = oracle_rows(steps[env], nstep, cuts[env], whole=True)
            assert [as_bytes(row, known) for row in got if row["env"] == env] == [
                as_bytes(row, known) for row in expected
            ]


def test_the_example_in_the_docstring():
    outcome = doctest.testmod(importlib.import_module("mpbuffer.buffer.step_writer"))
    assert outcome.attempted > 0 and outcome.failed == 0


def test_without_nstep_each_step_is_a_row():
    with ReplayBuffer(100, SMALL) as buffer, buffer.writer(flush_every=4) as writer:
        assert [writer.add(**step(t)) for t in range(5)] == [0, 0, 0, 4, 0]
        assert writer.add(**step(5, done=1)) == 2
        assert writer.add(**as_columns([step(t) for t in range(6, 13)])) == 7
        assert column(buffer, "rew") == [2.0**t for t in range(13)]


def test_more_rows_than_the_buffer_holds():
    with ReplayBuffer(8, SMALL) as buffer, buffer.writer(flush_every=100) as writer:
        for t in range(30):
            writer.add(**step(t))
        assert writer.flush() == 30
        assert sorted(column(buffer, "t")) == list(range(22, 30))


def test_large_rows():
    """Copied without the GIL."""
    fields = {"t": {}, "pixels": {"shape": (84, 84, 4), "dtype": "u1"}, "done": {}}
    with (
        ReplayBuffer(50, fields, Nstep={"size": 3, "next": "pixels"}) as buffer,
        buffer.writer(flush_every=5, n_envs=4) as writer,
    ):
        for t in range(10):
            pixels = (
                np.full((4, 84, 84, 4), t, np.uint8)
                + np.arange(4, dtype=np.uint8)[:, None, None, None] * 20
            )
            writer.add(t=[t] * 4, pixels=pixels, done=[t == 9] * 4)
        rows = buffer.get_all_transitions()
        expected = collections.Counter(
            min(t + 2, 9) + 20 * env for t in range(10) for env in range(4)
        )
        assert collections.Counter(rows["pixels"][:, 0, 0, 0].tolist()) == expected
        assert (rows["pixels"] == rows["pixels"][:, :1, :1, :1]).all()


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_a_vector_environment(mode):
    """Through VectorTransitions, with a reset in the middle that cuts episodes off."""
    gymnasium = pytest.importorskip("gymnasium", minversion="1.1")
    vector = gymnasium.vector
    envs = gymnasium.make_vec(
        "CartPole-v1",
        num_envs=3,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": vector.AutoresetMode(mode)},
        max_episode_steps=9,
    )
    nstep = {"size": 3, "rew": "rew", "next": "next_obs", "discount": "disc", "gamma": 0.9}
    transitions = mpbuffer.VectorTransitions(envs)
    fields = mpbuffer.schema_from(envs)
    streams, cuts = [[] for _ in range(3)], [set() for _ in range(3)]
    random = np.random.default_rng(3)
    with (
        ReplayBuffer(1000, fields, Nstep=nstep) as buffer,
        buffer.writer(n_envs=3) as writer,
    ):
        observations, _ = envs.reset(seed=7)
        writer.on_episode_end(transitions.reset(observations))
        for count in range(60):
            actions = random.integers(2, size=3)
            observations, *others = envs.step(actions)
            rows = transitions.step(actions, observations, *others)
            writer.add(envs=rows.envs, **rows)
            for i, env in enumerate(rows.envs):
                streams[env].append({name: np.copy(values[i]) for name, values in rows.items()})
            if mode == "Disabled" and len(rows.ended):
                mask = np.isin(np.arange(3), rows.ended)
                observations, _ = envs.reset(options={"reset_mask": mask})
                assert len(transitions.reset(observations, mask)) == 0
            if count == 30:
                observations, _ = envs.reset()
                cut = transitions.reset(observations)
                writer.on_episode_end(cut)
                for env in cut:
                    cuts[env].add(len(streams[env]) - 1)
        writer.close()
        expected = collections.Counter()
        for env in range(3):
            rows = oracle_rows(streams[env], nstep, cuts[env], whole=True)
            expected += collections.Counter(as_bytes(row, fields | {"disc": {}}) for row in rows)
        rows = buffer.get_all_transitions()
        got = [{name: values[i] for name, values in rows.items()} for i in range(len(buffer))]
        assert collections.Counter(as_bytes(row, fields | {"disc": {}}) for row in got) == expected
    envs.close()


# Priorities


@pytest.mark.parametrize("size", [1, 3])
def test_priorities_given_are_as_if_rows_were_added_one_by_one(size):
    random = np.random.default_rng(size)
    nstep = {**SMALL_NSTEP, "size": size}
    made = {"alpha": 0.7, "eps": 0.01, "Nstep": nstep}
    with (
        PrioritizedReplayBuffer(200, SMALL, **made) as one_by_one,
        PrioritizedReplayBuffer(200, SMALL, **made) as buffer,
        buffer.writer(flush_every=7) as writer,
    ):
        for t in range(100):
            given = {}
            if random.random() < 0.6:
                given["priorities"] = random.choice([0.0, 0.5, 2.0, random.random() * t])
            row = step(t % 20, done=random.random() < 0.1)
            one_by_one.add(**row, **given)
            writer.add(**row, **given)
        one_by_one.on_episode_end()
        writer.close()
        assert column(buffer, "t") == column(one_by_one, "t")
        assert leaves_of(buffer).tolist() == leaves_of(one_by_one).tolist()
        assert buffer.get_max_priority() == one_by_one.get_max_priority()


def td_oracle(steps, q, v, next_v, nstep, cuts):
    """The priority of each row of one environment, in float64."""
    n, gamma = nstep["size"], nstep["gamma"]
    priorities = []
    for first in range(len(steps)):
        last = first
        while last - first + 1 < n and not ends(steps, last, cuts) and last + 1 < len(steps):
            last += 1
        total, power = float(steps[first]["rew"]), 1.0
        for i in range(first + 1, last + 1):
            power *= gamma
            total += power * float(steps[i]["rew"])
        power *= gamma
        if terminates(steps[last]):
            target = total
        elif ends(steps, last, cuts) or last + 1 == len(steps):
            target = total + power * (v[last] if np.isnan(next_v[last]) else next_v[last])
        else:
            target = total + power * v[last + 1]
        priorities.append(abs(target - q[first]))
    return priorities


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_priorities_from_acting_values(data):
    fields = {"env": {}, "t": {}, "rew": {}, "next_obs": {}, "terminated": {}, "truncated": {}}
    envs = data.draw(st.integers(1, 3))
    nstep = {"size": data.draw(st.integers(1, 5)), "rew": "rew", "next": "next_obs"}
    nstep["gamma"] = data.draw(st.sampled_from([0.0, 0.9, 1.0]))
    count = data.draw(st.integers(1, 15))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    steps = [
        [
            {
                "env": env,
                "t": t,
                "rew": np.float32(random.normal()),
                "next_obs": t + 1,
                "terminated": random.random() < 0.15,
                "truncated": random.random() < 0.15,
            }
            for t in range(count)
        ]
        for env in range(envs)
    ]
    q, v, next_v = random.normal(size=(3, envs, count))
    next_v[random.random((envs, count)) < 0.5] = np.nan
    cuts = [set() for _ in range(envs)]
    with PrioritizedReplayBuffer(100, fields, Nstep=nstep, alpha=1, eps=0) as buffer:
        writer = buffer.writer(data.draw(st.integers(1, 9)), priorities="td", n_envs=envs)
        for t in range(count):
            extra = {"next_v": next_v[:, t]} if np.isfinite(next_v[:, t]).any() else {}
            rows = as_columns([each[t] for each in steps])
            writer.add(**rows, q=q[:, t], v=v[:, t], **extra)
            if random.random() < 0.1:
                env = int(random.integers(envs))
                writer.on_episode_end([env])
                cuts[env].add(t)
        writer.close()
        leaves = leaves_of(buffer)
        rows = buffer.get_all_transitions()
        for env in range(envs):
            expected = td_oracle(steps[env], q[env], v[env], next_v[env], nstep, cuts[env])
            assert rows["t"][rows["env"] == env].tolist() == list(range(count))
            got = leaves[rows["env"].ravel() == env]
            assert got.tolist() == np.array(expected, np.float32).tolist()


def test_an_acting_value_beyond_float32_gets_the_largest_so_far():
    nstep = {**SMALL_NSTEP, "size": 1}
    with PrioritizedReplayBuffer(10, SMALL, Nstep=nstep, alpha=1, eps=0) as buffer:
        with buffer.writer(priorities="td") as writer:
            writer.add(**step(1, done=1), q=5, v=0)
            writer.add(**step(0), q=1e300, v=0)
            writer.add(**(step(2, done=1) | {"rew": np.nan}), q=0, v=0)
        assert leaves_of(buffer).tolist() == [3, 3, 3]


def test_priorities_by_a_function():
    calls = []

    def priorities(rows):
        calls.append({name: values.copy() for name, values in rows.items()})
        return rows["rew"][:, 0] * 10

    nstep = {**SMALL_NSTEP, "discount": "disc"}
    with PrioritizedReplayBuffer(20, SMALL, Nstep=nstep, alpha=1, eps=0) as buffer:
        with buffer.writer(flush_every=3, priorities=priorities) as writer:
            for t in range(6):
                writer.add(**step(t % 3))
        assert [len(call["t"]) for call in calls] == [3, 3]
        rows = buffer.get_all_transitions()
        for name, values in rows.items():
            np.testing.assert_array_equal(np.concatenate([call[name] for call in calls]), values)
        assert leaves_of(buffer).tolist() == (rows["rew"][:, 0] * 10).tolist()
        writer = None
        assert gc.collect() >= 0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda rows: 1 / 0,
        lambda rows: np.zeros(len(rows["t"]) + 1),
        lambda rows: -rows["t"][:, 0] - 1,
        lambda rows: np.nan,
        lambda rows: "text",
    ],
)
def test_a_function_that_fails_leaves_rows_staged(wrong):
    working = []

    def priorities(rows):
        return rows["t"][:, 0] + 1 if working else wrong(rows)

    with PrioritizedReplayBuffer(20, SMALL, alpha=1, eps=0) as buffer:
        writer = buffer.writer(flush_every=2, priorities=priorities)
        assert writer.add(**step(0)) == 0
        for t in (1, 2):
            with pytest.raises((ZeroDivisionError, ValueError, TypeError)):
                writer.add(**step(t))
        with pytest.raises((ZeroDivisionError, ValueError, TypeError)):
            writer.flush()
        assert (len(buffer), writer.rows_staged, writer.rows_written) == (0, 3, 0)
        working.append(True)
        assert writer.flush() == 3
        assert leaves_of(buffer).tolist() == [1, 2, 3]
        writer.close()


def test_a_function_may_use_the_writer_and_the_buffer():
    with PrioritizedReplayBuffer(20, SMALL, alpha=1, eps=0) as buffer:

        def priorities(rows):
            if writer.steps < 8:
                writer.add(**step(10 + writer.steps))
            return np.full(len(rows["t"]), len(buffer) + 1.0)

        writer = buffer.writer(flush_every=2, priorities=priorities)
        for t in range(4):
            writer.add(**step(t))
        while writer.rows_staged:
            writer.flush()
        writer.close()
        assert len(buffer) == writer.steps == writer.rows_written
        assert set(column(buffer, "t")) >= {0, 1, 2, 3}


# Misuse


WRONG = {
    "flush_every of 0": (ValueError, {"flush_every": 0}, "flush_every"),
    "flush_every of a half": (TypeError, {"flush_every": 0.5}, "flush_every"),
    "no environments": (ValueError, {"n_envs": 0}, "n_envs"),
    "a truth value of environments": (TypeError, {"n_envs": True}, "n_envs"),
    "too many environments": (ValueError, {"n_envs": 2**40}, "n_envs"),
    "another n": (ValueError, {"Nstep": {**SMALL_NSTEP, "size": 4}}, "Nstep"),
    "another gamma": (ValueError, {"Nstep": {**SMALL_NSTEP, "gamma": 0.51}}, "Nstep"),
    "priorities of no kind": (ValueError, {"priorities": "tde"}, "'td'"),
    "priorities of numbers": (TypeError, {"priorities": [1.0]}, "'td'"),
}


@pytest.mark.parametrize("what", WRONG, ids=str)
def test_arguments_that_are_wrong(what):
    error, arguments, told = WRONG[what]
    with PrioritizedReplayBuffer(10, SMALL, Nstep=SMALL_NSTEP) as buffer:
        with pytest.raises(error, match=told):
            buffer.writer(**arguments)
        buffer.writer(Nstep=dict(SMALL_NSTEP)).close()


def test_arguments_that_do_not_suit_the_buffer():
    with ReplayBuffer(10, SMALL) as buffer:
        for priorities in ("td", lambda rows: 1.0):
            with pytest.raises(ValueError, match="takes no priorities"):
                buffer.writer(priorities=priorities)
        for nstep in ({"size": 2, "rew": "reward"}, {**SMALL_NSTEP, "discount": "disc"}):
            with pytest.raises(ValueError, match="no field"):
                buffer.writer(Nstep=nstep)
    with PrioritizedReplayBuffer(10, SMALL | {"more": {"shape": 2}}) as buffer:
        for nstep in (
            None,
            {"size": 2},
            {"size": 2, "rew": ["rew", "t"]},
            {"size": 2, "rew": "more"},
        ):
            with pytest.raises(ValueError, match="td"):
                buffer.writer(Nstep=nstep, priorities="td")
    with PrioritizedReplayBuffer(10, SMALL | {"envs": {}, "q": {}}) as buffer:
        with pytest.raises(ValueError, match="envs"):
            buffer.writer(n_envs=2)
        with pytest.raises(ValueError, match="'q'"):
            buffer.writer(Nstep=SMALL_NSTEP, priorities="td")
        with buffer.writer() as writer:
            writer.add(**step(0), envs=7, q=8)
        assert (column(buffer, "envs"), column(buffer, "q")) == ([7], [8])
    with pytest.raises(TypeError, match="buffer"):
        StepWriter(3)
    with pytest.raises(BufferClosed):
        StepWriter.__new__(StepWriter).add(a=1)


def test_steps_that_are_wrong_change_nothing():
    nstep = {**SMALL_NSTEP, "discount": "disc"}
    with PrioritizedReplayBuffer(20, SMALL, Nstep=nstep, strict=True) as buffer:
        plain = buffer.writer(n_envs=2)
        values = buffer.writer(n_envs=2, priorities="td")
        both = as_columns([step(0), step(1)])
        numbers = {"q": 1.5, "v": 0.5}
        bad = [
            (KeyError, {name: each for name, each in both.items() if name != "rew"}, "'rew'"),
            (TypeError, both | {"disc": [1, 1]}, "computed"),
            (TypeError, both | {"nonsense": [1, 1]}, "nonsense"),
            (ValueError, both | {"rew": [1]}, "rows"),
            (ValueError, step(0), "each environment"),
            (ValueError, both | {"envs": [1]}, "envs"),
            (IndexError, both | {"envs": [0, 2]}, "envs"),
            (IndexError, both | {"envs": [-1, 0]}, "envs"),
            (TypeError, both | {"envs": [0.0, 1.0]}, "envs"),
            (TypeError, both | {"envs": [[0, 1]]}, "envs"),
            (TypeError, both | {"envs": ["a", "b"]}, "envs"),
        ]
        only_plain = [
            (ValueError, both | {"priorities": [1, -1]}, "priority 1"),
            (ValueError, both | {"priorities": [1, 2, 3]}, "priorities"),
            (TypeError, both | {"q": [1, 1]}, "td"),
            (TypeError, both | {"next_v": [1, 1]}, "td"),
        ]
        only_values = [
            (KeyError, both | {"q": [1, 1]}, "v is missing"),
            (KeyError, both | {"v": [1, 1], "q": None}, "q is missing"),
            (TypeError, both | numbers | {"priorities": 1}, "computed"),
            (ValueError, both | numbers | {"q": [1, np.nan]}, "finite"),
            (ValueError, both | numbers | {"v": np.inf}, "finite"),
            (ValueError, both | numbers | {"next_v": [np.inf, 0]}, "finite"),
            (ValueError, both | numbers | {"v": [1, 2, 3]}, "3 values"),
            (TypeError, both | numbers | {"v": "text"}, "v"),
        ]
        for writer, more in ((plain, {}), (values, numbers)):
            writer.add(**both, **more)
            for error, fields, told in [
                *((error, more | fields, told) for error, fields, told in bad),
                *(only_plain if writer is plain else only_values),
            ]:
                with pytest.raises(error, match=told):
                    writer.add(**fields)
                assert (writer.steps, writer.rows_staged, len(buffer)) == (2, 2, 0)
            with pytest.raises(TypeError, match="by name only"):
                writer.add(1)
            for error, envs in ((IndexError, [2]), (TypeError, "text"), (TypeError, [0.5])):
                with pytest.raises(error, match="envs"):
                    writer.on_episode_end(envs)
            assert (
                writer.add(envs=[], **{name: each[:0] for name, each in both.items()}, **more) == 0
            )
            assert writer.on_episode_end([]) == 0
            assert writer.rows_staged == 2
            writer.on_episode_end()
            writer.close()
            assert len(buffer) == 2
            buffer.clear()


def test_a_buffer_without_priorities_says_so_as_add_does():
    with ReplayBuffer(10, SMALL) as buffer, buffer.writer(flush_every=1) as writer:
        with pytest.warns(UserWarning, match="priorities"):
            writer.add(**step(0), priorities=3.0)
        writer.add(**step(1), priorities=None)
        assert len(buffer) == 2


def test_after_close():
    with ReplayBuffer(10, SMALL) as buffer:
        writer = buffer.writer()
        writer.add(**step(0))
        assert "1 staged" in repr(writer)
        writer.close()
        writer.close()
        for call in (lambda: writer.add(**step(1)), writer.flush, writer.on_episode_end):
            with pytest.raises(BufferClosed, match="writer"):
                call()
        assert "closed" in repr(writer) and "1 rows" in repr(writer)
        assert (writer.steps, writer.rows_staged, writer.rows_written, len(buffer)) == (1, 0, 1, 1)
        assert (writer.flush_every, writer.n_envs) == (50, 1)


def test_a_handle_that_is_closed_under_it():
    buffer = ReplayBuffer(10, SMALL)
    with mpbuffer.attach(buffer.name) as other:
        writer = buffer.writer()
        writer.add(**step(0))
        buffer.close()
        for call in (
            lambda: writer.add(**step(1)),
            writer.flush,
            writer.on_episode_end,
            writer.close,
        ):
            with pytest.raises(BufferClosed, match="handle was closed"):
                call()
        assert writer.closed
        writer.close()
        with pytest.raises(BufferClosed):
            buffer.writer()
        assert len(other) == 0


def test_it_cannot_be_pickled():
    with (
        ReplayBuffer(10, SMALL) as buffer,
        buffer.writer() as writer,
        pytest.raises(TypeError, match="each process"),
    ):
        pickle.dumps(writer)


def test_one_that_is_dropped_writes_its_rows():
    with ReplayBuffer(10, SMALL) as buffer:
        buffer.writer().add(**step(0))
        assert len(buffer) == 1
        writer = buffer.writer()
        writer.add(**step(1))
        writer.itself = writer
        gone = weakref.ref(writer)
        del writer
        gc.collect()
        assert gone() is None and len(buffer) == 2


def test_a_circle_through_the_buffer_is_collected(segment_file):
    buffer = ReplayBuffer(10, SMALL, name="writer.circle")
    path = segment_file(buffer.name)
    buffer.kept = buffer.writer()
    buffer.kept.add(**step(0))
    assert path.exists()
    del buffer
    gc.collect()
    assert not path.exists()


def test_threads_that_share_one_by_mistake():
    """Rows are whole, and as many as steps: nobody promises more."""
    fields = {"t": {"dtype": "i8"}, "same": {"shape": 40, "dtype": "i8"}, "done": {}}
    with ReplayBuffer(20_000, fields, Nstep={"size": 3}) as buffer:
        writer = buffer.writer(flush_every=5)

        def explore(number):
            for t in range(number * 1000, number * 1000 + 1000):
                writer.add(t=t, same=np.full(40, t), done=t % 50 == 0)
                if t % 97 == 0:
                    writer.flush()

        threads = [threading.Thread(target=explore, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        writer.close()
        rows = buffer.get_all_transitions()
        assert (rows["same"] == rows["t"]).all()
        assert sorted(rows["t"].ravel().tolist()) == list(range(4000))


# Rows that cannot be written


def claim_slot(buffer, segment_file, slot, owner):
    """As if this number of the process table were writing the slot; 0: nobody."""
    with open(segment_file(buffer.name), "r+b") as file:
        places = Places(file.read(300))
        file.seek(places.word(slot))
        file.write(struct.pack("<Q", 1 << 16 | owner << 6 | 1 << 1 if owner else 0))
        if owner > 1:  # it was there once
            file.seek(places.process_table)
            file.write(struct.pack("<Q", owner))
            file.seek(places.process(owner))
            file.write(struct.pack("<Q", 1))


def test_rows_behind_an_error_stay_staged(segment_file):
    """Some of a batch are written, then the buffer cannot ask who holds a slot."""
    with ReplayBuffer(8, SMALL, name="writer.asks") as buffer:
        claim_slot(buffer, segment_file, 3, owner=9)
        script = """
import os, sys
import mpbuffer
buffer = mpbuffer.attach("writer.asks")
writer = buffer.writer(flush_every=5)
os.closerange(3, 1000)
row = {"rew": 1, "next_obs": 2, "done": 0}
for t in range(4):
    assert writer.add(t=t, **row) == 0
try:
    writer.add(t=4, **row)
except OSError as error:
    assert "cannot ask who is alive" in str(error), error
else:
    os._exit(1)
assert (writer.steps, writer.rows_staged, writer.rows_written, len(buffer)) == (5, 2, 3, 3)
writer.add(t=5, **row)
assert writer.flush() == 3  # at slots that are free
assert (writer.rows_staged, writer.rows_written, len(buffer)) == (0, 6, 6)
os._exit(0)
"""
        ended = run_python(script=script)
        assert ended.returncode == 0, ended.stderr.decode()
        assert sorted(column(buffer, "t")) == [0, 1, 2, 3, 4, 5]


def test_every_slot_is_held_and_a_handler_uses_the_same_writer(segment_file):
    """Its rows come behind those that are waiting, and none is lost or doubled."""
    with (
        ReplayBuffer(2, SMALL, name="writer.held") as buffer,
        mpbuffer.attach("writer.held") as other,
    ):
        for slot in range(2):
            claim_slot(buffer, segment_file, slot, owner=1)
        writer = other.writer(flush_every=100)
        writer.add(**step(0))
        handled = []

        def handle(*_):
            handled.append(writer.rows_staged)
            writer.add(**step(len(handled)))

        before = signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            with pytest.raises(mpbuffer.SlotsHeld):
                writer.flush()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert handled == [1]
        assert (writer.rows_staged, writer.rows_written) == (2, 0)
        for slot in range(2):
            claim_slot(buffer, segment_file, slot, owner=0)
        assert writer.flush() == 2
        assert sorted(column(buffer, "t")) == [0, 1]
        writer.close()


# Processes


def test_a_fork_in_a_handler_while_rows_wait_to_be_written(segment_file):
    """The child comes out of the handler into the flush, and writes nothing of its parent's."""
    with (
        ReplayBuffer(2, SMALL, name="writer.forked") as buffer,
        mpbuffer.attach("writer.forked") as other,
    ):
        for slot in range(2):
            claim_slot(buffer, segment_file, slot, owner=1)
        writer = other.writer(flush_every=100)
        writer.add(**step(0))
        children = []

        def handle(*_):
            children.append(os.fork())
            if children[0] != 0:
                for slot in range(2):
                    claim_slot(buffer, segment_file, slot, owner=0)

        before = signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        written = None
        try:
            written = writer.flush()
        finally:
            if children == [0]:
                os._exit(0 if (written, writer.rows_staged) == (0, 0) else 1)
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert wait_for_child(children[0]) == 0
        assert written == 1 and column(buffer, "t") == [0]
        writer.close()


def test_a_forked_child_has_nothing_staged():
    with ReplayBuffer(40, SMALL, Nstep=SMALL_NSTEP) as buffer:
        writer = buffer.writer(flush_every=10)
        for t in range(5):
            writer.add(**step(t))
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                assert (writer.steps, writer.rows_staged, writer.rows_written) == (0, 0, 0)
                assert writer.flush() == 0 and writer.on_episode_end() == 0
                for t in (10, 11, 12):
                    writer.add(**step(t))
                writer.close()
                assert column(buffer, "t") == [10, 11, 12]
                code = 0
            finally:
                os._exit(code)
        assert wait_for_child(pid) == 0
        assert (writer.steps, writer.rows_staged) == (5, 5)
        writer.close()
        assert column(buffer, "t") == [10, 11, 12, 0, 1, 2, 3, 4]


def test_a_fork_while_rows_are_being_written():
    """The child comes out of the function that was asked for priorities, and writes nothing."""
    children = []

    def priorities(rows):
        children.append(os.fork())
        return 1.0

    with PrioritizedReplayBuffer(40, SMALL) as buffer:
        writer = buffer.writer(flush_every=2, priorities=priorities)
        writer.add(**step(0))
        written = writer.add(**step(1))
        if children[-1] == 0:
            code = 1
            with contextlib.suppress(BaseException):
                if (written, writer.rows_staged, writer.rows_written) == (0, 0, 0):
                    code = 0
            os._exit(code)
        assert wait_for_child(children[-1]) == 0
        assert (written, writer.rows_staged, len(buffer)) == (2, 0, 2)
        writer.close()


def test_a_fork_while_another_thread_adds():
    with ReplayBuffer(1000, SMALL, Nstep=SMALL_NSTEP) as buffer:
        writer = buffer.writer(flush_every=3)
        done = threading.Event()

        def explore():
            t = 0
            while not done.is_set():
                writer.add(**step(t % 50, done=t % 7 == 0))
                t += 1

        thread = threading.Thread(target=explore)
        thread.start()
        try:
            for _ in range(30):
                pid = os.fork()
                if pid == 0:
                    code = 1
                    with contextlib.suppress(BaseException):
                        for t in range(5):
                            writer.add(**step(t))
                        code = 0 if writer.steps == 5 else 2
                    os._exit(code)
                assert wait_for_child(pid) == 0
        finally:
            done.set()
            thread.join(DEADLINE)
        writer.close()


EXITS = {
    "returns": "",
    "leaves by sys.exit": "sys.exit(0)",
    "raises": "raise SystemExit",
    "closes the buffer at exit first": "atexit.register(lambda: None)",
}


@pytest.mark.parametrize("how", EXITS, ids=str)
def test_at_exit_rows_are_written(how):
    """The writer is closed before the buffer's handle, in whichever order they were made."""
    with ReplayBuffer(10, SMALL, Nstep=SMALL_NSTEP, name="writer.exit") as buffer:
        script = f"""
import atexit, sys, mpbuffer
buffers = [mpbuffer.attach("writer.exit") for _ in range(5)]
writers = [each.writer() for each in buffers]
for i, writer in enumerate(writers):
    writer.add(t=i, rew=1, next_obs=2, done=0)
{EXITS[how]}
"""
        ended = run_python(script=script)
        assert (ended.returncode, ended.stderr) == (0, b"")
        assert sorted(column(buffer, "t")) == [0, 1, 2, 3, 4]


CHILDREN = """
import multiprocessing, os, sys, threading, time, mpbuffer

buffer = mpbuffer.attach("writer.exit")
writer = buffer.writer()

def add(t):
    writer.add(t=t, rew=1, next_obs=2, done=0)

def fork(t, leave):
    pid = os.fork()
    if pid == 0:
        add(t)
        leave()
    else:
        os.waitpid(pid, 0)

def fork_and_exit(t):
    fork(t, sys.exit)
    sys.exit()

def in_child(package, function):
    process = package.get_context("fork").Process(target=function)
    process.start()
    process.join()

def in_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()

def add_later():
    time.sleep(0.1)
    add(8)

add(0)  # which no child writes
fork(1, sys.exit)
fork(2, lambda: fork_and_exit(3))
in_thread(lambda: fork(4, lambda: None))
in_thread(lambda: fork(5, sys.exit))
in_child(multiprocessing, lambda: fork(6, sys.exit))
with buffer.writer() as writer_of_a_block:
    writer, writer_of_main = writer_of_a_block, writer
    fork(7, sys.exit)
    writer = writer_of_main
in_child(multiprocessing, threading.Thread(target=add_later).start)
living = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
living.start()
fork(9, sys.exit)  # multiprocessing refuses to wait there for a child of its parent, and says so
living.kill()
living.join()
fork(10, lambda: None)
"""


def test_forked_children_write_their_rows_however_they_end():
    with ReplayBuffer(40, SMALL, Nstep=SMALL_NSTEP, name="writer.exit") as buffer:
        ended = run_python(script=CHILDREN)
        assert ended.returncode == 0, ended.stderr
        assert sorted(column(buffer, "t")) == list(range(11))


@pytest.mark.parametrize("way", ["main", "process", "fork"])
def test_an_exception_in_a_close_at_exit_is_reported_and_the_others_are_closed(way):
    """Whatever is raised, by the function that is asked for priorities or by a handler."""
    with PrioritizedReplayBuffer(10, SMALL, name="writer.exit") as buffer:
        script = f"""
import multiprocessing, os, signal, sys, mpbuffer

buffer = mpbuffer.attach("writer.exit")
signal.signal(signal.SIGUSR1, lambda *_: 1 / 0)

def failing_with(error):
    def priorities(rows):
        raise error
    return priorities

def interrupted(rows):
    signal.raise_signal(signal.SIGUSR1)

def stage_rows():
    global writers
    writers = []
    for error in (ArithmeticError("no priority today"), SystemExit(3), KeyboardInterrupt()):
        writers += [buffer.writer(), buffer.writer(priorities=failing_with(error))]
    writers += [buffer.writer(), buffer.writer(priorities=interrupted)]
    for t, writer in enumerate(writers):
        writer.add(t=t, rew=1, next_obs=2, done=0)

if {way!r} == "main":
    stage_rows()
elif {way!r} == "process":
    process = multiprocessing.get_context("fork").Process(target=stage_rows)
    process.start()
    process.join()
elif (pid := os.fork()) == 0:
    stage_rows()
else:
    os.waitpid(pid, 0)
"""
        ended = run_python(script=script)
        assert ended.returncode == 0
        for error in (b"no priority today", b"SystemExit: 3", b"KeyboardInterrupt", b"ZeroDivi"):
            assert ended.stderr.count(error) == 1
        assert ended.stderr.count(b"Exception ignored in") == 4
        assert sorted(column(buffer, "t")) == [0, 2, 4, 6]


@pytest.mark.parametrize("package", ["multiprocessing", "multiprocess"])
@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_several_explorers(package, way):
    """All rows of all explorers, each exactly as often as the oracles say."""
    processes = pytest.importorskip(package).get_context(way)
    expected = collections.Counter()
    with ReplayBuffer(3000, FIELDS, Nstep=NSTEP) as buffer:
        work = [
            processes.Process(target=explore_one, args=(buffer, 0, 150, False)),
            processes.Process(target=explore_one, args=(buffer, 1, 150, True)),
            processes.Process(target=explore_many, args=(buffer, 2, 80, 8)),
            processes.Process(target=explore_many, args=(buffer, 3, 80, 3)),
        ]
        with killed_at_the_end(work):
            for process in work:
                process.start()
            for process in work:
                assert join_within(process) == 0
        for explorer, envs in enumerate([1, 1, 8, 3]):
            for env in range(envs):
                steps = steps_of(explorer, env, 0, 150 if explorer < 2 else 80)
                rows = oracle_rows(steps, NSTEP)
                expected += collections.Counter(as_bytes(row, ALL_FIELDS) for row in rows)
        got = collections.Counter(
            as_bytes(row, ALL_FIELDS) for row in rows_in(buffer.get_all_transitions())
        )
        assert got == expected


def check_rows(rows, cache):
    """Each row is one of the oracle's, of a stream that never ends by hand."""
    n = NSTEP["size"]
    for row in rows_in(rows):
        key = explorer, env, t = int(row["explorer"]), int(row["env"]), int(row["t"])
        if key not in cache:
            begin = t - t % 50
            steps = steps_of(explorer, env, begin, 50 + n)
            for i, expected in enumerate(oracle_rows(steps, NSTEP)[:50]):
                cache[explorer, env, begin + i] = as_bytes(expected, ALL_FIELDS)
        assert as_bytes(row, ALL_FIELDS) == cache[key], key


def run_kills(kills, capacity, pause):
    """Kill explorers at any moment; look at what is sampled meanwhile, and at what is left."""
    context = multiprocessing.get_context("fork")
    random = np.random.default_rng(kills)
    cache = {}
    running = {}

    def start(buffer, explorer):
        ours, theirs = context.Pipe(False)
        process = context.Process(
            target=explore_until_killed, args=(buffer, explorer, pause, theirs)
        )
        process.start()
        theirs.close()
        running[explorer] = process, ours

    with PrioritizedReplayBuffer(capacity, FIELDS, Nstep=NSTEP) as buffer:
        try:
            for explorer in range(kills + 2):
                start(buffer, explorer)
                if explorer < 2:
                    continue
                process, ours = running.pop(int(random.choice(list(running))))
                receive_within(ours)
                time.sleep(random.random() * (0.01 + pause))
                process.kill()
                assert join_within(process) == -signal.SIGKILL
                check_rows(buffer.sample(32), cache)
        finally:
            for process, _ in running.values():
                process.kill()
                process.join(DEADLINE)
        rows = buffer.get_all_transitions()
        check_rows(rows, cache)
        if capacity > buffer.rows_added():
            keys = (rows[name].ravel().tolist() for name in ("explorer", "env", "t"))
            counts = collections.Counter(zip(*keys, strict=True))
            assert max(counts.values()) == 1, "a row was written twice"


def test_explorers_that_are_killed():
    run_kills(4, 100_000, pause=0.02)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("capacity", [500, 1_000_000])
def test_many_explorers_that_are_killed(capacity):
    run_kills(KILLS, capacity, pause=0)
