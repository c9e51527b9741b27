"""SharedWeights: whole versions, one publisher, readers everywhere; kills, stops and hand-over."""

import gc
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from watched_processes import (
    BufferElsewhere,
    join_within,
    killed_at_the_end,
    receive_within,
    run_python,
    wait_for_child,
)
from weights_processes import (
    Flag,
    number_in,
    publish_for_ever,
    read_number,
    read_until,
    weights_of,
)

import mpbuffer
from mpbuffer import (
    BufferClosed,
    PublisherBusy,
    SegmentExists,
    SegmentMismatch,
    SegmentNotFound,
    SharedWeights,
)

SMALL = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7, np.int64)}


# One process


def test_the_first_version_is_there_at_once():
    with SharedWeights(SMALL) as weights:
        got = weights.read()
        assert list(got) == ["a", "b"] and got.version == weights.version == 1
        assert 0 <= got.age < 60 and 0 <= weights.age < 60
        for name, array in SMALL.items():
            assert got[name].dtype == array.dtype and got[name].shape == array.shape
            assert np.array_equal(got[name], array)
        assert repr(weights.name) in repr(weights) and "version 1" in repr(weights)
        assert weights.publisher_status().pid == os.getpid()
    assert weights.closed and "closed" in repr(weights)


def test_versions_follow_one_another():
    with SharedWeights(SMALL) as weights:
        for version in range(2, 50):
            assert weights.publish({"b": version, "a": SMALL["a"] + version}) == version
            assert weights.version == version
            got = weights.read(newer_than=version - 1)
            assert got.version == version and got["b"] == version
            assert np.array_equal(got["a"], SMALL["a"] + version)
            assert weights.read(newer_than=version) is None
            assert weights.read(newer_than=version + 1) is None
            assert weights.load_into({}, newer_than=version) is None
        assert weights.read(newer_than=-1).version == version


def test_age_counts_from_the_publication():
    with SharedWeights(SMALL) as weights:
        time.sleep(0.05)
        assert weights.age >= 0.05
        assert weights.read().age >= 0.05
        weights.publish(SMALL)
        assert weights.age < 0.05 or weights.age < 60


@pytest.mark.parametrize(
    "array",
    [
        np.array([True, False, True]),
        np.float16(1.5),
        np.array([1 + 2j], np.complex64),
        np.array([b"abc", b"d"], "S5"),
        np.array(["ä", "bc"]),
        np.array(["2020-01-01"], "M8[D]"),
        np.array([(1, 2.5)], [("x", "i4"), ("y", "f8", (2,))]),
        np.array([1, 2], ">i4"),
        np.zeros((0, 3)),
        np.zeros((2, 3), order="F") + np.arange(3),
        np.arange(20)[::-3],
        np.longdouble(1) / 3,
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_every_dtype_of_fixed_size(array):
    with SharedWeights({"x": array, "y": 1.5}) as weights:
        got = weights.read()["x"]
        assert got.shape == array.shape and got.dtype == array.dtype.newbyteorder("=")
        assert np.array_equal(got, array)
        weights.publish({"x": array, "y": 2.5})
        other = SharedWeights.attach(weights.name)
        got = other.read()
        assert np.array_equal(got["x"], array) and got["y"] == 2.5
        other.close()


def test_reads_in_place():
    with SharedWeights(SMALL) as weights:
        out = {"b": np.zeros((), np.int64), "a": np.zeros((3, 2), np.float32).T}
        arrays = dict(out)
        got = weights.read(out)
        assert got.version == 1 and got["a"] is arrays["a"] and got["b"] is arrays["b"]
        assert np.array_equal(arrays["a"], SMALL["a"]) and arrays["b"] == 7
        assert weights.load_into(out) == 1
        assert weights.load_into(out, newer_than=1) is None


def test_a_version_can_be_pickled():
    with SharedWeights(SMALL) as weights:
        got = weights.read()
    again = pickle.loads(pickle.dumps(got))
    assert again.version == 1 and again.age == got.age and np.array_equal(again["a"], got["a"])


@pytest.mark.parametrize("slots", [3, 4, 64])
def test_room_for_more_versions(slots, segment_file):
    with SharedWeights(
        {"a": np.zeros(100_000, np.uint8)}, slots=slots, name="weights.file"
    ) as weights:
        assert segment_file(weights.name).stat().st_size >= slots * 100_000
        for version in range(2, 3 * slots):
            assert weights.publish({"a": np.full(100_000, version, np.uint8)}) == version
            assert set(weights.read()["a"]) == {version}


# Bad input: the error, and that nothing has changed


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(weights=[1]), TypeError, "must map names to arrays"),
        (dict(weights={}), ValueError, "no arrays"),
        (dict(weights={1: 2}), TypeError, "non-empty str"),
        (dict(weights={"": 2}), TypeError, "non-empty str"),
        (dict(weights={"a": {"b": 1}}), TypeError, "'a' is itself a mapping"),
        (dict(weights={"a": object()}), TypeError, "'a' holds Python objects"),
        (dict(weights={"a": [[1], [2, 3]]}), TypeError, "'a'"),
        (dict(weights={"a": np.zeros(2, "V0")}), ValueError, "no size"),
        (dict(weights=SMALL, slots=2), ValueError, r"in \[3, 64\], got 2"),
        (dict(weights=SMALL, slots=65), ValueError, r"in \[3, 64\], got 65"),
        (dict(weights=SMALL, slots=4.5), TypeError, "slots must be an int"),
        (dict(weights=SMALL, name=3), TypeError, "name must be a str"),
        (dict(weights=SMALL, name="a/b"), ValueError, "a/b"),
    ],
)
def test_bad_creation(arguments, error, words):
    with pytest.raises(error, match=words):
        SharedWeights(**arguments)


@pytest.mark.parametrize(
    ("weights", "error", "words"),
    [
        ([1], TypeError, "expected a mapping"),
        ({"a": SMALL["a"]}, KeyError, r"missing arrays \['b'\]"),
        ({**SMALL, "c": 1}, KeyError, r"the first version did not have.*\['c'\]"),
        ({**SMALL, "a": np.zeros((3, 2), "f4")}, ValueError, r"'a' has shape \(3, 2\).*\(2, 3\)"),
        ({**SMALL, "b": [7]}, ValueError, r"'b' has shape \(1,\), expected \(\)"),
        ({**SMALL, "a": np.zeros((2, 3))}, TypeError, "'a' has dtype float64, expected float32"),
        ({**SMALL, "b": 7.0}, TypeError, "'b' has dtype float64, expected int64"),
        ({**SMALL, "a": object()}, TypeError, "Python objects"),
    ],
)
def test_bad_publication(weights, error, words):
    with SharedWeights(SMALL) as shared:
        with pytest.raises(error, match=words):
            shared.publish(weights)
        assert shared.version == 1 and np.array_equal(shared.read()["a"], SMALL["a"])
        assert shared.publish(SMALL) == 2


@pytest.mark.parametrize(
    ("out", "error", "words"),
    [
        ([1], TypeError, "expected a mapping"),
        ({"a": np.zeros((2, 3), "f4")}, KeyError, "missing"),
        ({"a": np.zeros((2, 3), "f4"), "b": 7}, TypeError, "'b' is a int"),
        ({"a": np.zeros((2, 3)), "b": np.array(0)}, TypeError, "float64, expected float32"),
        ({"a": np.zeros((6,), "f4"), "b": np.array(0)}, ValueError, r"\(6,\), expected \(2, 3\)"),
        (
            {"a": np.broadcast_to(np.zeros(3, "f4"), (2, 3)), "b": np.array(0)},
            ValueError,
            "'a' is read-only",
        ),
    ],
)
def test_bad_target(out, error, words):
    with SharedWeights(SMALL) as shared:
        with pytest.raises(error, match=words):
            shared.read(out)
        with pytest.raises(TypeError):
            shared.read(newer_than="1")


def test_names_and_closed_handles():
    with SharedWeights(SMALL, name="weights.taken"):
        with pytest.raises(SegmentExists):
            SharedWeights(SMALL, name="weights.taken")
        with pytest.raises(SegmentMismatch, match="expected a replay buffer"):
            mpbuffer.attach("weights.taken")
        other = SharedWeights.attach("weights.taken")
    other.close()
    other.close()
    for call in (
        lambda: other.version,
        lambda: other.age,
        lambda: other.read(),
        lambda: other.read(newer_than=5),
        lambda: other.publish(SMALL),
        lambda: other.publisher_status(),
        lambda: pickle.dumps(other),
    ):
        with pytest.raises(BufferClosed):
            call()
    with pytest.raises(SegmentNotFound):
        SharedWeights.attach("weights.taken")
    with mpbuffer.ReplayBuffer(5, {"a": {}}) as buffer:  # noqa: SIM117
        with pytest.raises(SegmentMismatch, match="a replay buffer, expected the weights"):
            SharedWeights.attach(buffer.name)


def test_a_forgotten_handle_is_closed(segment_file):
    weights = SharedWeights(SMALL, name="weights.file")
    path = segment_file(weights.name)
    assert path.exists()
    del weights
    gc.collect()
    assert not path.exists()


@pytest.mark.parametrize("text", ['{"class": "Shar', '{"class": "SharedWeights", "arrays": []}'])
def test_a_damaged_description(text, segment_file):
    with SharedWeights(SMALL, name="weights.file") as weights:
        path = segment_file(weights.name)
        data = bytearray(path.read_bytes())
        length = int.from_bytes(data[40:48], "little")
        data[4096 : 4096 + length] = text.encode().ljust(length)
        with open(path, "r+b") as file:
            file.write(data)
        with pytest.raises(SegmentMismatch, match="checksum"):
            SharedWeights.attach(weights.name)


# Tensors


def test_a_module(tmp_path):
    torch = pytest.importorskip("torch")
    layers = [torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7), torch.nn.Linear(7, 1)]
    module, copy = torch.nn.Sequential(*layers), torch.nn.Sequential(*layers[:1])
    copy = pickle.loads(pickle.dumps(module))
    with SharedWeights(module.state_dict()) as weights:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(1)
        assert weights.publish(module.state_dict()) == 2
        places = [parameter.data_ptr() for parameter in copy.parameters()]
        saved = next(copy.parameters())._version
        assert weights.load_into(copy) == 2
        assert places == [parameter.data_ptr() for parameter in copy.parameters()]
        assert next(copy.parameters())._version > saved
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor, copy.state_dict()[name])
        third = pickle.loads(pickle.dumps(copy))
        third.load_state_dict(weights.read())
        assert torch.equal(third[2].weight, module[2].weight)
        plain = weights.read(as_numpy=True)
        assert all(isinstance(array, np.ndarray) for array in plain.values())


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float8_e5m2", "bool", "complex64", "uint8", "int64"]
)
def test_every_kind_of_tensor(dtype):
    torch = pytest.importorskip("torch")
    tensor = torch.tensor([[1, 0, 3], [4, 5, 6]]).to(getattr(torch, dtype))

    def widened(each):
        return each if each.is_complex() else each.double()

    given = {"t": tensor, "zero": tensor[0, 0], "strided": tensor.t()}
    with SharedWeights(given) as weights:
        got = weights.read()
        for name, each in given.items():
            assert got[name].dtype == each.dtype and got[name].shape == each.shape
            assert torch.equal(widened(got[name]), widened(each))
        out = {name: torch.zeros_like(each) for name, each in given.items()}
        assert weights.load_into(out) == 1
        assert torch.equal(widened(out["strided"]), widened(tensor.t()))
        with pytest.raises(TypeError, match=f"float64, expected {dtype}"):
            weights.publish({**given, "t": torch.zeros(2, 3, dtype=torch.float64)})
        assert weights.publish(got) == 2


def test_torch_is_not_imported_for_arrays():
    script = """
import sys, numpy as np, mpbuffer
weights = mpbuffer.SharedWeights({"a": np.zeros(3)})
weights.publish(weights.read()); weights.load_into({"a": np.zeros(3)})
weights.close()
assert "torch" not in sys.modules
"""
    assert run_python(script=script).returncode == 0


# Many processes


def test_handles_go_to_processes(context):
    with SharedWeights(weights_of(1)) as weights, BufferElsewhere(context, weights) as there:
        assert there.run(read_number) == (1, 1)
        weights.publish(weights_of(2))
        assert there.run(read_number) == (2, 2)
        with pytest.raises(PublisherBusy, match=f"pid {os.getpid()}, "):
            there.publish(weights_of(3))
        weights.release_publisher()
        assert there.publish(weights_of(3)) == 3
        assert weights.publisher_status().pid == there.pid
        with pytest.raises(PublisherBusy, match=f"pid {there.pid}, "):
            weights.publish(weights_of(4))
        there.kill()
        assert weights.publisher_status().process == 0
        assert read_number(weights) == (3, 3)
        assert weights.publish(weights_of(4)) == 4


def test_by_name_and_after_the_creator_is_gone():
    context = multiprocessing.get_context("spawn")
    weights = SharedWeights(weights_of(1), name="weights.by.name")
    other = SharedWeights.attach("weights.by.name")
    weights.close()
    with BufferElsewhere(context, other) as there:
        other.publish(weights_of(2))
        other.close()
        assert there.run(read_number) == (2, 2)
        late = SharedWeights.attach("weights.by.name")
        assert read_number(late) == (2, 2)
        late.close()


def test_a_forked_child_reads_through_its_copy():
    with SharedWeights(weights_of(1)) as weights:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                if read_number(weights) == (1, 1):
                    weights.publish(weights_of(9))
            except PublisherBusy:
                status = 0
            finally:
                os._exit(status)
        assert wait_for_child(pid) == 0
        assert weights.publish(weights_of(2)) == 2


def run_readers(context, weights, count, work):
    """Have `count` processes read until `work` is done; what each tells."""
    done = Flag(context)
    pipes = [context.Pipe() for _ in range(count)]
    readers = [
        context.Process(target=read_until, args=(weights, done, theirs)) for _, theirs in pipes
    ]
    with killed_at_the_end(readers):
        for reader in readers:
            reader.start()
        for ours, theirs in pipes:
            theirs.close()
            assert receive_within(ours) == "ready"
        work()
        done.set()
        told = [receive_within(ours) for ours, _ in pipes]
        for reader in readers:
            assert join_within(reader) == 0
    return told


def test_readers_see_whole_versions_only(context):
    with SharedWeights(weights_of(1)) as weights:

        def publish():
            for version in range(2, 400):
                assert weights.publish(weights_of(version)) == version

        for reads, version, repeats, _ in run_readers(context, weights, 3, publish):
            assert reads > 0 and version == 399 and repeats == 0


def test_threads_of_one_handle():
    with SharedWeights(weights_of(1)) as weights:
        wrong = []

        def read():
            version = 1
            while version < 300:
                got = weights.read(newer_than=version)
                if got is not None:
                    if number_in(got) != got.version:
                        wrong.append(got.version)
                    version = got.version

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for version in range(2, 301):
            weights.publish(weights_of(version))
        for thread in threads:
            thread.join(60)
        assert not wrong and not any(thread.is_alive() for thread in threads)


def kill_publishers(kills, seed):
    """Kill a publisher `kills` times at random moments while readers verify; what the readers tell.

    Each version carries a number of its own; the version that the successor finds carries a number
    that its predecessor gave, or the one before that.
    """
    context = multiprocessing.get_context("fork")
    random = np.random.default_rng(seed)
    with SharedWeights(weights_of(1), slots=3) as weights:
        weights.release_publisher()

        def work():
            last = 0
            for _ in range(kills):
                begun = context.Event()
                publisher = context.Process(target=publish_for_ever, args=(weights, begun))
                with killed_at_the_end([publisher]):
                    publisher.start()
                    assert begun.wait(60)
                    time.sleep(random.uniform(0, 0.003))
                    publisher.kill()
                    join_within(publisher)
                got = weights.read()
                assert got.version > last and number_in(got) <= got.version
                last = got.version
                assert weights.publisher_status().process == 0
                assert weights.version >= last
            assert weights.publish(weights_of(0)) > last

        return run_readers(context, weights, 2, work)


def test_publishers_killed_at_random():
    for reads, _, repeats, _ in kill_publishers(25, seed=0):
        assert reads >= 25 and repeats == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_publishers_killed_a_thousand_times():
    for reads, _, repeats, _ in kill_publishers(1000, seed=1):
        assert reads >= 1000 and repeats == 0


def test_readers_killed_and_stopped_hold_up_nobody():
    context = multiprocessing.get_context("fork")
    random = np.random.default_rng(0)
    with SharedWeights(weights_of(1, scale=20), slots=3) as weights:
        done = Flag(context)
        readers, pipes = [], []

        def start_reader():
            pipes.append(context.Pipe())
            readers.append(context.Process(target=read_until, args=(weights, done, pipes[-1][1])))
            readers[-1].start()

        with killed_at_the_end(readers):
            for _ in range(4):
                start_reader()
            version = 1
            for action in range(60):
                reader = readers[random.integers(len(readers))]
                os.kill(reader.pid, signal.SIGSTOP if action % 3 else signal.SIGCONT)
                if action % 10 == 9:
                    reader.kill()
                    join_within(reader)
                    readers.remove(reader)
                    start_reader()
                for _ in range(5):
                    version += 1
                    assert weights.publish(weights_of(version, scale=20)) == version
                    got = weights.read()
                    assert got.version <= version and number_in(got) == got.version
            for reader in readers:
                os.kill(reader.pid, signal.SIGSTOP)
            for _ in range(10):
                version += 1
                assert weights.publish(weights_of(version, scale=20)) == version
                assert weights.version == version  # nobody who runs is reading
            for reader in readers:
                os.kill(reader.pid, signal.SIGCONT)
            done.set()
            for reader in readers:
                assert join_within(reader) == 0


def test_a_stopped_publisher_blocks_no_reader():
    context = multiprocessing.get_context("fork")
    with SharedWeights(weights_of(1)) as weights:
        weights.release_publisher()
        for _ in range(10):
            begun = context.Event()
            publisher = context.Process(target=publish_for_ever, args=(weights, begun))
            with killed_at_the_end([publisher]):
                publisher.start()
                assert begun.wait(60)
                os.kill(publisher.pid, signal.SIGSTOP)
                for _ in range(5):
                    number_in(weights.read())
                with pytest.raises(PublisherBusy, match=r"stopped|running"):
                    weights.publish(weights_of(0))
                publisher.kill()
                join_within(publisher)


# From outside


def test_what_killed_processes_left_is_swept(segment_file):
    script = """
import os, numpy as np, mpbuffer
weights = mpbuffer.SharedWeights({"a": np.zeros(3)}, name="weights.left")
os._exit(0)
"""
    assert run_python(script=script).returncode == 0
    assert segment_file("weights.left").exists()
    with pytest.raises(SegmentNotFound):
        SharedWeights.attach("weights.gone")
    SharedWeights(SMALL).close()
    assert not segment_file("weights.left").exists()


def test_the_command_shows_weights():
    pytest.importorskip("click")
    program = "import sys; from mpbuffer.inspect.cli import main; sys.argv[0] = 'mpbuffer'; main()"
    command = [sys.executable, "-c", program]

    def told(*arguments):
        return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)

    with SharedWeights(SMALL, name="weights.shown") as weights:
        weights.publish(SMALL)
        weights.read()
        listing = told("ls", "--interval", "0").stdout
        (line,) = [each for each in listing.splitlines() if each.startswith("weights.shown ")]
        for word in ("live", "SharedWeights", "version 2", f"pid {os.getpid()}", "a:float32[2x3]"):
            assert word in line
        listed = {each["name"]: each for each in json.loads(told("ls", "--json").stdout)}
        report = listed["weights.shown"]
        assert report["weights"]["version"] == 2 and report["damages"] == 0
        assert report["publisher"]["role_held"] and report["alive"] == 1
        shown = told("inspect", "weights.shown")
        assert shown.returncode == 0 and "sound" in shown.stdout and "damage" not in shown.stdout
        assert "2, published" in shown.stdout and "4 versions of" in shown.stdout
        assert "would remove weights.shown" not in told("gc", "--dry-run").stdout
