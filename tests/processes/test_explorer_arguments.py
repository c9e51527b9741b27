"""What explorers are given as arguments: objects of both packages, and tensors in shared memory."""

import contextlib
import importlib
import multiprocessing
import time

import explorers_processes
import pytest
from explorers_processes import FIELDS
from watched_processes import DEADLINE, run_python

import mpbuffer
from mpbuffer import ExplorerFailed, Explorers

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(params=["multiprocessing", "multiprocess"])
def package(request):
    return importlib.import_module(request.param)


@pytest.fixture
def buffer():
    with mpbuffer.ReplayBuffer(100, FIELDS) as buffer:
        yield buffer


def run(buffer, function, *args, start_method):
    """Run one explorer to its end."""
    with Explorers(function, 1, buffer, args=args, start_method=start_method) as explorers:
        assert explorers.join(DEADLINE)


def test_queues_locks_and_pipes_of_both_packages(buffer, package, start_method):
    context = package.get_context(start_method)
    queue, simple, joinable = context.Queue(), context.SimpleQueue(), context.JoinableQueue()
    queue.put("from the learner, by a thread")
    assert queue.get(timeout=DEADLINE)
    event, ours, theirs = context.Event(), *context.Pipe()
    others = context.Lock(), context.Condition(), context.Semaphore(1), context.Barrier(2)
    args = (queue, simple, joinable, event, *others, theirs)
    with Explorers(
        explorers_processes.use_all, 1, buffer, args=args, start_method=start_method
    ) as explorers:
        event.set()
        ours.send(1)
        others[-1].wait(DEADLINE)
        assert [queue.get(timeout=DEADLINE) for _ in range(1000)] == list(range(1000))
        assert simple.get() == "simple" and joinable.get(timeout=DEADLINE) == "joinable"
        assert explorers.join(DEADLINE)
    assert ours.recv() == 2
    for each in (queue, joinable):
        each.close()
        each.join_thread()


def test_values_arrays_and_managers_of_both_packages(buffer, package, start_method):
    context = package.get_context(start_method)
    value, array, raw = context.Value("d", 1.0), context.Array("i", 3), context.RawArray("b", 2)
    with context.Manager() as manager:
        shared = manager.dict(), manager.list(), manager.Queue()
        args = (value, array, raw, *shared)
        run(buffer, explorers_processes.change_all, *args, start_method=start_method)
        assert shared[0].copy() == {"from": "explorer"} and list(shared[1]) == [1]
        assert shared[2].get(timeout=DEADLINE) == "queued"
    assert (value.value, list(array), list(raw)) == (2.0, [0, 5, 0], [0, 7])


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_a_lock_that_was_made_for_fork_is_refused_with_the_remedy(buffer, package, start_method):
    context = package.get_context("fork")
    for made in (context.Lock(), context.Event(), context.Queue(), context.Value("d")):
        explorers = Explorers(print, 1, buffer, args=(made,), start_method=start_method)
        with pytest.raises(RuntimeError) as caught, explorers:
            pass
        assert f"{package.__name__}.get_context('{start_method}')" in str(caught.value)
        assert "made for forked processes" in str(caught.value)


def test_shared_memory_outlives_an_explorer_that_was_given_it(start_method):
    """An explorer's own resource tracker would remove it."""
    ended = run_python(
        script=f"""
from multiprocessing.shared_memory import SharedMemory
import mpbuffer, explorers_processes

def main():
    memory = SharedMemory(create=True, size=8)
    with mpbuffer.ReplayBuffer(10, {{"a": {{}}}}) as buffer:
        for number in (1, 2):
            with mpbuffer.Explorers(
                explorers_processes.write_to, 1, buffer, args=(memory, number),
                start_method={start_method!r},
            ) as explorers:
                assert explorers.join(60)
            SharedMemory(memory.name).close()
            print(memory.buf[number])
    memory.close()
    memory.unlink()

if __name__ == "__main__":
    main()
"""
    )
    assert (ended.stdout, ended.stderr) == (b"1\n2\n", b"")


def test_a_net_in_shared_memory_arrives_shared(buffer, start_method):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)).share_memory()
    base = torch.zeros(6).share_memory_()
    args = (net, base[2:4], base.view(3, 2))
    with Explorers(
        explorers_processes.wait_for_weights, 1, buffer, args=args, start_method=start_method
    ) as explorers:
        deadline = time.monotonic() + DEADLINE
        while base[0] != 1:
            explorers.check()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        with torch.no_grad():
            net[1].weight.fill_(7)
        base[3] = 9
        assert explorers.join(DEADLINE)
    assert buffer.get_all_transitions()["draw"].ravel().tolist() == [7.0, 9.0, 9.0]


def test_a_tensor_in_memory_of_its_own_is_copied(buffer, start_method):
    torch = pytest.importorskip("torch")
    tensor, sparse = torch.zeros(2), torch.eye(2).to_sparse()
    run(buffer, explorers_processes.fill_tensor, tensor, sparse, start_method=start_method)
    assert tensor.tolist() == [0, 0] and not tensor.is_shared()
    assert buffer.get_all_transitions()["draw"].ravel().tolist() == [3.0]


def test_more_shared_tensors_than_the_server_passes_on_are_refused_with_the_remedy(buffer):
    torch = pytest.importorskip("torch")
    tensors = [torch.zeros(1).share_memory_() for _ in range(300)]
    explorers = Explorers(print, 1, buffer, args=(tensors,), start_method="forkserver")
    with pytest.raises(ValueError, match=r"more descriptors.*use 'spawn'"), explorers:
        pass
    assert explorers.alive == 0


def test_an_error_in_pickling_leaves_the_standard_library_as_it_was(buffer):
    class Unpicklable:
        def __reduce__(self):
            raise TypeError("stays here")

    with contextlib.suppress(TypeError), Explorers(print, 1, buffer, args=(Unpicklable(),)):
        pass
    assert multiprocessing.context.get_spawning_popen() is None


def test_children_of_explorers(buffer, package, start_method):
    """They are explorers' own: they are joined at the end, and daemons are ended."""
    with Explorers(
        explorers_processes.have_children,
        1,
        buffer,
        args=(package.__name__,),
        start_method=start_method,
    ) as explorers:
        try:
            assert explorers.join(DEADLINE)
        except ExplorerFailed as failure:
            pytest.fail(str(failure))
    assert sorted(buffer.get_all_transitions()["draw"].ravel()) == [1.0, 2.0]


@pytest.mark.parametrize("inner", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_an_explorer_may_have_explorers(buffer, inner):
    explore = explorers_processes.have_explorers
    with Explorers(explore, 1, buffer, args=(inner,), start_method="fork") as explorers:
        assert explorers.join(DEADLINE)
    assert buffer.get_all_transitions()["draw"].ravel().tolist() == [0, 0, 1]
