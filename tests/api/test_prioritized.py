"""Priorities: what is stored, what is stale, whose role it is, against slow models."""

import multiprocessing
import os
import pickle
import signal
import time

import hypothesis
import numpy as np
import pytest
from hypothesis import stateful
from hypothesis import strategies as st
from watched_processes import (
    BufferElsewhere,
    join_within,
    python_started,
    run_python,
    wait_for_child,
)

import mpbuffer
from mpbuffer import LearnerBusy, PrioritizedReplayBuffer

ALPHA, EPS = 0.6, 1e-4


def leaf_of(priorities, alpha=ALPHA, eps=EPS):
    return (np.asarray(priorities, np.float64) + eps) ** alpha


def folded_leaves(buffer):
    """The leaves once the rows added so far are in the tree."""
    buffer.sample(1)
    return buffer._leaves()


def assert_leaves(buffer, expected):
    np.testing.assert_allclose(buffer._leaves(), expected, rtol=1e-6)


def numbered(capacity, count=None, **options):
    """A buffer whose row in slot i is i, with priorities 1 + i."""
    buffer = PrioritizedReplayBuffer(capacity, {"a": {"dtype": "i8"}}, seed=9, **options)
    numbers = np.arange(capacity if count is None else count)
    if len(numbers):
        buffer.add(a=numbers, priorities=1.0 + numbers)
    return buffer


# Priorities of new rows


def test_leaves_are_the_priorities_with_eps_to_the_alpha():
    buffer = numbered(10)
    assert buffer._leaves().dtype == np.float32
    np.testing.assert_allclose(folded_leaves(buffer), leaf_of(1.0 + np.arange(10)), rtol=1e-6)
    np.testing.assert_allclose(
        buffer._tree_total(), buffer._leaves().astype(np.float64).sum(), rtol=1e-12
    )


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("eps", [1e-6, 0.1, 1.0])
def test_alpha_and_eps(alpha, eps):
    buffer = numbered(10, alpha=alpha, eps=eps)
    expected = leaf_of(1.0 + np.arange(10), alpha, eps)
    np.testing.assert_allclose(folded_leaves(buffer), expected, rtol=1e-6)
    buffer.update_priorities([3, 4], [0.25, 100])
    expected[3:5] = leaf_of([0.25, 100], alpha, eps)
    assert_leaves(buffer, expected)


def test_leaves_are_a_copy():
    buffer = numbered(10)
    folded_leaves(buffer)[:] = 0
    assert buffer._leaves().min() > 0


def test_rows_without_priorities_take_the_running_maximum():
    buffer = PrioritizedReplayBuffer(20, {"a": {}})
    assert buffer.get_max_priority() == 1.0
    buffer.add(a=0)
    buffer.add(a=0, priorities=0.5)
    assert buffer.get_max_priority() == 1.0
    buffer.add(a=0)
    buffer.add(a=0, priorities=3.5)
    assert buffer.get_max_priority() == 3.5
    buffer.add(a=[0, 0])
    buffer.add(a=[0, 0, 0], priorities=[0.1, 7.0, 2.0])
    assert buffer.get_max_priority() == 7.0
    buffer.add(a=0)
    buffer.add(a=0, priorities=None)
    given = [1, 0.5, 1, 3.5, 3.5, 3.5, 0.1, 7, 2, 7, 7]
    np.testing.assert_allclose(folded_leaves(buffer)[:11], leaf_of(given), rtol=1e-6)
    assert (buffer._leaves()[11:] == 0).all()


def test_updates_raise_the_running_maximum_and_nothing_lowers_it():
    buffer = numbered(4)
    buffer.sample(4)
    buffer.update_priorities([0, 1], [9.0, 2.0])
    assert buffer.get_max_priority() == 9.0
    buffer.update_priorities([0, 1, 2, 3], 0.01)
    assert buffer.get_max_priority() == 9.0
    assert isinstance(buffer.get_max_priority(), float)
    buffer.add(a=0)
    np.testing.assert_allclose(folded_leaves(buffer)[0], leaf_of(9.0), rtol=1e-6)


def test_the_running_maximum_is_kept_as_it_was_given():
    buffer = PrioritizedReplayBuffer(4, {"a": {}})
    buffer.add(a=0, priorities=1e6 + 0.1)
    assert buffer.get_max_priority() == 1e6 + 0.1


def test_clear_forgets_the_running_maximum():
    buffer = numbered(4)
    buffer.sample(1)
    buffer.clear()
    assert buffer.get_max_priority() == 1.0
    buffer.add(a=0)
    np.testing.assert_allclose(folded_leaves(buffer), [*leaf_of([1.0]), 0, 0, 0], rtol=1e-6)


@pytest.mark.parametrize(
    "priorities",
    [
        2,
        2.0,
        np.float32(2),
        np.array(2),
        np.array(2, ">f8"),
        True + 1,
        np.int64(2),
    ],
    ids=repr,
)
def test_scalar_priorities_are_for_each_row(priorities):
    buffer = PrioritizedReplayBuffer(10, {"a": {}})
    buffer.add(a=1, priorities=priorities)
    buffer.add(a=[1, 2, 3], priorities=priorities)
    np.testing.assert_allclose(folded_leaves(buffer)[:4], leaf_of([2] * 4), rtol=1e-6)


@pytest.mark.parametrize("kind", [list, tuple, np.float32, np.float64, np.int32, ">f4", "torch"])
def test_kinds_of_priorities(kind):
    values = [3, 1, 2]
    if kind == "torch":
        priorities = pytest.importorskip("torch").tensor(values, dtype=int)
    elif kind in (list, tuple):
        priorities = kind(values)
    else:
        priorities = np.array(values, kind)
    buffer = PrioritizedReplayBuffer(10, {"a": {}})
    buffer.add(a=[1, 2, 3], priorities=priorities)
    np.testing.assert_allclose(folded_leaves(buffer)[:3], leaf_of(values), rtol=1e-6)
    buffer.update_priorities([0, 1, 2], priorities[::-1] if kind != "torch" else priorities.flip(0))
    np.testing.assert_allclose(buffer._leaves()[:3], leaf_of(values[::-1]), rtol=1e-6)


def test_one_row_with_a_list_of_one_priority():
    buffer = PrioritizedReplayBuffer(10, {"a": {"shape": 3}})
    buffer.add(a=[1, 2, 3], priorities=[2.5])
    np.testing.assert_allclose(folded_leaves(buffer)[0], leaf_of(2.5), rtol=1e-6)


def test_priority_zero_can_be_drawn_where_eps_lets_it():
    buffer = PrioritizedReplayBuffer(4, {"a": {}}, eps=1e-4)
    buffer.add(a=[1, 2], priorities=0.0)
    assert set(buffer.sample(200)["a"].ravel()) == {1, 2}
    np.testing.assert_allclose(buffer._leaves()[:2], leaf_of([0, 0]), rtol=1e-6)


def test_no_row_is_without_a_chance_for_a_tiny_priority():
    """A leaf is at least the smallest normal float32, so 0 can mean 'not sampleable'."""
    buffer = PrioritizedReplayBuffer(4, {"a": {}}, eps=1e-30, alpha=2.0)
    buffer.add(a=[1, 2], priorities=0.0)
    assert set(buffer.sample(200)["a"].ravel()) == {1, 2}
    assert (buffer._leaves()[:2] >= np.finfo(np.float32).tiny).all()


def test_the_power_of_a_tiny_priority_is_not_tiny():
    with PrioritizedReplayBuffer(4, {"a": {}}, alpha=0.1, eps=0.0) as buffer:
        buffer.add(a=[1, 2, 3], priorities=[1e-50, 5e-324, 1e300])
        np.testing.assert_allclose(folded_leaves(buffer)[:3], [1e-5, 5e-324**0.1, 1e30], rtol=1e-6)


def buffer_with_zeros(priorities, **options):
    """The row in slot i is i."""
    options = {"alpha": 1.0, "eps": 0.0, "seed": 3} | options
    buffer = PrioritizedReplayBuffer(len(priorities), {"a": {"dtype": "i8"}}, **options)
    buffer.add(a=np.arange(len(priorities)), priorities=priorities)
    return buffer


def test_priority_zero_without_eps_is_counted_and_never_drawn():
    with buffer_with_zeros([0.0, 4.0, 0.0, 1.0, 1e-30]) as buffer:
        sample = buffer.sample(5000, beta=1.0)
        assert set(sample["indexes"]) == {1, 3}
        assert len(buffer) == 5
        assert buffer.learner_status().sampleable == 3
        assert buffer.learner_status().least_leaf == np.float32(1e-30)
        assert buffer._tree_total() == np.float32(4) + np.float32(1) + np.float64(np.float32(1e-30))
        buffer.update_priorities([4], [0.0])
        weights = buffer.sample(100, beta=1.0)
        expected = np.where(weights["indexes"] == 1, 0.25, 1.0)
        np.testing.assert_allclose(weights["weights"], expected, rtol=1e-6)
        assert set(buffer.sample_uniform(500, return_indexes=True)["indexes"]) == set(range(5))
        assert (buffer._leaves() == [0, 4, 0, 1, 0]).all()


def test_a_row_of_priority_zero_takes_a_new_priority():
    with buffer_with_zeros([0.0, 1.0]) as buffer:
        buffer.sample(1)
        generations = buffer.get_generations([0, 1])
        assert (generations > 0).all()
        assert buffer.update_priorities([0, 1], [2.0, 0.0], generations) == 0
        assert set(buffer.sample(100)["indexes"]) == {0}
        assert buffer.update_priorities([0, 1], [0.0, 5.0]) == 0
        assert set(buffer.sample(100)["indexes"]) == {1}
        assert buffer.learner_status().sampleable == 1
        buffer.release_learner()
        assert set(buffer.sample(100)["indexes"]) == {1}
        assert buffer.update_priorities([0], [1.0]) == 0
        assert (buffer._leaves() == [1, 5]).all()


def test_the_error_says_if_every_row_has_priority_zero():
    with buffer_with_zeros([0.0, 0.0, 0.0]) as buffer:
        with pytest.raises(mpbuffer.EmptyBuffer, match="every row has priority 0"):
            buffer.sample(1)
        assert buffer.get_max_priority() == 1.0
        assert len(buffer) == 3
        assert buffer.sample_uniform(4)["a"].shape == (4, 1)
        buffer.update_priorities([1], [0.5])
        assert set(buffer.sample(50)["indexes"]) == {1}
        buffer.update_priorities([1], [0.0])
        with pytest.raises(mpbuffer.EmptyBuffer, match="every row has priority 0"):
            buffer.sample(1)
        buffer.add(a=9)  # the largest priority until now is that of an empty buffer: 1
        assert set(buffer.sample(50)["a"].ravel()) == {9}
        buffer.clear()
        with pytest.raises(mpbuffer.EmptyBuffer, match="since it was cleared"):
            buffer.sample(1)


def test_with_alpha_zero_priority_zero_is_as_any():
    with buffer_with_zeros([0.0, 3.0, 1e300], alpha=0.0) as buffer:
        assert set(buffer.sample(200)["indexes"]) == {0, 1, 2}
        assert (buffer._leaves() == 1).all()


@pytest.mark.parametrize(("alpha", "eps"), [(1.0, 1e39), (300.0, 1.0), (2.0, 1e300)])
def test_the_first_priority_has_to_have_a_leaf(alpha, eps):
    with pytest.raises(ValueError, match=r"alpha .* eps .* too large"):
        PrioritizedReplayBuffer(4, {"a": {}}, alpha=alpha, eps=eps)


FLOAT32 = np.finfo(np.float32)
wide_numbers = st.floats(0, 1.7e308) | st.sampled_from([0.0, 5e-324, 1e-50, 1e-38, 1e-4, 1.0, 1e38])


def exact_leaves(priorities, alpha, eps):
    """By numbers with more digits and a wider range than float64."""
    base = np.array(priorities, np.longdouble) + np.longdouble(eps)
    leaves = base ** np.longdouble(alpha)
    return np.where((base > 0) & (leaves < FLOAT32.tiny), np.longdouble(FLOAT32.tiny), leaves)


def store_by(route, buffer, priorities):
    if route == "add":
        buffer.add(
            rew=np.zeros(len(priorities)),
            terminated=np.ones(len(priorities)),
            priorities=priorities,
        )
    elif route == "update":
        buffer.add(rew=np.zeros(len(priorities)), terminated=np.ones(len(priorities)))
        assert buffer.update_priorities(np.arange(len(priorities)), priorities) == 0
    elif route == "staged":
        with buffer.writer() as writer:
            for each in priorities:
                writer.add(rew=0, terminated=True, priorities=each)
    else:
        with buffer.writer(priorities="td") as writer:
            for each in priorities:
                writer.add(rew=each, terminated=True, q=0.0, v=0.0)


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    priorities=st.lists(wide_numbers, min_size=1, max_size=12),
    alpha=st.floats(0, 4) | st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    eps=st.floats(0, 1e30) | st.sampled_from([0.0, 1e-300, 1e-4]),
    beta=st.floats(0, 3),
    route=st.sampled_from(["add", "update", "staged", "td"]),
)
def test_leaves_and_weights_are_right_for_every_priority_accepted(
    priorities, alpha, eps, beta, route
):
    with np.errstate(all="ignore"):
        leaves = exact_leaves(priorities, alpha, eps)
        hypothesis.assume(exact_leaves([1.0], alpha, eps)[0] < FLOAT32.max)
    hypothesis.assume((abs(leaves / FLOAT32.max - 1) > 1e-5).all())
    too_large = ~(leaves < FLOAT32.max)
    n = len(priorities)
    fields = {"rew": {"dtype": "f8"}, "terminated": {"dtype": bool}}
    nstep = {"size": 1, "rew": "rew", "gamma": 0.9, "next": []} if route == "td" else None
    with PrioritizedReplayBuffer(n, fields, alpha=alpha, eps=eps, Nstep=nstep, seed=1) as buffer:
        if too_large.any():
            if route == "td":
                return  # such a row gets the largest priority so far, as test_step_writer has it
            with pytest.raises(ValueError, match="fits into float32"):
                store_by(route, buffer, priorities)
            return
        store_by(route, buffer, priorities)
        assert len(buffer) == n
        try:
            sample = buffer.sample(64, beta)
        except mpbuffer.EmptyBuffer:
            assert (leaves == 0).all()
            return
        stored = buffer._leaves()
        np.testing.assert_allclose(stored, leaves.astype(np.float64), rtol=1e-6)
        assert ((stored == 0) == (leaves == 0)).all()
        drawn = stored[sample["indexes"]].astype(np.longdouble)
        assert (drawn > 0).all()
        expected = (drawn / np.longdouble(stored[stored > 0].min())) ** np.longdouble(-beta)
        error = abs(sample["weights"].astype(np.longdouble) - expected)
        assert (error <= np.maximum(3e-6 * expected, FLOAT32.smallest_subnormal)).all()


def test_priorities_larger_than_float32_with_leaves_that_are_not():
    """What counts is whether float32 can hold the leaf."""
    buffer = PrioritizedReplayBuffer(4, {"a": {}}, alpha=0.5)
    buffer.add(a=[1, 2], priorities=[1e39, 1e60])
    np.testing.assert_allclose(folded_leaves(buffer)[:2], [1e39**0.5, 1e30], rtol=1e-6)
    assert buffer.get_max_priority() == 1e60


# Updates


def test_updates_by_slot_of_rows_seen_but_never_drawn():
    buffer = numbered(64)
    drawn = set(buffer.sample(2)["indexes"].tolist())
    others = [slot for slot in range(64) if slot not in drawn]
    expected = leaf_of(1.0 + np.arange(64))
    assert buffer.update_priorities(others, 1.0 / (1 + np.array(others))) == 0
    expected[others] = leaf_of(1.0 / (1 + np.array(others)))
    assert_leaves(buffer, expected)


def test_update_returns_an_int():
    buffer = numbered(4)
    buffer.sample(1)
    assert type(buffer.update_priorities([0], [1.0])) is int


def test_scalars_broadcast():
    buffer = numbered(8)
    indexes = buffer.sample(8)["indexes"]
    assert buffer.update_priorities(indexes, 0.125) == 0
    expected = leaf_of(1.0 + np.arange(8))
    expected[indexes] = leaf_of(0.125)
    assert_leaves(buffer, expected)
    assert buffer.update_priorities(3, 0.5) == 0
    assert buffer.update_priorities(np.int64(4), np.float32(0.5)) == 0
    expected[[3, 4]] = leaf_of(0.5)
    assert_leaves(buffer, expected)


@pytest.mark.parametrize(
    "dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i8", "f2", "f4", "f8"]
)
def test_index_arrays_of_any_dtype_that_holds_whole_numbers(dtype):
    buffer = numbered(8)
    buffer.sample(1)
    assert buffer.update_priorities(np.array([6, 2], dtype), [0.5, 0.25]) == 0
    expected = leaf_of(1.0 + np.arange(8))
    expected[[6, 2]] = leaf_of([0.5, 0.25])
    assert_leaves(buffer, expected)


@pytest.mark.parametrize("kind", ["list", "tuple", "torch", "strided", "read-only", "by keyword"])
def test_kinds_of_indexes(kind):
    buffer = numbered(8)
    buffer.sample(1)
    if kind == "list":
        stale = buffer.update_priorities([6, 2], [0.5, 0.25])
    elif kind == "tuple":
        stale = buffer.update_priorities((6, 2), (0.5, 0.25))
    elif kind == "torch":
        torch = pytest.importorskip("torch")
        stale = buffer.update_priorities(torch.tensor([6, 2]), torch.tensor([0.5, 0.25]))
    elif kind == "strided":
        wide, values = np.array([[6, 1], [2, 1]]), np.array([[0.5, 9], [0.25, 9]], "f4")
        stale = buffer.update_priorities(wide[:, 0], values[:, 0])
    elif kind == "read-only":
        indexes = np.array([6, 2])
        indexes.flags.writeable = False
        stale = buffer.update_priorities(indexes, [0.5, 0.25])
    else:
        stale = buffer.update_priorities(indexes=[6, 2], priorities=[0.5, 0.25])
    assert stale == 0
    expected = leaf_of(1.0 + np.arange(8))
    expected[[6, 2]] = leaf_of([0.5, 0.25])
    assert_leaves(buffer, expected)


def test_of_an_index_given_twice_the_last_priority_counts():
    buffer = numbered(1000)
    buffer.sample(1)
    rng = np.random.default_rng(0)
    indexes = rng.integers(0, 1000, 5000)
    priorities = rng.random(5000)
    assert buffer.update_priorities(indexes, priorities) == 0
    expected = leaf_of(1.0 + np.arange(1000))
    for index, priority in zip(indexes, priorities, strict=True):
        expected[index] = leaf_of(priority)
    assert_leaves(buffer, expected)
    np.testing.assert_allclose(buffer._tree_total(), expected.sum(), rtol=1e-6)


def test_an_update_of_nothing():
    buffer = numbered(8)
    buffer.sample(1)
    assert buffer.update_priorities([], []) == 0
    assert buffer.update_priorities(np.zeros(0, np.int64), np.zeros(0)) == 0
    assert_leaves(buffer, leaf_of(1.0 + np.arange(8)))


def test_another_handles_row_added_since_the_last_sample_keeps_its_priority():
    buffer = numbered(8, count=4)
    buffer.sample(1)
    with mpbuffer.attach(buffer.name) as other:
        other.add(a=4, priorities=5.0)
    assert buffer.update_priorities([4], [0.1]) == 1
    np.testing.assert_allclose(folded_leaves(buffer)[4], leaf_of(5.0), rtol=1e-6)
    assert buffer.update_priorities([4], [0.1]) == 0
    np.testing.assert_allclose(buffer._leaves()[4], leaf_of(0.1), rtol=1e-6)


@pytest.mark.parametrize("before", ["nothing", "update", "sample", "release and sample"])
def test_the_index_that_add_returned_can_be_given_a_priority_at_once(before):
    buffer = numbered(8, count=4)
    if before == "update":
        buffer.update_priorities([0], [1.0])
    elif before != "nothing":
        buffer.sample(1)
    if before == "release and sample":
        buffer.release_learner()
        buffer.sample(1)
    index = buffer.add(a=4, priorities=5.0)
    assert buffer.update_priorities([index], [1000.0]) == 0
    np.testing.assert_allclose(folded_leaves(buffer)[4], leaf_of(1000.0), rtol=1e-6)
    index = buffer.add(a=[5, 6, 7], priorities=5.0)
    indexes = index + np.array([0, 2, 0, 1])
    assert buffer.update_priorities(indexes, [1.0, 2.0, 3.0, 4.0]) == 0
    np.testing.assert_allclose(folded_leaves(buffer)[5:], leaf_of([3.0, 4.0, 2.0]), rtol=1e-6)
    assert buffer.learner_status().sampleable == 8
    assert buffer.get_max_priority() == 1000.0


def test_generations_of_what_was_just_added_are_those_of_the_new_rows():
    buffer = numbered(8, count=4)
    buffer.sample(1)
    index = buffer.add(a=[4, 5], priorities=5.0)
    generations = buffer.get_generations([index, index + 1])
    assert (generations > 0).all()
    assert buffer.update_priorities([index], [7.0], generations[:1]) == 0
    np.testing.assert_allclose(folded_leaves(buffer)[4:6], leaf_of([7.0, 5.0]), rtol=1e-6)
    overwrite(buffer)
    assert buffer.update_priorities([index, index + 1], [1e6, 1e6], generations) == 2


def test_staged_rows_of_this_handle_can_be_given_a_priority_at_once():
    buffer = numbered(8, count=4)
    buffer.sample(1)
    with buffer.writer() as writer:
        writer.add(a=4)
    assert buffer.update_priorities([4], [9.0]) == 0
    np.testing.assert_allclose(folded_leaves(buffer)[4], leaf_of(9.0), rtol=1e-6)


@pytest.mark.parametrize("through", ["sample", "release", "clear", "generations"])
def test_a_copied_index_of_an_overwritten_row_never_means_the_new_one(through):
    buffer = numbered(8)
    indexes = np.unique(buffer.sample(64)["indexes"].copy())
    if through == "release":
        buffer.release_learner()
        buffer.sample_uniform(1)
    elif through == "clear":
        buffer.clear()
    for _lap in range(3):
        overwrite(buffer)
        if through == "generations":
            old = buffer.get_generations(indexes)
            assert buffer.update_priorities(indexes, 1e6, old) == len(indexes)
        else:
            assert buffer.update_priorities(indexes, 1e6) == len(indexes)
    assert buffer.get_max_priority() == 50.0
    np.testing.assert_allclose(folded_leaves(buffer), leaf_of([50.0] * 8), rtol=1e-6)


def test_an_index_that_add_returned_before_a_lap_means_the_newest_row_of_this_handle():
    """As everywhere, an index is a slot: without a sample nothing tells one lap from another."""
    buffer = numbered(8, count=4)
    buffer.sample(1)
    first = buffer.add(a=4)
    for number in range(5, 13):
        last = buffer.add(a=number, priorities=2.0)
    assert last == first
    assert buffer.update_priorities([last], [9.0]) == 0
    assert buffer.update_priorities([7], [9.0]) == 0
    leaves = folded_leaves(buffer)
    np.testing.assert_allclose(leaves[[4, 5, 7]], leaf_of([9.0, 2.0, 9.0]), rtol=1e-6)


def test_rows_of_others_between_those_of_this_handle_keep_their_priorities():
    buffer = numbered(64, count=1)
    buffer.sample(1)
    with mpbuffer.attach(buffer.name) as other:
        mine = []
        for number in range(1, 60):
            handle = other if number % 3 == 0 else buffer
            index = handle.add(a=number, priorities=2.0)
            if handle is buffer:
                mine.append(index)
    assert buffer.update_priorities(np.arange(64), 9.0) == 64 - 1 - len(mine)
    expected = np.zeros(64)
    expected[1:60] = leaf_of(2.0)
    expected[[0, *mine]] = leaf_of(9.0)
    np.testing.assert_allclose(folded_leaves(buffer), expected, rtol=1e-6)


def test_a_forked_child_does_not_pass_for_the_one_that_added():
    buffer = numbered(8, count=4)
    buffer.sample(1)
    buffer.add(a=4, priorities=5.0)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            buffer.add(a=5, priorities=5.0)
            code = 0
        finally:
            os._exit(code)
    assert wait_for_child(child) == 0
    assert buffer.update_priorities([4, 5], [9.0, 9.0]) == 1
    np.testing.assert_allclose(folded_leaves(buffer)[4:6], leaf_of([9.0, 5.0]), rtol=1e-6)


def test_one_thread_adds_and_another_updates_what_it_has_added():
    """Every update is applied; the learner's third thread folds meanwhile."""
    script = """
import queue
import threading
import numpy as np
from mpbuffer import PrioritizedReplayBuffer

rows = 4_000
buffer = PrioritizedReplayBuffer(rows + 1, {"a": {"dtype": "i8"}}, alpha=1.0, eps=0.0)
buffer.add(a=0)
buffer.sample(1)
added, stop, stale, failures = queue.SimpleQueue(), threading.Event(), [], []

def adds():
    for number in range(1, rows + 1):
        added.put((buffer.add(a=number, priorities=0.0), number))
    added.put(None)

def updates():
    while (one := added.get()) is not None:
        stale.append(buffer.update_priorities([one[0]], [one[1]]))
    stop.set()

def folds():
    while not stop.is_set():
        buffer.sample(1)  # the only row that can be drawn, but for those updated

def watched(function):
    try:
        function()
    except BaseException as error:
        failures.append(error)
        stop.set()

threads = [threading.Thread(target=watched, args=(each,)) for each in (adds, updates, folds)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failures, failures
buffer.sample(1)
leaves = buffer._leaves()
missed = np.flatnonzero(leaves[1:] != np.arange(1, rows + 1))
assert sum(stale) == 0 and not len(missed), (sum(stale), missed[:5])
print("done")
"""
    ended = run_python(script=script, seconds=60)
    assert ended.returncode == 0, ended.stderr.decode()
    assert ended.stdout == b"done\n"


def test_an_update_before_the_first_sample_finds_no_row_seen():
    buffer = numbered(8)
    stale = buffer.update_priorities([1, 2], [0.1, 0.1])
    expected = leaf_of(1.0 + np.arange(8))
    if stale == 0:  # taking the role may fold
        expected[1:3] = leaf_of(0.1)
    else:
        assert stale == 2
    np.testing.assert_allclose(folded_leaves(buffer), expected, rtol=1e-6)


def test_slots_without_a_row_take_no_priority():
    buffer = numbered(8, count=3)
    buffer.sample(1)
    assert buffer.update_priorities([2, 3, 7], [0.5, 99.0, 99.0]) == 2
    assert_leaves(buffer, [*leaf_of([1.0, 2.0, 0.5]), 0, 0, 0, 0, 0])
    assert buffer.get_max_priority() == 3.0
    assert set(buffer.sample(100)["indexes"]) == {0, 1, 2}


# Stale indexes


def overwrite(buffer, count=None, priority=50.0):
    count = buffer.get_buffer_size() if count is None else count
    buffer.add(a=np.full(count, -1), priorities=priority)


def test_an_overwritten_row_takes_nothing():
    buffer = numbered(16)
    indexes = buffer.sample(32)["indexes"]
    overwrite(buffer)
    buffer.sample(1)
    assert buffer.update_priorities(indexes, 1e6) == 32
    assert_leaves(buffer, leaf_of([50.0] * 16))
    assert buffer.get_max_priority() == 50.0
    assert buffer.learner_status().stale == 32


def test_an_overwritten_row_not_yet_in_the_tree_takes_nothing():
    buffer = numbered(16)
    indexes = buffer.sample(32)["indexes"]
    overwrite(buffer)
    assert buffer.update_priorities(indexes, 1e6) == 32
    np.testing.assert_allclose(folded_leaves(buffer), leaf_of([50.0] * 16), rtol=1e-6)
    assert buffer.get_max_priority() == 50.0


def test_only_the_overwritten_rows_of_a_batch_are_stale():
    buffer = numbered(16)
    indexes = buffer.sample(64)["indexes"]
    overwrite(buffer, 5)
    buffer.sample(1)
    priorities = 100.0 + np.arange(64)
    assert buffer.update_priorities(indexes, priorities) == (indexes < 5).sum()
    expected = np.append(leaf_of([50.0] * 5), leaf_of(1.0 + np.arange(5, 16)))
    for index, priority in zip(indexes, priorities, strict=True):
        if index >= 5:
            expected[index] = leaf_of(priority)
    assert_leaves(buffer, expected)


def test_cleared_rows_take_nothing():
    buffer = numbered(16)
    indexes = buffer.sample(32)["indexes"]
    buffer.clear()
    assert buffer.update_priorities(indexes, 1e6) == 32
    assert buffer.get_max_priority() == 1.0
    overwrite(buffer, 3, priority=2.0)
    assert buffer.update_priorities(indexes, 1e6) == 32
    buffer.sample(1)
    assert buffer.update_priorities(indexes, 1e6) == 32
    assert_leaves(buffer, [*leaf_of([2.0] * 3), *[0] * 13])
    assert buffer.get_max_priority() == 2.0


def test_a_whole_lap_of_64_bits_is_told_from_no_lap():
    """The same slot, the same row contents, one or several laps later."""
    buffer = numbered(4)
    kept = []
    for _lap in range(9):
        kept.append(buffer.sample(4)["indexes"])
        overwrite(buffer)
    current = buffer.sample(4)["indexes"]
    for indexes in kept:
        assert buffer.update_priorities(indexes, 1e6) == 4
    assert buffer.update_priorities(current, 3.0) == 0


def torch_view(indexes):
    return pytest.importorskip("torch").from_numpy(indexes)


VIEWS = {
    "itself": lambda a: a,
    "every other": lambda a: a[::2],
    "slice": lambda a: a[3:20],
    "reversed": lambda a: a[::-1],
    "backwards": lambda a: a[20:3:-4],
    "slice of a slice": lambda a: a[1:-1][::2][1:],
    "split": lambda a: np.split(a, 4)[2],
    "last one": lambda a: a[-1:],
    "one element": lambda a: a[5:6].reshape(()),
    "rows of a matrix": lambda a: a.reshape(4, -1)[1:3],
    "column of a matrix": lambda a: a.reshape(4, -1)[:, 1],
    "columns of a matrix": lambda a: a.reshape(4, -1)[:, 1::3],
    "transposed matrix": lambda a: a.reshape(4, -1).T,
    "view as uint64": lambda a: a.view(np.uint64),
    "reversed view as uint64": lambda a: a.view(np.uint64)[::-1],
    "memoryview": lambda a: np.asarray(memoryview(a)[::2]),
    "read-only": lambda a: np.broadcast_to(a, a.shape)[3:20],
    "repeated": lambda a: np.broadcast_to(a[7:8], (5,)),
    "torch": torch_view,
    "torch slice": lambda a: torch_view(a)[3:20],
    "torch every other": lambda a: torch_view(a)[::2],
    "torch matrix": lambda a: torch_view(a).view(4, -1)[1:3],
    "torch transposed": lambda a: torch_view(a).view(4, -1).T,
}


@pytest.mark.parametrize("keep", ["sample", "only the view"])
@pytest.mark.parametrize("view", VIEWS)
def test_views_of_indexes_are_exact(view, keep):
    """The view says which rows were meant, though later samples drew other rows in its slots."""
    buffer = numbered(64)
    sample = buffer.sample(32)
    indexes = VIEWS[view](sample["indexes"])
    if keep == "only the view":
        del sample
    slots = np.asarray(indexes).astype(int).ravel()
    overwrite(buffer, 40)
    for _ in range(20):
        buffer.sample(256)  # draws the new rows of those slots, and lets blocks be reused
    stale = buffer.update_priorities(indexes, 1000.0)
    assert stale == (slots < 40).sum()
    expected = np.append(leaf_of([50.0] * 40), leaf_of(1.0 + np.arange(40, 64)))
    expected[slots[slots >= 40]] = leaf_of(1000.0)
    assert_leaves(buffer, expected)


def test_indexes_of_uniform_samples_are_exact():
    buffer = numbered(64)
    buffer.sample(1)
    indexes = buffer.sample_uniform(64, return_indexes=True)["indexes"]
    overwrite(buffer, 40)
    buffer.sample(256)
    assert buffer.update_priorities(indexes[::-1], 1000.0) == (indexes < 40).sum()
    expected = np.append(leaf_of([50.0] * 40), leaf_of(1.0 + np.arange(40, 64)))
    expected[indexes[indexes >= 40]] = leaf_of(1000.0)
    assert_leaves(buffer, expected)


def test_indexes_drawn_from_another_buffer_mean_slots():
    """Of this buffer: the generations of the other one say nothing here."""
    buffer, other = numbered(64), numbered(64)
    other.sample(64)
    overwrite(other)
    indexes = other.sample(64)["indexes"]
    buffer.sample(1)
    assert buffer.update_priorities(indexes, 1000.0) == 0
    expected = leaf_of(1.0 + np.arange(64))
    expected[indexes] = leaf_of(1000.0)
    assert_leaves(buffer, expected)


COPIES = {
    "copy": lambda a: a.copy(),
    "list": lambda a: a.tolist(),
    "fancy": lambda a: a[np.arange(len(a))],
    "int32": lambda a: a.astype(np.int32),
    "float": lambda a: a.astype(np.float64),
    "concatenated": lambda a: np.concatenate([a]),
    "pickled": lambda a: pickle.loads(pickle.dumps(a)),
    "torch": lambda a: pytest.importorskip("torch").from_numpy(a).clone(),
}


@pytest.mark.parametrize("copied", COPIES)
def test_copies_mean_the_row_last_sampled_in_the_slot(copied):
    buffer = numbered(64)
    indexes = buffer.sample(64)["indexes"]
    copy, slots = COPIES[copied](indexes), set(indexes.tolist())
    overwrite(buffer)
    del indexes
    drawn = set(buffer.sample(3)["indexes"].tolist())
    stale = buffer.update_priorities(copy, 1000.0)
    assert stale == sum(slot not in drawn for slot in np.asarray(copy).tolist())
    expected = leaf_of(np.full(64, 50.0))
    expected[list(slots & drawn)] = leaf_of(1000.0)
    assert_leaves(buffer, expected)


@pytest.mark.parametrize("copied", COPIES)
def test_copies_with_generations_are_exact(copied):
    buffer = numbered(64)
    indexes = buffer.sample(64)["indexes"]
    generations = buffer.get_generations(indexes)
    assert generations.dtype == np.uint64
    assert generations.shape == (64,)
    copy = COPIES[copied](indexes)
    slots = np.asarray(indexes).copy()
    overwrite(buffer, 40)
    buffer.sample(256)
    stale = buffer.update_priorities(copy, 1000.0, generations=generations)
    assert stale == (slots < 40).sum()
    expected = np.append(leaf_of([50.0] * 40), leaf_of(1.0 + np.arange(40, 64)))
    expected[slots[slots >= 40]] = leaf_of(1000.0)
    assert_leaves(buffer, expected)
    assert buffer.update_priorities(copy, 1.0, generations) == (slots < 40).sum()


def test_generations_of_views_and_after_later_samples():
    buffer = numbered(64)
    indexes = buffer.sample(64)["indexes"]
    first = buffer.get_generations(indexes)
    overwrite(buffer)
    buffer.sample(256)
    np.testing.assert_array_equal(buffer.get_generations(indexes), first)
    np.testing.assert_array_equal(buffer.get_generations(indexes[10:20]), first[10:20])
    np.testing.assert_array_equal(buffer.get_generations(indexes[::-3]), first[::-3])
    same_slots = np.sort(np.unique(indexes))
    assert len(np.unique(buffer.get_generations(same_slots))) == len(same_slots)


def test_memory_used_again_is_not_taken_for_a_batch_in_flight():
    """Blocks are freed and their addresses used again, by samples and by users' arrays."""
    buffer = numbered(64)
    for lap in range(300):
        old = [buffer.sample(n)["indexes"] for n in (32, 64, 128)]
        overwrite(buffer, priority=1.0)
        drawn = set(buffer.sample(512)["indexes"].tolist())
        del old
        mine = [np.arange(64).repeat(n) for n in (1, 2, 4)]  # may lie where the blocks were
        for indexes in mine:
            missed = sum(slot not in drawn for slot in indexes.tolist())
            assert buffer.update_priorities(indexes, 2.0) == missed, lap


def test_a_changed_index_array_does_not_reach_other_rows():
    """An index written over by the user names another slot; that slot's row was not meant."""
    buffer = numbered(16)
    indexes = buffer.sample(4)["indexes"]
    changed = (indexes[0] + 1) % 16
    meant = indexes[0]
    indexes[0] = changed
    before = buffer._leaves()
    buffer.update_priorities(indexes[:1], 1000.0)
    after = buffer._leaves()
    assert after[meant] == before[meant] or meant in indexes[1:]
    assert after[changed] == before[changed] or np.isclose(after[changed], leaf_of(1000.0))


@pytest.mark.parametrize("capacity", [16, 100, 1000])
def test_many_batches_in_flight(capacity):
    """Whatever the order of the answers, a priority goes to the row that was drawn or to none."""
    rng = np.random.default_rng(capacity)
    buffer = PrioritizedReplayBuffer(capacity, {"a": {"dtype": "i8"}}, seed=capacity)
    row_in_slot = np.full(capacity, -1)
    leaf = np.zeros(capacity)
    in_flight = []
    added = answered = stale = 0
    for _round in range(400):
        n = int(rng.integers(1, capacity // 4))
        rows = np.arange(added, added + n)
        priorities = rng.random(n)
        buffer.add(a=rows, priorities=priorities)
        row_in_slot[rows % capacity] = rows
        leaf[rows % capacity] = leaf_of(priorities)
        added += n
        sample = buffer.sample(32)
        np.testing.assert_array_equal(row_in_slot[sample["indexes"]], sample["a"].ravel())
        in_flight.append((sample["indexes"], sample["a"].ravel()))
        while len(in_flight) > 60 or (in_flight and rng.random() < 0.4):
            indexes, drawn = in_flight.pop(rng.integers(len(in_flight)))
            if rng.random() < 0.5:
                indexes, drawn = indexes[::-2], drawn[::-2]
            new = 1 + rng.random(len(indexes))
            expected = (row_in_slot[indexes] != drawn).sum()
            assert buffer.update_priorities(indexes, new) == expected
            for slot, row, priority in zip(indexes, drawn, new, strict=True):
                if row_in_slot[slot] == row:
                    leaf[slot] = leaf_of(priority)
            answered += len(indexes)
            stale += expected
    assert stale > 100
    assert answered - stale > 100
    assert_leaves(buffer, leaf)
    status = buffer.learner_status()
    assert (status.updates, status.stale) in [(answered, stale), (answered - stale, stale)]


# Weights


@pytest.mark.parametrize("beta", [0.0, 0.4, 0.5, 1.0])
@pytest.mark.parametrize("capacity", [1, 7, 100, 5000])
def test_weights_equal_an_oracle(beta, capacity):
    rng = np.random.default_rng(capacity)
    priorities = 10 ** rng.uniform(-3, 3, capacity)
    buffer = PrioritizedReplayBuffer(capacity, {"a": {}}, seed=1)
    buffer.add(a=np.zeros(capacity), priorities=priorities)
    for _round in range(5):
        leaves = leaf_of(priorities)
        sample = buffer.sample(300, beta)
        probabilities = leaves / leaves.sum()
        all_weights = (capacity * probabilities) ** -beta
        expected = all_weights[sample["indexes"]] / all_weights.max()
        np.testing.assert_allclose(sample["weights"], expected, rtol=1e-6)
        # Raise the smallest, so that the largest weight of the buffer has to be found anew.
        lowest = np.argsort(priorities)[: max(1, capacity // 10)]
        priorities[lowest] *= 50
        buffer.update_priorities(lowest, priorities[lowest])


def test_weights_of_a_part_full_buffer():
    buffer = numbered(1000, count=3)
    sample = buffer.sample(100, beta=0.7)
    expected = (leaf_of(1.0 + sample["indexes"]) / leaf_of(1.0)) ** -0.7
    np.testing.assert_allclose(sample["weights"], expected, rtol=1e-6)


def test_the_default_beta():
    buffer = numbered(100)
    sample = buffer.sample(100)
    expected = (leaf_of(1.0 + sample["indexes"]) / leaf_of(1.0)) ** -0.4
    np.testing.assert_allclose(sample["weights"], expected, rtol=1e-6)


# Against a slow model


class SlowModel:
    """The rules of the prioritized buffer, one row at a time, in Python floats.

    All rows are the learner's own.
    """

    def __init__(self, capacity, eps):
        self.capacity = capacity
        self.eps = eps
        self.is_learner = False
        self.position = 0
        self.rows = {}  # slot: (position, value, leaf)
        self.seen = {}  # slot: position of the row that the tree holds
        self.drawn = {}  # slot: position of the row last sampled there
        self.leaves = np.zeros(capacity)
        self.max_priority = 1.0

    def add(self, values, priorities):
        first = self.position % self.capacity
        default = self.max_priority
        for value, priority in zip(values, priorities or [default] * len(values), strict=True):
            slot = self.position % self.capacity
            self.rows[slot] = (self.position, value, leaf_of(priority, eps=self.eps))
            self.position += 1
            self.max_priority = max(self.max_priority, priority)
        return first

    def fold(self):
        self.is_learner = True
        for slot in range(self.capacity):
            if slot not in self.rows:
                self.leaves[slot] = 0
                self.seen.pop(slot, None)
            elif self.seen.get(slot) != self.rows[slot][0]:
                self.leaves[slot] = self.rows[slot][2]
                self.seen[slot] = self.rows[slot][0]

    def key_of_slot(self, slot):
        newest = self.rows.get(slot, (self.seen.get(slot),))[0]
        return slot, self.drawn.get(slot, newest)

    def update(self, keys, priorities):
        stale = 0
        for (slot, position), priority in zip(keys, priorities, strict=True):
            current = self.rows.get(slot, (None,))[0]
            in_tree = position == self.seen.get(slot) or slot not in self.drawn
            if position is None or position != current or not in_tree:
                stale += 1
                continue
            self.seen[slot] = position
            self.leaves[slot] = leaf_of(priority, eps=self.eps)
            self.max_priority = max(self.max_priority, priority)
        return stale

    def clear(self):
        self.position += -self.position % self.capacity
        self.rows.clear()
        self.max_priority = 1.0


priority = st.floats(0, 1e6, allow_nan=False, width=32) | st.just(0.0)


class BufferAndModel(stateful.RuleBasedStateMachine):
    @stateful.initialize(
        capacity=st.sampled_from([1, 2, 3, 8, 9, 16, 17, 33, 130]), eps=st.sampled_from([EPS, 0.0])
    )
    def create(self, capacity, eps):
        self.buffer = PrioritizedReplayBuffer(
            capacity, {"a": {"dtype": "i8"}, "b": {"shape": 3}}, seed=capacity, eps=eps
        )
        self.model = SlowModel(capacity, eps)
        self.added = 0
        self.batches = []

    @stateful.rule(data=st.data(), given_as=st.sampled_from(["none", "scalar", "list"]))
    def add_rows(self, data, given_as):
        n = data.draw(st.integers(1, self.model.capacity))
        if given_as == "list":
            priorities = expected = data.draw(st.lists(priority, min_size=n, max_size=n))
        elif given_as == "scalar":
            priorities = data.draw(priority)
            expected = [priorities] * n
        else:
            priorities = expected = None
        values = np.arange(self.added, self.added + n)
        self.added += n
        b = values[:, None] + np.arange(3)
        first = self.buffer.add(a=values, b=b, priorities=priorities)
        assert first == self.model.add(values.tolist(), expected)

    @stateful.precondition(lambda self: self.model.rows)
    @stateful.rule(batch_size=st.integers(1, 40), beta=st.floats(0, 1))
    def sample(self, batch_size, beta):
        model = self.model
        model.fold()
        if not model.leaves.any():
            with pytest.raises(mpbuffer.EmptyBuffer, match="priority 0"):
                self.buffer.sample(batch_size, beta)
            return
        sample = self.buffer.sample(batch_size, beta)
        keys = []
        for slot, value, b in zip(
            sample["indexes"].tolist(), sample["a"].ravel(), sample["b"], strict=True
        ):
            position, expected, _leaf = model.rows[slot]
            assert value == expected
            assert (b == value + np.arange(3, dtype=np.float32)).all()
            assert model.leaves[slot] > 0
            keys.append((slot, position))
            model.drawn[slot] = position
        leaves = model.leaves
        expected = (leaves[sample["indexes"]] / leaves[leaves > 0].min()) ** -beta
        np.testing.assert_allclose(sample["weights"], expected, rtol=2e-6)
        self.batches.append((sample["indexes"], keys))

    @stateful.precondition(lambda self: not self.model.rows)
    @stateful.rule()
    def sample_of_nothing(self):
        with pytest.raises(mpbuffer.EmptyBuffer):
            self.buffer.sample(1)
        self.model.fold()

    @stateful.precondition(lambda self: self.batches)
    @stateful.rule(
        data=st.data(),
        part=st.sampled_from([np.s_[:], np.s_[::2], np.s_[::-1], np.s_[1:], np.s_[-3:]]),
        through=st.sampled_from(["view", "copy", "generations"]),
        forget=st.booleans(),
    )
    def answer_a_batch(self, data, part, through, forget):
        number = data.draw(st.integers(0, len(self.batches) - 1))
        indexes, keys = self.batches[number]
        indexes, keys = indexes[part], keys[part]
        n = len(keys)
        priorities = data.draw(st.lists(priority, min_size=n, max_size=n))
        if through == "view":
            stale = self.buffer.update_priorities(indexes, priorities)
        elif through == "generations":
            generations = self.buffer.get_generations(indexes)
            stale = self.buffer.update_priorities(
                indexes.copy(), priorities, generations=generations
            )
        else:
            stale = self.buffer.update_priorities(indexes.copy(), priorities)
            keys = [self.model.key_of_slot(slot) for slot, _ in keys]
        assert stale == self.model.update(keys, priorities)
        if forget:
            del self.batches[number]

    @stateful.precondition(lambda self: self.model.is_learner)
    @stateful.rule(data=st.data())
    def update_slots(self, data):
        model = self.model
        chosen = data.draw(st.lists(st.integers(0, model.capacity - 1), max_size=20))
        priorities = data.draw(st.lists(priority, min_size=len(chosen), max_size=len(chosen)))
        stale = self.buffer.update_priorities(chosen, priorities)
        assert stale == model.update([model.key_of_slot(slot) for slot in chosen], priorities)

    @stateful.rule()
    def clear(self):
        self.buffer.clear()
        self.model.clear()

    @stateful.invariant()
    def same_to_see(self):
        if not hasattr(self, "model"):
            return
        model = self.model
        assert self.buffer.get_stored_size() == len(model.rows)
        assert self.buffer.get_next_index() == model.position % model.capacity
        assert self.buffer.rows_added() == self.added
        rows = self.buffer.get_all_transitions()
        assert rows["a"].ravel().tolist() == [model.rows[slot][1] for slot in sorted(model.rows)]
        np.testing.assert_allclose(self.buffer.get_max_priority(), model.max_priority, rtol=1e-7)
        np.testing.assert_allclose(self.buffer._leaves(), model.leaves, rtol=1e-6)

    def teardown(self):
        if hasattr(self, "buffer"):
            self.buffer.close()


BufferAndModel.TestCase.settings = hypothesis.settings(
    max_examples=120,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
TestBufferAgainstModel = BufferAndModel.TestCase
TestBufferAgainstModel.pytestmark = [pytest.mark.timeout(400)]  # a failure takes time to shrink


# The learner's role


def test_a_second_process_is_told_at_once_who_is_the_learner(context):
    buffer = numbered(16)
    buffer.sample(1)
    with BufferElsewhere(context, buffer) as other:
        for call, arguments in [
            ("sample", (4,)),
            ("update_priorities", ([0], [1.0])),
            ("get_generations", ([0],)),
        ]:
            asked = time.monotonic()
            with pytest.raises(LearnerBusy) as refused:
                other.run(call, *arguments)
            assert time.monotonic() - asked < 2
            assert str(os.getpid()) in str(refused.value)
        assert other.sample_uniform(5)["a"].shape == (5, 1)
        assert other.get_stored_size() == 16
        assert len(other.get_all_transitions()["a"]) == 16
        assert other.add(a=7) == 0
        assert other.get_max_priority() == 16.0
    assert buffer.update_priorities([1], [0.5]) == 0


def test_the_learner_can_be_another_process(context):
    buffer = numbered(16)
    with BufferElsewhere(context, buffer) as other:
        assert other.sample(4)["indexes"].shape == (4,)
        with pytest.raises(LearnerBusy, match=str(other.pid)):
            buffer.sample(1)
        with pytest.raises(LearnerBusy, match=str(other.pid)):
            buffer.update_priorities([1], [0.5])
        assert buffer.sample_uniform(4)["a"].shape == (4, 1)
        assert other.update_priorities([1, 2], [0.25, 100.0]) == 0
        assert buffer.get_max_priority() == 100.0
        status = buffer.learner_status()
        assert status.pid == other.pid
        assert status.updates == 2
    assert buffer.sample(1)["a"].shape == (1, 1), "the role is free once its holder has ended"
    assert buffer.learner_status().pid == os.getpid()


def release_then_leaves(buffer):
    leaves = buffer._leaves()
    buffer.release_learner()
    return leaves


def test_release_hands_the_priorities_over(context):
    buffer = numbered(16)
    buffer.sample(1)
    buffer.update_priorities([1, 2, 3], [0.25, 100.0, 7.0])
    expected = leaf_of(1.0 + np.arange(16))
    expected[1:4] = leaf_of([0.25, 100.0, 7.0])
    assert_leaves(buffer, expected)
    with BufferElsewhere(context, buffer) as other:
        with pytest.raises(LearnerBusy):
            other.sample(1)
        buffer.release_learner()
        sample = other.sample(200, beta=1.0)
        np.testing.assert_allclose(
            sample["weights"], expected.min() / expected[sample["indexes"]], rtol=1e-6
        )
        np.testing.assert_allclose(other._leaves(), expected, rtol=1e-6)
        np.testing.assert_allclose(other._tree_total(), expected.sum(), rtol=1e-6)
        with pytest.raises(LearnerBusy, match=str(other.pid)):
            buffer.sample(1)
        other.update_priorities([5], [1e4])
        buffer.add(a=99, priorities=3.0)
        expected[0] = leaf_of(3.0)
        expected[5] = leaf_of(1e4)
        other.run(release_then_leaves)
        np.testing.assert_allclose(folded_leaves(buffer), expected, rtol=1e-6)
        assert buffer.get_max_priority() == 1e4


def test_release_without_the_role_is_nothing():
    buffer = numbered(4)
    buffer.release_learner()
    buffer.sample(1)
    buffer.release_learner()
    buffer.release_learner()
    assert buffer.sample(2)["a"].shape == (2, 1)


def test_indexes_drawn_before_the_role_was_given_away_are_still_exact():
    buffer = numbered(16)
    indexes = buffer.sample(32)["indexes"]
    buffer.release_learner()
    overwrite(buffer, 8)
    buffer.sample(64)
    assert buffer.update_priorities(indexes, 1e6) == (indexes < 8).sum()


def test_close_gives_the_role_away():
    buffer = numbered(16)
    other = mpbuffer.attach(buffer.name)
    other.sample(1)
    with pytest.raises(LearnerBusy, match=str(os.getpid())):
        buffer.sample(1)
    other.close()
    assert buffer.sample(1)["a"].shape == (1, 1)


def test_a_killed_learner_gives_the_role_away(context):
    buffer = numbered(16)
    with BufferElsewhere(context, buffer) as other:
        other.sample(4)
        other.update_priorities([1, 2], [0.25, 100.0])
        os.kill(other.pid, signal.SIGKILL)
        assert join_within(other.process) == -signal.SIGKILL
        expected = leaf_of(1.0 + np.arange(16))
        expected[1:3] = leaf_of([0.25, 100.0])
        np.testing.assert_allclose(folded_leaves(buffer), expected, rtol=1e-6)
        assert buffer.update_priorities([1], [1.0]) == 0


def test_a_stopped_learner_keeps_the_role(context):
    """LearnerBusy comes at once, though the holder cannot answer, and tells its state."""
    buffer = numbered(16)
    with BufferElsewhere(context, buffer) as other:
        other.sample(4)
        os.kill(other.pid, signal.SIGSTOP)
        try:
            deadline = time.monotonic() + 10
            with open(f"/proc/{other.pid}/stat") as stat:
                while ") T" not in stat.read() and time.monotonic() < deadline:
                    stat.seek(0)
            asked = time.monotonic()
            with pytest.raises(LearnerBusy, match=str(other.pid)) as refused:
                buffer.sample(1)
            assert time.monotonic() - asked < 2
            assert "stopped" in str(refused.value)
            assert buffer.add(a=1) == 0
            assert buffer.get_stored_size() == 16
        finally:
            os.kill(other.pid, signal.SIGCONT)
        assert other.sample(4)["a"].shape == (4, 1)


def test_a_forked_child_does_not_inherit_the_role():
    buffer = numbered(16)
    parent = os.getpid()
    buffer.sample(1)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for call in (lambda: buffer.sample(1), lambda: buffer.update_priorities([0], [9.0])):
                try:
                    call()
                except LearnerBusy as busy:
                    code = 0 if str(parent) in str(busy) else 2
                else:
                    code = 3
                    break
        finally:
            os._exit(code)
    assert wait_for_child(child) == 0
    assert buffer.sample(1)["a"].shape == (1, 1)
    spawn = multiprocessing.get_context("spawn")
    with BufferElsewhere(spawn, buffer) as other, pytest.raises(LearnerBusy, match=str(parent)):
        other.sample(1)


def test_a_forked_child_does_not_keep_the_role_alive():
    """The child lives on; the parent's release must free the role all the same."""
    buffer = numbered(16)
    buffer.sample(1)
    child_waits, parent_tells = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(parent_tells)
        os.read(child_waits, 1)
        os._exit(0)
    try:
        os.close(child_waits)
        buffer.release_learner()
        with BufferElsewhere(multiprocessing.get_context("spawn"), buffer) as other:
            assert other.sample(1)["a"].shape == (1, 1)
    finally:
        os.close(parent_tells)
        assert wait_for_child(child) == 0


def test_a_learner_that_ended_with_a_living_child_gives_the_role_away():
    """The holder is killed while a child it forked lives on with its descriptors and mapping."""
    buffer = numbered(16)
    script = f"""
import os, sys, mpbuffer
buffer = mpbuffer.attach({buffer.name!r})
buffer.sample(1)
child_tells, told = os.pipe()
if os.fork() == 0:
    os.write(told, b"!")  # it runs: what it does first in a fork is done
    sys.stdin.read()
    os._exit(0)
os.read(child_tells, 1)
print("ready", flush=True)
os.kill(os.getpid(), 9)
"""
    with python_started(script=script) as holder:
        assert holder.stdout.readline() == b"ready\n"
        assert holder.wait(30) == -signal.SIGKILL
        assert buffer.sample(1)["a"].shape == (1, 1)
        holder.stdin.close()
        assert holder.stdout.read() == b"", "the child has ended too"


def test_threads_share_the_role():
    """Adds, samples and updates from several threads of one process; ended if they deadlock."""
    script = """
import threading
import numpy as np
from mpbuffer import PrioritizedReplayBuffer

buffer = PrioritizedReplayBuffer(500, {"a": {"dtype": "i8"}, "b": {"shape": 8, "dtype": "i8"}})
buffer.add(a=0, b=np.zeros(8), priorities=0.5)
failures = []

def adds(first):
    for number in range(first, first + 20_000, 10):
        rows = np.arange(number, number + 10)
        buffer.add(a=rows, b=np.repeat(rows[:, None], 8, 1), priorities=1.0)

def learns():
    for _ in range(2_000):
        sample = buffer.sample(32)
        assert (sample["a"] == sample["b"]).all()
        buffer.update_priorities(sample["indexes"], np.full(32, 2.0))
        rows = buffer.get_all_transitions()
        assert (rows["a"] == rows["b"]).all()

def watched(function, *args):
    try:
        function(*args)
    except BaseException as error:
        failures.append(error)

threads = [threading.Thread(target=watched, args=(adds, i * 100_000)) for i in range(3)]
threads += [threading.Thread(target=watched, args=(learns,)) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failures, failures
assert buffer.rows_added() == 60_001
assert buffer.get_stored_size() == 500
leaves = buffer._leaves()
assert np.isclose(leaves.astype("f8").sum(), buffer._tree_total(), rtol=1e-9)
print("done")
"""
    ended = run_python(script=script, seconds=60)
    assert ended.returncode == 0, ended.stderr.decode()
    assert ended.stdout == b"done\n"
