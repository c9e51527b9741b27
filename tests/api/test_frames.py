"""Frames stored once: whatever is added comes back, and takes the memory of what is new in it."""

import contextlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mpbuffer
from mpbuffer import PrioritizedReplayBuffer, ReplayBuffer

BOTH_CLASSES = pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplayBuffer])
FIRST, LAST = (3, 16, 16), (16, 16, 3)


def env_dict(shape=FIRST, **others):
    return {
        "obs": {"shape": shape, "dtype": np.uint8},
        "act": {"shape": 2},
        "id": {"dtype": np.int64},
        "done": {"dtype": bool},
        **others,
    }


def frame(number):
    return np.random.default_rng(number).integers(0, 256, (16, 16), np.uint8)


def stack(numbers, shape):
    return np.stack([frame(each) for each in numbers], axis=0 if shape == FIRST else -1)


def episode(first_id, steps, shape, first_frame=None):
    """Steps of an episode whose first stack has one frame three times, as wrappers make it."""
    start = first_id * 1000 if first_frame is None else first_frame
    numbers = [start, start, *range(start, start + steps + 1)]
    for t in range(steps):
        yield {
            "obs": stack(numbers[t : t + 3], shape),
            "next_obs": stack(numbers[t + 1 : t + 4], shape),
            "act": [t, -t],
            "id": first_id + t,
            "done": t == steps - 1,
        }


def as_arrays(steps):
    return {name: np.stack([step[name] for step in steps]) for name in steps[0]}


def assert_rows_are(rows, steps_by_id):
    for i, number in enumerate(np.ravel(rows["id"])):
        for name, value in steps_by_id[int(number)].items():
            np.testing.assert_array_equal(rows[name][i], np.reshape(value, rows[name][i].shape))


@BOTH_CLASSES
@pytest.mark.parametrize("shape", [FIRST, LAST])
@pytest.mark.parametrize(
    "compressed",
    [
        {"next_of": "obs"},
        {"next_of": ["obs"], "stack_compress": ["obs"]},
        {"next_of": "obs", "stack_compress": np.array(["obs"])},
    ],
)
def test_rows_come_back_in_every_call_that_reads(cls, shape, compressed):
    buffer = cls(32, env_dict(shape), seed=1, **compressed)
    steps = {}
    for first_id, length in ((0, 9), (9, 1), (10, 25), (35, 12)):
        for step in episode(first_id, length, shape):
            steps[step["id"]] = step
            buffer.add(**step)
        buffer.on_episode_end()
    assert len(buffer) == 32
    everything = buffer.get_all_transitions()
    assert sorted(np.ravel(everything["id"])) == list(range(15, 47))
    assert list(everything) == ["obs", "act", "id", "done", "next_obs"]
    assert_rows_are(everything, steps)
    assert_rows_are(buffer._encode_sample(range(32)), steps)
    sample = buffer.sample(64)
    assert sample["obs"].shape == sample["next_obs"].shape == (64, *shape)
    assert_rows_are(sample, steps)
    assert buffer.sample(64, out=sample) is sample
    assert_rows_are(sample, steps)
    with buffer.batches(16, prefetch=2) as batches:
        for _ in range(5):
            assert_rows_are(next(batches), steps)


@pytest.mark.parametrize("shape", [FIRST, LAST])
def test_stacks_alone_and_stacks_with_their_next_as_fields(shape):
    both = env_dict(shape, next_obs={"shape": shape, "dtype": np.uint8})
    for compressed in (["obs"], ["obs", "next_obs"], ["next_obs"], {"obs": 0, "next_obs": -1}):
        buffer = ReplayBuffer(16, both, stack_compress=compressed)
        steps = list(episode(0, 20, shape))
        buffer.add(**as_arrays(steps[:10]))
        buffer.add(**as_arrays(steps[10:]))
        assert_rows_are(buffer.get_all_transitions(), dict(enumerate(steps)))
        assert len(buffer) == 16


def test_several_fields_of_several_sizes():
    fields = {
        "a": {"shape": (3, 16, 16), "dtype": np.uint8},
        "b": {"shape": (40, 2), "dtype": np.float64},
        "c": {"shape": 3},
        "d": {"shape": (5, 5), "dtype": np.float32},
    }
    buffer = ReplayBuffer(20, fields, next_of=["a", "b", "c"], stack_compress=["a", "b", "c", "d"])
    rng = np.random.default_rng(0)
    names = [*fields, "next_a", "next_b", "next_c"]
    shapes = {name: fields[name.removeprefix("next_")]["shape"] for name in names}
    rows = {name: rng.random((20, *np.ravel(shapes[name]))).astype("f4") for name in names}
    rows |= {name: (rows[name] * 255).astype(np.uint8) for name in ("a", "next_a")}
    buffer.add(**rows)
    for name, values in buffer.get_all_transitions().items():
        np.testing.assert_array_equal(values, rows[name])


def test_frames_that_steps_share_are_stored_once():
    shape = (4, 84, 84)
    plain = {name: {"shape": shape, "dtype": np.uint8} for name in ("obs", "next_obs")}
    rows = 20_000
    shared = ReplayBuffer.largest_size(plain, 0.5)
    framed = ReplayBuffer.largest_size(
        {"obs": plain["obs"]}, 0.5, next_of="obs", stack_compress="obs"
    )
    assert framed > 6.5 * shared
    with ReplayBuffer(rows, {"obs": plain["obs"]}, next_of="obs", stack_compress="obs") as buffer:
        assert buffer.nbytes < 0.16 * rows * 2 * 4 * 84 * 84


def test_what_shares_nothing_comes_back_too_and_old_rows_go_early():
    buffer = ReplayBuffer(300, env_dict(), next_of="obs", stack_compress="obs", sources=300, seed=2)
    rng = np.random.default_rng(5)
    steps = {
        i: {
            "obs": rng.integers(0, 256, FIRST, np.uint8),
            "next_obs": rng.integers(0, 256, FIRST, np.uint8),
            "act": [i, 2],
            "id": i,
            "done": False,
        }
        for i in range(500)
    }
    for step in steps.values():
        buffer.add(**step)
    assert 300 // 8 <= len(buffer) <= 300 // 6
    rows = buffer.get_all_transitions()
    assert sorted(np.ravel(rows["id"])) == list(range(500 - len(buffer), 500))
    assert_rows_are(rows, steps)
    assert_rows_are(buffer.sample(128), steps)
    gone = buffer._encode_sample([buffer.get_next_index()])
    assert not gone["id"].any() and not gone["obs"].any()
    figures = buffer.stats()
    assert (figures["size"], figures["fill"], figures["rows_added"]) == (300, len(buffer), 500)
    assert figures["early"] == 300 - len(buffer)  # the others were overwritten
    assert figures["sources"] == 300 and 500 * 6 <= figures["sources_written"] <= 500 * 8


@pytest.mark.parametrize("with_writer", [False, True])
def test_a_buffer_that_saves_nothing_warns_once(with_writer):
    buffer = ReplayBuffer(50, env_dict(), next_of="obs", stack_compress="obs")
    rng = np.random.default_rng(6)
    with contextlib.ExitStack() as stay:
        target = stay.enter_context(buffer.writer()) if with_writer else buffer
        with pytest.warns(UserWarning, match="save nothing in .*: hardly any frame") as warned:
            for i in range(900):
                values = rng.integers(0, 256, (2, *FIRST), np.uint8)
                target.add(obs=values[0], next_obs=values[1], act=[0, 0], id=i, done=False)
    assert len(warned) == 1


# Against a slow oracle

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_random_streams_are_what_a_list_of_rows_is(data):
    shape = data.draw(st.sampled_from([FIRST, LAST]))
    cls = data.draw(st.sampled_from([ReplayBuffer, PrioritizedReplayBuffer]))
    size = data.draw(st.integers(1, 40))
    compressed = {"next_of": "obs"}
    if data.draw(st.booleans()):
        compressed["stack_compress"] = "obs"
    explorers = data.draw(st.integers(1, 3))
    oracle, ids = [], 0
    with contextlib.ExitStack() as stay:
        buffer = stay.enter_context(cls(size, env_dict(shape), **compressed))
        handles = [stay.enter_context(mpbuffer.attach(buffer.name)) for _ in range(explorers)]
        for length in data.draw(LENGTHS):
            kind = data.draw(st.sampled_from(["single", "batch", "writer", "clear"]))
            handle = handles[data.draw(st.integers(0, explorers - 1))]
            repeated = data.draw(st.booleans())  # of frames that other episodes have had
            steps = list(episode(ids, length, shape, 7 if repeated else None))
            ids += length
            if kind == "clear":
                handle.clear()
                oracle.clear()
            elif kind == "single":
                for step in steps:
                    handle.add(**step)
            elif kind == "batch":
                for first in range(0, length, size):
                    handle.add(**as_arrays(steps[first : first + size]))
            else:
                with handle.writer(flush_every=3) as writer:
                    for step in steps:
                        writer.add(**step)
            if kind != "clear":
                oracle += steps
            kept = {step["id"]: step for step in oracle[-size:]}
            assert len(buffer) == len(kept)
            rows = buffer.get_all_transitions()
            assert set(np.ravel(rows["id"])) == set(kept)
            assert_rows_are(rows, kept)
            if kept:
                assert_rows_are(buffer.sample(8), kept)


# N-step rows


@pytest.mark.parametrize("shape", [FIRST, LAST])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("with_writer", [False, True])
def test_nstep_rows_are_those_of_a_plain_buffer(shape, steps, with_writer):
    nstep = {"size": steps, "rew": "rew", "next": "next_obs", "gamma": 0.5}
    fields = env_dict(shape, rew={})
    framed = ReplayBuffer(64, fields, next_of="obs", stack_compress="obs", Nstep=nstep)
    plain = ReplayBuffer(
        64, fields | {"next_obs": {"shape": shape, "dtype": np.uint8}}, Nstep=nstep
    )
    for buffer in (framed, plain):
        with contextlib.ExitStack() as stay:
            target = stay.enter_context(buffer.writer(n_envs=2)) if with_writer else buffer
            for first_id, length in ((0, 10), (10, 2), (12, 8)):
                for step in episode(first_id, length, shape):
                    if with_writer:  # two environments whose frames differ
                        other = dict(zip(step, step.values(), strict=True))
                        other |= {"obs": step["obs"] ^ 255, "next_obs": step["next_obs"] ^ 255}
                        rows = {k: np.stack([step[k], other[k]]) for k in step}
                        target.add(**rows, rew=[first_id, 1])
                    else:
                        target.add(**step, rew=first_id)
                if not with_writer:
                    target.on_episode_end()
    ours, theirs = framed.get_all_transitions(), plain.get_all_transitions()
    assert len(framed) == (40 if with_writer else 20)
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values)


# Files


def test_saved_rows_are_loaded_into_framed_and_plain_buffers(tmp_path):
    compressed = {"next_of": "obs", "stack_compress": "obs"}
    steps = list(episode(0, 12, LAST))
    buffer = PrioritizedReplayBuffer(16, env_dict(LAST), **compressed)
    buffer.add(**as_arrays(steps), priorities=np.arange(1, 13))
    buffer.save_transitions(tmp_path / "rows.npz")
    plain = env_dict(LAST, next_obs={"shape": LAST, "dtype": np.uint8})
    for other in (
        PrioritizedReplayBuffer(16, env_dict(LAST), **compressed),
        ReplayBuffer(16, env_dict(LAST), next_of="obs"),
        ReplayBuffer(16, plain),
    ):
        other.load_transitions(tmp_path / "rows.npz")
        assert len(other) == 12
        assert_rows_are(other.get_all_transitions(), dict(enumerate(steps)))


# What is refused


@BOTH_CLASSES
@pytest.mark.parametrize(
    ("given_arguments", "error", "message"),
    [
        ({"next_of": "none"}, ValueError, "next_of names 'none', which is no field; fields are"),
        ({"stack_compress": ["obs", "x"]}, ValueError, "stack_compress names 'x'"),
        ({"next_of": [3]}, TypeError, "next_of must be a field's name or several"),
        ({"stack_compress": {"obs": 1}}, ValueError, "must be the first or the last axis, got 1"),
        ({"next_of": "obs", "sources": 15}, ValueError, "sources"),
        ({"next_of": "obs", "stack_compress": "obs", "sources": 20}, ValueError, "6 frames"),
    ],
)
def test_arguments_that_cannot_be_are_named(cls, given_arguments, error, message):
    with pytest.raises(error, match=message):
        cls(10, env_dict(), **given_arguments)


def test_a_next_field_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="'next_obs' has another shape or dtype"):
        ReplayBuffer(10, env_dict(next_obs={"shape": FIRST, "dtype": "f4"}), next_of="obs")


def test_a_missing_next_value_changes_nothing():
    buffer = ReplayBuffer(10, env_dict(), next_of="obs")
    step = next(episode(0, 1, FIRST))
    del step["next_obs"]
    with pytest.raises(KeyError, match="field 'next_obs' is missing"):
        buffer.add(**step)
    assert buffer.get_next_index() == 0
