"""sample(out=...), and batches(): arrays that are used again, gathered ahead or not."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

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


def large_rows(first, count):
    number = np.arange(first, first + count)
    frames = np.broadcast_to(number[:, None, None], (count, 300, 100)).astype(np.float32)
    return {"number": number, "frames": frames, "next": frames + 1}


def check_large_rows(batch, numbers):
    assert (batch["number"][:, 0] == numbers).all()
    assert (batch["frames"] == numbers[:, None, None]).all()
    assert (batch["next"] == numbers[:, None, None] + 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_large_arrays_are_used_again_only_when_nobody_has_them(kind):
    frames = {"shape": (300, 100)}
    fields = {"number": {"dtype": np.int64}, "frames": frames, "next": frames}
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
def test_batches_are_whole_and_use_few_arrays(buffer, prefetch):
    places = set()
    with buffer.batches(48, prefetch=prefetch, **with_indexes(buffer)) as batches:
        for number, batch in zip(range(300), batches, strict=False):
            check_rows(batch)
            places.add(batch["obs"].ctypes.data)
            if number % 10 == 0:
                buffer.add(**rows(number * SIZE, SIZE))
    assert len(places) <= prefetch + 2


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
