"""Snapshots in a directory: what comes back, what a second one writes, and what is refused."""

import contextlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from explorer_processes import FIELDS, assert_rows_are_whole, rows_of
from scipy import stats

import mpbuffer
from mpbuffer import PrioritizedReplayBuffer, ReplayBuffer, restore
from mpbuffer.errors import SnapshotBusy, SnapshotMismatch, SnapshotNotFound

ENV = {"obs": {"shape": 4}, "act": {"dtype": np.int64}, "rew": {}, "done": {"dtype": bool}}
GOLDEN = Path(__file__).parent.parent / "golden_snapshots"


@pytest.fixture
def tmp_path():
    """A directory in memory, where syncing takes no time."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of a few rows, so that small buffers have many."""
    monkeypatch.setattr("mpbuffer.buffer.stored_arrays._LEAST_BYTES", 600)


def rows_from(first, count):
    number = np.arange(first, first + count)
    return {
        "obs": number[:, None] + np.linspace(0, 1, 4),
        "act": number,
        "rew": -number,
        "done": number % 7 == 0,
    }


def filled(size=200, rows=330, **arguments):
    """A prioritized buffer that has gone round, been sampled and updated."""
    buffer = PrioritizedReplayBuffer(size, ENV, seed=5, **arguments)
    rng = np.random.default_rng(1)
    for first in range(0, rows, 30):
        buffer.add(**rows_from(first, 30), priorities=rng.random(30) * 3)
    batch = buffer.sample(64)
    buffer.update_priorities(batch["indexes"], rng.random(64) * 9)
    return buffer


def assert_same_rows(one, other):
    rows, others = one.get_all_transitions(), other.get_all_transitions()
    assert list(rows) == list(others)
    for name, values in rows.items():
        assert values.dtype == others[name].dtype
        np.testing.assert_array_equal(values, others[name], name)


def assert_same_buffer(one, other):
    assert type(one) is type(other)
    assert one.get_buffer_size() == other.get_buffer_size()
    assert one.get_next_index() == other.get_next_index()
    assert len(one) == len(other)
    assert one._fields() == other._fields()
    assert one._nstep() == other._nstep()
    assert_same_rows(one, other)
    if isinstance(one, PrioritizedReplayBuffer):
        slots = range(one.get_buffer_size())
        np.testing.assert_array_equal(one.get_priorities(slots), other.get_priorities(slots))
        assert one.get_max_priority() == other.get_max_priority()
        assert (one.alpha, one.eps) == (other.alpha, other.eps)


def files_in(path):
    return {file: file.stat().st_size for file in Path(path).rglob("*") if file.is_file()}


# What comes back


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("rows", [0, 1, 30, 180, 330])
def test_a_restored_buffer_is_the_buffer(tmp_path, rows):
    with PrioritizedReplayBuffer(200, ENV, alpha=0.7, eps=0.01) as buffer:
        for first in range(rows):
            buffer.add(**rows_from(first, 1), priorities=first % 5)
        buffer.snapshot(tmp_path)
        with restore(tmp_path) as again:
            assert_same_buffer(buffer, again)


def test_any_dtype_field_name_and_shape_comes_back(tmp_path):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    structured = np.dtype([("x", "<f4"), ("y", "<i2", (3,))])
    env = {
        "half": {"dtype": bfloat16, "shape": (2, 3)},
        "parts": {"dtype": structured},
        "when": {"dtype": "M8[s]"},
        "text": {"dtype": "S5"},
        "a/b ü": {"shape": ()},
        "complex": {"dtype": np.complex128},
    }
    with ReplayBuffer(8, env) as buffer:
        parts = np.array([[(1.5, (1, 2, 3))]], structured)
        buffer.add(
            **{
                "half": np.ones((1, 2, 3), bfloat16),
                "parts": parts,
                "when": np.array(["2026-01-01"], "M8[s]"),
            },
            **{"text": np.array([b"abc"]), "a/b ü": [7], "complex": [2 + 3j]},
        )
        buffer.snapshot(tmp_path)
        with restore(tmp_path) as again:
            assert_same_buffer(buffer, again)


def test_nstep_rules_and_strictness_come_back(tmp_path):
    nstep = {"size": 3, "rew": "rew", "gamma": 0.9, "next": "next_obs", "discount": "discount"}
    env = {"obs": {"shape": 2}, "next_obs": {"shape": 2}, "rew": {}, "done": {}}
    with PrioritizedReplayBuffer(50, env, Nstep=nstep, strict=True) as buffer:
        for i in range(20):
            buffer.add(obs=[i, i], next_obs=[i + 1, i + 1], rew=i, done=i % 8 == 7)
        buffer.snapshot(tmp_path)
        with restore(tmp_path) as again:
            assert_same_buffer(buffer, again)
            with pytest.raises(TypeError, match="unknown"):
                again.add(obs=[0, 0], next_obs=[0, 0], rew=0, done=0, unknown=1)


@pytest.mark.usefixtures("small_chunks")
def test_a_learner_restored_draws_the_same_next_batches(tmp_path):
    with filled() as buffer:
        buffer.snapshot(tmp_path)
        with restore(tmp_path) as again:
            for step in range(100):
                batch, same = buffer.sample(32, 0.5), again.sample(32, 0.5)
                for name, values in batch.items():
                    np.testing.assert_array_equal(values, same[name], name)
                priorities = np.random.default_rng(step).random(32) * 4
                for each, rows in ((buffer, batch), (again, same)):
                    assert each.update_priorities(rows["indexes"], priorities) == 0
                    if step % 9 == 0:
                        each.add(**rows_from(1_000 + step, 5), priorities=2.5)


def test_a_uniform_buffer_restored_draws_the_same_next_batches(tmp_path):
    with ReplayBuffer(100, ENV, seed=2) as buffer:
        buffer.add(**rows_from(0, 70))
        buffer.sample(10)
        buffer.snapshot(tmp_path)
        with restore(tmp_path) as again:
            for _ in range(20):
                batch, same = buffer.sample(16), again.sample(16)
                for name, values in batch.items():
                    np.testing.assert_array_equal(values, same[name], name)


def test_an_outsider_s_snapshot_has_no_generator(tmp_path):
    with filled(name=f"outsider-{os.getpid()}") as buffer, mpbuffer.attach(buffer.name) as outsider:
        outsider.snapshot(tmp_path)
        content = json.loads((tmp_path / "manifest.json").read_text())["content"]
        assert content["counters"]["generator"] is None
        with restore(tmp_path) as again:
            assert_same_buffer(buffer, again)


def test_generations_mean_the_same_rows_after_a_restore(tmp_path):
    with filled() as buffer:
        batch = buffer.sample(32)
        generations = buffer.get_generations(batch["indexes"])
        buffer.snapshot(tmp_path)
        with restore(tmp_path) as again:
            slots = batch["indexes"].copy()
            assert again.update_priorities(slots, 7.0, generations) == 0
            np.testing.assert_allclose(again.get_priorities(slots), 7.0, rtol=1e-5)


def test_draws_from_a_restored_buffer_follow_the_priorities(tmp_path):
    with filled() as buffer:
        buffer.snapshot(tmp_path)
    with restore(tmp_path) as again:
        counts = np.zeros(200)
        for _ in range(200):
            np.add.at(counts, again.sample(500)["indexes"], 1)
        leaves = (again.get_priorities(range(200)) + again.eps) ** again.alpha
        expected = leaves / leaves.sum() * counts.sum()
        assert stats.chisquare(counts, expected).pvalue > 1e-6
        assert stats.chisquare(counts, np.roll(expected, 1)).pvalue < 1e-6


def test_a_restored_buffer_is_attached_and_passed_to_processes(tmp_path, context):
    name = f"restored-{os.getpid()}"
    with filled() as buffer:
        buffer.snapshot(tmp_path)
    with restore(tmp_path, name) as again, mpbuffer.attach(name) as attached:
        assert_same_rows(again, attached)
        process = context.Process(target=add_one, args=(again,))
        process.start()
        process.join(60)
        assert process.exitcode == 0
        assert again.get_all_transitions()["act"].max() == 12_345


def add_one(buffer):
    buffer.add(**rows_from(12_345, 1))


def test_a_name_in_use_is_refused_and_overwritten_if_asked(tmp_path):
    name = f"taken-{os.getpid()}"
    with filled(name=name) as buffer:
        buffer.snapshot(tmp_path)
        with pytest.raises(mpbuffer.SegmentExists):
            restore(tmp_path, name)
        with restore(tmp_path, name, overwrite=True) as again:
            assert_same_rows(buffer, again)


def test_no_process_sees_a_buffer_that_is_being_restored(tmp_path):
    name = f"hidden-{os.getpid()}"
    with filled() as buffer:
        buffer.snapshot(tmp_path)
    seen = []

    def look(done, total):
        with contextlib.suppress(mpbuffer.SegmentNotFound):
            mpbuffer.attach(name).close()
            seen.append(done)

    with restore(tmp_path, name, progress=look):
        assert not seen
        mpbuffer.attach(name).close()


# Another size


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("size", [1, 77, 199, 201, 1_000])
def test_another_size_keeps_the_newest_rows_in_their_order(tmp_path, size):
    with filled() as buffer:
        buffer.snapshot(tmp_path)
        with restore(tmp_path, size=size) as again:
            assert again.get_buffer_size() == size
            kept = min(size, 200)
            rows = again.get_all_transitions()
            np.testing.assert_array_equal(rows["act"].ravel(), np.arange(330 - kept, 330))
            slots = rows["act"].ravel() % 200
            np.testing.assert_array_equal(
                again.get_priorities(range(kept)), buffer.get_priorities(slots)
            )
            assert again.get_max_priority() == buffer.get_max_priority()


# Frames


def atari(size, steps, **arguments):
    env = {"obs": {"shape": (12, 12, 4), "dtype": np.uint8}, "act": {"dtype": int}}
    buffer = PrioritizedReplayBuffer(size, env, next_of="obs", stack_compress="obs", **arguments)
    for step in range(steps):
        buffer.add(**atari_row(step), priorities=1 + step % 3)
    return buffer


def atari_row(step):
    frames = np.random.default_rng(7).integers(0, 256, (400, 12, 12), np.uint8)
    stack = np.moveaxis(frames[step : step + 5], 0, -1)
    return {"obs": stack[..., :4], "next_obs": stack[..., 1:], "act": step}


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("size", [None, 20, 150])
def test_frames_are_stored_once_and_come_back(tmp_path, size):
    with atari(100, 230) as buffer:
        status = buffer.snapshot(tmp_path)
        assert status.nbytes < 0.6 * 100 * buffer._row_bytes + 100 * 1_000
        with restore(tmp_path, size=size) as again:
            if size is None:
                assert_same_buffer(buffer, again)
            rows = again.get_all_transitions()
            assert sorted(rows["act"].ravel()) == list(range(230 - min(size or 100, 100), 230))
            for i, step in enumerate(rows["act"].ravel()):
                for name, value in atari_row(int(step)).items():
                    np.testing.assert_array_equal(rows[name][i], value)
            again.add(**atari_row(300), priorities=2)  # goes on
            assert 300 in again.get_all_transitions()["act"]


def test_the_first_axis_and_explicit_sources_come_back(tmp_path):
    env = {"obs": {"shape": (4, 12, 12), "dtype": np.uint8}, "i": {"dtype": int}}
    frames = np.random.default_rng(7).integers(0, 256, (200, 12, 12), np.uint8)
    with ReplayBuffer(50, env, stack_compress={"obs": 0}, sources=300) as buffer:
        for i in range(120):
            buffer.add(obs=frames[i : i + 4], i=i)
        buffer.snapshot(tmp_path)
        with restore(tmp_path) as again, restore(tmp_path, size=25) as smaller:
            assert_same_buffer(buffer, again)
            assert (again._ring_facts()[4], smaller._ring_facts()[4]) == ([300], [150])
            rows = smaller.get_all_transitions()
            assert list(rows["i"].ravel()) == list(range(95, 120))
            for i, stack in zip(rows["i"].ravel(), rows["obs"], strict=True):
                np.testing.assert_array_equal(stack, frames[i : i + 4])


def test_numpy_alone_reads_a_snapshot(tmp_path):
    with atari(100, 90) as buffer:
        buffer.snapshot(tmp_path)
    chunks = tmp_path / "chunks"

    def load(pattern):
        (file,) = chunks.glob(pattern)
        return np.load(file, allow_pickle=False)

    frames, references = load("frames1-000000.frames.*.npy"), load("rows-000000.0-obs.*.npy")
    acts = load("rows-000000.1-act.*.npy")
    content = json.loads((tmp_path / "manifest.json").read_text())["content"]
    slots = references % content["buffer"]["sources"][0]
    for act, stack in zip(acts.ravel(), frames[slots], strict=True):
        np.testing.assert_array_equal(np.moveaxis(stack, 0, -1), atari_row(int(act))["obs"])


# What a later snapshot writes and keeps


@pytest.mark.usefixtures("small_chunks")
def test_a_second_snapshot_writes_what_has_changed(tmp_path):
    with filled(2_000, 2_400) as buffer:
        first = buffer.snapshot(tmp_path)
        chunks = {file: file.stat().st_mtime_ns for file in (tmp_path / "chunks").iterdir()}
        buffer.add(**rows_from(5_000, 3))
        second = buffer.snapshot(tmp_path)
        assert (first.number, second.number) == (1, 2)
        assert second.nbytes == pytest.approx(first.nbytes, rel=0.01)
        kept = {
            file: file.stat().st_mtime_ns for file in (tmp_path / "chunks").iterdir()
        }.items() & chunks.items()
        assert len(kept) > 0.9 * len(chunks)
        manifest = (tmp_path / "manifest.json").stat().st_size
        assert second.written < 0.1 * first.nbytes + 4 * 2_000 + 2 * manifest
        with restore(tmp_path) as again:
            assert_same_buffer(buffer, again)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("change", ["nothing", "add", "update", "clear", "lap"])
def test_snapshots_after_any_change_are_right(tmp_path, change):
    with filled() as buffer:
        buffer.snapshot(tmp_path)
        if change in ("add", "lap"):
            buffer.add(**rows_from(400, 7 if change == "add" else 200))
        if change == "update":
            buffer.update_priorities(buffer.sample(8)["indexes"], 8.0)
        if change == "clear":
            buffer.clear()
            buffer.snapshot(tmp_path)
            with restore(tmp_path) as again:
                assert len(again) == 0 and again.get_next_index() == 0
            buffer.add(**rows_from(900, 9))
        buffer.snapshot(tmp_path)
        with restore(tmp_path) as again:
            assert_same_buffer(buffer, again)


@pytest.mark.usefixtures("small_chunks")
def test_another_buffer_s_snapshot_replaces_all(tmp_path):
    with filled() as buffer:
        buffer.snapshot(tmp_path)
        with restore(tmp_path) as again:  # a history of its own, with the same positions
            again.add(**rows_from(2_000, 50))
            assert again.snapshot(tmp_path).number == 2
        with restore(tmp_path) as third:
            assert 2_000 in third.get_all_transitions()["act"]
        buffer.add(**rows_from(3_000, 50))
        buffer.snapshot(tmp_path)
        with restore(tmp_path) as fourth:
            assert_same_buffer(buffer, fourth)


@pytest.mark.usefixtures("small_chunks")
def test_keep_keeps_the_last_snapshots_and_no_other_file(tmp_path):
    lengths = []
    with PrioritizedReplayBuffer(200, ENV) as buffer:
        for i in range(6):
            buffer.add(**rows_from(20 * i, 20))
            buffer.snapshot(tmp_path, keep=3)
            lengths.append(len(buffer))
        manifests = sorted(file.name for file in tmp_path.glob("manifest*"))
        assert manifests == ["manifest-000004.json", "manifest-000005.json", "manifest.json"]
        for name, length in zip(manifests, lengths[3:], strict=True):
            with restore(tmp_path / name) as again:
                assert len(again) == length
        buffer.snapshot(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["chunks", "lock", "manifest.json"]
    content = json.loads((tmp_path / "manifest.json").read_text())["content"]
    named = {file[0] for chunk in content["chunks"][0] for file in chunk["files"].values()}
    assert {file.name for file in (tmp_path / "chunks").iterdir()} == named | {content["leaves"][0]}


def test_files_of_others_are_left_alone(tmp_path):
    others = [
        tmp_path / "notes.txt",
        tmp_path / "chunks" / "notes.txt",
        tmp_path / "manifest-1.json",
    ]
    (tmp_path / "chunks").mkdir()
    for file in others:
        file.write_text("mine")
    with filled() as buffer:
        for _ in range(2):
            buffer.snapshot(tmp_path)
    assert [file.read_text() for file in others] == ["mine"] * 3


# What is refused


def test_no_snapshot_or_another_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "manifest.json", tmp_path / "nowhere"):
        with pytest.raises(SnapshotNotFound, match="there is no snapshot"):
            restore(path)
    for text in ("", "{}", "[]", '{"format": "web app"}', "\x00\xff", "[" * 100_000):
        (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
        with pytest.raises(SnapshotMismatch):
            restore(tmp_path)
        with filled() as buffer, pytest.raises(SnapshotMismatch):
            buffer.snapshot(tmp_path)
        assert (tmp_path / "manifest.json").read_text(encoding="latin-1") == text


def test_another_format_is_refused_with_both_versions(tmp_path):
    with filled() as buffer:
        buffer.snapshot(tmp_path)
    whole = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(whole | {"version": [2, 1]}))
    with pytest.raises(SnapshotMismatch, match=r"format 2\.1, this version reads 1\.x"):
        restore(tmp_path)


def flip(file, rng):
    content = bytearray(file.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 2, 30))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def truncate(file, rng):
    os.truncate(file, rng.randrange(file.stat().st_size))


def remove(file, rng):
    file.unlink()


def extend(file, rng):
    with file.open("ab") as stream:
        stream.write(rng.randbytes(rng.randrange(1, 50)))


def damage_many(tmp_path, seed, count):
    """Damage a snapshot in many ways; each is refused, or all of it reads back right."""
    rng = random.Random(seed)
    source = tmp_path / "source"
    refused = 0
    with filled() as buffer, atari(20, 30) as framed:
        for each in (buffer, framed):
            shutil.rmtree(source, ignore_errors=True)
            each.snapshot(source)
            files = [file for file in files_in(source) if file.name != "lock"]
            for _ in range(count // 2):
                file = rng.choice([*files, source / "manifest.json"])
                whole = file.read_bytes()
                rng.choice((flip, flip, flip, truncate, extend, remove))(file, rng)
                size = rng.choice((None, None, 15))
                try:
                    with restore(source, size=size) as again:
                        if size is None:
                            assert_same_buffer(each, again)
                        else:
                            assert len(again) == size
                except (SnapshotMismatch, SnapshotNotFound):
                    refused += 1
                file.write_bytes(whole)
            with restore(source) as again:
                assert_same_buffer(each, again)
    assert refused > 0.7 * count


@pytest.mark.usefixtures("small_chunks")
def test_damaged_snapshots_are_refused_or_read_back_right(tmp_path):
    damage_many(tmp_path, 1, 400)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.usefixtures("small_chunks")
def test_many_damaged_snapshots_are_refused_or_read_back_right(tmp_path):
    damage_many(tmp_path, 2, int(os.environ.get("MPBUFFER_DAMAGES", 100_000)))


def sealed(path, change):
    """Change a manifest and make its checksum right again, as no damage does."""
    from mpbuffer._files import manifests

    whole = json.loads(path.read_text())
    change(whole["content"])
    whole["sha256"] = manifests._sha256(whole["content"])
    path.write_text(json.dumps(whole))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["buffer"].update(size=10**13),
        lambda c: c["buffer"].update(size=-1),
        lambda c: c["buffer"].update(size=50),
        lambda c: c["buffer"].update(alpha=-1),
        lambda c: c["buffer"].update(description="[]"),
        lambda c: c["buffer"].update(sources=[5]),
        lambda c: c["counters"].update(position=3),
        lambda c: c["counters"].update(position=2**60),
        lambda c: c["counters"].update(cleared=-1),
        lambda c: c["counters"].update(max_priority="x"),
        lambda c: c["counters"].update(generator=[0, 0, 0, 0]),
        lambda c: c["counters"].update(generator=[1, 2]),
        lambda c: c["counters"].pop("position"),
        lambda c: c.update(slots_per_chunk=[0]),
        lambda c: c.update(chunks=[[]]),
        lambda c: c.update(leaves=None),
        lambda c: c["chunks"][0][0]["files"].pop("0"),
        lambda c: c["chunks"][0][0].update(slots=10**6),
        lambda c: c["chunks"][0][0]["files"]["0"].__setitem__(0, "../../etc/x.npy"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path, change):
    with filled() as buffer:
        buffer.snapshot(tmp_path)
    sealed(tmp_path / "manifest.json", change)
    with pytest.raises(SnapshotMismatch):
        restore(tmp_path)


@pytest.mark.parametrize("arguments", [{"keep": 0}, {"keep": 1.5}, {"keep": "x"}])
def test_bad_arguments_of_snapshot_change_nothing(tmp_path, arguments):
    with filled() as buffer, pytest.raises((ValueError, TypeError), match="keep"):
        buffer.snapshot(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_bad_arguments_of_restore_are_refused(tmp_path):
    with filled() as buffer:
        buffer.snapshot(tmp_path)
    bad = ({"size": 0}, {"size": 1.5}, {"name": "a/b"}, {"name": 3}, {"overwrite": True})
    for arguments in bad:
        with pytest.raises((ValueError, TypeError)):
            restore(tmp_path, **arguments)


def test_a_closed_buffer_has_no_snapshot(tmp_path):
    buffer = filled()
    buffer.close()
    with pytest.raises(mpbuffer.BufferClosed):
        buffer.snapshot(tmp_path)


# In the middle of other calls


@pytest.mark.usefixtures("small_chunks")
def test_progress_is_told_in_bytes_up_to_the_end(tmp_path):
    told = []
    with filled() as buffer:
        buffer.snapshot(tmp_path, progress=lambda *each: told.append(each))
        saved, told = told, []
        restore(tmp_path, progress=lambda *each: told.append(each)).close()
        smaller = []
        restore(tmp_path, size=20, progress=lambda *each: smaller.append(each)).close()
    for each in (saved, told, smaller):
        assert len(each) > 5 and each == sorted(each)
        assert {total for _, total in each} == {each[-1][0]}


@pytest.mark.usefixtures("small_chunks")
def test_an_exception_of_progress_leaves_the_last_snapshot(tmp_path):
    with filled() as buffer:
        buffer.snapshot(tmp_path)
        before = files_in(tmp_path)
        buffer.add(**rows_from(900, 100))
        for error in (ZeroDivisionError, KeyboardInterrupt):

            def fail(done, total, error=error):
                if done > total / 2:
                    raise error

            with pytest.raises(error):
                buffer.snapshot(tmp_path, progress=fail)
            with pytest.raises(error):
                restore(tmp_path, progress=fail)
            assert files_in(tmp_path) == before
        with pytest.raises(mpbuffer.BufferClosed):
            buffer.snapshot(tmp_path, progress=lambda *_: buffer.close())
        assert files_in(tmp_path) == before


@pytest.mark.usefixtures("small_chunks")
def test_a_child_forked_by_progress_leaves_the_snapshot_to_its_parent(tmp_path):
    children = []

    def fork(done, total):
        if not children:
            children.append(os.fork())
            if children == [0]:
                children[:] = [None]

    with filled() as buffer:
        try:
            buffer.snapshot(tmp_path, progress=fork)
        except RuntimeError as error:
            os._exit(0 if children == [None] and "forked" in str(error) else 1)
        if children == [None]:
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
        children.clear()
        try:
            again = restore(tmp_path, progress=fork)
        except mpbuffer.BufferClosed:
            os._exit(0 if children == [None] else 1)
        if children == [None]:
            os._exit(2)
        with again:
            assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
            assert_same_buffer(buffer, again)


@pytest.mark.usefixtures("small_chunks")
def test_a_signal_handler_saves_in_the_middle_of_any_call(tmp_path):
    """Of sample and add, and of a snapshot into the same directory, which it overtakes."""
    with filled() as buffer:
        by_handler = []
        rng = random.Random(3)

        def save(number, frame):
            by_handler.append(buffer.snapshot(tmp_path).number)
            signal.setitimer(signal.ITIMER_PROF, rng.uniform(1e-3, 2e-2))

        before = signal.signal(signal.SIGPROF, save)
        try:
            signal.setitimer(signal.ITIMER_PROF, 1e-3)
            deadline = time.monotonic() + 60
            for call in itertools.count():
                buffer.sample(32)
                buffer.add(**rows_from(10_000 + call, 20), priorities=1.0)
                if call % 20 == 0:
                    buffer.snapshot(tmp_path)
                if len(by_handler) == 12 or time.monotonic() > deadline:
                    break
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)
        assert len(by_handler) == 12
        buffer.snapshot(tmp_path)
        with restore(tmp_path) as again:
            assert_same_buffer(buffer, again)


@pytest.mark.usefixtures("small_chunks")
def test_a_snapshot_amid_a_snapshot_is_the_one_that_counts(tmp_path):
    with filled() as buffer:
        buffer.snapshot(tmp_path)
        inner = []

        def overtake(done, total):
            if not inner:
                buffer.add(**rows_from(7_000, 120))
                inner.append(buffer.snapshot(tmp_path))

        buffer.add(**rows_from(6_000, 30))
        outer = buffer.snapshot(tmp_path, progress=overtake)
        assert inner[0].number == outer.number == 2
        with restore(tmp_path) as again:
            assert_same_buffer(buffer, again)
        assert buffer.snapshot(tmp_path).number == 3


def hold(path, connection):
    with filled() as buffer:

        def wait(done, total):
            connection.send("amid")
            connection.recv()

        buffer.snapshot(path, progress=wait)


def test_two_processes_do_not_write_into_one_directory(tmp_path):
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=hold, args=(tmp_path, there))
    process.start()
    there.close()
    assert here.poll(30) and here.recv() == "amid"
    with filled() as buffer:
        with pytest.raises(SnapshotBusy, match="another process is writing one"):
            buffer.snapshot(tmp_path)
        process.kill()
        process.join()
        assert buffer.snapshot(tmp_path).number == 1  # nothing of the killed one is left
        assert len(files_in(tmp_path / "chunks")) == 6


def test_two_threads_do_not_write_into_one_directory(tmp_path):
    with filled() as buffer:
        refused = []

        def other_thread():
            with pytest.raises(SnapshotBusy, match="another thread of this process"):
                buffer.snapshot(tmp_path)
            refused.append(True)

        def progress(done, total):
            thread = threading.Thread(target=other_thread)
            thread.start()
            thread.join()

        buffer.snapshot(tmp_path, progress=progress)
        assert refused
        buffer.snapshot(tmp_path)


def test_no_descriptor_is_left_open(tmp_path):
    with filled() as buffer:
        buffer.snapshot(tmp_path)
        before = set(os.listdir("/proc/self/fd"))
        for _ in range(3):
            buffer.add(**rows_from(0, 9))
            buffer.snapshot(tmp_path)
            restore(tmp_path).close()
            with pytest.raises(ZeroDivisionError):
                buffer.snapshot(tmp_path, progress=lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                restore(tmp_path, progress=lambda *_: 1 / 0)
        assert set(os.listdir("/proc/self/fd")) == before


def test_a_full_disk_leaves_the_last_snapshot(tmp_path, monkeypatch):
    from mpbuffer import _core

    with filled() as buffer:
        buffer.snapshot(tmp_path)
        before = files_in(tmp_path)
        buffer.add(**rows_from(900, 20))

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(_core, "sync_files", full)
        with pytest.raises(OSError, match="No space"):
            buffer.snapshot(tmp_path)
        assert files_in(tmp_path) == before
        with pytest.raises(OSError, match="nothing"):
            buffer.snapshot("/proc/self/nothing")


# Snapshots of an earlier version


def test_the_golden_snapshots_of_format_1_0_are_read():
    """Made by ``python tests/golden_snapshots/make.py``; to be kept as they are."""
    with restore(GOLDEN / "prioritized-1.0") as buffer:
        assert (buffer.alpha, buffer.eps, buffer.get_buffer_size()) == (0.6, 0.25, 8)
        assert_rows_are_whole(buffer.get_all_transitions(), 1, 11)
        assert sorted(buffer.get_all_transitions()["counter"]) == list(range(3, 11))
        assert buffer.get_max_priority() == 40.5
        assert buffer.get_priorities([3, 2])[0] == pytest.approx(3.5)
        np.testing.assert_array_equal(buffer.sample(4)["counter"], [8, 10, 5, 5])
    with restore(GOLDEN / "frames-1.0") as buffer:
        rows = buffer.get_all_transitions()
        assert sorted(rows["i"].ravel()) == [2, 3, 4, 5, 6]
        for i, obs in zip(rows["i"].ravel(), rows["obs"], strict=True):
            assert (obs == np.arange(i, i + 2)).all()


def test_rows_of_explorers_fields_come_back_whole(tmp_path):
    with ReplayBuffer(64, FIELDS) as buffer:
        buffer.add(**rows_of(0, np.arange(100)[:64]))
        buffer.snapshot(tmp_path)
        with restore(tmp_path) as again:
            assert_rows_are_whole(again.get_all_transitions(), 1, 64)
