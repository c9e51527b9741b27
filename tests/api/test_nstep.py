"""n-step rows: what add() makes of steps, against a slow oracle, and against cpprb itself."""

import importlib.util
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nstep_streams import FLAGS, as_bytes, oracle_rows, rows_in
from watched_processes import wait_for_child

import mpbuffer
from mpbuffer import PrioritizedReplayBuffer, ReplayBuffer

FIELDS = {"t": {}, "rew": {}, "next_obs": {"shape": 2}, "done": {}}
NSTEP = {"size": 3, "rew": "rew", "gamma": 0.5, "next": "next_obs"}

both_classes = pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplayBuffer])
has_cpprb = pytest.mark.skipif(
    importlib.util.find_spec("cpprb") is None, reason="cpprb is not installed"
)
gammas = st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]) | st.floats(0, 1)
f4 = st.floats(width=32, allow_nan=False, allow_infinity=False)
f8 = st.floats(allow_nan=False, allow_infinity=False)


def step(t, done=0, **more):
    return {"t": t, "rew": 2.0**t, "next_obs": [t + 1, -t], "done": done, **more}


def column(buffer, name):
    return buffer.get_all_transitions()[name].ravel().tolist()


@st.composite
def streams(draw):
    """Steps of one environment with flags of some kinds, and where it is cut off by hand."""
    flags = draw(st.lists(st.sampled_from(FLAGS), min_size=1, max_size=3, unique=True))
    dtype = draw(st.sampled_from(["?", "u1", "i8", "f4", "f8"]))
    fields = {"t": {"dtype": "i8"}, "rew": {}, "both": {"shape": 2, "dtype": "f8"}, "next_obs": {}}
    fields |= {flag: {"shape": draw(st.sampled_from([(), 1])), "dtype": dtype} for flag in flags}
    raised = st.sampled_from([0, 0, 0, 1])
    steps = [
        {
            "t": t,
            "rew": np.float32(draw(f4)),
            "both": np.array([draw(f8), draw(f8)]),
            "next_obs": np.float32(t + 0.5),
            **{flag: draw(raised) for flag in flags},
        }
        for t in range(draw(st.integers(0, 25)))
    ]
    cuts = draw(st.sets(st.integers(0, 24), max_size=3))
    nstep = {
        "size": draw(st.integers(1, 6) | st.just(11)),
        "gamma": draw(gammas),
        "rew": draw(st.sampled_from(["rew", ["rew", "both"], None, ["both"]])),
        "next": draw(st.sampled_from(["next_obs", ["next_obs"], None, []])),
    }
    if draw(st.booleans()):
        nstep["discount"] = "disc"
        fields |= draw(st.sampled_from([{}, {"disc": {"shape": (), "dtype": "f4"}}]))
    return fields, steps, cuts, nstep


@settings(max_examples=100, deadline=None)
@given(streams(), st.lists(st.integers(1, 7), max_size=40), st.booleans())
def test_rows_are_those_of_the_oracle(stream, lengths, ended):
    fields, steps, cuts, nstep = stream
    with ReplayBuffer(100, fields, Nstep=nstep) as buffer:
        at, before = 0, 0
        while at < len(steps):
            length = min(lengths.pop(), len(steps) - at) if lengths else 1
            up_to = min([at + length, *(cut + 1 for cut in cuts if cut >= at)])
            batch = {name: np.array([one[name] for one in steps[at:up_to]]) for name in steps[0]}
            if up_to == at + 1 and length != 7:
                batch = steps[at]
            first = buffer.add(**batch)
            at = up_to
            assert first == (before if len(buffer) > before else None)
            if at - 1 in cuts:
                buffer.on_episode_end()
            before = len(buffer)
        if ended:
            buffer.on_episode_end()
        expected = oracle_rows(steps, nstep, cuts, whole=ended)
        known = fields | ({"disc": {}} if "discount" in nstep else {})
        got = rows_in(buffer.get_all_transitions())
        assert [as_bytes(row, known) for row in got] == [as_bytes(row, known) for row in expected]


@pytest.mark.parametrize("raised", [1, -1, np.nan, 0.25, 2**-149])
def test_any_number_but_0_is_a_flag(raised):
    with ReplayBuffer(10, FIELDS, Nstep=NSTEP) as buffer:
        buffer.add(**step(0, done=-0.0))
        assert len(buffer) == 0
        buffer.add(**step(1, done=raised))
        assert len(buffer) == 2


def test_done_and_terminated_stop_bootstrapping_truncated_does_not():
    fields = FIELDS | {"terminated": {"dtype": "?"}, "truncated": {"dtype": "?"}}
    stops = {
        (0, 0, 0): None,
        (0, 0, 1): False,
        (0, 1, 0): True,
        (0, 1, 1): True,
        (1, 0, 0): True,
        (1, 0, 1): False,
        (1, 1, 0): True,
        (1, 1, 1): True,
    }
    for (done, terminated, truncated), expected in stops.items():
        for size in (1, 2):
            nstep = {**NSTEP, "size": size, "discount": "disc"}
            with ReplayBuffer(10, fields, Nstep=nstep) as buffer:
                buffer.add(**step(0, done=done), terminated=terminated, truncated=truncated)
                if size == 2:
                    assert len(buffer) == (expected is not None)
                    buffer.on_episode_end()
                assert column(buffer, "disc") == [0.0 if expected else 0.5]


def test_one_step_is_the_ordinary_buffer_and_a_discount():
    nstep = {"size": 1, "rew": "rew", "gamma": 0.75, "discount": "disc"}
    with ReplayBuffer(10, FIELDS, Nstep=nstep) as buffer:
        assert [buffer.add(**step(t, done=t == 1)) for t in range(3)] == [0, 1, 2]
        assert column(buffer, "rew") == [1, 2, 4]
        assert column(buffer, "disc") == [0.75, 0, 0.75]


def test_a_reward_that_is_alone_is_untouched():
    """No sum is made of it: the sign of a zero stays."""
    for size in (1, 2):
        with ReplayBuffer(10, FIELDS, Nstep={**NSTEP, "size": size}) as buffer:
            buffer.add(**{**step(0, done=1), "rew": -0.0})
            assert np.signbit(buffer.get_all_transitions()["rew"]).all()


def test_sums_are_rounded_once():
    """In float32 arithmetic the small reward would be lost."""
    with ReplayBuffer(10, FIELDS, Nstep={**NSTEP, "gamma": 1.0}) as buffer:
        for t, reward in enumerate([2.0**24, 1.0, 1.0]):
            buffer.add(**{**step(t), "rew": reward})
        assert column(buffer, "rew") == [2**24 + 2]


def test_a_long_window():
    """Longer than the window is at first; and it goes around."""
    with ReplayBuffer(300, FIELDS, Nstep={**NSTEP, "size": 50, "gamma": 1.0}) as buffer:
        buffer.add(**{name: np.stack([step(0)[name]] * 200) for name in FIELDS})
        assert column(buffer, "rew") == [50.0] * 151
        buffer.on_episode_end()
        assert column(buffer, "rew")[151:] == [float(49 - i) for i in range(49)]


def test_more_rows_than_fit_at_once():
    """The window and a batch together are longer than the buffer."""
    with ReplayBuffer(4, FIELDS, Nstep={**NSTEP, "size": 5, "gamma": 0.0}) as buffer:
        buffer.add(**{name: np.stack([step(t)[name] for t in range(4)]) for name in FIELDS})
        assert len(buffer) == 0
        batch = {
            name: np.stack([step(4 + t, done=t == 3)[name] for t in range(4)]) for name in FIELDS
        }
        assert buffer.add(**batch) == 0
        assert sorted(column(buffer, "t")) == [4, 5, 6, 7]
        assert buffer.rows_added() == 8


def test_priorities_belong_to_the_row_that_begins_with_the_step():
    nstep = {**NSTEP, "discount": "disc"}
    with PrioritizedReplayBuffer(10, FIELDS, Nstep=nstep, alpha=1, eps=0) as buffer:
        for t in range(6):
            buffer.add(**step(t, done=t == 5), priorities=t + 1.0)
        buffer.sample(1)
        assert column(buffer, "t") == list(range(6))
        assert buffer._leaves()[:6].tolist() == [1, 2, 3, 4, 5, 6]
        assert buffer.get_max_priority() == 6
        buffer.add(**step(6, done=1))
        buffer.sample(1)
        assert buffer._leaves()[6] == 6


def test_the_window_is_the_handles_own():
    with ReplayBuffer(20, FIELDS, Nstep=NSTEP, name="nstep.own") as buffer:
        others = [
            mpbuffer.attach("nstep.own"),
            pickle.loads(pickle.dumps(buffer)),
            mpbuffer.attach("nstep.own"),
        ]
        handles = [buffer, *others]
        assert all(handle.is_Nstep() for handle in handles)
        for t in range(2):
            for number, handle in enumerate(handles):
                assert handle.add(**step(10 * number + t)) is None
        for number, handle in enumerate(handles):
            assert handle.add(**step(10 * number + 2)) == number
        assert column(buffer, "next_obs")[::2] == [3, 13, 23, 33]
        for handle in others:
            handle.close()
        assert len(buffer) == 4


def test_clear_forgets_the_window():
    with ReplayBuffer(20, FIELDS, Nstep=NSTEP) as buffer:
        buffer.add(**step(0))
        buffer.add(**step(1))
        assert buffer.get_current_episode_len() == 2
        buffer.clear()
        assert buffer.get_current_episode_len() == 0
        buffer.on_episode_end()
        assert len(buffer) == 0
        for t in (5, 6, 7):
            buffer.add(**step(t))
        assert column(buffer, "t") == [5]


def test_on_episode_end_twice_and_after_a_flag_writes_nothing():
    with ReplayBuffer(20, FIELDS, Nstep=NSTEP) as buffer:
        for t in range(4):
            buffer.add(**step(t, done=t == 3))
        assert len(buffer) == 4
        buffer.on_episode_end()
        buffer.add(**step(4))
        buffer.on_episode_end()
        buffer.on_episode_end()
        assert column(buffer, "t") == [0, 1, 2, 3, 4]


def test_a_forked_child_has_an_empty_window():
    with ReplayBuffer(20, FIELDS, Nstep=NSTEP) as buffer:
        buffer.add(**step(0))
        buffer.add(**step(1))
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                buffer.on_episode_end()
                assert len(buffer) == 0
                for t in (10, 11, 12):
                    buffer.add(**step(t))
                assert column(buffer, "t") == [10]
                code = 0
            finally:
                os._exit(code)
        assert wait_for_child(pid) == 0
        buffer.add(**step(2))
        assert column(buffer, "t") == [10, 0]


@both_classes
def test_bad_steps_change_nothing(cls):
    with cls(20, FIELDS, Nstep={**NSTEP, "discount": "disc"}, strict=True) as buffer:
        buffer.add(**step(0))
        buffer.add(**step(1))
        bad = [
            (KeyError, {name: value for name, value in step(2).items() if name != "done"}),
            (TypeError, step(2, disc=1.0)),
            (TypeError, step(2, nonsense=1.0)),
            (ValueError, step(2) | {"next_obs": [1, 2, 3]}),
            (TypeError, step(2) | {"rew": object()}),
            (IndexError, {name: np.stack([step(0)[name]] * 21) for name in FIELDS}),
        ]
        if cls is PrioritizedReplayBuffer:
            bad.append((ValueError, step(2, priorities=-1.0)))
        for error, fields in bad:
            with pytest.raises(error):
                buffer.add(**fields)
            assert len(buffer) == 0 and buffer.get_current_episode_len() == 2
        assert (
            buffer.add(**{name: np.zeros((0, *np.shape(step(0)[name]))) for name in FIELDS}) is None
        )
        buffer.add(**step(2))
        assert column(buffer, "rew") == [1 + 0.5 * 2 + 0.25 * 4]
        assert column(buffer, "next_obs") == [3, -2]


WRONG = {
    "no mapping": (TypeError, 3, "mapping"),
    "no size": (ValueError, {"rew": "rew"}, "size"),
    "size of 0": (ValueError, {**NSTEP, "size": 0}, "size"),
    "huge size": (ValueError, {**NSTEP, "size": 2**40}, "size"),
    "half a step": (TypeError, {**NSTEP, "size": 1.5}, "size"),
    "size that is a truth value": (TypeError, {**NSTEP, "size": True}, "size"),
    "unknown key": (ValueError, {**NSTEP, "gama": 0.9}, "gama"),
    "gamma above 1": (ValueError, {**NSTEP, "gamma": 1.01}, "gamma"),
    "gamma below 0": (ValueError, {**NSTEP, "gamma": -0.01}, "gamma"),
    "no gamma": (ValueError, {**NSTEP, "gamma": float("nan")}, "gamma"),
    "reward of no field": (ValueError, {**NSTEP, "rew": "reward"}, "'reward'"),
    "next of no field": (ValueError, {**NSTEP, "next": ["next_obs", "more"]}, "'more'"),
    "reward of integers": (ValueError, {**NSTEP, "rew": "count"}, "float32"),
    "reward of half precision": (ValueError, {**NSTEP, "rew": "half"}, "float32"),
    "reward that is no name": (TypeError, {**NSTEP, "rew": [3]}, "name"),
    "a field twice": (ValueError, {**NSTEP, "next": "rew"}, "twice"),
    "reward that is a flag": (ValueError, {**NSTEP, "rew": "done"}, "done"),
    "discount that is a flag": (ValueError, {**NSTEP, "discount": "done"}, "done"),
    "discount of no name": (TypeError, {**NSTEP, "discount": ["disc"]}, "name"),
    "discount of nothing": (TypeError, {**NSTEP, "discount": ""}, "name"),
    "discount of integers": (ValueError, {**NSTEP, "discount": "count"}, "float32"),
    "discount of two": (ValueError, {**NSTEP, "discount": "next_obs", "next": None}, "one number"),
}


@pytest.mark.parametrize("what", WRONG, ids=str)
def test_what_is_wrong_is_told_before_anything_is_made(what, segment_file):
    error, nstep, told = WRONG[what]
    fields = FIELDS | {"count": {"dtype": "i4"}, "half": {"dtype": "f2"}}
    with pytest.raises(error, match=told):
        ReplayBuffer(10, fields, Nstep=nstep, name="nstep.wrong")
    assert not segment_file("nstep.wrong").exists()


def test_flags_that_tell_nothing():
    nstep = {"size": 2}
    with pytest.raises(ValueError, match="'done'"):
        ReplayBuffer(10, {"rew": {}}, Nstep=nstep)
    for field in ({"shape": 2}, {"dtype": "S4"}, {"dtype": "c8"}, {"dtype": "g"}):
        with pytest.raises(ValueError, match="'truncated'"):
            ReplayBuffer(10, {"rew": {}, "done": {}, "truncated": field}, Nstep=nstep)
    with pytest.raises(ValueError, match="weights"):
        PrioritizedReplayBuffer(10, FIELDS, Nstep={**NSTEP, "discount": "weights"})


def rows_of(module, steps, nstep, batches, cut_at):
    buffer = module.ReplayBuffer(200, {"t": {}, "rew": {}, "next_obs": {}, "done": {}}, Nstep=nstep)
    returned, at = [], 0
    for length in batches:
        part = steps[at : at + length]
        at += length
        batch = {name: np.array([one[name] for one in part]) for name in steps[0]}
        returned.append(buffer.add(**(part[0] if length == 1 else batch)))
        if at == cut_at:
            buffer.on_episode_end()
    return buffer.get_all_transitions(), returned


@has_cpprb
@pytest.mark.parametrize("done", [0, 1])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_rows_are_those_of_cpprb(size, done):
    """Same rows, in the same order, with the same indexes returned, for programs that end episodes.

    Where cpprb is right. In its rows of the last steps of an episode `done` is 0 where the horizon
    ends with the episode and may be 2 after that, and the next observation of those that
    on_episode_end() writes is another transition's. Rewards and gamma are such that its sums in
    float32 are exact.
    """
    import cpprb

    random = np.random.default_rng(size)
    steps = [
        {"t": t, "rew": float(random.integers(-9, 10)), "next_obs": t + 100, "done": 0}
        for t in range(30)
    ]
    steps[17]["done"] = done
    nstep = {"size": size, "rew": "rew", "gamma": 0.5, "next": "next_obs"}
    batches = [1] * 8 + [4, 2, 3] + [1] * 13
    ours, slots = rows_of(mpbuffer, steps, nstep, batches, cut_at=18)
    theirs, their_slots = rows_of(cpprb, steps, nstep, batches, cut_at=18)
    for name in ("t", "rew"):
        assert ours[name].dtype == theirs[name].dtype
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert slots == their_slots
    to_the_end = (ours["t"] >= 18 - size) & (ours["t"] < 18)
    by_hand = to_the_end & (ours["t"] > 18 - size)
    np.testing.assert_array_equal(ours["next_obs"][~by_hand], theirs["next_obs"][~by_hand])
    assert (ours["next_obs"][by_hand] == 117).all()
    np.testing.assert_array_equal(ours["done"][~to_the_end], theirs["done"][~to_the_end])
    assert (ours["done"][to_the_end] == done).all()
