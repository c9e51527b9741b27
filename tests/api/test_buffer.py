"""One process, one buffer: construction, what `add` takes, what comes back."""

import copy
import gc
import inspect
import logging
import multiprocessing
import multiprocessing.managers
import os
import pickle
import re
import sys
import warnings

import numpy as np
import pytest
from watched_processes import run_python

import mpbuffer
from mpbuffer import (
    MPPrioritizedReplayBuffer,
    MPReplayBuffer,
    PrioritizedReplayBuffer,
    ReplayBuffer,
)

CARTPOLE = {"obs": {"shape": 4}, "act": {}, "rew": {}, "next_obs": {"shape": 4}, "done": {}}
BOTH_CLASSES = pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplayBuffer])


def transitions(n, first=0):
    numbers = np.arange(first, first + n, dtype=np.float32)
    return {
        "obs": numbers[:, None] + np.arange(4, dtype=np.float32),
        "act": numbers[:, None] % 2,
        "rew": -numbers[:, None],
        "next_obs": numbers[:, None] + 1 + np.arange(4, dtype=np.float32),
        "done": (numbers[:, None] % 5 == 4).astype(np.float32),
    }


def uniform(buffer):
    """The call that samples uniformly, and takes `return_indexes`."""
    return getattr(buffer, "sample_uniform", buffer.sample)


def stored(buffer, field="a"):
    return buffer.get_all_transitions()[field]


# Names and construction


def test_multi_process_names_are_the_same_objects():
    assert MPReplayBuffer is ReplayBuffer
    assert MPPrioritizedReplayBuffer is PrioritizedReplayBuffer
    assert issubclass(mpbuffer.LearnerBusy, mpbuffer.MpbufferError)


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("SegmentNotFound", FileNotFoundError),
        ("SegmentExists", FileExistsError),
        ("SegmentMismatch", ValueError),
        ("NotEnoughMemory", MemoryError),
        ("ProcessTableFull", RuntimeError),
        ("RoleBusy", RuntimeError),
        ("LearnerBusy", mpbuffer.RoleBusy),
        ("PublisherBusy", mpbuffer.RoleBusy),
        ("SlotsHeld", TimeoutError),
        ("BufferClosed", ValueError),
        ("EmptyBuffer", ValueError),
    ],
)
def test_errors_are_also_the_builtin_that_one_would_catch(name, builtin):
    error = getattr(mpbuffer, name)
    assert issubclass(error, builtin)
    assert issubclass(error, mpbuffer.MpbufferError)
    assert getattr(mpbuffer.errors, name) is error
    assert error.__name__ == name


@BOTH_CLASSES
@pytest.mark.parametrize("size", [7, 7.0, np.int64(7), np.float32(7), np.uint8(7)])
def test_size_is_any_whole_number(cls, size):
    buffer = cls(size, {"a": {}})
    assert buffer.get_buffer_size() == 7
    assert isinstance(buffer.get_buffer_size(), int)


def test_size_in_scientific_notation():
    assert ReplayBuffer(1e6, {"a": {"dtype": "u1"}}).get_buffer_size() == 1_000_000


@pytest.mark.parametrize("size", [0, -1, 1.5, float("nan"), float("inf"), "many", None, -1e6])
def test_other_sizes_are_refused(size):
    with pytest.raises((ValueError, TypeError), match="size"):
        ReplayBuffer(size, {"a": {}})


@BOTH_CLASSES
def test_a_size_no_machine_has_room_for(cls):
    with pytest.raises(mpbuffer.NotEnoughMemory) as refused:
        cls(1e10, {"obs": {"shape": 1000}})
    figures = re.findall(r"\d+(?:\.\d+)?", str(refused.value))
    assert len(figures) >= 2, "says what is needed and what there is"


@BOTH_CLASSES
def test_the_largest_size_is_what_memory_has_room_for(cls):
    env_dict = {"obs": {"shape": 1_000_000, "dtype": "u1"}}
    size = cls.largest_size(env_dict, 0.1)
    assert size > 0
    with pytest.raises(mpbuffer.NotEnoughMemory):
        cls(2 * cls.largest_size(env_dict, 1.0), env_dict)
    assert cls.largest_size(env_dict, 0.2) == pytest.approx(2 * size, rel=0.05)
    assert cls.largest_size(env_dict, 1e-9) == 0
    with cls(cls.largest_size({"obs": {}}, 1e-4), {"obs": {}}) as buffer:
        assert buffer.get_buffer_size() > 1


def test_the_largest_size_counts_all_that_lies_in_shared_memory():
    uniform = ReplayBuffer.largest_size({"a": {}})
    assert PrioritizedReplayBuffer.largest_size({"a": {}}) < 0.9 * uniform
    assert ReplayBuffer.largest_size({"a": {"shape": 100}}, default_dtype="f8") < 0.3 * uniform
    fields = {"rew": {}, "done": {}, "next_obs": {"shape": 14}}  # 64 bytes
    nstep = {"size": 3, "rew": "rew", "discount": "discount"}
    with_discount = ReplayBuffer.largest_size(fields, Nstep=nstep)
    assert with_discount < 0.95 * ReplayBuffer.largest_size(fields)


@BOTH_CLASSES
@pytest.mark.parametrize("share", [0, -1, 1.01, float("nan"), "half", None])
def test_other_shares_of_memory_are_refused(cls, share):
    with pytest.raises((TypeError, ValueError)):
        cls.largest_size({"a": {}}, share)


def test_the_largest_size_of_what_no_buffer_has_is_refused():
    with pytest.raises(ValueError, match="no fields"):
        ReplayBuffer.largest_size({})
    with pytest.raises(ValueError, match="weights"):
        PrioritizedReplayBuffer.largest_size({"weights": {}})


@BOTH_CLASSES
@pytest.mark.parametrize("size", [2**61, 2**63 - 1, 2**64, 1e30])
def test_a_size_that_overflows_is_an_error_like_any_other(cls, size):
    with pytest.raises((ValueError, MemoryError, OverflowError)):
        cls(size, {"obs": {"shape": 1000, "dtype": "f8"}})


def test_default_shape_is_one_and_default_dtype_float32():
    buffer = ReplayBuffer(5, {"a": {}, "b": {"shape": 3}, "c": {"dtype": np.int64}})
    buffer.add(a=1.5, b=[1, 2, 3], c=2**60)
    sample = buffer.sample(2)
    assert {name: (array.shape, array.dtype) for name, array in sample.items()} == {
        "a": ((2, 1), np.float32),
        "b": ((2, 3), np.float32),
        "c": ((2, 1), np.int64),
    }
    assert sample["c"].tolist() == [[2**60], [2**60]]


def test_default_dtype_is_for_fields_that_name_none():
    buffer = ReplayBuffer(5, {"a": {}, "b": {"dtype": np.uint8}}, default_dtype=np.float64)
    buffer.add(a=0.1, b=3)
    sample = buffer.sample(1)
    assert sample["a"].dtype == np.float64
    assert sample["a"][0, 0] == 0.1
    assert sample["b"].dtype == np.uint8


@pytest.mark.parametrize("shape", [3, (3,), [3], np.int64(3), (3, 2), (2, 3, 4), (1, 1), (1, 3)])
def test_shapes(shape):
    buffer = ReplayBuffer(5, {"a": {"shape": shape, "dtype": "i4"}})
    whole = tuple(np.atleast_1d(shape))
    row = np.arange(np.prod(whole)).reshape(whole)
    assert buffer.add(a=row) == 0
    assert buffer.add(a=np.stack([row + 100, row + 200])) == 1
    assert buffer.get_stored_size() == 3
    np.testing.assert_array_equal(stored(buffer), np.stack([row, row + 100, row + 200]))
    assert buffer.sample(6)["a"].shape == (6, *whole)


def test_shape_of_no_axes():
    buffer = ReplayBuffer(5, {"a": {"shape": ()}})
    assert buffer.add(a=1) == 0
    assert buffer.add(a=[2, 3]) == 1
    assert buffer.add(a=np.array([[4.0]])) == 3
    np.testing.assert_array_equal(stored(buffer), np.array([1, 2, 3, 4], np.float32))
    assert buffer.sample(3)["a"].shape == (3,)


@pytest.mark.parametrize("shape", [(), 1, (1,), (1, 1)])
def test_items_of_one_element(shape):
    buffer = ReplayBuffer(20, {"a": {"shape": shape}})
    assert buffer.add(a=1) == 0
    assert buffer.add(a=np.float64(2)) == 1
    assert buffer.add(a=[3]) == 2
    assert buffer.add(a=[4, 5]) == 3
    assert buffer.add(a=[[6], [7], [8]]) == 5
    assert buffer.get_next_index() == 8
    assert stored(buffer).ravel().tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert stored(buffer).shape == (8, *([shape] if isinstance(shape, int) else shape))


@pytest.mark.parametrize("shape", [-1, (2, -3), 1.5, "wide", (2, None)])
def test_other_shapes_are_refused(shape):
    with pytest.raises((ValueError, TypeError), match="frame"):
        ReplayBuffer(5, {"frame": {"shape": shape}})


LETTERED = np.dtype([("x", "f4"), ("n", "i2"), ("tag", "S3"), ("pair", "u1", (2,))])


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (np.float16, [0.5, -2.0, 65504.0]),
        (np.float64, [0.1, -1e300, 5e-324]),
        (np.longdouble, [0.1, -1e300, 3.0]),
        (bool, [True, False, True]),
        (np.int8, [-128, 0, 127]),
        (np.uint64, [0, 2**64 - 1, 2**63]),
        (np.int64, [-(2**63), 2**63 - 1, 1]),
        (np.complex64, [1 + 2j, -0.5j, 3]),
        (np.complex128, [1e300 + 2j, -0.5j, 3]),
        ("S5", [b"hello", b"", b"abc"]),
        ("U4", ["wort", "", "äöü"]),
        ("M8[ms]", ["2020-01-01", "1970-01-01", "NaT"]),
        ("m8[s]", [1, -5, 10**9]),
        (">f4", [1.5, -2.25, 1e30]),
        (LETTERED, [(1.5, -3, b"abc", (1, 2)), (0, 0, b"", (0, 0)), (9, 9, b"z", (255, 7))]),
    ],
)
@BOTH_CLASSES
def test_dtypes_come_back_as_they_went_in(cls, dtype, values):
    dtype = np.dtype(dtype)
    expected = np.array(values, dtype)
    buffer = cls(5, {"before": {"dtype": "u1"}, "a": {"shape": (), "dtype": dtype}, "after": {}})
    for value in expected:
        buffer.add(before=1, a=value, after=2)
    all_rows = buffer.get_all_transitions()
    assert all_rows["a"].dtype == dtype.newbyteorder("=")
    np.testing.assert_array_equal(all_rows["a"], expected)
    assert all_rows["before"].tolist() == [[1]] * 3
    assert all_rows["after"].tolist() == [[2]] * 3

    buffer.clear()
    buffer.add(before=[1, 2, 3], a=expected, after=[4, 5, 6])
    sample = buffer.sample(50)
    assert sample["a"].dtype == dtype.newbyteorder("=")
    np.testing.assert_array_equal(sample["a"], expected[sample["before"].ravel() - 1])


def test_structured_items_with_a_shape():
    buffer = ReplayBuffer(4, {"a": {"shape": 2, "dtype": LETTERED}})
    rows = np.zeros((3, 2), LETTERED)
    rows["x"] = np.arange(6).reshape(3, 2)
    rows["tag"] = b"xyz"
    buffer.add(a=rows[0])
    buffer.add(a=rows[1:])
    np.testing.assert_array_equal(stored(buffer), rows)


def test_nan_and_infinity_are_values_like_others():
    buffer = ReplayBuffer(4, {"a": {"shape": 3}})
    buffer.add(a=[np.nan, np.inf, -np.inf])
    np.testing.assert_array_equal(stored(buffer), [[np.nan, np.inf, -np.inf]])


@pytest.mark.parametrize("dtype", [object, np.dtype([("x", object)]), "S", "U", "V"])
def test_dtypes_without_a_fixed_size_are_refused_with_the_reason(dtype):
    with pytest.raises((TypeError, ValueError), match="memo") as refused:
        ReplayBuffer(5, {"memo": {"dtype": dtype}})
    if np.dtype(dtype).hasobject:
        assert isinstance(refused.value, TypeError)
        assert "object" in str(refused.value)


def test_field_names_are_any_text():
    env_dict = {"größe": {}, "with space": {"shape": 2}, "from": {}, "self": {}, "x" * 300: {}}
    buffer = ReplayBuffer(5, env_dict)
    row = {name: np.ones(spec.get("shape", 1)) for name, spec in env_dict.items()}
    buffer.add(**row)
    assert list(buffer.sample(1)) == list(env_dict)


def test_field_names_that_are_not_interned():
    buffer = ReplayBuffer(5, {"obs": {}, "act": {}})
    buffer.add(**{"".join(["o", "bs"]): 1, "".join(["a", "ct"]): 2})
    assert stored(buffer, "obs").item() == 1
    assert stored(buffer, "act").item() == 2


def test_order_of_the_fields_is_that_of_env_dict():
    buffer = ReplayBuffer(5, {"b": {}, "a": {}, "c": {}})
    buffer.add(c=3, a=1, b=2)
    assert list(buffer.sample(1)) == ["b", "a", "c"]
    assert list(buffer.get_all_transitions()) == ["b", "a", "c"]
    assert {name: array.item() for name, array in buffer.sample(1).items()} == dict(b=2, a=1, c=3)


def test_the_env_dict_may_be_changed_after_construction():
    env_dict = {"a": {"shape": 2}}
    buffer = ReplayBuffer(5, env_dict)
    env_dict["a"]["shape"] = 3
    env_dict["b"] = {}
    buffer.add(a=[1, 2])
    assert buffer.sample(1)["a"].shape == (1, 2)


def test_many_fields():
    buffer = ReplayBuffer(4, {f"field{i}": {"dtype": "i4"} for i in range(200)})
    buffer.add(**{f"field{i}": i for i in range(200)})
    assert {name: array.item() for name, array in buffer.sample(1).items()} == {
        f"field{i}": i for i in range(200)
    }


# What cpprb's users pass


@BOTH_CLASSES
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("backend", [None, "sharedctypes", "SharedMemory"])
def test_contexts_and_backends_are_accepted(cls, method, backend):
    buffer = cls(5, {"a": {}}, ctx=multiprocessing.get_context(method), backend=backend)
    buffer.add(a=1)
    assert buffer.sample(1)["a"].item() == 1


def test_managers_are_accepted_while_they_can_be_used():
    manager = multiprocessing.managers.SyncManager()
    manager.start()
    try:
        ReplayBuffer(5, {"a": {}}, ctx=manager).add(a=1)
    finally:
        manager.shutdown()
    with pytest.raises(multiprocessing.ProcessError):
        ReplayBuffer(5, {"a": {}}, ctx=manager)


def test_a_manager_not_started_is_accepted():
    manager = multiprocessing.managers.SyncManager()
    try:
        ReplayBuffer(5, {"a": {}}, ctx=manager).add(a=1)
    finally:
        if hasattr(manager, "shutdown"):
            manager.shutdown()


@BOTH_CLASSES
def test_unknown_backend(cls):
    with pytest.raises(ValueError, match="carrier pigeon"):
        cls(5, {"a": {}}, backend="carrier pigeon")


@BOTH_CLASSES
def test_logger_and_check_for_update_are_accepted(cls):
    logger = logging.getLogger("test_buffer")
    for check in (True, False):
        cls(5, {"a": {}}, logger=logger, check_for_update=check).add(a=1)


@BOTH_CLASSES
def test_other_arguments_are_not(cls):
    with pytest.raises(TypeError, match="frobnicate"):
        cls(5, {"a": {}}, frobnicate=1)
    with pytest.raises(TypeError, match="aplha"):
        cls(5, {"a": {}}, aplha=0.5)


def test_a_uniform_buffer_has_no_alpha():
    with pytest.raises(TypeError, match="alpha"):
        ReplayBuffer(5, {"a": {}}, alpha=0.5)


def test_what_follows_env_dict_is_given_by_name():
    with pytest.raises(TypeError):
        ReplayBuffer(5, {"a": {}}, np.float64)
    signature = inspect.signature(PrioritizedReplayBuffer)
    assert list(signature.parameters)[:2] == ["size", "env_dict"]
    assert signature.parameters["alpha"].default == 0.6
    assert signature.parameters["eps"].default == 1e-4


def test_size_and_env_dict_by_keyword():
    buffer = ReplayBuffer(env_dict={"a": {}}, size=5)
    buffer.add(a=1)
    assert len(buffer) == 1


# The kinds of value


class WithArray:
    def __init__(self, value):
        self.value = value

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.value, dtype)


class OnlyDLPack:
    """As an array library that NumPy knows nothing of."""

    def __init__(self, value):
        self.value = np.ascontiguousarray(value)

    def __dlpack__(self, **options):
        return self.value.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.value.__dlpack_device__()


def strided(array):
    wide = np.zeros((*array.shape[:-1], array.shape[-1] * 3), array.dtype)
    wide[..., 1::3] = array
    return wide[..., 1::3]


def reversed_twice(array):
    return np.ascontiguousarray(array[..., ::-1])[..., ::-1]


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def unaligned(array):
    raw = np.zeros(array.nbytes + 1, np.uint8)
    view = raw[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def as_torch(array):
    return pytest.importorskip("torch").from_numpy(array.copy())


def as_torch_transposed(array):
    torch = pytest.importorskip("torch")
    return torch.from_numpy(np.asfortranarray(array))


KINDS = {
    "array": lambda a: a.copy(),
    "list": lambda a: a.tolist(),
    "tuple": lambda a: tuple(map(tuple, a.tolist())) if a.ndim == 2 else tuple(a.tolist()),
    "list of arrays": lambda a: list(a),
    "float64": lambda a: a.astype("f8"),
    "float16": lambda a: a.astype("f2"),
    "int32": lambda a: a.astype("i4"),
    "uint8": lambda a: a.astype("u1"),
    "big-endian float32": lambda a: a.astype(">f4"),
    "big-endian float64": lambda a: a.astype(">f8"),
    "big-endian int16": lambda a: a.astype(">i2"),
    "read-only": read_only,
    "strided": strided,
    "negative strides": reversed_twice,
    "column-major": np.asfortranarray,
    "unaligned": unaligned,
    "broadcast": lambda a: np.broadcast_to(a, (2, *a.shape))[1],
    "subclass": lambda a: np.ma.masked_array(a),
    "__array__": WithArray,
    "DLPack": OnlyDLPack,
    "memoryview": memoryview,
    "torch": as_torch,
    "torch transposed": as_torch_transposed,
}


@BOTH_CLASSES
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_value(cls, kind):
    """One row, then a batch, then one row more, all through the same conversion."""
    rows = np.arange(24, dtype=np.float32).reshape(6, 4)
    buffer = cls(10, {"flag": {"dtype": "u1"}, "a": {"shape": 4}})
    assert buffer.add(a=KINDS[kind](rows[0]), flag=7) == 0
    assert buffer.add(a=KINDS[kind](rows[1:5]), flag=np.full(4, 7)) == 1
    assert buffer.add(flag=7, a=KINDS[kind](rows[5])) == 5
    np.testing.assert_array_equal(stored(buffer), rows)
    np.testing.assert_array_equal(stored(buffer, "flag"), np.full((6, 1), 7))
    assert buffer.get_stored_size() == 6


@pytest.mark.parametrize(
    "scalar",
    [
        3,
        3.0,
        True + 2,
        np.float32(3),
        np.float64(3),
        np.float16(3),
        np.int8(3),
        np.uint64(3),
        np.array(3),
        np.array(3, ">i8"),
        WithArray(3.0),
        OnlyDLPack(np.array(3.0)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "u1", "f2", "c8"])
def test_scalars(scalar, dtype):
    buffer = ReplayBuffer(10, {"a": {"dtype": dtype}})
    assert buffer.add(a=scalar) == 0
    assert stored(buffer).tolist() == [[3]]
    assert stored(buffer).dtype == np.dtype(dtype)


def test_booleans():
    buffer = ReplayBuffer(10, {"done": {}, "flag": {"dtype": bool}})
    for done in (True, False, np.True_, np.bool_(False), np.array(True)):
        buffer.add(done=done, flag=done)
    assert stored(buffer, "done").ravel().tolist() == [1, 0, 1, 0, 1]
    assert stored(buffer, "flag").ravel().tolist() == [True, False, True, False, True]
    buffer.add(done=[True, False], flag=[0, 1.0])
    assert stored(buffer, "flag").ravel().tolist()[-2:] == [False, True]


def test_torch_tensors_of_every_number_type():
    torch = pytest.importorskip("torch")
    buffer = ReplayBuffer(20, {"a": {"shape": 3, "dtype": "f8"}, "b": {"dtype": "i8"}})
    kinds = [torch.float32, torch.float64, torch.float16, torch.uint8, torch.int8, torch.int16]
    kinds += [torch.int32, torch.int64]
    for i, kind in enumerate(kinds):
        buffer.add(a=torch.tensor([i, 2, 3], dtype=kind), b=torch.tensor(i))
    assert stored(buffer)[:, 0].tolist() == list(range(len(kinds)))
    assert stored(buffer, "b").ravel().tolist() == list(range(len(kinds)))
    buffer.add(a=torch.ones(2, 3), b=torch.tensor([8, 9]))
    assert buffer.get_stored_size() == len(kinds) + 2


def test_torch_views():
    torch = pytest.importorskip("torch")
    buffer = ReplayBuffer(20, {"a": {"shape": (2, 3)}})
    tensor = torch.arange(24, dtype=torch.float32).reshape(4, 3, 2)
    buffer.add(a=tensor.transpose(1, 2))
    buffer.add(a=tensor[1].T)
    np.testing.assert_array_equal(stored(buffer)[:4], tensor.numpy().transpose(0, 2, 1))
    np.testing.assert_array_equal(stored(buffer)[4], tensor.numpy()[1].T)


@pytest.mark.parametrize(
    ("value", "dtype", "kept"),
    [
        (3.0, "i4", 3),
        (-3.0, "i4", -3),
        (0.1, "f2", np.float16(0.1)),
        (np.float64(0.1), "f4", np.float32(0.1)),
        (2**24 + 1, "f4", np.float32(2**24 + 1)),
        (1, "?", True),
        (1.5, "c8", 1.5 + 0j),
    ],
)
def test_numbers_convert_as_numpy_casts(value, dtype, kept):
    buffer = ReplayBuffer(5, {"a": {"dtype": dtype}, "b": {"shape": 2, "dtype": dtype}})
    buffer.add(a=np.asarray(value), b=np.array([value, value]))
    assert stored(buffer).item() == kept
    assert stored(buffer, "b").tolist() == [[kept, kept]]


def test_a_field_may_have_a_dtype_per_call():
    buffer = ReplayBuffer(20, {"a": {"shape": 2}})
    for dtype in ("f4", "i8", ">f4", "f8", "u1", "f4", "?", "f2"):
        buffer.add(a=np.array([1, 0], dtype))
    assert stored(buffer).tolist() == [[1, 0]] * 8


def test_values_are_copied_at_once():
    buffer = ReplayBuffer(5, {"a": {"shape": 3}})
    value = np.ones(3, np.float32)
    buffer.add(a=value)
    value[:] = 2
    assert stored(buffer).tolist() == [[1, 1, 1]]


def test_values_that_overlap_each_other():
    buffer = ReplayBuffer(5, {"obs": {"shape": 3}, "next_obs": {"shape": 3}})
    trajectory = np.arange(4, dtype=np.float32)
    buffer.add(obs=trajectory[:-1], next_obs=trajectory[1:])
    assert stored(buffer, "obs").tolist() == [[0, 1, 2]]
    assert stored(buffer, "next_obs").tolist() == [[1, 2, 3]]


def test_a_sample_can_be_added_to_another_buffer():
    source, target = ReplayBuffer(50, CARTPOLE), ReplayBuffer(50, CARTPOLE)
    source.add(**transitions(20))
    target.add(**source.get_all_transitions())
    for name, array in source.get_all_transitions().items():
        np.testing.assert_array_equal(target.get_all_transitions()[name], array)
    sample = source.sample(7)
    target.add(**sample)
    np.testing.assert_array_equal(stored(target, "obs")[20:], sample["obs"])


# Indexes, wrap-around and order


@BOTH_CLASSES
def test_add_returns_the_first_index(cls):
    buffer = cls(10, CARTPOLE)
    assert buffer.add(**{name: rows[0] for name, rows in transitions(1).items()}) == 0
    assert buffer.add(**transitions(4)) == 1
    assert buffer.add(**transitions(1)) == 5
    first = buffer.add(**transitions(8))
    assert first == 6
    assert type(first) is int
    assert buffer.get_next_index() == 4
    assert type(buffer.get_next_index()) is int


@BOTH_CLASSES
def test_a_batch_as_long_as_the_buffer(cls):
    buffer = cls(10, {"a": {}})
    assert buffer.add(a=np.arange(10)) == 0
    assert buffer.get_next_index() == 0
    assert buffer.get_stored_size() == 10
    assert stored(buffer).ravel().tolist() == list(range(10))
    buffer.add(a=100)
    assert buffer.add(a=np.arange(10, 20)) == 1
    assert stored(buffer).ravel().tolist() == [19, *range(10, 19)]


@BOTH_CLASSES
@pytest.mark.parametrize("batches", [[1] * 25, [3] * 9, [7, 7, 7], [10, 1, 10], [4, 10, 9, 2]])
@pytest.mark.parametrize("capacity", [10, 16, 11])
def test_the_ring(cls, batches, capacity):
    """Row n lies in slot n modulo the capacity; what is stored is the last `capacity` rows."""
    buffer = cls(capacity, {"a": {}, "b": {"shape": (2, 2), "dtype": "i8"}})
    ring = np.full(capacity, -1)
    count = 0
    for length in batches:
        numbers = np.arange(count, count + length)
        matrices = np.broadcast_to(numbers[:, None, None], (length, 2, 2))
        assert buffer.add(a=numbers, b=matrices) == count % capacity
        ring[numbers % capacity] = numbers
        count += length
        assert buffer.get_next_index() == count % capacity
        assert buffer.get_stored_size() == len(buffer) == min(count, capacity)
        rows = buffer.get_all_transitions()
        assert rows["a"].ravel().tolist() == ring[ring >= 0].tolist()
        assert (rows["b"] == rows["a"][:, :, None]).all()
        sampled = buffer.sample(64)
        assert set(sampled["a"].ravel()) <= set(ring[ring >= 0])
        assert (sampled["b"] == sampled["a"][:, :, None]).all()
    assert buffer.rows_added() == count


def test_a_buffer_of_one_row():
    for cls in (ReplayBuffer, PrioritizedReplayBuffer):
        buffer = cls(1, {"a": {}})
        for number in range(5):
            assert buffer.add(a=number) == 0
            assert buffer.sample(3)["a"].ravel().tolist() == [number] * 3
            assert buffer.get_next_index() == 0
            assert buffer.get_stored_size() == 1


@BOTH_CLASSES
def test_all_transitions_shuffled(cls):
    buffer = cls(100, CARTPOLE, seed=1)
    buffer.add(**transitions(60))
    plain = buffer.get_all_transitions()
    shuffled = buffer.get_all_transitions(shuffle=True)
    order = shuffled["obs"][:, 0].astype(int)
    assert sorted(order) == list(range(60))
    assert order.tolist() != list(range(60))
    for name, array in plain.items():
        np.testing.assert_array_equal(shuffled[name], array[order], err_msg=name)
    again = buffer.get_all_transitions(True)["obs"][:, 0]
    assert again.tolist() != order.tolist()


@BOTH_CLASSES
def test_all_transitions_of_an_empty_buffer(cls):
    buffer = cls(10, CARTPOLE)
    rows = buffer.get_all_transitions()
    assert {name: array.shape for name, array in rows.items()} == {
        "obs": (0, 4),
        "act": (0, 1),
        "rew": (0, 1),
        "next_obs": (0, 4),
        "done": (0, 1),
    }
    assert list(buffer.get_all_transitions(shuffle=True)) == list(rows)


@BOTH_CLASSES
@pytest.mark.parametrize("added", [0, 3, 10, 13, 20, 27])
def test_clear(cls, added):
    buffer = cls(10, {"a": {}})
    for number in range(added):
        buffer.add(a=number)
    buffer.clear()
    assert buffer.get_stored_size() == len(buffer) == 0
    assert buffer.get_next_index() == 0
    assert buffer.get_buffer_size() == 10
    assert len(stored(buffer)) == 0
    with pytest.raises(mpbuffer.EmptyBuffer):
        buffer.sample(1)
    assert buffer.add(a=[100, 101]) == 0
    assert stored(buffer).ravel().tolist() == [100, 101]
    assert set(buffer.sample(50)["a"].ravel()) <= {100, 101}
    assert buffer.get_stored_size() == 2


def test_clear_twice_is_clear():
    buffer = ReplayBuffer(10, {"a": {}})
    buffer.add(a=1)
    buffer.clear()
    buffer.clear()
    assert buffer.get_next_index() == 0
    assert buffer.add(a=np.arange(10)) == 0
    assert buffer.get_stored_size() == 10


# Episodes


def test_episode_length():
    buffer = ReplayBuffer(100, CARTPOLE)
    assert buffer.is_Nstep() is False
    assert buffer.get_current_episode_len() == 0
    for length in (1, 2, 3):
        buffer.add(**transitions(1))
        assert buffer.get_current_episode_len() == length
    buffer.add(**transitions(4))
    assert buffer.get_current_episode_len() == 7
    buffer.on_episode_end()
    assert buffer.get_current_episode_len() == 0
    buffer.add(**transitions(1))
    assert buffer.get_current_episode_len() == 1
    assert buffer.get_stored_size() == 8


# Samples


@BOTH_CLASSES
@pytest.mark.parametrize("batch_size", [1, 2, 3, 31, 32, 33, 100, 512, 1000, np.int64(5)])
def test_sample_shapes_and_dtypes(cls, batch_size):
    env_dict = {
        "frame": {"shape": (5, 7, 2), "dtype": "u1"},
        "obs": {"shape": 3},
        "rew": {"dtype": "f8"},
        "done": {"dtype": bool, "shape": ()},
    }
    buffer = cls(40, env_dict)
    numbers = np.arange(30)
    buffer.add(
        frame=np.broadcast_to(numbers[:, None, None, None], (30, 5, 7, 2)),
        obs=np.broadcast_to(numbers[:, None], (30, 3)),
        rew=numbers,
        done=numbers % 2,
    )
    sample = buffer.sample(batch_size)
    number = int(batch_size)
    assert sample["frame"].shape == (number, 5, 7, 2)
    assert sample["obs"].shape == (number, 3)
    assert sample["rew"].shape == (number, 1)
    assert sample["done"].shape == (number,)
    for name in env_dict:
        assert type(sample[name]) is np.ndarray
        assert sample[name].dtype == np.dtype(env_dict[name].get("dtype", "f4"))
        assert sample[name].flags.c_contiguous
        assert sample[name].flags.aligned
        assert sample[name].flags.writeable
    rows = sample["rew"].ravel().astype(int)
    assert (sample["frame"] == rows[:, None, None, None]).all()
    assert (sample["obs"] == rows[:, None]).all()
    assert (sample["done"] == rows % 2).all()


def test_what_a_uniform_sample_holds():
    buffer = ReplayBuffer(10, {"a": {}})
    buffer.add(a=np.arange(8))
    assert set(buffer.sample(4)) == {"a"}
    assert set(buffer.sample(4, return_indexes=False)) == {"a"}
    sample = buffer.sample(400, return_indexes=True)
    assert set(sample) == {"a", "indexes"}
    assert sample["indexes"].dtype == np.int64
    assert sample["indexes"].shape == (400,)
    np.testing.assert_array_equal(sample["a"].ravel(), sample["indexes"])
    assert set(sample["indexes"]) == set(range(8))


def test_what_a_prioritized_sample_holds():
    buffer = PrioritizedReplayBuffer(10, {"a": {}})
    buffer.add(a=np.arange(8))
    sample = buffer.sample(400)
    assert set(sample) == {"a", "indexes", "weights"}
    assert sample["indexes"].dtype == np.int64
    assert sample["weights"].dtype == np.float32
    assert sample["weights"].shape == sample["indexes"].shape == (400,)
    np.testing.assert_array_equal(sample["a"].ravel(), sample["indexes"])
    assert set(buffer.sample(400, beta=0.4)) == set(buffer.sample(400, 0.4)) == set(sample)


@BOTH_CLASSES
def test_sample_uniform(cls):
    buffer = cls(10, {"a": {}}, seed=5)
    for number in range(14):
        buffer.add(a=number)
    assert set(uniform(buffer)(4)) == {"a"}
    sample = uniform(buffer)(400, return_indexes=True)
    assert set(sample) == {"a", "indexes"}
    assert sample["indexes"].dtype == np.int64
    np.testing.assert_array_equal(sample["a"].ravel() % 10, sample["indexes"])
    assert set(sample["a"].ravel()) == set(range(4, 14))


@BOTH_CLASSES
def test_samples_are_fresh_arrays(cls):
    buffer = cls(20, CARTPOLE)
    buffer.add(**transitions(20))
    first, second = buffer.sample(8), buffer.sample(8)
    kept = {name: array.copy() for name, array in second.items()}
    before = {name: array.copy() for name, array in buffer.get_all_transitions().items()}
    arrays = list(first.values())
    for i, one in enumerate(arrays):
        for other in [*arrays[i + 1 :], *second.values()]:
            assert not np.shares_memory(one, other)
    for array in arrays:
        array.fill(1)
    for array in buffer.get_all_transitions().values():
        array.fill(77)
    for name, array in second.items():
        np.testing.assert_array_equal(array, kept[name])
    for name, array in buffer.get_all_transitions().items():
        np.testing.assert_array_equal(array, before[name])
    buffer.add(**transitions(20, first=1000))
    for name, array in second.items():
        np.testing.assert_array_equal(array, kept[name])


def test_samples_outlive_their_buffer():
    buffer = PrioritizedReplayBuffer(20, CARTPOLE)
    buffer.add(**transitions(20))
    sample = buffer.sample(16)
    rows = buffer.get_all_transitions()
    kept = {name: array.copy() for name, array in {**rows, **sample}.items()}
    buffer.close()
    del buffer
    for name, array in {**rows, **sample}.items():
        np.testing.assert_array_equal(array, kept[name])


def test_encode_sample():
    buffer = ReplayBuffer(10, CARTPOLE)
    buffer.add(**transitions(10))
    for indexes in ([3, 0, 3, 9], np.array([3, 0, 3, 9]), np.array([3, 0, 3, 9], np.uint64)):
        rows = buffer._encode_sample(indexes)
        assert set(rows) == set(CARTPOLE)
        np.testing.assert_array_equal(rows["obs"], transitions(10)["obs"][[3, 0, 3, 9]])
        np.testing.assert_array_equal(rows["rew"], transitions(10)["rew"][[3, 0, 3, 9]])
    assert not np.shares_memory(rows["obs"], buffer._encode_sample([3, 0, 3, 9])["obs"])


def test_encode_sample_of_a_prioritized_buffer():
    buffer = PrioritizedReplayBuffer(10, CARTPOLE)
    buffer.add(**transitions(10))
    sample = buffer.sample(20)
    rows = buffer._encode_sample(sample["indexes"])
    for name in CARTPOLE:
        np.testing.assert_array_equal(rows[name], sample[name])


@BOTH_CLASSES
def test_an_empty_buffer_has_no_sample(cls):
    buffer = cls(10, CARTPOLE)
    for draw in (buffer.sample, uniform(buffer)):
        with pytest.raises(mpbuffer.EmptyBuffer, match="no rows"):
            draw(1)
    buffer.add(**transitions(1))
    assert buffer.sample(1)["obs"].shape == (1, 4)


# Seeds


def draws(buffer, n=20):
    batches = []
    for number in range(n):
        batches.append(buffer.sample(1 + number)["a"].ravel().copy())
        batches.append(uniform(buffer)(3)["a"].ravel().copy())
        buffer.add(a=number)
    batches.append(buffer.get_all_transitions(shuffle=True)["a"].ravel())
    return np.concatenate(batches).tolist()


@BOTH_CLASSES
def test_a_seed_gives_the_same_draws(cls):
    def filled(seed):
        buffer = cls(1000, {"a": {}}, seed=seed)
        buffer.add(a=np.arange(1000))
        return buffer

    first, second, other = draws(filled(42)), draws(filled(42)), draws(filled(43))
    assert first == second
    assert first != other
    assert draws(filled(None)) != draws(filled(None))


@BOTH_CLASSES
def test_a_seed_gives_the_same_draws_in_another_interpreter(cls):
    script = f"""
import numpy as np
from mpbuffer import {cls.__name__}
buffer = {cls.__name__}(1000, {{"a": {{}}}}, seed=42)
buffer.add(a=np.arange(1000))
print(buffer.sample(100)["a"].ravel().astype(int).tolist())
"""
    buffer = cls(1000, {"a": {}}, seed=42)
    buffer.add(a=np.arange(1000))
    here = buffer.sample(100)["a"].ravel().astype(int).tolist()
    there = run_python(script=script)
    assert there.stdout.decode().strip() == str(here), there.stderr.decode()


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1, np.int64(5)])
def test_seeds_of_every_size(seed):
    buffer = ReplayBuffer(100, {"a": {}}, seed=seed)
    buffer.add(a=np.arange(100))
    assert len(set(buffer.sample(200)["a"].ravel())) > 50


# Fields the buffer does not have


@BOTH_CLASSES
def test_unknown_fields_are_ignored_with_one_warning_per_name(cls):
    buffer = cls(10, {"a": {}})
    with pytest.warns(UserWarning, match="extra") as told:
        buffer.add(a=1, extra=2)
    assert len(told) == 1
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        buffer.add(a=2, extra=2)
        buffer.add(a=[3, 4], extra=[1, 2, 3])
    with pytest.warns(UserWarning, match="more") as told:
        buffer.add(a=5, more=object(), extra=1)
    assert len(told) == 1
    assert stored(buffer).ravel().tolist() == [1, 2, 3, 4, 5]
    assert set(buffer.get_all_transitions()) == {"a"}


def test_unknown_fields_are_named_in_one_call():
    buffer = ReplayBuffer(10, {"a": {}})
    with pytest.warns(UserWarning) as told:
        buffer.add(x=1, a=1, y=2)
    assert sorted(re.findall(r"'([xy])'", " ".join(str(w.message) for w in told))) == ["x", "y"]


def test_each_buffer_warns_for_itself():
    for _ in range(2):
        buffer = ReplayBuffer(10, {"a": {}})
        with pytest.warns(UserWarning, match="extra"):
            buffer.add(a=1, extra=2)


def test_priorities_are_an_unknown_field_of_a_uniform_buffer():
    buffer = ReplayBuffer(10, {"a": {}})
    with pytest.warns(UserWarning, match="priorities"):
        buffer.add(a=1, priorities=0.5)
    assert len(buffer) == 1


@BOTH_CLASSES
def test_a_strict_buffer_takes_known_fields(cls):
    buffer = cls(10, {"a": {}}, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        buffer.add(a=1)
    with pytest.raises(TypeError, match="extra"):
        buffer.add(a=1, extra=2)
    assert len(buffer) == 1


# The object itself


def test_len_and_repr():
    buffer = PrioritizedReplayBuffer(100, CARTPOLE, name="a-name-for-repr")
    buffer.add(**transitions(42))
    assert len(buffer) == buffer.get_stored_size() == 42
    text = repr(buffer)
    assert "PrioritizedReplayBuffer" in text
    assert "a-name-for-repr" in text
    assert "42" in text
    assert "100" in text
    assert repr(ReplayBuffer(7, {"a": {}})).count("ReplayBuffer") == 1


def test_an_empty_buffer_is_still_true_enough_to_test_for_none():
    """As any container, an empty one is false; `is None` is what users must ask."""
    assert len(ReplayBuffer(10, {"a": {}})) == 0


def test_names(segment_file):
    buffer = ReplayBuffer(10, {"a": {}}, name="test.buffer-name_1")
    assert buffer.name == "test.buffer-name_1"
    assert segment_file(buffer.name).exists()
    unnamed, other = ReplayBuffer(10, {"a": {}}), ReplayBuffer(10, {"a": {}})
    assert unnamed.name
    assert unnamed.name != other.name
    assert not segment_file(unnamed.name).exists()


@pytest.mark.parametrize("name", ["", "a/b", "../up", "sp ace", "x" * 129, "nul\0", "ü", 5, b"x"])
def test_other_names_are_refused(name):
    with pytest.raises((ValueError, TypeError), match="name"):
        ReplayBuffer(10, {"a": {}}, name=name)


def test_the_longest_name():
    buffer = ReplayBuffer(10, {"a": {}}, name="x" * 128)
    assert mpbuffer.attach("x" * 128).get_buffer_size() == 10
    assert buffer.name == "x" * 128


def test_close_removes_the_segment(segment_file):
    buffer = ReplayBuffer(10, {"a": {}}, name="closed")
    path = segment_file(buffer.name)
    assert path.exists()
    assert buffer.closed is False
    buffer.close()
    assert buffer.closed is True
    assert not path.exists()
    buffer.close()
    assert "closed" in repr(buffer)


def test_dropping_the_object_closes(segment_file):
    buffer = ReplayBuffer(10, {"a": {}}, name="dropped")
    path = segment_file(buffer.name)
    assert path.exists()
    del buffer
    assert not path.exists()


def test_with_block(segment_file):
    with PrioritizedReplayBuffer(10, {"a": {}}, name="in-a-block") as buffer:
        path = segment_file(buffer.name)
        buffer.add(a=1)
        assert path.exists()
    assert buffer.closed
    assert not path.exists()
    with pytest.raises(KeyError), ReplayBuffer(10, {"a": {}}) as buffer:
        buffer.add()
    assert buffer.closed


COMMON_FIGURES = {"size", "fill", "rows_added", "early", "sources", "sources_written"}
COMMON_FIGURES |= {"redraws", "skips", "steals", "handles"}
LEARNERS_FIGURES = {"learner_pid", "learner_draws", "learner_updates", "learner_stale"}
LEARNERS_FIGURES |= {"learner_rows_folded", "sampleable", "total"}


@BOTH_CLASSES
def test_stats_tell_what_has_happened(cls):
    with cls(10, {"a": {}}) as buffer:
        for i in range(14):
            buffer.add(a=i)
        prioritized = cls is PrioritizedReplayBuffer
        with mpbuffer.attach(buffer.name) as other:
            figures = other.stats()
            assert figures["handles"] == 2
        assert set(figures) == COMMON_FIGURES | (LEARNERS_FIGURES if prioritized else set())
        assert all(type(value) in (int, float) for value in figures.values())
        assert (figures["size"], figures["fill"], figures["rows_added"]) == (10, 10, 14)
        assert figures["early"] == figures["sources"] == figures["sources_written"] == 0
        assert figures["redraws"] == figures["skips"] == figures["steals"] == 0
        sample = buffer.sample(8)
        if prioritized:
            assert figures["learner_pid"] == 0
            buffer.update_priorities(sample["indexes"], np.full(8, 2.0))
            figures, status = buffer.stats(), buffer.learner_status()
            assert (figures["learner_pid"], figures["learner_draws"]) == (os.getpid(), 8)
            assert figures["learner_updates"] == status.updates == 8
            assert (figures["sampleable"], figures["total"]) == (10, status.total)
        buffer.clear()
        assert (buffer.stats()["fill"], buffer.stats()["rows_added"]) == (0, 14)
        assert buffer.stats()["handles"] == 1


USES = {
    "add": lambda b: b.add(a=1),
    "sample": lambda b: b.sample(1),
    "sample_uniform": lambda b: b.sample_uniform(1),
    "update_priorities": lambda b: b.update_priorities([0], [1.0]),
    "acquire_learner": lambda b: b.acquire_learner(),
    "get_generations": lambda b: b.get_generations([0]),
    "get_all_transitions": lambda b: b.get_all_transitions(),
    "_encode_sample": lambda b: b._encode_sample([0]),
    "get_stored_size": lambda b: b.get_stored_size(),
    "get_next_index": lambda b: b.get_next_index(),
    "get_max_priority": lambda b: b.get_max_priority(),
    "clear": lambda b: b.clear(),
    "len": len,
    "processes": lambda b: b.processes(),
    "stats": lambda b: b.stats(),
    "rows_added": lambda b: b.rows_added(),
    "learner_status": lambda b: b.learner_status(),
    "_leaves": lambda b: b._leaves(),
    "_tree_total": lambda b: b._tree_total(),
    "pickle": pickle.dumps,
}


@pytest.mark.parametrize("use", USES)
def test_use_after_close(use):
    buffer = PrioritizedReplayBuffer(10, {"a": {}})
    buffer.add(a=1)
    buffer.sample(1)
    buffer.close()
    with pytest.raises(mpbuffer.BufferClosed, match="closed"):
        USES[use](buffer)


@BOTH_CLASSES
@pytest.mark.parametrize("use", USES)
def test_use_before_construction(cls, use):
    """Only `__new__` has run, as in a subclass that forgot super().__init__()."""
    with pytest.raises((mpbuffer.BufferClosed, AttributeError)):
        USES[use](cls.__new__(cls))


@BOTH_CLASSES
def test_construction_twice(cls):
    buffer = cls(10, {"a": {}})
    buffer.add(a=1)
    with pytest.raises(ValueError, match="open already"):
        buffer.__init__(20, {"b": {}})
    assert len(buffer) == 1
    assert buffer.get_buffer_size() == 10


def test_a_failed_construction_leaves_nothing(segment_file):
    with pytest.raises(TypeError):
        ReplayBuffer(10, {"a": {}, "b": {"dtype": object}}, name="half-made.test")
    with pytest.raises(ValueError):
        PrioritizedReplayBuffer(10, {"a": {}}, alpha=-1, name="half-made.test")
    assert not segment_file("half-made.test").exists()
    assert len(ReplayBuffer(10, {"a": {}}, name="half-made.test")) == 0


def test_a_buffer_in_a_cycle_is_collected(segment_file):
    buffer = ReplayBuffer(10, {"a": {}})
    path = segment_file(buffer.name)
    buffer.itself = [buffer]
    del buffer
    gc.collect()
    assert not path.exists()


@BOTH_CLASSES
def test_classes_are_not_leaked_by_their_objects(cls):
    before = sys.getrefcount(cls)
    for _ in range(100):
        cls(10, {"a": {}}).add(a=1)
    assert abs(sys.getrefcount(cls) - before) < 10


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplayBuffer])
def test_a_buffer_is_not_copied(cls, copied):
    with cls(10, {"a": {}}) as buffer:
        with pytest.raises(TypeError, match=f"cannot copy .*{buffer.name!r}.*attach"):
            copied(buffer)
        with pytest.raises(TypeError, match="cannot copy"):
            copied({"agent": [buffer]}["agent"][0])


def test_close_while_other_threads_use_the_buffer():
    """They get BufferClosed; in a process of its own, should it crash or hang."""
    script = """
import threading
import numpy as np
import mpbuffer

rows = np.zeros((64, 2000), np.float32)
ended_well = 0

def uses(buffer, call, begun):
    global ended_well
    try:
        while True:
            call(buffer)
            begun.release()
    except mpbuffer.BufferClosed:
        ended_well += 1

calls = [
    lambda b: b.add(a=rows),
    lambda b: b.add(a=rows[0]),
    lambda b: b.update_priorities(b.sample(64)["indexes"], 2.0),
    lambda b: b.sample_uniform(64),
    lambda b: (b.get_all_transitions(), b.get_stored_size(), b.processes()),
]
for _ in range(20):
    buffer = mpbuffer.PrioritizedReplayBuffer(200, {"a": {"shape": 2000}})
    buffer.add(a=rows)
    begun = threading.Semaphore(0)
    threads = [threading.Thread(target=uses, args=(buffer, call, begun)) for call in calls]
    for thread in threads:
        thread.start()
    for _ in range(20):
        begun.acquire()
    buffer.close()
    for thread in threads:
        thread.join()
print(ended_well)
"""
    ended = run_python(script=script, seconds=60)
    assert ended.returncode == 0, ended.stderr.decode()
    assert ended.stdout == b"100\n", ended.stderr.decode()


@BOTH_CLASSES
def test_two_buffers_are_two(cls):
    one, two = cls(10, {"a": {}}), cls(10, {"a": {}})
    one.add(a=1)
    assert (len(one), len(two)) == (1, 0)
    assert one != two


def test_the_hot_calls_are_not_overridden():
    """They stay the vectorcall methods of the extension's own type."""
    for cls in (ReplayBuffer, PrioritizedReplayBuffer):
        for name in ("add", "sample"):
            assert inspect.ismethoddescriptor(inspect.getattr_static(cls, name)), name
    assert inspect.ismethoddescriptor(
        inspect.getattr_static(PrioritizedReplayBuffer, "update_priorities")
    )


def test_public_calls_are_documented():
    for cls in (ReplayBuffer, PrioritizedReplayBuffer):
        for name in dir(cls):
            if not name.startswith("_"):
                assert inspect.getdoc(getattr(cls, name)), f"{cls.__name__}.{name}"


# What does not come back to us: references


@BOTH_CLASSES
def test_no_references_are_lost_or_kept(cls):
    class Value(np.ndarray):
        pass

    buffer = cls(10, {"obs": {"shape": 4}, "act": {}})
    value = np.ones(4, np.float64).view(Value)
    scalar = np.float64(1.5)
    name = "".join(["not_", "a_field"])
    with pytest.warns(UserWarning):
        buffer.add(obs=value, act=scalar, **{name: value})
    counts = [sys.getrefcount(thing) for thing in (value, scalar, name, None, np.float32)]
    for _ in range(1000):
        buffer.add(obs=value, act=scalar, **{name: value})
        buffer.sample(2)
        with pytest.raises(KeyError):
            buffer.add(obs=value)
        with pytest.raises(ValueError):
            buffer.add(obs=value[:3], act=scalar)
    after = [sys.getrefcount(thing) for thing in (value, scalar, name, None, np.float32)]
    assert all(abs(now - then) < 100 for then, now in zip(counts, after, strict=True))


@BOTH_CLASSES
def test_memory_does_not_grow(cls):
    """20,000 cycles of sample and add would leak megabytes if a cycle kept one array."""
    import resource

    buffer = cls(1000, CARTPOLE)
    rows = transitions(64)

    def cycles(n):
        for _ in range(n):
            buffer.add(**rows)
            sample = buffer.sample(64)
            if cls is PrioritizedReplayBuffer:
                buffer.update_priorities(sample["indexes"], np.ones(64))

    cycles(2000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cycles(20_000)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 8_000, f"grew by {grown} KiB"


def test_a_long_allocation_is_logged(monkeypatch, caplog):
    """The clock runs ahead: no gigabytes are needed for this."""
    seconds = iter(range(0, 1000, 3))
    monkeypatch.setattr("mpbuffer.buffer.creation.time.monotonic", lambda: next(seconds))
    with caplog.at_level(logging.INFO, logger="mpbuffer"):
        ReplayBuffer(1000, {"obs": {"shape": 10_000}}).close()
    assert any("creating" in message and "GB allocated" in message for message in caplog.messages)

    told = logging.getLogger("somebody else's")
    with caplog.at_level(logging.INFO, logger=told.name):
        caplog.clear()
        ReplayBuffer(1000, {"obs": {"shape": 10_000}}, logger=told).close()
    assert {record.name for record in caplog.records} == {told.name}


def test_memory_may_be_spread_over_nodes():
    with ReplayBuffer(100, {"obs": {}}, numa_interleave=True) as buffer:
        buffer.add(obs=1.0)
        assert buffer.sample(1)["obs"] == 1.0
