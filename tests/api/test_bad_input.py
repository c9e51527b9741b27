"""Bad input is an error that says what was wrong, and after it nothing has changed."""

import warnings

import numpy as np
import pytest
from watched_processes import run_python

import mpbuffer
from mpbuffer import PrioritizedReplayBuffer, ReplayBuffer

CAPACITY = 10
FIELDS = {
    "obs": {"shape": 4},
    "act": {"dtype": "i4"},
    "rew": {"shape": ()},
    "tag": {"shape": (), "dtype": "S4"},
    "frame": {"shape": (2, 3), "dtype": "u1"},
    "wave": {"dtype": "c8"},
    "done": {"dtype": bool},
}


def row(number=0, **changed):
    values = {
        "obs": np.arange(4) + number,
        "act": number,
        "rew": -number,
        "tag": b"%d" % (number % 1000),
        "frame": np.full((2, 3), number % 256),
        "wave": number * 1j,
        "done": number % 2,
    }
    return {**values, **changed}


def batch(n, first=0, **changed):
    rows = [row(first + i) for i in range(n)]
    values = {name: np.array([r[name] for r in rows]) for name in FIELDS}
    return {**values, **changed}


def without(values, *names):
    return {name: value for name, value in values.items() if name not in names}


FILLS = {"empty": 0, "part full": 6, "full": CAPACITY, "second lap": CAPACITY + 4}


@pytest.fixture(params=FILLS, ids=str)
def fill(request):
    return FILLS[request.param]


def filled(cls, count, **options):
    buffer = cls(CAPACITY, FIELDS, seed=3, **options)
    for number in range(count):
        buffer.add(**row(number))
        if cls is PrioritizedReplayBuffer and number % 3 == 0:
            buffer.sample(2)
    if cls is PrioritizedReplayBuffer and count:
        sample = buffer.sample(4)
        buffer.update_priorities(sample["indexes"], [0.5, 2.0, 0.1, 0.7])
        buffer.sample(1)
    return buffer


def state(buffer):
    """All that a caller can see of a buffer, except what the next draw will be."""
    seen = {
        "stored size": buffer.get_stored_size(),
        "next index": buffer.get_next_index(),
        "rows added": buffer.rows_added(),
        "episode": buffer.get_current_episode_len(),
    }
    for name, array in buffer.get_all_transitions().items():
        seen[name] = array.dtype.str, array.shape, array.tobytes()
    if isinstance(buffer, PrioritizedReplayBuffer):
        seen["leaves"] = buffer._leaves().tobytes()
        seen["max priority"] = buffer.get_max_priority()
        seen["total"] = buffer._tree_total() if buffer.get_stored_size() else None
    return seen


class Unchanged:
    """A block that must raise, and must leave the buffer as it was, and usable."""

    def __init__(self, buffer, error, *mentions):
        self.buffer, self.error, self.mentions = buffer, error, mentions

    def __enter__(self):
        self.before = state(self.buffer)
        return self

    def __exit__(self, kind, error, traceback):
        assert kind is not None, f"no error, expected {self.error}"
        if not isinstance(error, self.error):
            return False
        for word in self.mentions:
            assert word in str(error), f"{word!r} is not mentioned in: {error}"
        assert state(self.buffer) == self.before
        index = self.before["next index"]
        assert self.buffer.add(**row(77)) == index
        np.testing.assert_array_equal(self.buffer._encode_sample([index])["obs"][0], row(77)["obs"])
        if isinstance(self.buffer, PrioritizedReplayBuffer):
            self.buffer.sample(1)
            expected = np.float32((self.before["max priority"] + 1e-4) ** 0.6)
            np.testing.assert_allclose(self.buffer._leaves()[index], expected, rtol=1e-6)
        return True


both_classes = pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplayBuffer])


class RaisesWhenRead:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("the sensor is gone")


class DLPackOnAnotherDevice:
    def __dlpack__(self, **options):
        raise BufferError("on another device")

    def __dlpack_device__(self):
        return (2, 0)


# Each entry: the values given, the error, and what its message must mention. The bad field is in
# turn the first, a middle and the last one of the buffer.
BAD_VALUES = {
    "first field missing": (without(row(), "obs"), KeyError, ["obs"]),
    "middle field missing": (without(row(), "tag"), KeyError, ["tag"]),
    "last field missing": (without(row(), "done"), KeyError, ["done"]),
    "all fields missing": ({}, KeyError, ["obs"]),
    "missing in a batch": (without(batch(3), "done"), KeyError, ["done"]),
    "obs too long": (row(obs=np.zeros(5)), ValueError, ["obs", "5", "4"]),
    "obs too short": (row(obs=np.zeros(3)), ValueError, ["obs", "3", "4"]),
    "obs a scalar": (row(obs=1.0), ValueError, ["obs", "4"]),
    "obs of three axes": (row(obs=np.zeros((1, 1, 4))), ValueError, ["obs", "1", "4"]),
    "obs transposed": (batch(3, obs=np.zeros((4, 3))), ValueError, ["obs", "3", "4"]),
    "obs ragged": (batch(2, obs=[[1, 2, 3, 4], [1, 2]]), ValueError, ["obs"]),
    "obs empty": (row(obs=[]), ValueError, ["obs", "0", "4"]),
    "frame transposed": (row(frame=np.zeros((3, 2))), ValueError, ["frame", "3", "2"]),
    "frame flat": (row(frame=np.zeros(6)), ValueError, ["frame", "6"]),
    "act of two axes": (batch(2, act=np.zeros((2, 2))), ValueError, ["act", "2"]),
    "act of three axes": (batch(2, act=np.zeros((2, 1, 2))), ValueError, ["act", "2"]),
    "rew of two columns": (batch(3, rew=np.zeros((3, 2))), ValueError, ["rew", "3", "2"]),
    "last field of wrong shape": (row(done=np.zeros((1, 2))), ValueError, ["done", "2"]),
    "first field shorter": (batch(4, obs=np.zeros((3, 4))), ValueError, ["3", "4"]),
    "last field shorter": (batch(4, done=np.zeros(3)), ValueError, ["done", "3", "4"]),
    "last field longer": (batch(4, done=np.zeros(5)), ValueError, ["done", "5", "4"]),
    "one row among batches": (batch(4, tag=[b"x"]), ValueError, ["tag", "1", "4"]),
    "a batch among rows": (row(done=[True, False]), ValueError, ["done", "2", "1"]),
    "longer than the buffer": (batch(CAPACITY + 1), IndexError, ["11", "10"]),
    "much longer": (batch(5 * CAPACITY), IndexError, ["50", "10"]),
    "an object": (row(obs=object()), TypeError, ["obs"]),
    "None": (row(act=None), TypeError, ["act"]),
    "None in a batch": (batch(2, act=[1, None]), TypeError, ["act"]),
    "array of objects": (row(obs=np.array([1, 2, 3, None], object)), TypeError, ["obs", "object"]),
    "objects that are numbers": (row(obs=np.arange(4).astype(object)), TypeError, ["obs"]),
    "dict": (row(rew={"a": 1}), TypeError, ["rew"]),
    "text for a number": (row(act="left"), (TypeError, ValueError), ["act"]),
    "digits for a number": (row(act="12"), (TypeError, ValueError), ["act"]),
    "bytes for a number": (row(done=b"1"), (TypeError, ValueError), ["done"]),
    "texts for numbers": (row(obs=["1", "2", "3", "4"]), (TypeError, ValueError), ["obs"]),
    "complex for float": (row(rew=1 + 2j), (TypeError, ValueError), ["rew", "complex"]),
    "complex batch for int": (
        batch(3, act=np.zeros(3, "c16")),
        (TypeError, ValueError),
        ["act", "complex"],
    ),
    "struct for a number": (row(act=np.zeros((), [("x", "i4")])), (TypeError, ValueError), ["act"]),
    "raises when read": (row(frame=RaisesWhenRead()), Exception, ["the sensor is gone"]),
    "another device": (row(obs=DLPackOnAnotherDevice()), (BufferError, TypeError, ValueError), []),
}


@both_classes
@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_values(cls, fill, case):
    values, error, mentions = BAD_VALUES[case]
    buffer = filled(cls, fill)
    with Unchanged(buffer, error, *mentions):
        buffer.add(**values)


@both_classes
def test_positional_values(cls, fill):
    buffer = filled(cls, fill)
    with Unchanged(buffer, TypeError):
        buffer.add(*row().values())
    with Unchanged(buffer, TypeError):
        buffer.add(np.zeros(4), **row())


@both_classes
def test_unknown_field_of_a_strict_buffer(cls, fill):
    buffer = filled(cls, fill, strict=True)
    for values in (row(next_obs=1), batch(3, next_obs=[1, 2, 3])):
        with Unchanged(buffer, TypeError, "next_obs"):
            buffer.add(**values)


@both_classes
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, MemoryError])
def test_interruptions_stay_what_they_are(cls, interruption):
    """Ctrl-C while a value is read is no error of the value."""

    class Interrupted:
        def __array__(self, dtype=None, copy=None):
            raise interruption("now")

    buffer = filled(cls, 6)
    with Unchanged(buffer, interruption):
        buffer.add(**row(frame=Interrupted()))
    if cls is PrioritizedReplayBuffer:
        with Unchanged(buffer, interruption):
            buffer.add(**row(), priorities=Interrupted())
        with Unchanged(buffer, interruption):
            buffer.update_priorities([0], Interrupted())
        with Unchanged(buffer, interruption):
            buffer.update_priorities(Interrupted(), [1.0])


@both_classes
def test_a_warning_turned_into_an_error(cls, fill):
    buffer = filled(cls, fill)
    with Unchanged(buffer, UserWarning, "next_obs"), warnings.catch_warnings():
        warnings.simplefilter("error")
        buffer.add(**row(next_obs=1))


@both_classes
def test_unknown_key_of_a_field(cls):
    with pytest.warns(
        UserWarning, match=r"field 'obs' .*'shpe', 'typ', which is ignored"
    ) as warned:
        buffer = cls(10, {"obs": {"shpe": 4, "typ": "i4"}, "act": {"shape": 2, "dtype": "i4"}})
    assert len(warned) == 1
    assert warned[0].filename == __file__
    buffer.add(obs=1, act=[1, 2])
    with pytest.warns(UserWarning, match="'shpe', which is ignored") as warned:
        cls.largest_size({"obs": {"shpe": 4}})
    assert warned[0].filename == __file__


@pytest.mark.parametrize(
    ("cls", "method"), [(ReplayBuffer, "sample"), (PrioritizedReplayBuffer, "sample_uniform")]
)
@pytest.mark.parametrize(("given", "named"), [((1, True), {}), ((), {}), ((1,), {"size": 3})])
def test_errors_name_the_method_that_was_called(cls, method, given, named):
    with pytest.raises(TypeError, match=rf"^{method}\(\) "):
        getattr(filled(cls, 6), method)(*given, **named)


@both_classes
def test_sampling_after_clear(cls):
    buffer = filled(cls, 0)
    with pytest.raises(mpbuffer.EmptyBuffer, match=r"no rows have been added$"):
        buffer.sample(1)
    buffer.add(**row())
    buffer.clear()
    with pytest.raises(mpbuffer.EmptyBuffer, match="no rows have been added since it was cleared"):
        buffer.sample(1)


@both_classes
def test_no_row_at_all(cls, fill):
    """A batch of no rows adds none, whether that is said to be an error or not."""
    buffer = filled(cls, fill)
    before = state(buffer)
    values = {name: np.zeros((0, *np.shape(value))) for name, value in row().items()}
    values["tag"] = np.zeros(0, "S4")
    try:
        buffer.add(**values)
    except ValueError as error:
        assert "0" in str(error) or "no row" in str(error)
    assert state(buffer) == before


def test_a_torch_tensor_that_requires_grad_or_is_no_data():
    torch = pytest.importorskip("torch")
    buffer = filled(ReplayBuffer, 6)
    with Unchanged(buffer, (RuntimeError, TypeError, ValueError, BufferError)):
        buffer.add(**row(obs=torch.zeros(4, requires_grad=True)))
    with Unchanged(buffer, (RuntimeError, TypeError, ValueError, NotImplementedError, BufferError)):
        buffer.add(**row(obs=torch.zeros(4, device="meta")))
    with Unchanged(buffer, ValueError, "obs", "5", "4"):
        buffer.add(**row(obs=torch.zeros(5)))


BAD_PRIORITIES = {
    "NaN": (np.nan, ValueError, ["nan"]),
    "NaN in a batch": ([1.0, np.nan, 1.0], ValueError, ["nan"]),
    "infinite": (np.inf, ValueError, ["inf"]),
    "infinite in a batch": ([1.0, 1.0, np.inf], ValueError, ["inf"]),
    "minus infinite": (-np.inf, ValueError, ["inf"]),
    "negative": (-0.5, ValueError, ["-0.5"]),
    "negative in a batch": ([1.0, 1.0, -0.5], ValueError, ["-0.5"]),
    "negative integer": (np.array([1, 1, -3]), ValueError, ["-3"]),
    "tiny negative": (-1e-300, ValueError, ["-1e-300"]),
    "too many": ([1.0, 2.0, 3.0, 4.0], ValueError, ["4", "3"]),
    "too few": ([1.0, 2.0], ValueError, ["2", "3"]),
    "none of them": ([], ValueError, ["0", "3"]),
    "a matrix": (np.ones((3, 2)), ValueError, ["3"]),
    "text": ("high", (TypeError, ValueError), []),
    "digits": ("1.5", (TypeError, ValueError), []),
    "object": (object(), TypeError, []),
    "complex": (np.array([1j, 1, 1]), (TypeError, ValueError), []),
    "None in a batch": ([1.0, None, 1.0], (TypeError, ValueError), []),
    "raises when read": (RaisesWhenRead(), Exception, ["the sensor is gone"]),
}


@pytest.mark.parametrize("case", BAD_PRIORITIES)
def test_bad_priorities_of_new_rows(fill, case):
    priorities, error, mentions = BAD_PRIORITIES[case]
    buffer = filled(PrioritizedReplayBuffer, fill)
    with Unchanged(buffer, error, "priorit", *mentions):
        buffer.add(**batch(3), priorities=priorities)


def test_bad_priority_of_one_row(fill):
    buffer = filled(PrioritizedReplayBuffer, fill)
    for priority in (np.nan, -1, [1.0, 2.0], np.inf, np.float32("nan")):
        with Unchanged(buffer, ValueError, "priorit"):
            buffer.add(**row(), priorities=priority)


def test_good_priorities_with_bad_values(fill):
    """The maximum must not be raised by a call that fails later."""
    buffer = filled(PrioritizedReplayBuffer, fill)
    with Unchanged(buffer, ValueError, "obs"):
        buffer.add(**row(obs=np.zeros(5)), priorities=1000.0)
    with Unchanged(buffer, KeyError, "done"):
        buffer.add(**without(row(), "done"), priorities=1000.0)
    with Unchanged(buffer, IndexError):
        buffer.add(**batch(CAPACITY + 1), priorities=1000.0)


def test_a_priority_whose_leaf_no_float32_can_hold(fill):
    buffer = filled(PrioritizedReplayBuffer, fill, alpha=1.5)
    before = state(buffer)
    for priorities in (1e300, [1.0, 1e30, 2.0]):
        with pytest.raises(ValueError, match="priorit"):
            buffer.add(**batch(3), priorities=priorities)
        assert state(buffer) == before
        if fill:
            with pytest.raises(ValueError, match="priorit"):
                buffer.update_priorities([0, 1, 2], priorities)
            assert state(buffer) == before


BAD_UPDATES = {
    "priorities None": ([0, 1], None, TypeError, ["priorit"]),
    "indexes None": (None, [1.0, 2.0], TypeError, ["indexes"]),
    "NaN": ([0, 1, 2], [1.0, np.nan, 1.0], ValueError, ["priorit", "nan"]),
    "scalar NaN": ([0, 1, 2], np.nan, ValueError, ["priorit", "nan"]),
    "infinite": ([0, 1, 2], [1.0, 1.0, np.inf], ValueError, ["priorit", "inf"]),
    "negative": ([0, 1, 2], [1.0, 1.0, -0.25], ValueError, ["priorit", "-0.25"]),
    "scalar negative": ([0, 1, 2], -0.25, ValueError, ["priorit", "-0.25"]),
    "too many priorities": ([0, 1], [1.0, 2.0, 3.0], ValueError, ["2", "3"]),
    "too few priorities": ([0, 1, 2], [1.0, 2.0], ValueError, ["3", "2"]),
    "one of three": ([0, 1, 2], [], ValueError, ["3", "0"]),
    "a matrix": ([0, 1], np.ones((2, 2)), ValueError, ["priorit"]),
    "index too high": ([0, CAPACITY], [1.0, 1.0], IndexError, ["indexes", "10"]),
    "index much too high": ([0, 2**62], [1.0, 1.0], IndexError, ["indexes"]),
    "unsigned too high": (np.array([0, 2**64 - 1], "u8"), [1.0, 1.0], IndexError, ["indexes"]),
    "negative index": ([0, -1], [1.0, 1.0], IndexError, ["indexes", "-1"]),
    "very negative index": ([0, -(2**63)], [1.0, 1.0], IndexError, ["indexes"]),
    "fractional index": ([0.0, 1.5], [1.0, 1.0], (TypeError, ValueError), ["indexes"]),
    "NaN index": ([0.0, np.nan], [1.0, 1.0], (TypeError, ValueError, IndexError), ["indexes"]),
    "infinite index": ([0.0, np.inf], [1.0, 1.0], (TypeError, ValueError, IndexError), ["indexes"]),
    "huge float index": ([0.0, 1e30], [1.0, 1.0], (TypeError, ValueError, IndexError), ["indexes"]),
    "text index": (["0", "1"], [1.0, 1.0], (TypeError, ValueError), ["indexes"]),
    "object index": ([0, None], [1.0, 1.0], (TypeError, ValueError), ["indexes"]),
    "complex index": ([0j, 1j], [1.0, 1.0], (TypeError, ValueError), ["indexes"]),
    "text priority": ([0, 1], ["a", "b"], (TypeError, ValueError), ["priorit"]),
    "object priority": ([0, 1], [1.0, None], (TypeError, ValueError), ["priorit"]),
    "complex priority": ([0, 1], [1.0, 1j], (TypeError, ValueError), ["priorit"]),
    "priority that raises": ([0, 1], RaisesWhenRead(), Exception, ["the sensor is gone"]),
}


@pytest.mark.parametrize("case", BAD_UPDATES)
def test_bad_updates(fill, case):
    indexes, priorities, error, mentions = BAD_UPDATES[case]
    buffer = filled(PrioritizedReplayBuffer, fill)
    with Unchanged(buffer, error, *mentions):
        buffer.update_priorities(indexes, priorities)


def test_bad_updates_of_a_sample(fill):
    if fill == 0:
        pytest.skip("an empty buffer has no sample")
    buffer = filled(PrioritizedReplayBuffer, fill)
    indexes = buffer.sample(8)["indexes"]
    for priorities, error in [
        (None, TypeError),
        (np.full(7, 9.0), ValueError),
        (np.full(9, 9.0), ValueError),
        (np.where(np.arange(8) == 7, np.nan, 9.0), ValueError),
        (np.where(np.arange(8) == 7, -1, 9), ValueError),
        (np.where(np.arange(8) == 7, np.inf, 9.0).astype("f4"), ValueError),
    ]:
        before = state(buffer)
        with pytest.raises(error, match="priorit"):
            buffer.update_priorities(indexes, priorities)
        assert state(buffer) == before


def test_bad_generations():
    buffer = filled(PrioritizedReplayBuffer, 6)
    indexes = np.array(buffer.sample(4)["indexes"])
    for generations, error in [
        (np.zeros(3, "u8"), ValueError),
        (np.zeros(5, "u8"), ValueError),
        (np.zeros((4, 2), "u8"), ValueError),
        (np.full(4, 0.5), (TypeError, ValueError)),
        (["a"] * 4, (TypeError, ValueError)),
    ]:
        with Unchanged(buffer, error, "generations"):
            buffer.update_priorities(indexes, np.ones(4), generations=generations)
        buffer.clear()
        buffer = filled(PrioritizedReplayBuffer, 6)
        indexes = np.array(buffer.sample(4)["indexes"])


@pytest.mark.parametrize("indexes", [[0, CAPACITY], [-CAPACITY - 1], [1.5], ["a"], None])
def test_bad_indexes_of_reads(indexes):
    buffer = filled(PrioritizedReplayBuffer, 6)
    before = state(buffer)
    for ask in (buffer.get_generations, buffer.get_priorities, buffer._encode_sample):
        with pytest.raises((IndexError, TypeError, ValueError), match="index"):
            ask(indexes)
        assert state(buffer) == before


@both_classes
@pytest.mark.parametrize(
    "batch_size", [0, -1, 1.5, "many", None, np.nan, [3], 2**60, 2**62, 2**63 - 1, 2**70, -(2**70)]
)
def test_bad_batch_sizes(cls, fill, batch_size):
    with filled(cls, fill) as buffer:
        before = state(buffer)
        for sample in (buffer.sample, getattr(buffer, "sample_uniform", buffer.sample)):
            with pytest.raises((ValueError, TypeError, OverflowError, MemoryError)) as refused:
                sample(batch_size)
            assert fill == 0 or not isinstance(refused.value, mpbuffer.EmptyBuffer)
            assert state(buffer) == before


@both_classes
def test_bad_arguments_of_sample(cls):
    buffer = filled(cls, 6)
    for arguments, options in [((), {}), ((1,), {"bata": 0.4}), ((1, 0.4, 3, 4), {})]:
        with Unchanged(buffer, TypeError):
            buffer.sample(*arguments, **options)


@pytest.mark.parametrize("beta", ["high", None, [0.4, 0.5], 1j])
def test_bad_beta(beta):
    buffer = filled(PrioritizedReplayBuffer, 6)
    before = state(buffer)
    with pytest.raises((TypeError, ValueError)):
        buffer.sample(1, beta=beta)
    assert state(buffer) == before


def test_beta_that_is_no_number():
    buffer = filled(PrioritizedReplayBuffer, 6)
    for beta in (np.nan, np.inf, -np.inf):
        before = state(buffer)
        with pytest.raises(ValueError, match="beta"):
            buffer.sample(1, beta=beta)
        assert state(buffer) == before


@pytest.mark.parametrize(
    "options",
    [{"alpha": np.nan}, {"alpha": -1}, {"alpha": np.inf}, {"eps": -1}, {"eps": np.nan}],
    ids=str,
)
def test_bad_exponents(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        PrioritizedReplayBuffer(10, FIELDS, **options)


def test_values_that_use_the_buffer_while_being_read():
    """`__array__` runs Python; no lock may be held then. In a process that can be ended."""
    script = """
import gc
import numpy as np
from mpbuffer import PrioritizedReplayBuffer

buffer = PrioritizedReplayBuffer(10, {"a": {"shape": 2}, "b": {}})

class Meddling:
    def __array__(self, dtype=None, copy=None):
        buffer.add(a=[5, 5], b=5, priorities=2.0)
        buffer.update_priorities(buffer.sample(4)["indexes"], 3.0)
        buffer.get_all_transitions()
        gc.collect()
        return np.array([1.0, 2.0])

buffer.add(a=Meddling(), b=1)
rows = sorted(buffer.get_all_transitions()["a"].tolist())
assert rows == [[1.0, 2.0], [5.0, 5.0]], rows
buffer.add(a=[[1, 1], [2, 2]], b=[1, 2], priorities=Meddling())
assert buffer.get_stored_size() == 5
buffer.sample(2)
assert buffer.update_priorities([0, 1], Meddling()) in (0, 1, 2)
assert buffer.get_stored_size() == 6

class Clearing:
    def __array__(self, dtype=None, copy=None):
        buffer.clear()
        return np.array([1.0, 2.0])

buffer.add(a=Clearing(), b=1)
assert buffer.get_stored_size() == 1, len(buffer)

class Closing:
    def __array__(self, dtype=None, copy=None):
        buffer.close()
        return np.array([1.0, 2.0])

try:
    buffer.add(a=Closing(), b=1)
except ValueError as error:
    print("refused:", error)
"""
    ended = run_python(script=script, seconds=30)
    assert ended.returncode == 0, ended.stderr.decode()
    assert b"refused: " in ended.stdout
