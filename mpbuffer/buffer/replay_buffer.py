"""The two buffers, as every process sees them."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from mpbuffer import _core
from mpbuffer._segment.exit import close_at_exit
from mpbuffer._segment.handing_on import (
    NotCopied,
    descriptor_for_child,
    names_of,
    opened_copy,
    opened_once_there,
)
from mpbuffer._segment.keeper import keep_after_exit
from mpbuffer.buffer.batches import Batches
from mpbuffer.buffer.nstep import NstepRule, check_nstep, nstep_rule
from mpbuffer.buffer.schema import Field, describe, fields_from, read_description
from mpbuffer.buffer.step_writer import PrioritiesOf, StepWriter
from mpbuffer.errors import BufferClosed, SegmentMismatch

__all__ = [
    "LearnerStatus",
    "PrioritizedReplayBuffer",
    "ProcessStatus",
    "ReplayBuffer",
    "attach",
]

AnyBuffer = TypeVar("AnyBuffer", bound="ReplayBuffer")
EnvDict = Mapping[str, Mapping[str, Any]]


class ProcessStatus(NamedTuple):
    """One handle's line in the process table.

    Attributes
    ----------
    number : int
        1 to 1022; the lowest free one when the handle was opened.
    pid : int
        As its own pid namespace counts.
    state : str
        The letter of ``/proc/PID/stat``; ``"?"`` if the process cannot be inspected.
    rows : int
        Rows that it has added.
    skips : int
        Positions it gave up because another living process was writing that slot.
    steals : int
        Slots that it took over from a process that had died while writing them.
    """

    number: int
    pid: int
    state: str
    rows: int
    skips: int
    steals: int


class LearnerStatus(NamedTuple):
    """What the learner last published; the counts are since it took the role.

    Attributes
    ----------
    process : int
        The learner's number in the process table; 0 if nobody has the role.
    pid : int
        Its process.
    since : float
        When it took the role, in seconds since the epoch.
    folded : int
        The position up to which it has taken rows into its tree.
    total : float
        Sum of all leaves.
    least_leaf : float
        The smallest leaf above 0; infinity if there is none.
    sampleable : int
        Rows in the tree whose leaf is above 0.
    updates, stale : int
        Priorities updated, and updates refused because their row was gone.
    draws, nodes_visited : int
        Rows drawn, and lines of the tree looked at for that.
    rows_folded : int
        Rows taken into the tree, by all folds of this learner: what its samples cost beside their
        own rows. Of rows that were overwritten before a fold reached them it knows nothing.
    """

    process: int
    pid: int
    since: float
    folded: int
    total: float
    least_leaf: float
    sampleable: int
    updates: int
    stale: int
    draws: int
    nodes_visited: int
    rows_folded: int


def attach(name: str, *, timeout: float = 0.0) -> ReplayBuffer:
    """Open the buffer that another process of this user has made.

    Parameters
    ----------
    name : str
        What its ``name`` says. A buffer that was made without ``name=`` is found as long as a
        process has it open that this one may look at: of the same user, not setuid or otherwise
        protected, and in this pid namespace or below.
    timeout : float, optional
        How many seconds to wait for the name at most: for programs that are started together. It
        may be ``math.inf``.

    Returns
    -------
    ReplayBuffer or PrioritizedReplayBuffer
        Whichever it is.

    Raises
    ------
    SegmentNotFound
        If no buffer of that name is there.
    SegmentMismatch
        If it is damaged, of another layout, or somebody else's.
    ProcessTableFull
        If 1022 handles are open already.
    ValueError
        If `timeout` is no number of at least 0, or `name` cannot be a name.
    """
    return opened_once_there(_attached, name, timeout)


def _attached(name: str, descriptor: int) -> ReplayBuffer:
    buffer: ReplayBuffer = PrioritizedReplayBuffer.__new__(PrioritizedReplayBuffer)
    description = _open(buffer, name, descriptor)
    if not _core.shape(buffer)["prioritized"]:
        opened, buffer = buffer, ReplayBuffer.__new__(ReplayBuffer)
        _core.move(opened, buffer)
    _finish_attaching(buffer, name, description)
    return buffer


def _open(buffer: ReplayBuffer, name: str, descriptor: int) -> str:
    try:
        return _core.attach(buffer, name, descriptor)
    except UnicodeDecodeError as error:
        _core.close(buffer)
        raise SegmentMismatch(
            f"cannot attach {name!r}: its description is damaged ({error!r})"
        ) from error


def _finish_attaching(buffer: ReplayBuffer, name: str, description: str) -> None:
    try:
        fields, strict, nstep = read_description(name, description)
        _core.set_fields(buffer, fields, strict)
        if nstep is not None:
            _core.set_nstep(buffer, nstep.for_core())
    except BaseException:
        _core.close(buffer)
        raise
    close_at_exit(buffer)


def _attach_copy(cls: type[AnyBuffer], name: str, source: Any) -> AnyBuffer:
    """Open a pickled buffer."""

    def opened(name: str, descriptor: int) -> AnyBuffer:
        buffer = cls.__new__(cls)
        _finish_attaching(buffer, name, _open(buffer, name, descriptor))
        return buffer

    return opened_copy(opened, name, source)


_MOST_ROWS = 2**40


def _whole_size(size: float) -> int:
    if isinstance(size, (bool, np.bool_)) or not isinstance(
        size, (int, float, np.integer, np.floating)
    ):
        raise TypeError(f"size must be a whole number, got {size!r}")
    if size != size or size in (float("inf"), float("-inf")) or int(size) != size or size < 1:
        raise ValueError(f"size must be a whole number of at least 1, got {size!r}")
    if size > _MOST_ROWS:
        raise ValueError(f"size must be at most 2**40, got {size!r}")
    return int(size)


def _checked_fields(
    env_dict: EnvDict | None,
    default_dtype: npt.DTypeLike | None,
    Nstep: Mapping[str, Any] | None,
    *,
    prioritized: bool,
    warned_frame: int,
) -> tuple[list[Field], NstepRule | None]:
    """Return the fields of a buffer to be made, with that of the discount, and its n-step rule."""
    default = np.float32 if default_dtype is None else default_dtype
    given = {} if env_dict is None else env_dict
    fields = fields_from(given, default, warned_frame=warned_frame + 1)
    nstep = None if Nstep is None else nstep_rule(Nstep)
    if nstep is not None:
        if nstep.discount and all(field != nstep.discount for field, _, _ in fields):
            fields.append((nstep.discount, np.dtype(np.float32), [1]))
        check_nstep(nstep, fields)
    if prioritized:
        reserved = {"priorities", "weights", "indexes"} & {field for field, _, _ in fields}
        if reserved:
            raise ValueError(f"a prioritized buffer's fields cannot be named {reserved}")
    return fields, nstep


def _seed_number(seed: int | None) -> int:
    if seed is None:
        return secrets.randbits(64)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed must be an int or None, got {seed!r}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed!r}")
    return int(seed)


def _exponent(name: str, value: float) -> float:
    number = float(value)
    if not 0 <= number < float("inf"):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
    return number


def _accept_cpprb_arguments(ctx: Any, backend: str | None) -> None:
    """Treat ``ctx`` and ``backend`` as cpprb's multi-process classes do, needing neither."""
    if backend not in (None, "sharedctypes", "SharedMemory"):
        raise ValueError(f"backend must be 'sharedctypes' or 'SharedMemory', got {backend!r}")
    manager_state = getattr(ctx, "_state", None)
    if manager_state is not None and hasattr(ctx, "shutdown"):
        initial, started = 0, 1
        if manager_state.value == initial:
            ctx.start()
        elif manager_state.value != started:
            from multiprocessing import ProcessError

            raise ProcessError("ctx is a SyncManager that has been shut down")


# Asked for once: a handler that raises inside getLogger() leaves a lock of logging's taken.
_LOGGER = logging.getLogger("mpbuffer")


class _CreationLog:
    """Told how many bytes are allocated; says so once a second."""

    def __init__(self, name: str, logger: Any) -> None:
        usable = isinstance(logger, (logging.Logger, logging.LoggerAdapter))
        self._logger = logger if usable else _LOGGER
        self._name = name
        self._next = time.monotonic() + 1.0

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + 1.0
            self._logger.info("creating %r: %.1f GB allocated", self._name, done / 2**30)


class ReplayBuffer(_core.ReplayBuffer, NotCopied):
    """A replay buffer in shared memory, sampled uniformly.

    Hand it to processes under fork, spawn or forkserver, or open it elsewhere by
    ``mpbuffer.attach(name)``: every process adds and samples in place. A handle is closed by
    close(), by leaving a ``with`` block, when it is garbage collected, and when its process ends;
    the memory is freed with the last one.

    Made without `name`, the memory has no name either: however its processes end, nothing is left,
    and the size of /dev/shm does not matter. With `name` it is a file in /dev/shm, which other
    containers and pid namespaces can be given, too; if its last process is killed, it is left
    there until this user's next creation or ``mpbuffer gc``.

    A buffer is not copied: ``copy.copy`` and ``copy.deepcopy`` raise TypeError. A pickle made while
    no process is being started has the name alone, and warns once.

    Parameters
    ----------
    size : int or whole float
        How many rows it holds; then the oldest are overwritten.
    env_dict : mapping of str to mapping
        Field names to ``{"shape": int or tuple of int, "dtype": dtype}``. Shape defaults to 1, so
        that rows come out ``(batch_size, 1)``; dtype to `default_dtype`. Any NumPy dtype of fixed
        size, and those of ml_dtypes, such as bfloat16. Other keys are ignored with a UserWarning
        that names them.
    default_dtype : dtype_like, optional
        float32.
    name : str, optional
        1 to 128 of ``[A-Za-z0-9._-]``.
    overwrite : bool, optional
        Whether to take `name` from a buffer of this user that has it, as when a notebook's cell is
        run again. Those who use that one keep it, without a name, until they close it.
    seed : int, optional
        Of every handle's draws, in [0, 2**64); each handle's stream follows from the seed and its
        line in the process table. Random if not given.
    strict : bool, optional
        Whether add() refuses fields that the buffer does not have; else it warns, once per name.
    numa_interleave : bool, optional
        Whether the memory is spread over all NUMA nodes, page by page; else each page lies where
        the creating thread runs.
    Nstep : mapping, optional
        Rows are n steps long: ``{"size": n, "rew": name or list, "gamma": 0.99, "next": name or
        list, "discount": name}``, of which only the size is needed. What add() takes are steps; the
        row that begins with one has

        - in each field of ``"rew"`` the sum of gamma^k times the reward k steps later, over n steps
          or up to the episode's end, in double, rounded once;
        - in the fields of ``"next"``, and in ``done``, ``terminated`` and ``truncated``, what the
          last of these steps has; in all others what the first one has;
        - in the field ``"discount"``, made for it if not in `env_dict` (float32, one number), gamma
          to the power of how many steps these are, or 0 if the last one terminates: the target is
          ``rew + discount * V(next)``. It is not given to add().

        An episode ends by a step in which one of the three flags is not 0, of which there must be
        at least one, and by on_episode_end(). It terminates by ``terminated``, and by ``done``
        unless the same step is ``truncated`` and not terminated. add() keeps the steps that are not
        yet rows in this handle: each process, and the child of a fork, has its own. clear() and
        close() forget them. writer() does the same for many environments.
    logger : logging.Logger, optional
        Told how far the allocation is, once a second, where it takes over a second. The logger
        ``mpbuffer`` if not given.
    ctx, backend, check_for_update : optional
        Accepted as cpprb's classes do, and not needed.

    Raises
    ------
    SegmentExists
        If `name` is in use.
    NotEnoughMemory
        If there is too little room: in memory, in this cgroup, or, with `name`, in /dev/shm.
    TypeError, ValueError
        If an argument is none of the above; ``multiprocessing.ProcessError`` if `ctx` is a
        SyncManager that was shut down.
    """

    def __init__(
        self,
        size: float,
        env_dict: EnvDict | None = None,
        *,
        default_dtype: npt.DTypeLike | None = None,
        name: str | None = None,
        overwrite: bool = False,
        seed: int | None = None,
        strict: bool = False,
        numa_interleave: bool = False,
        Nstep: Mapping[str, Any] | None = None,
        ctx: Any = None,
        backend: str | None = None,
        logger: Any = None,
        check_for_update: bool = False,
    ) -> None:
        self._create(
            size,
            env_dict,
            default_dtype,
            name,
            overwrite,
            seed,
            strict,
            numa_interleave,
            Nstep,
            ctx,
            backend,
            logger,
            prioritized=False,
        )

    def _create(
        self,
        size: float,
        env_dict: EnvDict | None,
        default_dtype: npt.DTypeLike | None,
        name: str | None,
        overwrite: bool,
        seed: int | None,
        strict: bool,
        numa_interleave: bool,
        Nstep: Mapping[str, Any] | None,
        ctx: Any,
        backend: str | None,
        logger: Any,
        *,
        prioritized: bool,
        alpha: float = 0.0,
        eps: float = 0.0,
    ) -> None:
        rows = _whole_size(size)
        fields, nstep = _checked_fields(
            env_dict, default_dtype, Nstep, prioritized=prioritized, warned_frame=4
        )
        number = _seed_number(seed)
        segment_name, nameless = names_of(name, bool(overwrite))
        exponents = _exponent("alpha", alpha), _exponent("eps", eps)
        _accept_cpprb_arguments(ctx, backend)
        _core.create(
            self,
            segment_name,
            rows,
            fields,
            prioritized,
            *exponents,
            number,
            bool(strict),
            describe(prioritized, fields, strict, nstep),
            bool(numa_interleave),
            nameless,
            bool(overwrite),
            _CreationLog(segment_name, logger),
        )
        try:
            if nstep is not None:
                _core.set_nstep(self, nstep.for_core())
        except BaseException:
            _core.close(self)
            raise
        close_at_exit(self)

    @classmethod
    def largest_size(
        cls,
        env_dict: EnvDict,
        share: float = 0.5,
        *,
        default_dtype: npt.DTypeLike | None = None,
        Nstep: Mapping[str, Any] | None = None,
        named: bool = False,
    ) -> int:
        """Return how many rows fit into that share of the memory that is free now.

        What counts is the lesser of the machine's available memory and what this cgroup may still
        take: what the creation of a buffer will ask.

        Parameters
        ----------
        env_dict : mapping of str to mapping
        default_dtype, Nstep : optional
            As the buffer will be given them.
        named : bool, optional
            Whether the buffer will have a ``name=``: then /dev/shm's free space counts, too.
        share : float, optional
            More than 0, at most 1. Explorers, networks and the learner's sum tree need some, too.

        Returns
        -------
        int
            Rows; 0 if not one fits.

        Raises
        ------
        TypeError, ValueError
            If an argument is none of the above.
        """
        share = float(share)
        if not 0.0 < share <= 1.0:
            raise ValueError(f"cannot say what fits: share {share}, expected 0 < share <= 1")
        prioritized = issubclass(cls, _core.PrioritizedReplayBuffer)
        fields, nstep = _checked_fields(
            env_dict, default_dtype, Nstep, prioritized=prioritized, warned_frame=3
        )
        description = describe(prioritized, fields, False, nstep)
        return _core.largest_size(fields, prioritized, description, share, not named)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the handle, not the rows: by descriptor while spawning a process, else by name."""
        source = descriptor_for_child(_core.data_descriptor(self), self.name)
        return _attach_copy, (type(self), self.name, source), self.__dict__ or None

    @property
    def name(self) -> str:  # type: ignore[override]
        """What ``mpbuffer.attach`` opens it by: the argument, or what was chosen."""
        return _core.name(self)

    @property
    def closed(self) -> bool:
        """Whether this handle was closed."""
        return not _core.is_open(self)

    def close(self) -> None:
        """Close this handle; remove the segment if it was the last one. Twice is once.

        Waits for calls of other threads through this handle, not for other processes.
        """
        _core.close(self)

    def __enter__(self: AnyBuffer) -> AnyBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.get_stored_size()

    def __repr__(self) -> str:
        kind = type(self).__name__
        if self.closed:
            return f"<{kind}: closed>"
        shape = _core.shape(self)
        return (
            f"<{kind} {self.name!r}: {self.get_stored_size()} of {shape['size']} rows "
            f"of {shape['row_bytes']} bytes>"
        )

    def get_stored_size(self) -> int:
        """Return how many complete rows are there.

        Exact when nobody is adding. Takes no time that depends on the size, except once after a
        clear() or after a process died inside a call: then it counts.
        """
        return _core.stored_size(self)

    def get_buffer_size(self) -> int:
        """Return how many rows fit."""
        return int(_core.shape(self)["size"])

    def get_next_index(self) -> int:
        """Return the slot that the next row will go to."""
        return _core.next_index(self)

    def get_all_transitions(self, shuffle: bool = False) -> dict[str, npt.NDArray[Any]]:
        """Return a copy of all complete rows.

        Any process may call it; it takes O(size), and rows that are overwritten while it runs come
        out as the old row, as the new one, or not at all, never mixed.

        Parameters
        ----------
        shuffle : bool, optional
            Whether the rows come in random order; else by slot.

        Returns
        -------
        dict of str to numpy.ndarray
            For each field an array of shape ``(rows,) + shape``.
        """
        return _core.all_rows(self, bool(shuffle))

    def _encode_sample(self, indexes: npt.ArrayLike) -> dict[str, npt.NDArray[Any]]:
        """Return the rows in the slots given; IndexError if one holds no complete row."""
        return _core.rows_at(self, indexes)

    def batches(
        self,
        batch_size: int,
        *,
        return_indexes: bool = False,
        prefetch: int = 0,
        tensors: bool = False,
        pin_memory: bool = False,
    ) -> Batches:
        """Return an endless iterator over samples, in memory that is reused.

        Parameters
        ----------
        batch_size : int
            Rows of each batch, at least 1.
        return_indexes : bool, optional
            Whether to add ``"indexes"``.
        prefetch : int, optional
            How many batches are gathered ahead, by a thread that needs no GIL; 0: none.
        tensors : bool, optional
            Whether batches are dicts of torch tensors, of the same memory. bfloat16 and float8
            fields become tensors of PyTorch's dtypes of these names.
        pin_memory : bool, optional
            Whether the arrays, but for ``"indexes"``, lie in page-locked memory, from which torch
            copies to the GPU without waiting. Such memory is reused only after the GPU has done
            what the current CUDA stream had been asked to do when nothing referenced the memory
            any more.

        Returns
        -------
        Batches
            To be iterated by one thread, and closed; it raises what sample() does.

        Raises
        ------
        TypeError, ValueError
            If `batch_size` or `prefetch` is no such number.
        ImportError, RuntimeError
            If torch, or its CUDA, is asked for and not there.
        """
        return Batches(
            self,
            batch_size,
            beta=0.0,
            return_indexes=bool(return_indexes),
            prefetch=prefetch,
            tensors=tensors,
            pin_memory=pin_memory,
        )

    def clear(self) -> None:
        """Remove all rows; the next one goes to slot 0. Any process may call it.

        Rows that others are adding at that moment may come before or after. The largest priority
        is 1.0 again.
        """
        _core.clear(self)

    def on_episode_end(self) -> None:
        """Say that the episode has ended: get_current_episode_len() starts again.

        With ``Nstep=``, the rows of add()'s last steps are written, each with as many steps as
        there are; after a step that said so itself, by a flag, none are left. Raises what add()
        does; then the rows are kept, and written by the next call.
        """
        _core.end_episode(self)

    def get_current_episode_len(self) -> int:
        """Return the steps added through this handle since on_episode_end() or clear()."""
        return _core.episode_length(self)

    def is_Nstep(self) -> bool:
        """Return whether the buffer was made with ``Nstep=``."""
        return _core.nstep(self) is not None

    def keep_after_exit(self, seconds: float) -> int:
        """Keep the rows for so long after this process has ended, however it ends.

        A small process attaches, waits for the end of this one, sleeps, and closes its handle. A
        learner that was killed or restarted finds the buffer by ``mpbuffer.attach(name)``, with all
        rows and priorities.

        Parameters
        ----------
        seconds : float
            0 to 10^9.

        Returns
        -------
        int
            The pid of that process, which belongs to a session of its own; ``os.kill`` ends the
            keeping.

        Raises
        ------
        TypeError, ValueError
            If `seconds` is no such number.
        BufferClosed
            If this handle was closed.
        RuntimeError
            If the process did not attach, with what it said. Waits until it has, usually less than
            a second, at most 60. In a frozen program, and where ``sys.executable`` is no Python
            interpreter, unless ``multiprocessing.set_executable()`` has named one.
        OSError
            If the process cannot be started.
        """
        if self.closed:
            raise BufferClosed(f"cannot keep the rows of '{self.name}': this buffer was closed")
        return keep_after_exit(self.name, seconds)

    def writer(
        self,
        flush_every: int = 50,
        *,
        Nstep: Mapping[str, Any] | None = None,
        priorities: PrioritiesOf | Literal["td"] | None = None,
        n_envs: int = 1,
    ) -> StepWriter:
        """Return what takes an explorer's steps, and writes rows many at a time.

        Any process may call it, each for itself. Parameters and exceptions are those of StepWriter.

        Parameters
        ----------
        flush_every : int, optional
            How many finished rows are written together.
        Nstep : mapping, optional
            This buffer's if not given.
        priorities : callable or "td", optional
            Where rows get their priorities from, if not from what is added.
        n_envs : int, optional
            How many environments are stepped together.

        Returns
        -------
        StepWriter
            To be closed before this handle is.
        """
        return StepWriter(self, flush_every, Nstep=Nstep, priorities=priorities, n_envs=n_envs)

    def rows_added(self) -> int:
        """Return how many rows all processes have added since creation, ended ones included."""
        return _core.rows_added(self)

    def processes(self) -> list[ProcessStatus]:
        """Return a line for each open handle of the buffer, in the order of their numbers.

        A handle that is provably gone is left out; its rows stay in ``rows_added()``. One whose
        process lies in another pid namespace, or cannot be inspected for another reason, counts as
        open unless it was closed.
        """
        return [ProcessStatus(*line) for line in _core.processes(self)]


class PrioritizedReplayBuffer(_core.PrioritizedReplayBuffer, ReplayBuffer):
    """A replay buffer in shared memory, sampled in proportion to (priority + eps) ** alpha.

    Schaul et al., "Prioritized experience replay", 2016: proportional prioritization, stratified
    draws, importance weights. Any number of processes add; one at a time is the learner, who calls
    sample() and update_priorities(). Everything else is as in ReplayBuffer.

    Parameters
    ----------
    size, env_dict, default_dtype, name, overwrite, seed, strict, numa_interleave : optional
    Nstep, ctx, backend, logger, check_for_update : optional
        As for ReplayBuffer. No field may be named ``priorities``, ``weights`` or ``indexes``.
    alpha : float, optional
        Exponent of the priorities, at least 0 (0: uniform).
    eps : float, optional
        Added to every priority, at least 0. With 0, rows of priority 0 are never drawn.
    """

    def __init__(
        self,
        size: float,
        env_dict: EnvDict | None = None,
        *,
        alpha: float = 0.6,
        eps: float = 1e-4,
        default_dtype: npt.DTypeLike | None = None,
        name: str | None = None,
        overwrite: bool = False,
        seed: int | None = None,
        strict: bool = False,
        numa_interleave: bool = False,
        Nstep: Mapping[str, Any] | None = None,
        ctx: Any = None,
        backend: str | None = None,
        logger: Any = None,
        check_for_update: bool = False,
    ) -> None:
        self._create(
            size,
            env_dict,
            default_dtype,
            name,
            overwrite,
            seed,
            strict,
            numa_interleave,
            Nstep,
            ctx,
            backend,
            logger,
            prioritized=True,
            alpha=alpha,
            eps=eps,
        )

    @property
    def alpha(self) -> float:
        """Exponent of the priorities."""
        return float(_core.shape(self)["alpha"])

    @property
    def eps(self) -> float:
        """What is added to every priority."""
        return float(_core.shape(self)["eps"])

    def batches(  # type: ignore[override]
        self,
        batch_size: int,
        beta: float = 0.4,
        *,
        prefetch: int = 0,
        tensors: bool = False,
        pin_memory: bool = False,
    ) -> Batches:
        """Return an endless iterator over samples, in memory that is reused.

        For the learner, as sample(). With `prefetch`, batches use priorities that are up to so many
        updates old; updates are exact all the same, as described for update_priorities().

        Parameters
        ----------
        batch_size : int
            Rows of each batch, at least 1.
        beta : float, optional
            Exponent of the importance weights, at least 0. The iterator's attribute ``beta``
            changes it for what is drawn from then on.
        prefetch, tensors, pin_memory : optional
            As for ReplayBuffer.

        Returns
        -------
        Batches
            To be iterated by one thread, and closed; it raises what sample() does.

        Raises
        ------
        TypeError, ValueError, ImportError, RuntimeError
            As for ReplayBuffer; and, as sample() does, TypeError if `beta` is no number, ValueError
            if it is negative or not finite.
        """
        return Batches(
            self,
            batch_size,
            beta=beta,
            return_indexes=True,
            prefetch=prefetch,
            tensors=tensors,
            pin_memory=pin_memory,
        )

    def get_max_priority(self) -> float:
        """Return the largest priority supplied since creation or clear(), at least 1.0."""
        return _core.max_priority(self)

    def get_generations(self, indexes: npt.ArrayLike) -> npt.NDArray[np.uint64]:
        """Return which rows the indexes mean, to be passed to update_priorities() later.

        For the learner, as sample().

        Parameters
        ----------
        indexes : array_like of int
            (n,) slots.

        Returns
        -------
        numpy.ndarray
            uint64 (n,): of the rows sampled, if `indexes` shares a sample's memory; else of those
            that the last sample() saw in these slots, or that this handle has added since, where
            it never sampled a row before; 0 for a slot without a row.

        Raises
        ------
        LearnerBusy
            If another handle has the learner's role.
        """
        return _core.generations(self, indexes)

    def acquire_learner(self) -> None:
        """Take the learner's role now, instead of at the first sample().

        A stray sample() in another process then fails there, and not in the learner. Takes time
        that depends on the rows there are, as the first sample() would: some 15 ns for each.

        Raises
        ------
        LearnerBusy
            If another handle has the role; tells which, at once.
        BufferClosed
            After close().
        """
        _core.acquire_learner(self)

    def release_learner(self) -> None:
        """Give up the learner's role, if this handle has it; another process can take it then.

        Batches gathered ahead are discarded; only calls take the role again.
        """
        _core.release_learner(self)

    def learner_status(self) -> LearnerStatus:
        """Return what the learner last published. Any process may call it.

        All figures are 0 if the learner died while it published them.

        Raises
        ------
        LearnerBusy
            If the learner was stopped while it published.
        """
        return LearnerStatus(**_core.learner_status(self))

    def _leaves(self) -> npt.NDArray[np.float32]:
        """Return a copy of the leaves: float32 (size,), 0 where there is nothing to draw."""
        return _core.leaves(self)

    def _tree_total(self) -> float:
        """Return the sum that the learner's tree has at its root."""
        return _core.tree_total(self)
