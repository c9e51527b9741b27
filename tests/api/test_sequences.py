"""Sequences: what steps make them, against a slow oracle; each call that reads or refuses them."""

import contextlib
import itertools
import threading
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sequence_streams import (
    FIELDS,
    Rule,
    Stream,
    assert_equal,
    assert_whole,
    batch_of,
    found_in,
    steps_of,
)

import mpbuffer
from mpbuffer import PrioritizedReplayBuffer, ReplayBuffer, sequence_priorities

BOTH_CLASSES = pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplayBuffer])


def add_episode(buffer, first, steps, **others):
    for t in range(steps):
        more = {name: values[t] for name, values in others.items()}
        buffer.add(**steps_of(first + t, t == steps - 1), **more)


# Against the oracle


@st.composite
def rules(draw):
    length = draw(st.integers(1, 7))
    period = draw(st.integers(1, length))
    burn_in = draw(st.integers(0, length - 1))
    return Rule(
        length, period, draw(st.booleans()), burn_in, draw(st.sampled_from([(), ("core",)]))
    )


# (which explorer, what it does, a number, a second one)
ACTIONS = st.lists(
    st.tuples(
        st.integers(0, 2), st.sampled_from("aaaabbbwwwwvvvefc"), st.integers(0, 9), st.booleans()
    ),
    max_size=60,
)


class Explorer:
    """A handle and a writer of it, and what the oracle makes of their steps."""

    def __init__(self, name, rule, n_envs):
        self.buffer = mpbuffer.attach(name)
        self.writer = self.buffer.writer(n_envs=n_envs)
        self.n_envs = n_envs
        self.own = Stream(rule)
        self.of_envs = [Stream(rule) for _ in range(n_envs)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rules(), st.integers(1, 12), st.integers(1, 3), st.booleans(), ACTIONS)
def test_every_sequence_equals_the_oracle(rule, size, n_envs, prioritized, actions):
    cls = PrioritizedReplayBuffer if prioritized else ReplayBuffer
    with contextlib.ExitStack() as stack:
        # Room for all steps: none dies early.
        buffer = stack.enter_context(
            cls(size, FIELDS, sequence=rule.argument(), sources=2000, seed=1)
        )
        explorers = [Explorer(buffer.name, rule, n_envs) for _ in range(3)]
        for each in explorers:
            stack.callback(each.buffer.close)
            stack.callback(each.writer.close)
        expected, done_at, number, dropped = [], set(), 0, 0
        for who, what, count, ends in actions:
            explorer = explorers[who]
            before = len(expected)
            if what == "a":
                if ends:
                    done_at.add(number)
                explorer.buffer.add(**steps_of(number, ends))
                expected += explorer.own.add(number, ends)
                number += 1
            elif what == "b":  # consecutive steps at once; one in the middle may end an episode
                ids = list(range(number, number + count))
                flags = [ends and i == count // 2 for i in range(count)]
                done_at |= {i for i, flag in zip(ids, flags, strict=True) if flag}
                explorer.buffer.add(**steps_of(ids, flags))
                for each, flag in zip(ids, flags, strict=True):
                    expected += explorer.own.add(each, flag)
                number += count
            elif what in "wv":  # all environments, or one of them
                envs = range(n_envs) if what == "w" else [count % n_envs]
                ids = list(range(number, number + len(envs)))
                flags = [ends and i == 0 for i in range(len(ids))]
                done_at |= {i for i, flag in zip(ids, flags, strict=True) if flag}
                explorer.writer.add(**steps_of(ids, flags), envs=list(envs) if n_envs > 1 else None)
                for env, each, flag in zip(envs, ids, flags, strict=True):
                    expected += explorer.of_envs[env].add(each, flag)
                number += len(ids)
            elif what == "e":
                explorer.buffer.on_episode_end()
                expected += explorer.own.end()
            elif what == "f":
                env = count % n_envs
                explorer.writer.on_episode_end([env])
                expected += explorer.of_envs[env].end()
            else:
                explorer.buffer.clear()
                explorer.own.drop()
                dropped = before
        there = expected[dropped:][-size:]
        assert len(buffer) == len(there)
        assert buffer.rows_added() == len(expected)
        if not there:
            return
        everything = buffer.get_all_transitions()
        assert sorted(found_in(everything)) == sorted(there)
        assert_whole(everything, rule, done_at)
        for time_major in (False, True):
            sample = buffer.sample(16, time_major=time_major)
            if time_major:
                sample = {
                    name: values.swapaxes(0, 1)
                    if name not in (*rule.state, "weights", "indexes")
                    else values
                    for name, values in sample.items()
                }
            assert set(found_in(sample)) <= set(there)
            assert_whole(sample, rule, done_at)


@BOTH_CLASSES
def test_sequences_that_went_early_are_neither_counted_nor_drawn(cls):
    rule = Rule(4, 2)
    stream, expected = Stream(rule), []
    with cls(500, FIELDS, sequence=rule.argument(), sources=64) as buffer:
        done_at, number = set(), 0
        rng = np.random.default_rng(1)
        for _ in range(60):
            for t in range(steps := int(rng.integers(1, 30))):
                ends = t == steps - 1
                done_at |= {number} if ends else set()
                buffer.add(**steps_of(number, ends))
                expected += stream.add(number, ends)
                number += 1
            kept = len(buffer)
            everything = buffer.get_all_transitions()
            assert sorted(found_in(everything)) == sorted(expected[len(expected) - kept :])
            assert_whole(everything, rule, done_at)
            assert set(found_in(buffer.sample(32))) <= set(expected[len(expected) - kept :])
        assert 64 // 4 - 10 < kept < 64 // 2


@BOTH_CLASSES
def test_steps_that_become_too_old_are_written_again(cls):
    """One explorer waits while another writes more steps than there is room for."""
    rule = Rule(4, 1)
    with cls(10, FIELDS, sequence=rule.argument(), sources=64) as buffer:
        other = mpbuffer.attach(buffer.name)
        for i in range(6):
            buffer.add(**steps_of(i))
        for i in range(100, 300):
            other.add(**steps_of(i))
        buffer.add(**steps_of(6))
        assert ((3, 4, 5, 6), False) in found_in(buffer.get_all_transitions())
        assert_whole(buffer.get_all_transitions(), rule, set())
        other.close()


# Whole episodes


@BOTH_CLASSES
def test_whole_episodes_are_padded_to_the_longest_of_a_batch(cls):
    rule = Rule(20)
    whole = {"length": None, "max_length": 20, "state": "core"}
    with cls(10, FIELDS, sequence=whole, seed=3) as buffer:
        lengths, first, episodes = [3, 1, 20, 7, 26], 0, []
        for steps in lengths:
            add_episode(buffer, first, steps)
            episodes.append(range(first, first + steps))
            first += steps
        expected = [(tuple(e[:20]), True) for e in episodes]
        expected.append((tuple(episodes[-1][20:]), False))
        done_at = {e[-1] for e in episodes}
        everything = buffer.get_all_transitions()
        assert found_in(everything) == expected
        assert_equal(everything, batch_of(expected, done_at, rule))
        shorter = set()
        for _ in range(50):
            batch = buffer.sample(2)
            drawn = found_in(batch)
            longest = max(len(ids) for ids, _ in drawn)
            shorter.add(longest)
            assert batch["obs"].shape == (2, longest, 3)
            assert_equal(batch, batch_of(drawn, done_at, rule, longest))
            other_way = buffer.sample(2, time_major=True)
            assert other_way["obs"].shape[1:] == (2, 3)
            assert other_way["mask"].shape == other_way["obs"].shape[:2]
            assert other_way["mask"][-1].any()
        assert len(shorter) > 2
        with pytest.raises(ValueError, match="longest episode"):
            buffer.sample(2, out=batch)
        assert buffer.sequence.episodes and buffer.sequence.length == 20


# Each call


@BOTH_CLASSES
def test_every_call_that_reads(cls):
    rule = Rule(5, 2, burn_in=1)
    with cls(8, FIELDS, sequence=rule.argument(), seed=2) as buffer:
        add_episode(buffer, 0, 23)
        stream = Stream(rule)
        expected = [s for t in range(23) for s in stream.add(t, t == 22)][-8:]
        assert len(buffer) == buffer.get_stored_size() == 8
        slots = [(len(stream.rule.sequences(range(23), True)) - 8 + i) % 8 for i in range(8)]
        read = buffer._rows_at(slots)
        assert_equal(read, batch_of(expected, {22}, rule))
        sample = buffer.sample(6)
        pointers = {name: values.ctypes.data for name, values in sample.items()}
        assert buffer.sample(6, out=sample) is sample
        assert pointers == {name: values.ctypes.data for name, values in sample.items()}
        assert_whole(sample, rule, {22})
        with pytest.raises(ValueError, match="expected a writable"):
            buffer.sample(6, time_major=True, out=sample)
        for prefetch in (0, 2):
            with buffer.batches(6, prefetch=prefetch, time_major=True) as batches:
                batch = next(batches)
                assert batch["obs"].shape == (5, 6, 3)
                assert batch["core"].shape == (6, 5)
                assert batch["mask"].shape == batch["is_first"].shape == (5, 6)
        shuffled = buffer.get_all_transitions(shuffle=True)
        assert sorted(found_in(shuffled)) == sorted(expected)
        with mpbuffer.attach(buffer.name) as other:
            assert other.sequence == buffer.sequence == (5, 2, True, ("core",), 1, False)
            assert_whole(other.get_all_transitions(), rule, {22})
            assert type(other) is cls
        assert "8 of 8 rows" in repr(buffer)
        assert len(ReplayBuffer(4, FIELDS, sequence={"length": 3})) == 0


def test_batches_as_tensors():
    torch = pytest.importorskip("torch")
    with ReplayBuffer(8, FIELDS, sequence={"length": 4}) as buffer:
        add_episode(buffer, 0, 10)
        with buffer.batches(3, tensors=True, prefetch=1) as batches:
            batch = next(batches)
        assert batch["mask"].dtype == torch.bool and batch["obs"].shape == (3, 4, 3)
    whole = {"length": None, "max_length": 100}
    with ReplayBuffer(8, FIELDS, sequence=whole) as buffer:
        add_episode(buffer, 0, 10)
        with buffer.batches(3, tensors=True) as batches:
            assert next(batches)["obs"].shape == (3, 10, 3)


def test_priorities_belong_to_sequences():
    sequence = {"length": 4, "period": 2, "burn_in": 1}
    with PrioritizedReplayBuffer(16, FIELDS, sequence=sequence, alpha=1.0, eps=0.0) as buffer:
        td = np.array([9.0, 1, -2, 3, 0.5, -4, 7])
        add_episode(buffer, 0, 7, td=td)
        expected = [0.9 * 3 + 0.1 * 2, 0.9 * 4 + 0.1 * (3 + 0.5 + 4) / 3, 0.9 * 7 + 0.1 * 11 / 2]
        np.testing.assert_allclose(buffer.get_priorities([0, 1, 2]), expected, rtol=1e-6)
        td[3] = np.nan  # one is not known: the largest so far
        add_episode(buffer, 100, 7, td=td)
        largest = buffer.get_max_priority()
        assert largest == pytest.approx(6.85)
        np.testing.assert_allclose(
            buffer.get_priorities([3, 4, 5]), [largest, largest, expected[2]], rtol=1e-6
        )
        add_episode(buffer, 200, 7)
        np.testing.assert_allclose(buffer.get_priorities([6, 7, 8]), largest, rtol=1e-6)
        batch = buffer.sample(64)
        assert batch["weights"].shape == batch["indexes"].shape == (64,)
        assert buffer.update_priorities(batch["indexes"], np.full(64, 2.5)) == 0
        np.testing.assert_allclose(buffer.get_priorities(batch["indexes"]), 2.5)
        for first in range(300, 700, 7):
            add_episode(buffer, first, 7)
        assert buffer.update_priorities(batch["indexes"], np.full(64, 1.0)) == 64  # all stale
        with buffer.writer(n_envs=2) as writer:
            for t in range(4):
                ids = [1000 + t, 2000 + t]
                writer.add(**steps_of(ids, t == 3), td=[1.0, 3.0])
        newest = buffer.get_next_index() - np.array([2, 1])
        np.testing.assert_allclose(buffer.get_priorities(newest % 16), [1.0, 3.0], rtol=1e-6)


def test_the_priority_of_a_sequence_is_that_of_the_function():
    rng = np.random.default_rng(5)
    sequence = {"length": 8, "period": 3, "burn_in": 2}
    with PrioritizedReplayBuffer(64, FIELDS, sequence=sequence, alpha=1.0, eps=0.0) as buffer:
        td = rng.normal(size=1000)
        first = 0
        for steps in (30, 4, 17, 8):
            add_episode(buffer, first, steps, td=td[first:])
            first += steps
        everything = buffer.get_all_transitions()
        wanted = sequence_priorities(td[everything["id"]], everything["mask"], burn_in=2)
        given = buffer.get_priorities(np.arange(len(buffer)))
        np.testing.assert_allclose(given, wanted, rtol=1e-6)


def test_sequence_priorities_by_hand():
    td = np.array([[1, -3, 2], [4, 7, 7], [5, 5, 5]], np.float32)
    mask = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    result = sequence_priorities(td, mask)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, [2.9, 4, 0], rtol=1e-6)
    np.testing.assert_allclose(sequence_priorities(td, eta=0.5), [2.5, 6.5, 5])
    np.testing.assert_allclose(sequence_priorities(td, mask, burn_in=1), [2.95, 0, 0], rtol=1e-6)
    unknown = np.where(mask, td, np.nan)
    np.testing.assert_allclose(sequence_priorities(unknown, mask), result)
    assert sequence_priorities(np.zeros((0, 3))).shape == (0,)
    for wrong in (
        {"td": [1.0]},
        {"td": td, "mask": mask[:, 1:]},
        {"td": td, "eta": 1.5},
        {"td": td, "burn_in": 4},
    ):
        with pytest.raises(ValueError, match="must "):
            sequence_priorities(**wrong)


def test_what_flags_end_and_what_does_not():
    fields = {"id": {"dtype": np.int64, "shape": ()}, "terminated": {}, "truncated": {}}
    with ReplayBuffer(20, fields, sequence={"length": 3}) as buffer:
        for i, (terminated, truncated) in enumerate([(0, 0), (1, 0), (0, 0), (0, 1), (0, -0.0)]):
            buffer.add(id=i, terminated=terminated, truncated=truncated)
        assert buffer.get_all_transitions()["id"].tolist() == [[0, 1, 0], [2, 3, 0]]
        assert buffer.get_current_episode_len() == 5
        buffer.on_episode_end()
        assert len(buffer) == 3 and buffer.get_current_episode_len() == 0


def test_a_writer_counts_steps_and_writes_at_once():
    with ReplayBuffer(20, FIELDS, sequence={"length": 4, "period": 2}) as buffer:
        writer = buffer.writer(n_envs=2)
        assert writer.flush_every == 1
        for t in range(5):
            writer.add(**steps_of([t, 100 + t]))
        assert (writer.steps, writer.rows_written, writer.rows_staged) == (10, 2, 2)
        assert len(buffer) == 2
        writer.close()
        assert len(buffer) == 4 and writer.rows_written == 4
        with buffer.writer(flush_every=3) as slow:
            for t in range(6):
                slow.add(**steps_of(t))
            assert slow.rows_staged == 2 and len(buffer) == 4
            assert slow.flush() == 2


# Bytes


def bytes_a_step(step_bytes, length, period, size):
    fields = {"obs": {"shape": step_bytes, "dtype": np.uint8}}
    with ReplayBuffer(size, fields, sequence={"length": length, "period": period}) as buffer:
        of_sequences = buffer.nbytes / (size * period)
    with ReplayBuffer(size * period, fields) as buffer:
        return of_sequences / (buffer.nbytes / (size * period))


def test_overlapping_steps_are_stored_once():
    assert bytes_a_step(64, 80, 40, 5000) <= 1.35
    assert bytes_a_step(1024, 80, 40, 5000) <= 1.05


def test_largest_size_counts_the_steps():
    sequence = {"length": 80, "period": 40}
    fields = {"obs": {"shape": 1000, "dtype": np.uint8}}
    single = ReplayBuffer.largest_size(fields, 0.1)
    many = ReplayBuffer.largest_size(fields, 0.1, sequence=sequence)
    assert 0.9 < many * 40 / single < 1.1


# Refused


@pytest.mark.parametrize(
    ("sequence", "error", "match"),
    [
        ([], TypeError, "mapping"),
        ({}, ValueError, "needs a 'length'"),
        ({"length": 3, "overlap": 1}, ValueError, "'overlap'"),
        ({"length": 0}, ValueError, "length"),
        ({"length": 2**16 + 1}, ValueError, "length"),
        ({"length": 2.5}, TypeError, "length"),
        ({"length": 3, "period": 4}, ValueError, "period"),
        ({"length": 3, "period": 0}, ValueError, "period"),
        ({"length": 3, "period": None}, ValueError, "period 1 makes one begin at each step"),
        ({"length": 3, "burn_in": 3}, ValueError, "burn_in"),
        ({"length": 3, "pad": 1}, TypeError, "pad"),
        ({"length": 3, "state": "lstm"}, ValueError, "'lstm', which is no field"),
        ({"length": 3, "state": [1]}, TypeError, "state"),
        ({"length": 3, "max_length": 9}, ValueError, "max_length"),
        ({"length": None}, ValueError, "max_length"),
        ({"length": None, "max_length": 5, "period": 2}, ValueError, "do not overlap"),
        ({"length": None, "max_length": 5, "pad": False}, ValueError, "pad"),
    ],
)
@BOTH_CLASSES
def test_wrong_arguments_are_refused(cls, sequence, error, match):
    with pytest.raises(error, match=match):
        cls(10, FIELDS, sequence=sequence)


def test_combinations_are_refused():
    sequence = {"length": 3}
    nstep = {"size": 2, "rew": "obs"}
    with pytest.raises(ValueError, match="n-step returns of sequences"):
        ReplayBuffer(10, FIELDS, sequence=sequence, Nstep=nstep)
    with pytest.raises(ValueError, match="next_of= or stack_compress="):
        ReplayBuffer(10, FIELDS, sequence=sequence, next_of="obs")
    with pytest.raises(ValueError, match="sources"):
        ReplayBuffer(10, FIELDS, sequence=sequence, sources=47)
    with pytest.raises(ValueError, match="size must be at most"):
        ReplayBuffer(2**30, FIELDS, sequence=sequence)
    for name in ("mask", "is_first"):
        with pytest.raises(ValueError, match="rename the field"):
            ReplayBuffer(10, {name: {}}, sequence=sequence)
    with pytest.raises(ValueError, match="rename the field"):
        PrioritizedReplayBuffer(10, {"td": {}}, sequence=sequence)
    with pytest.raises(ValueError, match="hindsight"):
        mpbuffer.HindsightReplayBuffer(
            10, {"obs": {}, "act": {}, "next_obs": {}}, 5, max, sequence=sequence
        )
    with pytest.raises(ValueError, match="selective"):
        mpbuffer.SelectiveReplayBuffer(10, sequence=sequence)


def test_calls_are_refused_and_change_nothing(tmp_path):
    with PrioritizedReplayBuffer(10, FIELDS, sequence={"length": 3}) as buffer:
        with pytest.raises(TypeError, match="td="):
            buffer.add(**steps_of(1), priorities=2.0)
        with pytest.raises(ValueError, match="td"):
            buffer.add(**steps_of([1, 2]), td=[1.0, 2.0, 3.0])
        with pytest.raises(ValueError, match="finite"):
            buffer.add(**steps_of(1), td=np.inf)
        with pytest.raises(ValueError, match="no priorities"):
            buffer.writer(priorities="td")
        with pytest.raises(ValueError, match="no Nstep"):
            buffer.writer(Nstep={"size": 2})
        with buffer.writer() as writer:
            with pytest.raises(TypeError, match="td="):
                writer.add(**steps_of(1), priorities=2.0)
            with pytest.raises(ValueError, match="finite"):
                writer.add(**steps_of(1), td=[-np.inf])
            assert writer.steps == 0
        assert buffer.get_current_episode_len() == 0
        for i in range(3):
            buffer.add(**steps_of(i))
        assert found_in(buffer.get_all_transitions()) == [((0, 1, 2), True)]
        for refused in (
            lambda: buffer.save_transitions(tmp_path / "rows.npz"),
            lambda: buffer.load_transitions(tmp_path / "rows.npz"),
        ):
            with pytest.raises(ValueError, match="keep_after_exit"):
                refused()
        assert not list(tmp_path.iterdir())
    with ReplayBuffer(10, FIELDS) as buffer:
        buffer.add(**steps_of(1))
        assert buffer.sequence is None
        with pytest.raises(ValueError, match="sequence="):
            buffer.sample(2, time_major=True)
        with (
            pytest.raises(ValueError, match="sequence="),
            buffer.batches(2, time_major=True) as all,
        ):
            next(all)


# Code that runs inside calls, and threads


class Closing:
    """A value whose conversion closes the buffer."""

    def __init__(self, buffer):
        self.buffer = buffer

    def __array__(self, dtype=None, copy=None):
        self.buffer.close()
        return np.array([1.0])


def test_a_value_that_closes_the_buffer_adds_no_step():
    for with_writer in (False, True):
        buffer = PrioritizedReplayBuffer(10, FIELDS, sequence={"length": 1})
        other = mpbuffer.attach(buffer.name)
        adder = buffer.writer() if with_writer else buffer
        with pytest.raises(mpbuffer.BufferClosed):
            adder.add(**steps_of(1), td=Closing(buffer))
        assert len(other) == 0
        other.close()
        if with_writer:
            adder.close()


def test_threads_of_one_handle():
    rule = Rule(6, 2)
    with PrioritizedReplayBuffer(30, FIELDS, sequence=rule.argument(), sources=96) as buffer:
        buffer.add(**steps_of(range(6)))
        stop, numbers = threading.Event(), itertools.count(100)

        def add():
            while not stop.is_set():
                ids = [next(numbers) for _ in range(5)]
                buffer.add(**steps_of(ids))
                buffer.add(**steps_of(next(numbers)), td=0.5)
                buffer.on_episode_end()

        def add_environments():
            with buffer.writer(n_envs=2) as writer:
                while not stop.is_set():
                    writer.add(**steps_of([next(numbers), next(numbers)]))

        threads = [threading.Thread(target=each) for each in (add, add, add_environments)]
        for thread in threads:
            thread.start()
        try:
            deadline = time.monotonic() + 0.7
            with buffer.batches(16, prefetch=2) as batches:
                while time.monotonic() < deadline:
                    assert_whole(buffer.sample(16), rule)
                    assert_whole(next(batches), rule)
                    assert_whole(buffer.get_all_transitions(), rule)
                    assert len(buffer) <= 30
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert_whole(buffer.get_all_transitions(), rule)
