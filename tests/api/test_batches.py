"""sample(out=...), and batches(): arrays that are used again, gathered ahead or not."""

import ctypes
import gc
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
import weakref
from pathlib import Path

import numpy as np
import pytest
from watched_processes import run_python

import mpbuffer

FIELDS = {
    "number": {"dtype": np.int64},
    "obs": {"shape": (7, 3), "dtype": np.float32},
    "flag": {"dtype": np.bool_},
}
SIZE = 256
KINDS = [mpbuffer.ReplayBuffer, mpbuffer.PrioritizedReplayBuffer]


def rows(first, count):
    number = np.arange(first, first + count).reshape(-1, 1)
    obs = np.broadcast_to(number[:, :, None], (count, 7, 3)).astype(np.float32)
    return {"number": number, "obs": obs, "flag": number % 2 == 1}


def check_rows(batch):
    number = np.asarray(batch["number"])
    assert (np.asarray(batch["obs"]) == number[:, :, None]).all()
    assert (np.asarray(batch["flag"]) == (number % 2 == 1)).all()
    if "indexes" in batch:
        assert (np.asarray(batch["indexes"]) == number[:, 0] % SIZE).all()
    if "weights" in batch:
        weights = np.asarray(batch["weights"])
        assert (weights > 0).all() and (weights <= 1).all()


@pytest.fixture(params=KINDS)
def buffer(request):
    with request.param(SIZE, FIELDS, seed=3) as opened:
        opened.add(**rows(0, SIZE))
        yield opened


def with_indexes(buffer):
    if isinstance(buffer, mpbuffer.PrioritizedReplayBuffer):
        return {}
    return {"return_indexes": True}


def addresses(batch):
    return {name: values.ctypes.data for name, values in batch.items()}


def test_out_is_written_to_and_returned(buffer):
    first = buffer.sample(32, **with_indexes(buffer))
    places, drawn = addresses(first), first["number"].copy()
    again = buffer.sample(32, **with_indexes(buffer), out=first)
    assert again is first and addresses(first) == places
    assert (first["number"] != drawn).any()
    check_rows(first)


def test_out_draws_what_fresh_arrays_get():
    one = mpbuffer.PrioritizedReplayBuffer(SIZE, FIELDS, seed=9)
    other = mpbuffer.PrioritizedReplayBuffer(SIZE, FIELDS, seed=9)
    with one, other:
        for each in one, other:
            each.add(**rows(0, SIZE), priorities=np.arange(1, SIZE + 1))
        out = one.sample(16, 0.7)
        other.sample(16, 0.7)
        for _ in range(5):
            one.sample(16, 0.7, out=out)
            fresh = other.sample(16, 0.7)
            assert all((out[name] == fresh[name]).all() for name in fresh)


def test_out_may_be_arrays_of_ones_own_with_more_in_the_dict(buffer):
    out = {
        "number": np.empty((8, 1), np.int64),
        "obs": np.empty((8, 7, 3), np.float32),
        "flag": np.empty((8, 1), np.bool_),
        "weights": np.ones(8, np.float32),
        "indexes": np.empty(8, np.int64),
        "note": "mine",
    }
    buffer.sample(8, **with_indexes(buffer), out=out)
    check_rows(out)
    assert out["note"] == "mine"
    if isinstance(buffer, mpbuffer.PrioritizedReplayBuffer):
        assert buffer.update_priorities(out["indexes"], np.ones(8)) == 0


def test_indexes_of_out_know_their_rows_after_each_sample():
    with mpbuffer.PrioritizedReplayBuffer(SIZE, FIELDS) as buffer:
        buffer.add(**rows(0, SIZE))
        batch = buffer.sample(64)
        for lap in range(1, 6):
            buffer.sample(64, out=batch)
            assert buffer.update_priorities(batch["indexes"], np.full(64, 2.0)) == 0
            buffer.add(**rows(lap * SIZE, SIZE))
            assert buffer.update_priorities(batch["indexes"], np.full(64, 99.0)) == 64
            assert buffer.get_max_priority() == 2.0


def broken(out, **changes):
    return out | {name: change(out[name]) for name, change in changes.items()}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda out: [], TypeError, "expected a dict"),
        (lambda out: {k: v for k, v in out.items() if k != "obs"}, KeyError, "obs.*missing"),
        (lambda out: {k: v for k, v in out.items() if k != "indexes"}, KeyError, "indexes"),
        (lambda out: broken(out, obs=lambda a: a.tolist()), TypeError, "obs.*list"),
        (lambda out: broken(out, obs=lambda a: a[:-1]), ValueError, r"\(31, 7, 3\).*\(32, 7, 3\)"),
        (lambda out: broken(out, obs=lambda a: a.astype("f8")), ValueError, "float64.*float32"),
        (lambda out: broken(out, obs=lambda a: a.astype(">f4")), ValueError, "obs"),
        (lambda out: broken(out, obs=np.asfortranarray), ValueError, "contiguous"),
        (lambda out: broken(out, indexes=lambda a: a.astype("i4")), ValueError, "int32.*int64"),
        (lambda out: broken(out, number=lambda a: a[:, 0]), ValueError, r"\(32,\)"),
    ],
)
def test_out_that_does_not_suit_changes_nothing(buffer, change, error, words):
    out = change(buffer.sample(32, **with_indexes(buffer)))
    before = {k: np.copy(v) for k, v in out.items()} if isinstance(out, dict) else None
    with pytest.raises(error, match=words):
        buffer.sample(32, **with_indexes(buffer), out=out)
    if before is not None:
        assert all((before[name] == np.asarray(out[name])).all() for name in out)


def test_read_only_arrays_and_other_buffers_indexes_are_refused(buffer):
    out = buffer.sample(32, **with_indexes(buffer))
    out["obs"].flags.writeable = False
    with pytest.raises(ValueError, match=r"obs.*read-only"):
        buffer.sample(32, **with_indexes(buffer), out=out)
    with type(buffer)(SIZE, FIELDS) as other:
        other.add(**rows(0, SIZE))
        batch = other.sample(32, **with_indexes(other))
        with pytest.raises(ValueError, match="another buffer"):
            buffer.sample(32, **with_indexes(buffer), out=batch)


def uniform_sample(buffer):
    """Its method for uniform draws, whatever the kind."""
    return getattr(buffer, "sample_uniform", buffer.sample)


def test_uniform_samples_keep_no_indexes_or_weights_of_other_rows(buffer):
    prioritized = isinstance(buffer, mpbuffer.PrioritizedReplayBuffer)
    out = buffer.sample(32, **with_indexes(buffer))
    out.setdefault("weights", np.full(32, 0.5, np.float32))
    indexes, weights, before = out["indexes"], out["weights"], out["weights"].copy()
    for _ in range(3):
        assert uniform_sample(buffer)(32, out=out) is out
        assert "weights" not in out and out["indexes"] is indexes
        check_rows(out)
    assert (weights == before).all()
    if prioritized:
        assert (buffer.get_generations(indexes) == SIZE + out["number"][:, 0]).all()
    del out["indexes"]
    uniform_sample(buffer)(32, out=out)
    assert "indexes" not in out


def test_out_whose_indexes_do_not_suit_is_refused_though_none_were_asked_for(buffer):
    out = buffer.sample(32, **with_indexes(buffer))
    out["indexes"] = out["indexes"][::-1]
    before = {name: values.copy() for name, values in out.items()}
    with pytest.raises(ValueError, match=r"indexes.*contiguous"):
        uniform_sample(buffer)(32, out=out)
    assert out.keys() == before.keys()
    assert all((out[name] == before[name]).all() for name in before)


def test_fields_named_like_weights_and_indexes_are_fields():
    fields = {"weights": {}, "indexes": {"dtype": np.int64}}
    with mpbuffer.ReplayBuffer(8, fields) as buffer:
        buffer.add(weights=np.full(8, 2.0), indexes=np.full(8, 5))
        out = buffer.sample(4)
        buffer.sample(4, out=out)
        assert (out["weights"] == 2).all() and (out["indexes"] == 5).all()


OVERLAPS = {
    "one array twice": lambda out: out.update(flag=out["same"]),
    "a view of it": lambda out: out.update(flag=out["same"][...]),
    "other dtype": lambda out: out.update(number=out["wide"][:256].view(np.int64).reshape(32, 1)),
    "part of it": lambda out: out.update(flag=out["wide"][64:96].view(np.bool_).reshape(32, 1)),
    "indexes": lambda out: out.update(number=out["indexes"].reshape(32, 1)),
    "weights": lambda out: out.update(obs=out["weighty"], weights=out["weighty"].ravel()[:32]),
}


@pytest.mark.parametrize("how", OVERLAPS)
def test_out_whose_arrays_share_memory_is_refused(how):
    fields = {**FIELDS, "same": {"dtype": np.bool_}}
    with mpbuffer.PrioritizedReplayBuffer(SIZE, fields) as buffer:
        buffer.add(**rows(0, SIZE), same=np.ones(SIZE))
        out = buffer.sample(32)
        out["wide"] = np.ones(32 * 7 * 3 * 4, np.uint8)
        out["obs"] = out["wide"].view(np.float32).reshape(32, 7, 3)
        out["weighty"] = np.ones((32, 7, 3), np.float32)
        OVERLAPS[how](out)
        before = {name: values.copy() for name, values in out.items()}
        with pytest.raises(ValueError, match=r"out\['\w+'\].*shares memory with out\['\w+'\]"):
            buffer.sample(32, out=out)
        assert all((out[name] == before[name]).all() for name in before)


def test_arrays_of_out_may_lie_side_by_side(buffer):
    memory = np.empty(32 * (8 + 84 + 1), np.uint8)
    out = {
        "number": memory[: 32 * 8].view(np.int64).reshape(32, 1),
        "obs": memory[32 * 8 : 32 * 92].view(np.float32).reshape(32, 7, 3),
        "flag": memory[32 * 92 :].view(np.bool_).reshape(32, 1),
    }
    uniform_sample(buffer)(32, out=out)
    check_rows(out)


LARGE = {"shape": (300, 100)}  # 120 kB a row


def large_rows(first, count):
    number = np.arange(first, first + count)
    frames = np.broadcast_to(number[:, None, None], (count, 300, 100)).astype(np.float32)
    return {"number": number, "frames": frames, "next": frames + 1}


def check_large_rows(batch, numbers):
    assert (batch["number"][:, 0] == numbers).all()
    assert (batch["frames"] == numbers[:, None, None]).all()
    assert (batch["next"] == numbers[:, None, None] + 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_samples_reuse_the_memory_of_large_arrays_that_nothing_references(kind):
    fields = {"number": {"dtype": np.int64}, "frames": LARGE, "next": LARGE}
    batch_size = 50  # 6 MB an array
    with kind(64, fields, seed=3) as buffer:
        buffer.add(**large_rows(0, 64))
        kept = []
        seen = set()
        for turn in range(12):
            batch = buffer.sample(batch_size)
            numbers = batch["number"][:, 0].copy()
            check_large_rows(batch, numbers)
            seen |= {addresses(batch)["frames"], addresses(batch)["next"]}
            if turn % 4 == 1:
                kept.append((batch, numbers))
            elif turn % 4 == 2:  # part of the batch, and through a view only
                partly = {"number": batch["number"], "next": batch["next"][::-1][::-1]}
                kept.append(({**partly, "frames": batch["frames"][...]}, numbers))
            for earlier, its_numbers in kept:
                check_large_rows(earlier, its_numbers)
        assert len(seen) <= 2 * (len(kept) + 2) < 2 * 12
        half = buffer.sample(batch_size // 2)
        check_large_rows(half, half["number"][:, 0].copy())
        batch = buffer.sample(batch_size)
        numbers = batch["number"][:, 0].copy()
    kept.append((batch, numbers))
    del buffer
    gc.collect()
    for earlier, its_numbers in kept:
        check_large_rows(earlier, its_numbers)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_batches_are_whole(buffer, prefetch):
    with buffer.batches(48, prefetch=prefetch, **with_indexes(buffer)) as batches:
        for number, batch in zip(range(300), batches, strict=False):
            check_rows(batch)
            if number % 10 == 0:
                buffer.add(**rows(number * SIZE, SIZE))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_batches_reuse_the_memory_of_large_arrays(kind, prefetch):
    fields = {"number": {"dtype": np.int64}, "frames": LARGE, "next": LARGE}
    places = set()
    with kind(64, fields) as buffer:
        buffer.add(**large_rows(0, 64))
        with buffer.batches(2, prefetch=prefetch) as batches:
            for batch, _ in zip(batches, range(40), strict=False):
                check_large_rows(batch, batch["number"][:, 0])
                places |= {addresses(batch)["frames"], addresses(batch)["next"]}
    # One is used, `prefetch` are under way, and the next one is made before the first is dropped.
    assert len(places) <= 2 * (prefetch + 2)


IN_PLACE = {
    "shape": lambda values: setattr(values, "shape", (-1,)),
    "dtype": lambda values: setattr(values, "dtype", np.uint8),
    "read-only": lambda values: values.setflags(write=False),
}


@pytest.mark.parametrize("how", IN_PLACE)
@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_changed_in_place_leave_later_batches_alone(kind, prefetch, how):
    fields = {"number": {"dtype": np.int64}, "frames": LARGE, "next": LARGE}
    with kind(64, fields) as buffer:
        buffer.add(**large_rows(0, 64))
        with buffer.batches(2, prefetch=prefetch, **with_indexes(buffer)) as batches:
            for batch, _ in zip(batches, range(12), strict=False):
                assert batch["frames"].shape == (2, 300, 100) and batch["frames"].flags.writeable
                check_large_rows(batch, batch["number"][:, 0])
                for values in batch.values():
                    IN_PLACE[how](values)


SHARED = {
    "array": lambda values: values,
    "view of a view": lambda values: values[:, ::3][..., 1:].T,
    "other shape and dtype": lambda values: values.reshape(-1).view(np.uint8)[5:],
    "memoryview": lambda values: memoryview(values)[1:],
    "frombuffer": lambda values: np.frombuffer(values, np.float32)[7:],
    "base": lambda values: values.base,
    "base of a view": lambda values: values[1:].base,
}


@pytest.mark.parametrize("how", SHARED)
@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_memory_is_not_reused_while_anything_references_it(how, pinned, prefetch, fake_torch):
    fields = {"number": {"dtype": np.int64}, "frames": LARGE, "next": LARGE}
    with mpbuffer.ReplayBuffer(64, fields, seed=1) as buffer:
        buffer.add(**large_rows(0, 64))
        with buffer.batches(2, prefetch=prefetch, pin_memory=pinned) as batches:
            kept = []
            for batch, number in zip(batches, range(16), strict=False):
                at, expected = addresses(batch)["frames"], batch["frames"].tobytes()
                shared = SHARED[how](batch["frames"])
                batch.clear()
                if number % 3 == 0:
                    kept.append((at, expected, shared))
                del shared
                for at, expected, _ in kept:
                    assert ctypes.string_at(at, len(expected)) == expected
            assert len({at for at, _, _ in kept}) == len(kept)


def test_indexes_that_are_kept_know_their_rows():
    """Whatever else their batch's memory is used for meanwhile."""
    with mpbuffer.PrioritizedReplayBuffer(SIZE, FIELDS, seed=1) as buffer:
        buffer.add(**rows(0, SIZE))
        kept = []
        with buffer.batches(32, prefetch=2) as batches:
            for batch, number in zip(batches, range(60), strict=False):
                if number % 2:
                    kept.append((batch["indexes"][3::2], batch["number"][3::2, 0].copy()))
                buffer.add(**rows(SIZE + number, 1))
            del batch
            for view, numbers in kept:
                assert (view == numbers % SIZE).all()
                assert (buffer.get_generations(view) == SIZE + numbers).all()


class FakeEvent:
    def __init__(self, cuda):
        self.cuda = cuda

    def record(self):
        self.at = self.cuda.now()

    def query(self):
        self.cuda.asked += 1
        return self.at <= self.cuda.done


class FakeCuda:
    """A GPU that has done what it was asked to do until the moment `done`."""

    def __init__(self):
        self.moments = 0
        self.done = math.inf
        self.asked = 0
        self.on_record = lambda: None

    def now(self):
        self.moments += 1
        self.on_record()
        return self.moments

    def is_available(self):
        return True

    def Event(self):
        return FakeEvent(self)


class FakeTensor:
    def __init__(self, address):
        self.address = address

    def data_ptr(self):
        return self.address


class FakeTorch(types.ModuleType):
    """What is used of torch for page-locked memory."""

    uint8 = "uint8"

    def __init__(self):
        super().__init__("torch")
        self.cuda = FakeCuda()
        self.pinned = set()  # the addresses of tensors that are alive
        self.memory = []  # of all tensors: no address comes twice

    def empty(self, bytes, *, dtype, pin_memory):
        assert dtype is self.uint8 and pin_memory
        self.memory.append(np.zeros(bytes, np.uint8))
        tensor = FakeTensor(self.memory[-1].ctypes.data)
        self.pinned.add(tensor.address)
        weakref.finalize(tensor, self.pinned.remove, tensor.address)
        return tensor


@pytest.fixture
def fake_torch(monkeypatch):
    torch = FakeTorch()
    monkeypatch.setitem(sys.modules, "torch", torch)
    return torch


@pytest.mark.parametrize("prefetch", [0, 2])
def test_all_arrays_but_indexes_are_pinned(buffer, prefetch, fake_torch):
    with buffer.batches(16, prefetch=prefetch, pin_memory=True, **with_indexes(buffer)) as batches:
        for batch, _ in zip(batches, range(10), strict=False):
            check_rows(batch)
            pinned = {name for name, at in addresses(batch).items() if at in fake_torch.pinned}
            assert pinned == batch.keys() - {"indexes"}
        most = (prefetch + 2) * len(pinned)
        assert len(fake_torch.pinned) <= most
    kept = batch
    del batch
    gc.collect()
    assert len(fake_torch.pinned) == len(pinned)  # closed: what is not kept is dropped
    check_rows(kept)
    del kept
    assert not fake_torch.pinned


def test_pinned_memory_is_reused_only_after_the_gpu_has_copied_it(fake_torch):
    cuda = fake_torch.cuda
    with mpbuffer.ReplayBuffer(SIZE, {"obs": {"shape": 30}}) as buffer:
        buffer.add(obs=np.zeros((SIZE, 30), np.float32))
        with buffer.batches(16, prefetch=3, pin_memory=True) as batches:

            def places(count):
                return [addresses(next(batches))["obs"] for _ in range(count)]

            batch = next(batches)
            at = batch["obs"].ctypes.data
            kept = batch["obs"][2:][::2]
            del batch
            assert at not in places(8) and len(fake_torch.memory) < 8
            cuda.done = cuda.moments  # all that it was asked to do until now, and no more
            del kept
            assert at not in places(8) and cuda.moments > cuda.done
            assert len(fake_torch.memory) > 8
            cuda.done = math.inf
            assert at in places(8)


def test_a_block_that_comes_back_while_an_event_is_recorded_needs_a_later_one(fake_torch):
    cuda = fake_torch.cuda
    with mpbuffer.ReplayBuffer(SIZE, {"obs": {"shape": 30}}) as buffer:
        buffer.add(obs=np.zeros((SIZE, 30), np.float32))
        with buffer.batches(16, prefetch=3, pin_memory=True) as batches:
            first, second = next(batches), next(batches)
            at = second["obs"].ctypes.data
            del first
            dropped = [second]
            del second
            cuda.on_record = dropped.clear
            cuda.done = cuda.moments + 1  # the event that is recorded next, and none after it
            places = [addresses(next(batches))["obs"] for _ in range(6)]
            assert not dropped and at not in places


def test_an_error_of_cuda_ends_one_call_only(fake_torch):
    def fail():
        raise RuntimeError("CUDA error")

    with mpbuffer.ReplayBuffer(SIZE, FIELDS) as buffer:
        buffer.add(**rows(0, SIZE))
        with buffer.batches(16, pin_memory=True) as batches:
            next(batches)
            fake_torch.cuda.on_record = fail
            with pytest.raises(RuntimeError, match="CUDA error"):
                next(batches)
            fake_torch.cuda.on_record = lambda: None
            for _ in range(5):
                check_rows(next(batches))


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("what", ["batches", "buffer"])
def test_closing_while_an_event_is_recorded(prefetch, what, fake_torch):
    with mpbuffer.ReplayBuffer(SIZE, FIELDS) as buffer:
        buffer.add(**rows(0, SIZE))
        with buffer.batches(16, prefetch=prefetch, pin_memory=True) as batches:
            fake_torch.cuda.on_record = {"batches": batches, "buffer": buffer}[what].close
            with pytest.raises(mpbuffer.BufferClosed):
                for _ in range(10):
                    check_rows(next(batches))
    gc.collect()
    assert not fake_torch.pinned


@pytest.mark.parametrize("kind", KINDS)
def test_spare_memory_is_bounded_and_freed_with_the_buffer(kind):
    fields = {"number": {"dtype": np.int64}, "frames": LARGE}
    array_bytes = 300 * 120_000  # more than malloc ever keeps for itself
    with kind(64, fields) as buffer:
        buffer.add(number=np.arange(64), frames=np.zeros((64, 300, 100), np.float32))
        with buffer.batches(300) as batches:
            before = resident_bytes()
            held = [*(buffer.sample(300) for _ in range(3)), *(next(batches) for _ in range(3))]
            assert resident_bytes() - before > 5 * array_bytes
            del held
            assert resident_bytes() - before < 2.5 * array_bytes
        assert resident_bytes() - before < 1.5 * array_bytes
        buffer.close()
        assert resident_bytes() - before < 0.5 * array_bytes


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("keep", ["arrays", "views", "memory", "dicts"])
def test_what_is_kept_stays_as_it_was(buffer, prefetch, keep):
    kept = []
    with buffer.batches(16, prefetch=prefetch) as batches:
        for number, batch in zip(range(40), batches, strict=False):
            if number % 3 == 0:
                values = batch["obs"]
                copy = values.copy()
                kept.append(
                    {
                        "arrays": (values, copy),
                        "views": (values[3:5, ::2], copy[3:5, ::2]),
                        "memory": (memoryview(values), copy),
                        "dicts": (batch, copy),
                    }[keep]
                )
            del batch
        for held, copy in kept:
            assert (np.asarray(held["obs"] if keep == "dicts" else held) == copy).all()
    for held, copy in kept:
        assert (np.asarray(held["obs"] if keep == "dicts" else held) == copy).all()


def test_tensors_share_the_memory_and_are_not_overwritten(buffer):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(3, 1)
    with buffer.batches(16, prefetch=2, tensors=True) as batches:
        losses = []
        for _ in range(12):
            batch = next(batches)
            check_rows(batch)
            assert isinstance(batch["obs"], torch.Tensor)
            losses.append((layer(batch["obs"]).sum(), batch["obs"].clone()))
        del batch
        gc.collect()
        for loss, obs in losses:  # the graphs alone keep the observations
            layer.zero_grad()
            loss.backward()
            assert torch.allclose(layer.weight.grad[0], obs.sum(dim=(0, 1)))


@pytest.mark.parametrize("prefetch", [1, 4])
def test_late_updates_are_exact(prefetch):
    with mpbuffer.PrioritizedReplayBuffer(SIZE, FIELDS, alpha=1.0, eps=0.0) as buffer:
        buffer.add(**rows(0, SIZE))
        newest = np.arange(SIZE)
        expected = np.ones(SIZE)
        waiting = []
        added = SIZE
        with buffer.batches(32, prefetch=prefetch) as batches:
            for step in range(200):
                batch = next(batches)
                waiting.append((batch["indexes"], batch["number"][:, 0].copy()))
                count = step % 7
                if count:
                    buffer.add(**rows(added, count), priorities=np.full(count, 3.0))
                    new = np.arange(added, added + count)
                    newest[new % SIZE], expected[new % SIZE] = new, 3.0
                    added += count
                if step % 3 == 2:
                    for indexes, numbers in reversed(waiting):
                        priorities = 1.0 + numbers % 11 + step % 5
                        alive = newest[indexes] == numbers
                        assert buffer.update_priorities(indexes, priorities) == (~alive).sum()
                        expected[indexes[alive]] = priorities[alive]
                    waiting.clear()
        buffer.sample(1)
        assert (buffer._leaves() == expected.astype(np.float32)).all()
        assert buffer._tree_total() == expected.sum()


def test_beta_changes_what_is_drawn_later():
    with mpbuffer.PrioritizedReplayBuffer(SIZE, FIELDS) as buffer:
        buffer.add(**rows(0, SIZE), priorities=np.arange(1, SIZE + 1))
        with buffer.batches(64, 0.0) as batches:
            assert (next(batches)["weights"] == 1).all()
            batches.beta = 1.0
            assert batches.beta == 1.0 and (next(batches)["weights"] < 1).any()
            for bad in -1.0, float("nan"), float("inf"):
                with pytest.raises(ValueError, match="beta"):
                    batches.beta = bad
                with pytest.raises(ValueError, match="beta"):
                    buffer.batches(64, bad)
            assert batches.beta == 1.0


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("beta", [None, "0.4", [0.4], 1j])
def test_a_beta_that_is_no_number_is_an_error_as_that_of_sample(prefetch, beta):
    with mpbuffer.PrioritizedReplayBuffer(SIZE, FIELDS) as buffer:
        buffer.add(**rows(0, SIZE))
        with pytest.raises(TypeError):
            buffer.sample(8, beta)
        with pytest.raises(TypeError, match="real number"):
            buffer.batches(8, beta, prefetch=prefetch)
        with buffer.batches(8, prefetch=prefetch) as batches:
            with pytest.raises(TypeError, match="real number"):
                batches.beta = beta
            assert batches.beta == 0.4
            check_rows(next(batches))


@pytest.mark.parametrize("beta", [True, np.float32(0.5), np.int64(1), 2])
def test_a_beta_that_sample_takes_is_taken(beta):
    with mpbuffer.PrioritizedReplayBuffer(SIZE, FIELDS) as buffer:
        buffer.add(**rows(0, SIZE))
        buffer.sample(8, beta)
        with buffer.batches(8, beta) as batches:
            assert type(batches.beta) is float and batches.beta == beta


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_empty_buffer_is_an_error_and_then_the_iteration_goes_on(prefetch):
    buffer = mpbuffer.PrioritizedReplayBuffer(SIZE, FIELDS)
    with buffer, buffer.batches(4, prefetch=prefetch) as batches:
        for _ in range(3):
            with pytest.raises(mpbuffer.EmptyBuffer):
                next(batches)
        buffer.add(**rows(7, 1))
        assert (next(batches)["number"] == 7).all()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_another_learner_is_an_error(prefetch):
    with mpbuffer.PrioritizedReplayBuffer(SIZE, FIELDS) as buffer:
        buffer.add(**rows(0, 8))
        with mpbuffer.attach(buffer.name) as learner:
            learner.sample(1)
            with buffer.batches(4, prefetch=prefetch) as batches:
                with pytest.raises(mpbuffer.LearnerBusy):
                    next(batches)
                learner.release_learner()
                check_rows(next(batches))


def learner_of(buffer):
    return buffer.learner_status().process


def test_no_batch_under_way_takes_a_role_that_was_released():
    """Large batches, so that most releases meet one in its copy."""
    with mpbuffer.PrioritizedReplayBuffer(64, {"x": {"shape": 100_000}}) as buffer:
        buffer.add(x=np.zeros((64, 100_000), np.float32))
        with (
            buffer.batches(50, prefetch=3) as one,
            buffer.batches(2, prefetch=2) as other,
            mpbuffer.attach(buffer.name) as successor,
        ):
            for turn in range(15):
                next(one)
                next(other)
                time.sleep(0.002 * (turn % 4))
                buffer.release_learner()
                for _ in range(20):
                    assert learner_of(buffer) == 0
                    time.sleep(0.001)
                if turn % 3 == 0:
                    successor.sample(1)
                    for each in one, other:
                        with pytest.raises(mpbuffer.LearnerBusy):
                            next(each)
                    successor.release_learner()


def test_batches_after_a_release_are_drawn_anew():
    with mpbuffer.PrioritizedReplayBuffer(SIZE, FIELDS, alpha=1.0, eps=0.0) as buffer:
        buffer.add(**rows(0, SIZE))
        with buffer.batches(32, prefetch=2) as batches:
            next(batches)
            buffer.release_learner()
            with mpbuffer.attach(buffer.name) as other:
                indexes = np.arange(SIZE)
                other.sample(1)
                other.update_priorities(indexes, np.where(indexes < 8, 1.0, 1e-30))
            for _ in range(4):
                assert (next(batches)["number"] < 8).all()
            assert learner_of(buffer) != 0


def test_releases_by_one_thread_while_others_take_batches():
    with mpbuffer.PrioritizedReplayBuffer(SIZE, FIELDS) as buffer:
        buffer.add(**rows(0, SIZE))
        failed = []

        def take(prefetch):
            try:
                with buffer.batches(64, prefetch=prefetch) as batches:
                    for batch, _ in zip(batches, range(200), strict=False):
                        check_rows(batch)
            except BaseException as error:
                failed.append(error)
                raise

        threads = [threading.Thread(target=take, args=(prefetch,)) for prefetch in (0, 1, 3)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
            buffer.release_learner()
            time.sleep(0.001)
        for thread in threads:
            thread.join(1)
            assert not thread.is_alive()
        assert not failed
        buffer.release_learner()
        assert learner_of(buffer) == 0


@pytest.mark.parametrize("prefetch", [0, 2])
def test_closing(buffer, prefetch):
    batches = buffer.batches(4, prefetch=prefetch)
    batch = next(batches)
    batches.close()
    batches.close()
    check_rows(batch)
    with pytest.raises(mpbuffer.BufferClosed):
        next(batches)
    with buffer.batches(4, prefetch=prefetch) as others:
        next(others)
        buffer.close()
        with pytest.raises(mpbuffer.BufferClosed):
            for _ in range(prefetch + 1):
                next(others)
    with pytest.raises(mpbuffer.BufferClosed):
        buffer.batches(4)


def test_closing_by_another_thread_ends_a_wait():
    """And by several: each close() returns once the batch being gathered is done."""
    with mpbuffer.ReplayBuffer(64, {"x": {"shape": 100_000}}) as buffer:
        buffer.add(x=np.zeros((64, 100_000), np.float32))
        for _ in range(5):
            batches = buffer.batches(200, prefetch=2)
            ended = []

            def take(batches=batches, ended=ended):
                try:
                    while True:
                        next(batches)
                except mpbuffer.BufferClosed:
                    ended.append(True)

            takers = [threading.Thread(target=take) for _ in range(2)]
            closers = [threading.Thread(target=batches.close) for _ in range(3)]
            for thread in takers:
                thread.start()
            time.sleep(0.02)
            for thread in closers:
                thread.start()
            for thread in [*takers, *closers]:
                thread.join(60)
                assert not thread.is_alive()
            assert len(ended) == 2


NO_THREAD = """
import os, resource
import numpy as np, mpbuffer

if os.getuid() == 0:
    os.setuid(65534)  # the limit does not bind root
with mpbuffer.ReplayBuffer(8, {"x": {}}) as buffer:
    buffer.add(x=np.zeros(8))
    before, most = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, most))
    with buffer.batches(4, prefetch=2) as batches:
        for _ in range(2):
            try:
                next(batches)
            except RuntimeError as error:
                print(error)
        resource.setrlimit(resource.RLIMIT_NPROC, (before, most))
        next(batches)
    with buffer.batches(4) as batches:
        next(batches)
"""


def test_where_no_thread_can_be_started_the_error_says_so():
    done = run_python(script=NO_THREAD)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().count("no thread can be started: resource temporarily") == 2


def test_batches_that_nobody_closes_end_with_the_buffer():
    threads = len(os.listdir("/proc/self/task"))
    buffer = mpbuffer.PrioritizedReplayBuffer(SIZE, FIELDS)
    buffer.add(**rows(0, 8))
    batches = buffer.batches(4, prefetch=2)
    next(batches)
    assert len(os.listdir("/proc/self/task")) == threads + 1
    del batches, buffer
    gc.collect()
    assert len(os.listdir("/proc/self/task")) == threads


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"batch_size": 0}, ValueError),
        ({"batch_size": 2.5}, TypeError),
        ({"batch_size": True}, TypeError),
        ({"batch_size": 4, "prefetch": -1}, ValueError),
        ({"batch_size": 4, "prefetch": 1.0}, TypeError),
        ({"batch_size": 4, "unknown": 1}, TypeError),
    ],
)
def test_bad_arguments(buffer, arguments, error):
    with pytest.raises(error):
        buffer.batches(**arguments)


def test_pinned_memory_needs_cuda(buffer):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            buffer.batches(4, pin_memory=True)
        return
    with buffer.batches(16, prefetch=2, tensors=True, pin_memory=True) as batches:
        for _ in range(20):
            batch = next(batches)
            assert batch["obs"].is_pinned()
            on_gpu = {name: each.to("cuda", non_blocking=True) for name, each in batch.items()}
            del batch
            torch.cuda.synchronize()
            check_rows({name: each.cpu() for name, each in on_gpu.items()})


def test_a_forked_child_makes_its_own(buffer):
    batches = buffer.batches(8, prefetch=2)
    next(batches)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(20)
            try:
                next(batches)
            except RuntimeError as error:
                status = 2 if "fork" in str(error) else 3
            if status == 2 and type(buffer) is mpbuffer.ReplayBuffer:
                with buffer.batches(8, prefetch=2) as own:
                    check_rows(next(own))
            if status == 2:
                status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    check_rows(next(batches))
    batches.close()


def test_ctrl_c_while_a_batch_is_gathered(tmp_path):
    """The wait for a batch of a stopped writer's making ends by a signal; nothing is lost."""
    program = textwrap.dedent(
        """
        import os, signal, threading, time
        import numpy as np, mpbuffer
        signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
        buffer = mpbuffer.PrioritizedReplayBuffer(64, {"x": {"shape": 200_000}})
        for _ in range(16):
            buffer.add(x=np.zeros((4, 200_000), np.float32))
        with buffer.batches(300, prefetch=1) as batches:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            start = time.monotonic()
            try:
                for batch in batches:
                    del batch
                    assert time.monotonic() - start < 20
            except KeyboardInterrupt:
                pass
            print(next(batches)["x"].shape[0])
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["300"]


def test_a_thread_that_updates_while_the_next_batches_are_gathered():
    with mpbuffer.PrioritizedReplayBuffer(SIZE, FIELDS, alpha=1.0, eps=0.0) as buffer:
        buffer.add(**rows(0, SIZE))
        stop = threading.Event()

        def add_on():
            first = SIZE
            while not stop.is_set():
                buffer.add(**rows(first, 5))
                first += 5
                time.sleep(0.0002)

        thread = threading.Thread(target=add_on)
        thread.start()
        try:
            with buffer.batches(64, prefetch=3) as batches:
                for _ in range(500):
                    batch = next(batches)
                    check_rows(batch)
                    buffer.update_priorities(batch["indexes"], np.random.rand(64) + 0.1)
        finally:
            stop.set()
            thread.join(20)
        buffer.sample(1)
        assert buffer._tree_total() == pytest.approx(buffer._leaves().sum(dtype=np.float64))
