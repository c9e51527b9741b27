"""A value that a field cannot represent is an error; one that only has to be rounded is not."""

import functools
import itertools
import warnings

import numpy as np
import pytest

from mpbuffer import PrioritizedReplayBuffer, ReplayBuffer
from mpbuffer._arguments.value_range import value_range

WHOLE = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]
NOT_FITTING = r"cannot add field 'a': got .*, expected"
FLOATS = ["f2", "f4", "f8", "g"]
# Powers of two at which a whole number, or the steps between floats, begin to be too large.
BITS = [0, 1, 7, 8, 10, 11, 15, 16, 23, 24, 31, 32, 52, 53, 62, 63, 64]


def representable(value, dtype):
    """Whether `dtype` can represent a number, by Python's exact arithmetic."""
    if dtype.kind == "f":
        with np.errstate(all="ignore"):
            return not (np.isfinite(value) and np.isinf(np.asarray(value).astype(dtype)))
    if not np.isfinite(value):
        return False
    exact = int(value)
    least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return bool(value == np.floor(value)) and int(least) <= exact <= int(most)


@functools.cache
def edges(dtype):
    """Numbers of `dtype` that lie at the edges of others, each once."""
    dtype = np.dtype(dtype)
    whole = {sign * (2**bits + more) for sign in (1, -1) for bits in BITS for more in (-1, 0, 1)}
    if dtype.kind == "b":
        return np.array([0, 1], dtype)
    if dtype.kind in "iu":
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        return np.array(sorted(each for each in whole if least <= each <= most), dtype)
    with np.errstate(all="ignore"):
        several = [np.array([float(each) for each in whole]).astype(dtype)]
        several += [several[0] + dtype.type(0.5)]
        for other in FLOATS:
            largest = np.array(np.finfo(other).max).astype(dtype)
            for factor in ("1", "1.0000000298", "1.000244", "1.000245", "1.1"):
                several.append(np.array([largest * dtype.type(factor)]))
        several += [np.array([np.nan, np.inf, 0, 0.1, 1e-30], dtype)]
        several += [np.nextafter(each, each.dtype.type(0)) for each in several]
        values = np.concatenate(several)
    return np.unique(np.concatenate([values, -values]))


@functools.cache
def fitting(source, to):
    """Which of the numbers at the edges a field of dtype `to` can represent."""
    return np.array([representable(value, np.dtype(to)) for value in edges(source)])


LAYOUTS = {
    "contiguous": np.array,
    "strided": lambda values: np.repeat(values, 3)[1::3],
    "big-endian": lambda values: values.astype(values.dtype.newbyteorder(">")),
}


@pytest.mark.parametrize("to", ["?", *WHOLE, *FLOATS])
def test_a_number_is_taken_exactly_if_the_field_can_represent_it(to):
    with ReplayBuffer(1, {"a": {"shape": (), "dtype": to}}) as buffer:
        for source in ("?", *WHOLE, *FLOATS):
            for value, fits in zip(edges(source), fitting(source, to), strict=True):
                if fits:
                    buffer.add(a=value)
                    stored = buffer.get_all_transitions()["a"]
                    assert np.array_equal(stored, [value.astype(to)], equal_nan=True), value
                else:
                    with pytest.raises(ValueError, match=NOT_FITTING):
                        buffer.add(a=value)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("to", ["?", *WHOLE, *FLOATS])
def test_an_array_is_taken_exactly_if_the_field_can_represent_it(to, layout):
    """All numbers that fit at once; then with one more, which does not."""
    for source in ("?", *WHOLE, *FLOATS):
        values, fits = edges(source), fitting(source, to)
        good, bad = values[fits], values[~fits]
        fields = {"a": {"shape": (), "dtype": to}}
        with ReplayBuffer(len(good), fields) as buffer:
            buffer.add(a=LAYOUTS[layout](good))
            stored = buffer.get_all_transitions()["a"]
            assert np.array_equal(stored, good.astype(to), equal_nan=True)
            for value in bad[:: max(1, len(bad) // 10)]:
                with pytest.raises(ValueError, match=NOT_FITTING):
                    buffer.add(a=LAYOUTS[layout](np.append(good, value)))


@pytest.mark.parametrize("to", ["?", *WHOLE, "f4", "f8"])
def test_python_numbers_are_taken_alike(to):
    to = np.dtype(to)
    whole = [
        sign * (2**bits + more) for sign in (1, -1) for bits in [*BITS, 65] for more in (-1, 0, 1)
    ]
    others = [0.5, 3.0, -1.5, 1e39, -1e39, float("nan"), float("inf"), True, False]
    with ReplayBuffer(1, {"a": {"shape": (), "dtype": to}}) as buffer:
        for value in whole + others:
            if to.kind == "f" and isinstance(value, int):
                fits = True
            elif isinstance(value, int):
                least, most = (0, 1) if to.kind == "b" else (np.iinfo(to).min, np.iinfo(to).max)
                fits = int(least) <= value <= int(most)
            else:
                fits = representable(np.float64(value), to)
            for given in (value, [value]) if abs(value) < 2**63 else (value,):
                if fits:
                    buffer.add(a=given)
                    np.testing.assert_array_equal(
                        buffer.get_all_transitions()["a"], np.array([value], to)
                    )
                else:
                    with pytest.raises(ValueError, match=NOT_FITTING):
                        buffer.add(a=given)


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        ("u1", 300, "got 300, expected whole numbers from 0 to 255 (uint8)"),
        ("u1", np.int64(-1), "got -1, expected whole numbers from 0 to 255 (uint8)"),
        ("i8", 1.5, "got 1.5, expected whole numbers from -9223372036854775808 to"),
        ("?", np.float32("nan"), "got nan, expected 0 or 1 (bool)"),
        (
            "f4",
            [1, np.inf, np.nan, -1e39],
            "got -1e+39 (number 3), expected numbers from -3.40282e",
        ),
        ("f2", 65520, "got 65520, expected numbers from -65504 to 65504, inf and nan (float16)"),
        ("c8", [0, 1e39j], "got 1e+39j (number 1), expected complex numbers whose parts are from"),
        ("u1", 10**100, f"got 1{59 * '0'}..., expected whole numbers"),
        ("S4", b"abcde", "got b'abcde', expected at most 4 characters (|S4)"),
        ("U3", ["abc", "abcd"], "got 'abcd' (number 1), expected at most 3 characters (<U3)"),
        ("S4", 3.14159, "got 3.14159, expected at most 4 characters (|S4)"),
        (
            "M8[D]",
            np.datetime64("2020-01-01T01"),
            "got 2020-01-01T01, expected what datetime64[D] represents exactly",
        ),
        (
            "m8[s]",
            np.array([1000, 1500], "m8[ms]"),
            "(number 1), expected what timedelta64[s] represents exactly",
        ),
        ("m8[s]", np.timedelta64(2**60, "W"), "expected what timedelta64[s] represents exactly"),
        (
            [("x", "f4"), ("y", "f2", 2)],
            np.array((1, [0, 1e6]), [("x", "f8"), ("y", "f8", 2)]),
            "'y' of it: got 1000000.0 (number 1), expected numbers from -65504",
        ),
    ],
    ids=str,
)
def test_the_error_names_field_value_and_range(dtype, value, message):
    with ReplayBuffer(4, {"b": {}, "a": {"shape": (), "dtype": dtype}}) as buffer:
        with pytest.raises(ValueError, match="cannot add field 'a'") as refused:
            buffer.add(b=np.zeros(np.size(value) if np.ndim(value) else 1), a=value)
        assert message in str(refused.value)
        assert buffer.get_stored_size() == 0


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("S4", np.array([b"ab", b""], "S9")),
        ("S4", 123),
        ("U4", np.array(["ab", "abcd"], "U9")),
        ("M8[D]", np.array(["2020-01-01T00:00", "NaT"], "M8[s]")),
        ("m8[s]", np.array([2000, -3000], "m8[ms]")),
        ([("x", "f4")], np.array([(0.1,), (np.inf,)], [("x", "f8")])),
        ("f4", np.array([np.nan, -np.inf, 5e-324, 3.4028235e38])),
        ("f2", np.float32(65519)),
        ("?", np.array([0.0, 1.0])),
        ("i8", np.array([-(2.0**63), 3.0])),
    ],
    ids=str,
)
def test_values_that_are_only_rounded_or_fit_are_taken(dtype, value):
    with ReplayBuffer(4, {"a": {"shape": (), "dtype": dtype}}) as buffer, warnings.catch_warnings():
        warnings.simplefilter("error")
        buffer.add(a=value)
        expected = np.atleast_1d(np.asarray(value).astype(np.dtype(dtype)))
        np.testing.assert_array_equal(buffer.get_all_transitions()["a"], expected)


def test_texts_of_no_fixed_length_are_taken_if_they_fit():
    if not hasattr(np.dtypes, "StringDType"):
        pytest.skip("NumPy 1 has no StringDType")
    texts = np.array(["abc", "abcde"], np.dtypes.StringDType())
    with ReplayBuffer(4, {"a": {"shape": (), "dtype": "U4"}}) as buffer:
        with pytest.raises(ValueError, match=r"got 'abcde' \(number 1\), expected at most 4"):
            buffer.add(a=texts)
        buffer.add(a=texts[:1])
        assert buffer.get_all_transitions()["a"].tolist() == ["abc"]


def test_a_bad_value_is_found_anywhere_in_a_large_batch():
    with ReplayBuffer(100_000, {"a": {"dtype": "u1"}, "b": {"shape": ()}}) as buffer:
        rows = np.zeros(100_000)
        for place in (0, 255, 256, 70_001, 99_999):
            for value, field in ((256.0, "a"), (0.5, "a"), (1e39, "b")):
                given = {"a": rows.copy(), "b": rows.copy()}
                given["b"][:300] = np.nan
                given[field][place] = value
                with pytest.raises(
                    ValueError, match=rf"field '{field}': got .* \(number {place}\)"
                ):
                    buffer.add(**given)
        assert buffer.get_stored_size() == 0
        buffer.add(a=rows, b=rows)


def test_staged_steps_are_checked_when_they_are_given():
    fields = {"act": {"dtype": "u1"}, "rew": {}, "done": {"dtype": bool}}
    with PrioritizedReplayBuffer(8, fields, Nstep={"size": 2, "rew": "rew"}) as buffer:
        with buffer.writer() as writer:
            for change in ({"act": np.int64(256)}, {"rew": 1e39}, {"done": 2}, {"act": 0.5}):
                with pytest.raises(ValueError, match="cannot add field"):
                    writer.add(**{"act": 1, "rew": 1.0, "done": 0, **change})
            writer.add(act=7, rew=1.5, done=True)
        rows = buffer.get_all_transitions()
        assert rows["act"].tolist() == [[7]] and rows["rew"].tolist() == [[1.5]]


@pytest.mark.filterwarnings("ignore:overflow")
def test_priorities_beyond_float64_are_refused():
    if np.finfo(np.longdouble).max == np.finfo(np.float64).max:
        pytest.skip("longdouble is float64")
    with PrioritizedReplayBuffer(8, {"a": {}}) as buffer:
        with pytest.raises(ValueError, match="priority 0 is inf"):
            buffer.add(a=1, priorities=np.longdouble("1e400"))
        assert buffer.get_stored_size() == 0


class ShrinksWhenReadAgain:
    reads = 0

    def __array__(self, dtype=None, copy=None):
        self.reads += 1
        return np.arange(8 if self.reads == 1 else 1, dtype=dtype)


def test_a_list_is_read_once():
    value = ShrinksWhenReadAgain()
    with ReplayBuffer(4, {"a": {"shape": 8}}) as buffer:
        buffer.add(a=[value])
        assert buffer.get_all_transitions()["a"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


def test_ranges_of_dtypes():
    assert value_range(np.dtype("S4")) is None and value_range(np.dtype("M8[s]")) is None
    assert value_range(np.dtype(np.longdouble)) is None
    for dtype in itertools.chain(WHOLE, ["f2", "f4", "f8"]):
        told = value_range(np.dtype(dtype))
        assert told.whole == (dtype in WHOLE)
        assert told.infinity == told.nan == (dtype not in WHOLE)
    highest = value_range(np.dtype("f4")).highest
    with np.errstate(over="ignore"):
        assert np.float32(highest) == np.finfo("f4").max
        assert np.float32(np.nextafter(highest, np.inf)) == np.inf
