"""save_transitions and load_transitions: cpprb's files, priorities, and damage."""

import io
import multiprocessing
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from mpbuffer import PrioritizedReplayBuffer, ReplayBuffer

FIELDS = {"obs": {"shape": (2, 3)}, "act": {"dtype": np.int32}, "tag": {"dtype": "S3"}, "done": {}}
SIZE = 10

BOTH_CLASSES = pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplayBuffer])


def rows(first, last):
    numbers = np.arange(first, last)
    return {
        "obs": numbers[:, None, None] + np.arange(6).reshape(2, 3) / 8,
        "act": numbers,
        "tag": [str(number).encode() for number in numbers],
        "done": numbers % 5 == 4,
    }


def filled(cls, n, size=SIZE, **options):
    """A buffer to which n rows were added one after another; row i has priority i + 1."""
    buffer = cls(size, FIELDS, **options)
    for i in range(n):
        more = {"priorities": i + 1} if cls is PrioritizedReplayBuffer else {}
        buffer.add(**rows(i, i + 1), **more)
    return buffer


def state(buffer):
    everything = [buffer.get_next_index(), len(buffer), buffer.rows_added()]
    everything += [values.tobytes() for values in buffer.get_all_transitions().values()]
    if isinstance(buffer, PrioritizedReplayBuffer):
        everything += [
            buffer.get_priorities(range(len(buffer))).tobytes(),
            buffer.get_max_priority(),
        ]
    return everything


def assert_same_rows(one, other):
    one, other = one.get_all_transitions(), other.get_all_transitions()
    assert one.keys() == other.keys()
    for field, values in one.items():
        np.testing.assert_array_equal(values, other[field], err_msg=field)


def cpprb_file(data, **members):
    """The bytes of a file as cpprb 11 writes it."""
    file = io.BytesIO()
    whole = {"safe": True, "version": 1, "data": data, "Nstep": False, "cache": None}
    np.savez_compressed(file, **(whole | {"next_of": None} | members))
    return file.getvalue()


# What is saved is loaded


@BOTH_CLASSES
@pytest.mark.parametrize("n", [0, 1, 6, 10, 14, 20])
def test_a_loaded_buffer_goes_on_as_the_saved_one(cls, n, tmp_path):
    saved, loaded = filled(cls, n), cls(SIZE, FIELDS)
    saved.save_transitions(tmp_path / "rows.npz")
    loaded.load_transitions(tmp_path / "rows.npz")
    for i in range(100, 104):
        assert_same_rows(saved, loaded)
        assert saved.get_next_index() == loaded.get_next_index()
        assert saved.add(**rows(i, i + 1)) == loaded.add(**rows(i, i + 1))


@pytest.mark.parametrize("n", [6, 14])
@pytest.mark.parametrize("alpha", [0.4, 0.6, 1.0])
def test_priorities_are_restored(n, alpha, tmp_path):
    saved = filled(PrioritizedReplayBuffer, n, alpha=alpha)
    saved.sample(4)
    saved.update_priorities([0, 3], [40.0, 1e-3])
    saved.update_priorities([0], [20.0])
    saved.save_transitions(tmp_path / "rows.npz")
    loaded = PrioritizedReplayBuffer(SIZE, FIELDS, alpha=alpha)
    loaded.load_transitions(tmp_path / "rows.npz")
    expected = saved.get_priorities(range(SIZE))
    np.testing.assert_allclose(loaded.get_priorities(range(SIZE)), expected, rtol=1e-5)
    assert loaded.get_max_priority() == 40.0
    sampled = loaded.sample(1000)
    leaves = (expected + 1e-4) ** alpha
    weights = (leaves[sampled["indexes"]] / np.nanmin(leaves)) ** -0.4
    np.testing.assert_allclose(sampled["weights"], weights, rtol=1e-5)


def test_priorities_are_left_out_of_a_uniform_buffer(tmp_path):
    filled(PrioritizedReplayBuffer, 6).save_transitions(tmp_path / "rows.npz")
    loaded = ReplayBuffer(SIZE, FIELDS)
    loaded.load_transitions(tmp_path / "rows.npz")
    assert_same_rows(loaded, filled(ReplayBuffer, 6))


def test_rows_without_priorities_get_the_largest_so_far(tmp_path):
    filled(ReplayBuffer, 4).save_transitions(tmp_path / "rows.npz")
    loaded = filled(PrioritizedReplayBuffer, 3)
    loaded.load_transitions(tmp_path / "rows.npz")
    np.testing.assert_allclose(loaded.get_priorities(range(7)), [1, 2, 3, 3, 3, 3, 3], rtol=1e-5)


@BOTH_CLASSES
@pytest.mark.parametrize("n", [8, 14])
def test_a_smaller_buffer_gets_the_newest_rows(cls, n, tmp_path):
    filled(cls, n).save_transitions(tmp_path / "rows.npz")
    loaded = cls(4, FIELDS)
    loaded.load_transitions(tmp_path / "rows.npz")
    assert loaded.get_all_transitions()["act"].ravel().tolist() == list(range(n - 4, n))


@BOTH_CLASSES
def test_rows_are_added_behind_those_that_are_there(cls, tmp_path):
    filled(cls, 14).save_transitions(tmp_path / "rows.npz")
    loaded = cls(20, FIELDS)
    loaded.add(**rows(50, 53))
    loaded.load_transitions(tmp_path / "rows.npz")
    acts = loaded.get_all_transitions()["act"].ravel().tolist()
    assert acts == [50, 51, 52, *range(4, 14)]


def test_nstep_rows_are_loaded_as_they_are(tmp_path):
    options = {"Nstep": {"size": 3, "rew": "rew", "next": "next_obs", "discount": "gamma"}}
    fields = {"obs": {}, "rew": {}, "next_obs": {}, "done": {}}
    saved, loaded = ReplayBuffer(20, fields, **options), ReplayBuffer(20, fields, **options)
    steps = np.arange(9)
    saved.add(obs=steps, rew=steps, next_obs=steps + 1, done=steps == 6)
    saved.save_transitions(tmp_path / "rows.npz")
    loaded.add(obs=100, rew=1, next_obs=101, done=0)  # waits for further steps
    loaded.load_transitions(tmp_path / "rows.npz")
    assert_same_rows(saved, loaded)
    assert loaded.get_all_transitions()["gamma"].min() == 0


def test_dtypes_and_shapes_are_kept(tmp_path):
    fields = {
        "none": {"shape": ()},
        "pair": {"dtype": [("x", "i4"), ("y", "f8", (2,))]},
        "time": {"dtype": "M8[ms]"},
        "text": {"dtype": "U4", "shape": 2},
        "half": {"dtype": np.float16, "shape": (1, 2)},
        "flag": {"dtype": bool},
    }
    saved, loaded = ReplayBuffer(3, fields), ReplayBuffer(3, fields)
    saved.add(
        none=[1.0, 2.0],
        pair=np.array([(1, [2, 3]), (4, [5, 6])], fields["pair"]["dtype"]),
        time=np.array([7, 8], "M8[ms]"),
        text=[["a", "bcd"], ["", "é"]],
        half=np.arange(4).reshape(2, 1, 2),
        flag=[True, False],
    )
    saved.save_transitions(tmp_path / "rows.npz")
    loaded.load_transitions(tmp_path / "rows.npz")
    assert_same_rows(saved, loaded)


def test_dtypes_of_ml_dtypes_are_kept(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    fields = {"a": {"dtype": ml_dtypes.bfloat16, "shape": 2}}
    saved, loaded = ReplayBuffer(3, fields), ReplayBuffer(3, fields)
    saved.add(a=[[1.5, 2.5], [3, 4]])
    saved.save_transitions(tmp_path / "rows.npz")
    loaded.load_transitions(tmp_path / "rows.npz")
    assert_same_rows(saved, loaded)


# Files


@pytest.mark.parametrize("as_path", [str, pathlib.Path])
@pytest.mark.parametrize("name", ["rows.npz", "rows"])
def test_a_path_without_its_ending_is_found_again(as_path, name, tmp_path):
    path = as_path(tmp_path / name)
    filled(ReplayBuffer, 5).save_transitions(path)
    assert [each.name for each in tmp_path.iterdir()] == ["rows.npz"]
    loaded = ReplayBuffer(SIZE, FIELDS)
    loaded.load_transitions(path)
    assert len(loaded) == 5


def test_file_objects(tmp_path):
    memory = io.BytesIO()
    filled(ReplayBuffer, 5).save_transitions(memory)
    memory.seek(0)
    loaded = ReplayBuffer(SIZE, FIELDS)
    loaded.load_transitions(memory)
    with open(tmp_path / "rows.npz", "w+b") as file:
        loaded.save_transitions(file)
        file.seek(0)
        loaded.load_transitions(file)
    assert len(loaded) == 10


def test_a_save_that_fails_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "rows.npz"
    buffer = filled(ReplayBuffer, 5)
    buffer.save_transitions(path)
    before = path.read_bytes()

    def savez(stream, **_):
        stream.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez_compressed", savez)
    with pytest.raises(OSError, match="no space left"):
        buffer.save_transitions(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link.npz").symlink_to(tmp_path / "rows.npz")
    filled(ReplayBuffer, 5).save_transitions(tmp_path / "link.npz")
    assert (tmp_path / "link.npz").is_symlink()
    assert zipfile.is_zipfile(tmp_path / "rows.npz")


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        ReplayBuffer(SIZE, FIELDS).load_transitions(tmp_path / "rows.npz")


def save(buffer, path):
    buffer.save_transitions(path)


def load(buffer, path):
    buffer.load_transitions(path)


@BOTH_CLASSES
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_any_process_saves_and_loads(cls, method, tmp_path):
    context = multiprocessing.get_context(method)
    saved, loaded = filled(cls, 14), cls(SIZE, FIELDS)
    if cls is PrioritizedReplayBuffer:
        saved.acquire_learner()
    for function, buffer in ((save, saved), (load, loaded)):
        process = context.Process(target=function, args=(buffer, tmp_path / "rows.npz"))
        process.start()
        process.join()
        assert process.exitcode == 0
    assert_same_rows(saved, loaded)


def add_for_ever(buffer, until):
    i = 0
    while not until.is_set():
        i += 1
        buffer.add(a=i % 1000, priorities=i % 1000)


def test_each_row_is_saved_with_its_own_priority():
    """While the row is overwritten, by another process, and folded by the learner, this one."""
    context = multiprocessing.get_context("fork")
    buffer = PrioritizedReplayBuffer(50, {"a": {"dtype": np.float64}}, eps=1.0)
    until = context.Event()
    adder = context.Process(target=add_for_ever, args=(buffer, until))
    adder.start()
    try:
        while len(buffer) < 50:
            pass
        seen = set()
        while len(seen) < 2000:
            buffer.sample(1)
            saved, seqs, priorities = buffer._marked_rows()
            np.testing.assert_allclose(priorities, saved["a"].ravel(), rtol=1e-5, atol=1e-5)
            assert len(set(seqs.tolist())) == len(seqs)
            seen.update(seqs.tolist())
    finally:
        until.set()
        adder.join()


# cpprb's files


STEPS = {"obs": np.arange(12).reshape(6, 2), "rew": np.arange(6.0), "done": np.arange(6) == 5}
CPPRB_FIELDS = {"obs": {"shape": 2}, "rew": {}, "done": {}}
NSTEP = {"size": 3, "rew": "rew", "gamma": 0.5}


def env_dict(**more):
    return {name: dict(described) for name, described in (CPPRB_FIELDS | more).items()}


@pytest.mark.parametrize("nstep", [None, NSTEP])
@pytest.mark.parametrize("name", ["ReplayBuffer", "PrioritizedReplayBuffer"])
def test_files_of_cpprb_are_loaded_and_ours_by_cpprb(name, nstep, tmp_path):
    cpprb = pytest.importorskip("cpprb")
    theirs = getattr(cpprb, name)(8, env_dict(), Nstep=nstep)
    theirs.add(**STEPS)
    theirs.on_episode_end()
    theirs.save_transitions(str(tmp_path / "theirs.npz"))
    ours = {"ReplayBuffer": ReplayBuffer, "PrioritizedReplayBuffer": PrioritizedReplayBuffer}[name](
        8, env_dict(), Nstep=nstep
    )
    ours.load_transitions(tmp_path / "theirs.npz")
    assert_same_rows(ours, theirs)
    ours.save_transitions(tmp_path / "ours.npz")
    again = getattr(cpprb, name)(8, env_dict(), Nstep=nstep)
    again.load_transitions(str(tmp_path / "ours.npz"))
    assert_same_rows(again, theirs)


@pytest.mark.parametrize("n", [5, 11])
@pytest.mark.parametrize("compressed", [{"next_of": "obs"}, {"stack_compress": "obs"}])
def test_unsafe_files_of_cpprb_are_loaded(compressed, n, tmp_path):
    cpprb = pytest.importorskip("cpprb")
    theirs = cpprb.ReplayBuffer(8, env_dict(), **compressed)
    ours = ReplayBuffer(
        8, env_dict(next_obs={"shape": 2}) if "next_of" in compressed else env_dict()
    )
    for i in range(n):
        step = {"obs": [i, i + 1], "rew": i, "done": i % 4 == 3}
        if "next_of" in compressed:
            step["next_obs"] = [i + 1, i + 2 + (i % 4 == 3)]
        theirs.add(**step)
        if step["done"]:
            theirs.on_episode_end()
    theirs.save_transitions(str(tmp_path / "theirs.npz"), safe=False)
    ours.load_transitions(tmp_path / "theirs.npz")
    assert_same_rows(ours, theirs)


DATA = {
    "obs": np.arange(12, dtype=np.float32).reshape(6, 2),
    "rew": np.arange(6, dtype=np.float32)[:, None],
    "done": np.zeros((6, 1), np.float32),
}


def test_a_file_in_the_layout_of_cpprb():
    buffer = ReplayBuffer(8, CPPRB_FIELDS)
    buffer.load_transitions(io.BytesIO(cpprb_file(DATA)))
    for field, values in buffer.get_all_transitions().items():
        np.testing.assert_array_equal(values, DATA[field])


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("by_columns", [False, True])
def test_pickles_of_older_numpy(protocol, by_columns):
    data = {name: np.asarray(values, order="FC"[not by_columns]) for name, values in DATA.items()}
    whole = np.empty((), object)
    whole[()] = data
    pickled = pickle.dumps(whole, protocol=protocol)
    pickled = pickled.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    pickled = pickled.replace(b"\x8c\x16numpy.core", b"\x8c\x15numpy.core")
    pickled = pickled.replace(b"X\x16\0\0\0numpy.core", b"X\x15\0\0\0numpy.core")
    if protocol == 4:  # one frame, shorter than its header says
        pickled = pickled[:2] + pickled[11:]
    file = io.BytesIO(cpprb_file(None))
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = members["data.npy"][:128]
    members["data.npy"] = header + pickled
    older = io.BytesIO()
    with zipfile.ZipFile(older, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    buffer = ReplayBuffer(8, CPPRB_FIELDS)
    buffer.load_transitions(older)
    for field, values in buffer.get_all_transitions().items():
        np.testing.assert_array_equal(values, DATA[field])


# Refusals


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


REFUSED = {
    "another program": ({"obs": Canary("never")}, {}, "needs pickle to call posix.mkdir"),
    "an object": ({"obs": pathlib.PurePosixPath("a")}, {}, "needs pickle"),
    "objects": (DATA | {"obs": np.array([None] * 6)}, {}, "Python objects"),
    "no dict": (3, {}, "no dict"),
    "no rows": (DATA | {"rew": np.float32(1)}, {}, "no dict of arrays|needs pickle"),
    "no arrays": (DATA | {"rew": [1.0] * 6}, {}, "no dict of arrays"),
    "different lengths": (DATA | {"rew": np.zeros((5, 1))}, {}, "different numbers of rows"),
    "another format": (DATA, {"version": 2}, "its format is 2, expected 1"),
    "n-step rows": (DATA, {"Nstep": True}, "the file has n-step rows, expected single steps"),
    "another shape": (DATA | {"obs": np.zeros((6, 3))}, {}, r"field 'obs': .*\(3,\).*\(2,\)"),
    "too large": (DATA | {"rew": np.full((6, 1), 1e300)}, {}, "field 'rew'"),
    "too few priorities": (DATA, {"priorities": np.ones(5), "largest_priority": 1.0}, "priorities"),
    "a bad priority": (DATA, {"priorities": -np.ones(6), "largest_priority": 1.0}, "priorit"),
    "a bad largest": (DATA, {"priorities": np.ones(6), "largest_priority": np.nan}, "priorit"),
    "a late bad one": (
        {name: np.concatenate([values, values])[:8] for name, values in DATA.items()},
        {"priorities": np.r_[1, 1, 1, 1, 1, 1, 1, np.inf], "largest_priority": 1.0, "oldest": 3},
        "priorit",
    ),
    "a bad beginning": (DATA, {"oldest": 6}, "oldest row is 6"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("n", [0, 5])
def test_a_file_that_does_not_suit_changes_nothing(case, n, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, members, reason = REFUSED[case]
    buffer = PrioritizedReplayBuffer(8, CPPRB_FIELDS)
    buffer.add(**{name: values[:n] for name, values in STEPS.items()})
    before = state(buffer) if n else buffer.rows_added()
    with pytest.raises(ValueError, match=reason):
        buffer.load_transitions(io.BytesIO(cpprb_file(data, **members)))
    assert (state(buffer) if n else buffer.rows_added()) == before
    assert list(tmp_path.iterdir()) == []


def test_a_missing_field_is_named():
    buffer = ReplayBuffer(8, CPPRB_FIELDS | {"act": {}})
    with pytest.raises(KeyError, match=r"no field 'act'; its fields are 'obs', 'rew', 'done'"):
        buffer.load_transitions(io.BytesIO(cpprb_file(DATA)))
    assert len(buffer) == 0


def test_a_field_that_the_buffer_lacks_is_ignored_unless_strict():
    with pytest.warns(UserWarning, match="'extra'"):
        buffer = ReplayBuffer(8, CPPRB_FIELDS)
        buffer.load_transitions(io.BytesIO(cpprb_file(DATA | {"extra": np.zeros(6)})))
    assert len(buffer) == 6
    strict = ReplayBuffer(8, CPPRB_FIELDS, strict=True)
    with pytest.raises(TypeError, match="'extra'"):
        strict.load_transitions(io.BytesIO(cpprb_file(DATA | {"extra": np.zeros(6)})))
    assert len(strict) == 0


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive at all" * 10, pickle.dumps(DATA)])
def test_other_files_are_refused(content, tmp_path):
    path = tmp_path / "rows.npz"
    path.write_bytes(content)
    buffer = filled(ReplayBuffer, 3)
    before = state(buffer)
    with pytest.raises(ValueError, match=r"cannot load transitions from '.*rows\.npz': "):
        buffer.load_transitions(path)
    assert state(buffer) == before


def damaged_files(whole, count, generator):
    """Truncated ones, and some with one to four bits flipped."""
    for _ in range(count // 4):
        yield whole[: generator.integers(len(whole))]
    for _ in range(count - count // 4):
        damaged = bytearray(whole)
        for _ in range(generator.integers(1, 5)):
            damaged[generator.integers(len(whole))] ^= 1 << generator.integers(8)
        yield bytes(damaged)


def check_damaged(whole, count, seed):
    """Load damaged files; each is refused, or read back right."""
    right = PrioritizedReplayBuffer(8, CPPRB_FIELDS)
    right.load_transitions(io.BytesIO(whole))
    expected = right.get_all_transitions()
    buffer = PrioritizedReplayBuffer(8, CPPRB_FIELDS)
    refused = 0
    for damaged in damaged_files(whole, count, np.random.default_rng(seed)):
        added = buffer.rows_added()
        try:
            buffer.load_transitions(io.BytesIO(damaged))
        except ValueError as error:
            assert "cannot load transitions from" in str(error)
            assert buffer.rows_added() == added
            refused += 1
        else:
            for field, values in buffer.get_all_transitions().items():
                np.testing.assert_array_equal(values, expected[field])
            buffer.clear()
    assert refused > count // 2


OURS = {"priorities": np.arange(6.0), "largest_priority": 9.0, "oldest": 0}


@pytest.mark.parametrize("members", [{}, OURS], ids=["cpprb's", "ours"])
def test_damaged_files_are_refused_or_read_right(members):
    check_damaged(cpprb_file(DATA, **members), 500, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("members", [{}, OURS], ids=["cpprb's", "ours"])
def test_ten_thousand_damaged_files(members):
    check_damaged(cpprb_file(DATA, **members), 10_000, seed=2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:ignored on add")
def test_damage_behind_the_checksum_is_refused():
    """As zipfile's checksum finds nearly all damage: pickles that are changed, and then packed."""
    file = io.BytesIO(cpprb_file(DATA))
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pickled = members["data.npy"]
    generator = np.random.default_rng(3)
    buffer = ReplayBuffer(8, CPPRB_FIELDS)
    refused = 0
    for damaged in damaged_files(pickled, 2000, generator):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, damaged if name == "data.npy" else content)
        added = buffer.rows_added()
        try:
            buffer.load_transitions(packed)
        except (ValueError, KeyError):
            refused += 1
            assert buffer.rows_added() == added
    assert refused > 500


class ClearedMeanwhile(PrioritizedReplayBuffer):
    """Cleared by somebody, as soon as its rows are read."""

    def _marked_rows(self):
        marked = super()._marked_rows()
        self.clear()
        return marked


def test_priorities_are_saved_if_the_buffer_is_cleared_meanwhile():
    with ClearedMeanwhile(8, {"a": {}}) as buffer:
        buffer.add(a=[1, 2, 3], priorities=[0.5, 7.0, 3.0])
        file = io.BytesIO()
        buffer.save_transitions(file)
        assert buffer.get_max_priority() == 1.0
    file.seek(0)
    with PrioritizedReplayBuffer(8, {"a": {}}) as again:
        again.load_transitions(file)
        assert again.get_priorities([0, 1, 2]) == pytest.approx([0.5, 7.0, 3.0])
        assert again.get_max_priority() == pytest.approx(7.0)
