"""Dtypes that another package than NumPy has made: in fields, in weights and as tensors."""

import json
import multiprocessing
import pickle
import sys

import numpy as np
import pytest
from watched_processes import run_python

import mpbuffer
from mpbuffer import PrioritizedReplayBuffer, ReplayBuffer, SharedWeights
from mpbuffer.buffer.description import Description, describe, read_description
from mpbuffer.buffer.schema import fields_from
from mpbuffer.errors import SegmentMismatch
from mpbuffer.inspect.inspection import inspect

ml_dtypes = pytest.importorskip("ml_dtypes")

FLOATS = ["bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"]
NAMES = [*FLOATS, "int4", "uint4"]
both_classes = pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplayBuffer])
each_name = pytest.mark.parametrize("name", NAMES)


def dtype_of(name):
    return np.dtype(getattr(ml_dtypes, name))


def small_numbers(name, *shape):
    return (np.arange(np.prod(shape)) % 7).reshape(shape).astype(dtype_of(name))


@both_classes
@each_name
def test_rows_come_back_as_they_went_in(cls, name):
    dtype = dtype_of(name)
    mixed = np.dtype([("x", dtype, (2,)), ("y", "f8")], align=True)
    fields = {"a": {"shape": (2, 3), "dtype": dtype}, "b": {"dtype": mixed}, "c": {}}
    given = small_numbers(name, 6, 2, 3)
    with cls(6, fields) as buffer:
        buffer.add(a=given[0], b=np.zeros((), mixed), c=0)
        buffer.add(a=given[1].tolist(), b=np.zeros((), mixed), c=1)
        buffer.add(a=given[2:5].astype(np.float64), b=np.zeros(3, mixed), c=[2, 3, 4])
        buffer.add(a=np.asfortranarray(given[5]), b=np.zeros((), mixed), c=5)
        stored = buffer.get_all_transitions()
        assert stored["a"].dtype == dtype and stored["b"].dtype["x"].base == dtype
        np.testing.assert_array_equal(stored["a"].view("u1"), given.view("u1"))
        batch = buffer.sample(32)
        again = buffer.sample(32, out=batch)
        assert again["a"] is batch["a"]
        ahead = next(buffer.batches(32))
        for each in (again, ahead):
            wanted = given[each["c"].ravel().astype(int)]
            np.testing.assert_array_equal(each["a"].view("u1"), wanted.view("u1"))
        facts = inspect(buffer.name)
        assert facts["damages"] == 0 and facts["fields"][0]["dtype"] == name


def test_scalars_of_one_element_fields():
    with ReplayBuffer(9, {"a": {"dtype": ml_dtypes.bfloat16}, "b": {"dtype": "f4"}}) as buffer:
        for value in (1, 1.5, np.float32(1.5), ml_dtypes.bfloat16(1.5), [1.5], np.int8(3)):
            buffer.add(a=value, b=value)
            last = {key: rows[-1].item() for key, rows in buffer.get_all_transitions().items()}
            assert float(last["a"]) == last["b"] == np.float32(np.ravel(value)[0])


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        (
            "bfloat16",
            [3.3895e38, np.inf, -np.inf, np.nan, 300, 1e-45],
            [3.4e38, 1e300, -(2.0**128)],
        ),
        ("float8_e4m3fn", [448, 464, -448, np.nan], [465, -500, np.inf, 1e300]),
        ("float8_e5m2", [57344, np.inf, np.nan], [61440, 1e300]),
        ("float8_e4m3fnuz", [240, np.nan], [256, np.inf]),
        ("int4", [-8, 7, 0, 1.0, True], [8, -9, 0.5, np.nan, np.inf, 2**40]),
        ("uint4", [15], [16, -1, 1e-9]),
        ("float4_e2m1fn", [6, -6, 0.4], [6.5, np.inf, np.nan]),
        ("float8_e8m0fnu", [1, 3, np.nan], [0, -1, np.inf]),
    ],
)
def test_numbers_that_do_not_fit_are_refused(name, good, bad):
    if not hasattr(ml_dtypes, name):
        pytest.skip(f"ml_dtypes {ml_dtypes.__version__} has no {name}")
    dtype = dtype_of(name)
    with ReplayBuffer(4, {"g": {"shape": (), "dtype": dtype}}) as buffer:
        for value in bad:
            for given in (value, np.array(value), [1, value]):
                with pytest.raises(ValueError, match=rf"'g': got .*, expected .*\({name}\)"):
                    buffer.add(g=given)
        assert buffer.get_stored_size() == 0
        for value in good:
            buffer.clear()
            buffer.add(g=np.array(value))
            got = buffer.get_all_transitions()["g"][-1:].astype(np.float64)
            np.testing.assert_array_equal(
                got, np.array([value], np.float64).astype(dtype).astype(np.float64)
            )
    with ReplayBuffer(4, {"n": {"dtype": "u1"}}) as buffer:
        with pytest.raises(ValueError, match=r"'n': got 0\.5, expected whole numbers"):
            buffer.add(n=np.array(0.5, ml_dtypes.bfloat16))
        buffer.add(n=np.array(200, ml_dtypes.bfloat16))


def test_priorities_may_be_bfloat16():
    with PrioritizedReplayBuffer(4, {"a": {}}, alpha=1.0, eps=0.0) as buffer:
        buffer.add(a=[1, 2], priorities=np.array([0.5, 2], ml_dtypes.bfloat16))
        buffer.sample(1)
        assert buffer._leaves()[:2].tolist() == [0.5, 2.0]


def check_and_add(buffer, weights):
    rows = buffer.get_all_transitions()["a"]
    assert rows.dtype == np.dtype(ml_dtypes.bfloat16) and rows.tolist() == [[1, 2]]
    assert weights.read()["w"].dtype == np.dtype(ml_dtypes.float8_e5m2)
    buffer.add(a=rows[0])


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_handles_go_to_processes(method):
    weights = SharedWeights({"w": small_numbers("float8_e5m2", 3)})
    fields = {"a": {"shape": 2, "dtype": ml_dtypes.bfloat16}}
    with weights, ReplayBuffer(4, fields) as buffer:
        buffer.add(a=[1, 2])
        context = multiprocessing.get_context(method)
        child = context.Process(target=check_and_add, args=(buffer, weights))
        child.start()
        child.join(60)
        assert child.exitcode == 0 and buffer.get_stored_size() == 2


def test_a_program_that_has_not_imported_the_package_finds_the_dtypes():
    with ReplayBuffer(4, {"a": {"shape": 2, "dtype": ml_dtypes.bfloat16}}) as buffer:
        buffer.add(a=[1, 2])
        with SharedWeights({"w": small_numbers("int4", 3)}) as weights:
            script = f"""
import mpbuffer, sys
assert "ml_dtypes" not in sys.modules
rows = mpbuffer.attach({buffer.name!r}).get_all_transitions()["a"]
assert str(rows.dtype) == "bfloat16" and rows.tolist() == [[1, 2]]
assert str(mpbuffer.SharedWeights.attach({weights.name!r}).read()["w"].dtype) == "int4"
"""
            assert run_python(script=script).returncode == 0


def test_a_missing_package_is_named(monkeypatch):
    buffer = ReplayBuffer(4, {"a": {"dtype": ml_dtypes.bfloat16}})
    weights = SharedWeights({"w": small_numbers("bfloat16", 3)})
    with buffer, weights:
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
        for attach, name in ((mpbuffer.attach, buffer.name), (SharedWeights.attach, weights.name)):
            with pytest.raises(SegmentMismatch, match=r"'bfloat16'.*pip install ml_dtypes"):
                attach(name)
            facts = inspect(name)
            assert facts["damages"] == 0 and "pip install ml_dtypes" in facts["notes"][-1]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"package": "os", "name": "path"}, "of package 'os', which is not known"),
        ({"package": "ml_dtypes", "name": "float9"}, "'float9' is not in package 'ml_dtypes'"),
        ({"package": "ml_dtypes", "name": "finfo"}, "damaged"),
        ({"package": "ml_dtypes"}, "damaged"),
        ({"name": "bfloat16"}, "damaged"),
    ],
)
def test_descriptions_that_name_no_such_dtype(told, message):
    fields = fields_from({"a": {"dtype": ml_dtypes.bfloat16}}, np.float32)
    text = describe(Description(False, fields, [], False, None, None))
    assert read_description("here", text.encode()).fields == fields
    described = json.loads(text)
    described["fields"][0]["descr"] = told
    with pytest.raises(SegmentMismatch, match=message):
        read_description("here", json.dumps(described).encode())


class DtypeOfAnotherPackage:
    """Stands for a dtype of a package that other processes do not know of."""

    num, names, hasobject, itemsize, kind = 300, None, False, 2, "V"
    type = type("half", (), {"__module__": "others.floats"})

    def newbyteorder(self, order):
        return self


def test_other_packages_are_refused_by_name(monkeypatch):
    found = np.dtype
    monkeypatch.setattr(
        "numpy.dtype", lambda given: DtypeOfAnotherPackage() if given == "half" else found(given)
    )
    with pytest.raises(TypeError, match=r"field 'grad' has dtype .* package 'others' by name"):
        fields_from({"grad": {"dtype": "half"}}, np.float32)


def test_nstep_rewards_and_flags_must_be_numpys():
    fields = {"rew": {}, "done": {"dtype": bool}}
    nstep = {"size": 3, "rew": "rew"}
    for field in fields:
        for name in ("bfloat16", "float8_e5m2"):
            changed = {**fields, field: {"dtype": dtype_of(name)}}
            with pytest.raises(ValueError, match=f"Nstep needs .*'{field}'.*{name}"):
                ReplayBuffer(8, changed, Nstep=nstep)


def test_an_explorers_flag_may_be_bfloat16():
    fields = {"a": {}, "done": {"dtype": ml_dtypes.bfloat16}}
    with ReplayBuffer(8, fields) as buffer, buffer.writer(flush_every=100) as writer:
        writer.add(a=1, done=-0.0)
        assert buffer.get_stored_size() == 0
        writer.add(a=2, done=1)
        assert buffer.get_stored_size() == 2


def test_texts_of_any_length_are_refused():
    if not hasattr(np.dtypes, "StringDType"):
        pytest.skip("NumPy 1 has no StringDType")
    with pytest.raises(TypeError, match=r"field 'memo' has dtype .*texts of any length"):
        ReplayBuffer(4, {"memo": {"dtype": np.dtypes.StringDType()}})
    with pytest.raises(TypeError, match="array 'memo' holds texts of any length"):
        SharedWeights({"memo": np.array(["a"], np.dtypes.StringDType())})


# Weights


@each_name
def test_weights_come_back_as_they_went_in(name):
    given = {"layer": small_numbers(name, 2, 3), "scale": small_numbers(name)}
    with SharedWeights(given) as weights:
        got = weights.read()
        for key, array in given.items():
            assert got[key].dtype == dtype_of(name)
            np.testing.assert_array_equal(got[key], array)
        assert weights.publish(got) == 2
        out = {key: np.zeros_like(array) for key, array in given.items()}
        assert weights.load_into(out) == 2
        np.testing.assert_array_equal(out["layer"], given["layer"])
        with pytest.raises(TypeError, match=f"'layer' has dtype float32, expected {name}"):
            weights.publish({**given, "layer": np.zeros((2, 3), np.float32)})
        copy = pickle.loads(pickle.dumps(weights))
        assert copy.read()["scale"].dtype == dtype_of(name)
        copy.close()


class OnlyDLPack:
    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_weights_of_array_libraries_that_numpy_does_not_know():
    with SharedWeights({"w": OnlyDLPack(np.arange(3.0))}) as weights:
        assert weights.read()["w"].tolist() == [0, 1, 2]


def test_quantized_weights_are_refused_by_name():
    torch = pytest.importorskip("torch")
    with pytest.warns(UserWarning, match="quantize"):
        quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    with pytest.raises(TypeError, match=r"array 'layer' is a quantized tensor.*qint8.*dequantize"):
        SharedWeights({"layer": quantized})
    with SharedWeights({"layer": torch.zeros(3, dtype=torch.int8)}) as weights:
        with pytest.raises(TypeError, match=r"array 'layer' is a quantized tensor"):
            weights.publish({"layer": quantized})
        assert weights.version == 1


# Tensors


@pytest.mark.parametrize("name", FLOATS)
def test_batches_of_tensors_have_the_dtype_of_that_name(name):
    torch = pytest.importorskip("torch")
    with PrioritizedReplayBuffer(4, {"a": {"shape": 2, "dtype": dtype_of(name)}}) as buffer:
        buffer.add(a=[1, 2])
        batch = next(buffer.batches(3, tensors=True))
        assert batch["a"].dtype == getattr(torch, name)
        assert batch["a"].float().tolist() == [[1, 2]] * 3
        assert batch["weights"].dtype == torch.float32 and batch["indexes"].dtype == torch.int64


@pytest.mark.parametrize("dtype", ["S4", "M8[s]", "int4"])
def test_fields_that_no_tensor_can_hold_are_named(dtype):
    pytest.importorskip("torch")
    wanted = dtype_of(dtype) if dtype == "int4" else dtype
    refused = pytest.raises(TypeError, match="make tensors of field 'tag': torch has no dtype")
    with ReplayBuffer(4, {"a": {}, "tag": {"dtype": wanted}}) as buffer, refused:
        buffer.batches(3, tensors=True)


@pytest.mark.parametrize("name", FLOATS)
def test_tensors_of_floats_that_numpy_lacks_are_added(name):
    torch = pytest.importorskip("torch")
    fields = {"a": {"shape": 2}, "b": {"shape": 2, "dtype": dtype_of(name)}, "c": {"dtype": "i4"}}
    with ReplayBuffer(9, fields) as buffer:
        one = torch.tensor([1.5, 2.0]).to(getattr(torch, name))
        buffer.add(a=one, b=one, c=one[1])
        buffer.add(a=torch.stack([one, one]), b=torch.stack([one, one]), c=one[1].repeat(2))
        stored = buffer.get_all_transitions()
        assert stored["a"].tolist() == stored["b"].tolist() == [[1.5, 2]] * 3
        with pytest.raises(ValueError, match=r"field 'c': got 1\.5, expected whole numbers"):
            buffer.add(a=one, b=one, c=one[0])
        with pytest.raises(TypeError, match="requires grad"):
            buffer.add(a=torch.ones(2, dtype=torch.bfloat16, requires_grad=True), b=one, c=1)
