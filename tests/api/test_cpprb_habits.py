"""What programs written for cpprb rely on, beside the calls that its documents describe."""

import warnings

import numpy as np
import pytest

import mpbuffer
from mpbuffer import PrioritizedReplayBuffer, ReplayBuffer

BOTH_CLASSES = pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplayBuffer])
FIELDS = {"obs": {"shape": 3}, "rew": {}, "done": {}}


# Arguments of the constructor


@BOTH_CLASSES
@pytest.mark.parametrize("none", [None, False, {}])
def test_falsy_nstep_means_none(cls, none):
    buffer = cls(10, FIELDS, Nstep=none)
    assert not buffer.is_Nstep()
    assert buffer.add(obs=[1, 2, 3], rew=1, done=0) == 0
    assert cls.largest_size(FIELDS, Nstep=none) > 0
    with buffer.writer(Nstep=none) as writer:
        writer.add(obs=[1, 2, 3], rew=1, done=0)
    assert len(buffer) == 2


@pytest.mark.parametrize("bad", [True, 3, "size"])
def test_other_nstep_is_refused(bad):
    with pytest.raises(TypeError, match="Nstep must be a mapping"):
        ReplayBuffer(10, FIELDS, Nstep=bad)


def test_an_env_dict_that_cpprb_has_used_needs_no_warning():
    used = {
        name: described | {"add_shape": np.array([-1, 3])} for name, described in FIELDS.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        buffer = ReplayBuffer(10, used)
    assert buffer.sample.__self__.get_buffer_size() == 10


def test_an_env_dict_that_cpprb_itself_has_used():
    cpprb = pytest.importorskip("cpprb")
    used = {name: dict(described) for name, described in FIELDS.items()}
    cpprb.ReplayBuffer(10, used)
    assert used != FIELDS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ReplayBuffer(10, used)


def test_unknown_keys_of_several_fields_are_one_warning():
    with pytest.warns(UserWarning, match="'obs', 'rew', 'done' .*'unit', which") as warned:
        ReplayBuffer(10, {name: described | {"unit": "m"} for name, described in FIELDS.items()})
    assert len(warned) == 1


def test_a_shape_may_be_an_array():
    buffer = ReplayBuffer(10, {"a": {"shape": np.array([2, 3])}, "b": {"shape": np.int64(4)}})
    buffer.add(a=np.zeros((2, 3)), b=np.zeros(4))
    assert buffer.sample(1)["a"].shape == (1, 2, 3)


@BOTH_CLASSES
def test_arguments_of_cpprb_that_need_nothing_are_accepted(cls):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cls(10, FIELDS, check_for_update=True, next_of=None, stack_compress=False, mmap_prefix=None)


@BOTH_CLASSES
def test_mmap_prefix_is_named_in_a_warning(cls):
    with pytest.warns(UserWarning, match="mmap_prefix='file' is ignored") as warned:
        buffer = cls(10, FIELDS, mmap_prefix="file")
    assert warned[0].filename == __file__
    assert buffer.add(obs=[1, 2, 3], rew=1, done=0) == 0


def test_a_subclass_is_told_to_call_super_init():
    class Own(ReplayBuffer):
        def __init__(self, size):
            self.size = size

    buffer = Own(10)
    for call in (lambda: buffer.add(obs=1), lambda: buffer.sample(1), lambda: len(buffer)):
        with pytest.raises(mpbuffer.BufferClosed, match=r"Own: .*super\(\).__init__"):
            call()


def test_a_subclass_that_calls_super_init_works():
    class Own(ReplayBuffer):
        def __init__(self, size):
            super().__init__(size, FIELDS)

    assert Own(10).add(obs=[1, 2, 3], rew=1, done=0) == 0


# A scalar beside fields of many rows


@BOTH_CLASSES
@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("scalar", [2, 2.0, True, np.float32(2), np.array(2), np.array(2, "f4")])
def test_a_scalar_counts_for_all_rows(cls, n, scalar):
    for fields in (FIELDS, dict(reversed(FIELDS.items()))):
        buffer = cls(10, fields)
        buffer.add(obs=np.arange(3 * n).reshape(n, 3), rew=scalar, done=np.arange(n))
        rows = buffer.get_all_transitions()
        assert rows["rew"].ravel().tolist() == [float(scalar)] * n
        assert rows["done"].ravel().tolist() == list(range(n))
        assert rows["obs"].ravel().tolist() == list(range(3 * n))


def test_a_scalar_is_broadcast_as_cpprb_does():
    cpprb = pytest.importorskip("cpprb")
    fields = {"rew": {}, "obs": {"shape": 3}}  # cpprb counts the rows of the last one
    ours, theirs = ReplayBuffer(10, dict(fields)), cpprb.ReplayBuffer(10, dict(fields))
    for buffer in (ours, theirs):
        buffer.add(obs=np.arange(12).reshape(4, 3), rew=0.5)
        buffer.add(obs=np.arange(3), rew=1.5)
    for name, values in theirs.get_all_transitions().items():
        np.testing.assert_array_equal(ours.get_all_transitions()[name], values)


def test_a_scalar_beside_steps_counts_for_all_of_them():
    nstep = {"size": 2, "rew": "rew", "gamma": 0.5}
    buffer = ReplayBuffer(10, FIELDS, Nstep=nstep)
    buffer.add(obs=np.zeros((4, 3)), rew=1, done=0)
    buffer.on_episode_end()
    assert buffer.get_all_transitions()["rew"].ravel().tolist() == [1.5, 1.5, 1.5, 1.0]
    writing = ReplayBuffer(10, FIELDS)
    with writing.writer(n_envs=3) as writer:
        writer.add(obs=np.zeros((3, 3)), rew=[1, 2, 3], done=0)
    assert sorted(writing.get_all_transitions()["rew"].ravel()) == [1, 2, 3]


def test_a_scalar_beside_no_rows_adds_none():
    buffer = ReplayBuffer(10, FIELDS)
    buffer.add(obs=np.zeros((0, 3)), rew=1, done=0)
    assert len(buffer) == 0


@pytest.mark.parametrize("one", [[1], np.ones(1), np.ones((1, 1))])
def test_one_row_among_many_is_refused(one):
    buffer = ReplayBuffer(10, FIELDS)
    with pytest.raises(ValueError, match="'rew' has 1 rows, expected 4"):
        buffer.add(obs=np.zeros((4, 3)), rew=one, done=0)
    with pytest.raises(ValueError, match="'rew' has 2 rows, expected 1"):
        buffer.add(obs=np.zeros((1, 3)), rew=[1, 2], done=0)
    assert len(buffer) == 0


def test_a_scalar_that_does_not_fit_is_refused():
    buffer = ReplayBuffer(10, {"obs": {"shape": 3}, "act": {"dtype": np.uint8}})
    with pytest.raises(ValueError, match="'act'"):
        buffer.add(obs=np.zeros((4, 3)), act=300)
    assert len(buffer) == 0


# _encode_sample


@BOTH_CLASSES
def test_negative_indexes_count_from_the_end(cls):
    buffer = cls(4, {"a": {}})
    for i in range(6):
        buffer.add(a=i)
    assert buffer._encode_sample([-1, -4, 0, 3])["a"].ravel().tolist() == [3, 4, 4, 3]
    assert buffer._encode_sample(np.int64(-2))["a"].tolist() == [[2]]
    for outside in (4, -5):
        with pytest.raises(IndexError, match=r"expected one in \[-4, 4\)"):
            buffer._encode_sample([0, outside])


@BOTH_CLASSES
def test_slots_without_a_row_are_zeros(cls):
    buffer = cls(6, {"a": {"shape": 2}, "b": {"dtype": "S2"}})
    buffer.add(a=np.ones((4, 2)), b=b"x")
    rows = buffer._encode_sample([5, 0, -1, 3, 4])
    assert rows["a"].tolist() == [[0, 0], [1, 1], [0, 0], [1, 1], [0, 0]]
    assert rows["b"].ravel().tolist() == [b"", b"x", b"", b"x", b""]
    buffer.clear()
    assert not buffer._encode_sample(np.arange(6))["a"].any()
