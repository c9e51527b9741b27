"""The buffer that every process sees, sampled uniformly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import numpy.typing as npt

from mpbuffer._segment.handing_on import NotCopied, descriptor_for_child, opened_copy
from mpbuffer.buffer import creation
from mpbuffer.buffer.batches import Batches
from mpbuffer.buffer.frames import FieldNames, FrameArguments
from mpbuffer.buffer.keeping import KeptAfterExit
from mpbuffer.buffer.nstep import NstepArgument
from mpbuffer.buffer.opening import Opened
from mpbuffer.buffer.saving import SavedToFiles
from mpbuffer.buffer.sequences import SequenceArgument, SequenceRule
from mpbuffer.buffer.snapshots import SavedInSnapshots
from mpbuffer.buffer.statuses import ProcessStatus
from mpbuffer.buffer.step_writer import PrioritiesOf, StepWriter

__all__ = ["ReplayBuffer"]

AnyBuffer = TypeVar("AnyBuffer", bound="ReplayBuffer")


class ReplayBuffer(Opened, SavedToFiles, SavedInSnapshots, KeptAfterExit, NotCopied):
    """A replay buffer in shared memory, sampled uniformly.

    Pass it to processes under fork, spawn or forkserver, or open it elsewhere by
    ``mpbuffer.attach(name)``. Every process adds and samples in place. A handle is closed by
    close(), by leaving a ``with`` block, when it is garbage collected, and when its process ends.
    The last handle frees the memory.

    Without `name` the memory has no file: nothing is left behind, however its processes end, and
    the size of /dev/shm does not matter. With `name` it is a file in /dev/shm, which other
    containers and pid namespaces can share. If its last process is killed, the file stays until
    this user creates another segment or runs ``mpbuffer gc``.

    A buffer cannot be copied: ``copy.copy`` and ``copy.deepcopy`` raise TypeError. A pickle made
    while no process is being started holds only the name, and warns once.

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
        Whether to take `name` from another buffer of this user, as when a notebook's cell is run
        again. Processes that use the other buffer keep it, without a name, until they close it.
    seed : int, optional
        Seed of all draws, in [0, 2**64). Each handle's stream follows from the seed and its line
        in the process table. Random if not given.
    strict : bool, optional
        Whether add() refuses fields that the buffer does not have. Else it warns once per name.
    numa_interleave : bool, optional
        Whether the memory is spread over all NUMA nodes, page by page. Else each page lies on the
        node of the creating thread.
    max_handles : int, optional
        How many handles may have the buffer open at once, 1 to 1022: one for each process that uses
        it, this one included. Each takes 576 bytes. Default: 1022, but no more than take a
        sixteenth of the rows' bytes, and at least 62.
    shared : bool, optional
        Whether other processes can have the buffer. If False it is private: without a descriptor,
        and some 10 KB beside its rows. All calls are there, but it cannot be pickled, attached,
        passed to processes or kept after exit, and takes neither `name` nor `max_handles`. A forked
        child has a copy of its own: neither process sees what the other one adds from then on.
    Nstep : mapping or False, optional
        Rows are n steps long: ``{"size": n, "rew": name or list, "gamma": 0.99, "next": name or
        list, "discount": name}``; only the size is required. add() takes steps. The row that begins
        with a step has

        - in each field of ``"rew"`` the sum of gamma^k times the reward k steps later, over n steps
          or up to the episode's end, in double, rounded once;
        - in the fields of ``"next"``, and in ``done``, ``terminated`` and ``truncated``, the values
          of the last of these steps; in all other fields those of the first;
        - in the field ``"discount"`` gamma to the power of the number of these steps, or 0 if the
          last one terminates: the target is ``rew + discount * V(next)``. add() does not take this
          field. If it is not in `env_dict`, it is added: float32, one number.

        An episode ends with a step in which one of the three flags is not 0, and with
        on_episode_end(). At least one of the flags must be a field. The episode terminates if the
        step has ``terminated``, or ``done`` without ``truncated``. The handle keeps the steps that
        are not yet rows: each process, and the child of a fork, has its own. clear() and close()
        drop them. writer() does the same for many environments.
    next_of : str or sequence of str, optional
        Fields whose next value is the value of the step after: each row has, and add() takes, a
        field ``next_<name>`` of the same shape and dtype. A frame that rows have in common is
        stored once. add() compares values, byte by byte: what was added comes back, whatever it is.
    stack_compress : str, sequence of str, or mapping of str to int, optional
        Fields that are stacks of frames, each frame stored once. A mapping names the axis of each,
        the first (0) or the last (-1); else it is the shorter of both, the last if they are equal.
    sources : int, optional
        How many frames are stored for each field named. Default: enough where each step brings one,
        in episodes of more than some 16 steps. If they run out, the oldest rows go early.
    sequence : mapping, optional
        Rows are sequences of an episode's steps: ``{"length": T, "period": P, "pad": True, "state":
        names, "burn_in": b}``; only the length is required. add() takes steps, and each step is
        stored once. `size` and ``len()`` count sequences.

        - A sequence has T steps of one episode, and the next one begins P steps later (1 to T;
          default T). Steps of an episode's end that no sequence has become one that is shorter,
          unless ``"pad"`` is False or it has no steps beyond the burn-in.
        - A sample has ``(batch_size, T) + shape`` for each field, 0 behind the last step, and
          ``(batch_size,) + shape`` for those of ``"state"``, the first step's. It also has
          ``mask`` and ``is_first``, bool (batch_size, T): the steps that are there, and the one
          that begins its episode.
        - ``"burn_in"``, below T: first steps that only bring a recurrent state up to date. The
          attribute `sequence` tells it; priorities leave these steps out.
        - ``{"length": None, "max_length": n}``: sequences are whole episodes, at most n steps each;
          a longer episode becomes several. A batch is as long as its longest.

        Episodes end as with `Nstep`, which cannot be combined with it; nor can `next_of` and
        `stack_compress`. `sources` is how many steps are stored, at least 16 T. Default: some more
        than ``size * P``, which is enough for episodes of many sequences.
    logger : logging.Logger, optional
        Logs the progress of an allocation that takes more than a second, once a second. Default:
        the logger ``mpbuffer``.
    ctx, backend, check_for_update, mmap_prefix : optional
        Accepted because cpprb's classes take them; not needed. `mmap_prefix` warns.

    Raises
    ------
    SegmentExists
        If `name` is in use.
    NotEnoughMemory
        If there is too little memory: on the machine, in this cgroup, or, with `name`, in
        /dev/shm.
    TypeError, ValueError
        If an argument is not as above.
    multiprocessing.ProcessError
        If `ctx` is a SyncManager that was shut down.
    """

    def __init__(
        self,
        size: float,
        env_dict: creation.EnvDict | None = None,
        *,
        default_dtype: npt.DTypeLike | None = None,
        name: str | None = None,
        overwrite: bool = False,
        seed: int | None = None,
        strict: bool = False,
        numa_interleave: bool = False,
        max_handles: int | None = None,
        shared: bool = True,
        Nstep: NstepArgument = None,
        next_of: FieldNames = None,
        stack_compress: FieldNames | Mapping[str, int | None] = None,
        sources: int | None = None,
        sequence: SequenceArgument = None,
        logger: Any = None,
        **of_cpprb: Any,
    ) -> None:
        self._make(
            size,
            env_dict,
            default_dtype,
            creation.MemoryArguments(name, overwrite, numa_interleave, max_handles, shared),
            seed,
            strict,
            Nstep,
            FrameArguments(next_of, stack_compress, sources),
            sequence,
            logger,
            of_cpprb,
            prioritized=False,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the handle, not the rows: by descriptor while spawning a process, else by name."""
        if not self.shared:
            raise TypeError(
                f"cannot pickle {self!r}, or pass it to a process: it is private to this process, "
                "expected a shared buffer; leave shared=False away where it is created, or save "
                "its rows by save_transitions()"
            )
        source = descriptor_for_child(self._data_descriptor(), self.name)
        return opened_copy, (type(self), self.name, source), self.__dict__ or None

    def __enter__(self: AnyBuffer) -> AnyBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        kind = type(self).__name__
        if self.closed:
            return f"<{kind}: closed>"
        return (
            f"<{kind} {self.name!r}: {len(self)} of {self.get_buffer_size()} rows "
            f"of {self._row_bytes} bytes>"
        )

    def get_all_transitions(self, shuffle: bool = False) -> dict[str, npt.NDArray[Any]]:
        """Return a copy of all complete rows.

        Any process may call it. It takes O(size). A row that is overwritten meanwhile comes out as
        the old row, as the new one, or not at all, never mixed.

        Parameters
        ----------
        shuffle : bool, optional
            Whether the rows come in random order; else by slot.

        Returns
        -------
        dict of str to numpy.ndarray
            For each field an array of shape ``(rows,) + shape``.
        """
        return super().get_all_transitions(bool(shuffle))

    def batches(
        self,
        batch_size: int,
        *,
        return_indexes: bool = False,
        prefetch: int = 0,
        tensors: bool = False,
        pin_memory: bool = False,
        time_major: bool = False,
    ) -> Batches:
        """Return an endless iterator over samples, in memory that is reused.

        Parameters
        ----------
        batch_size : int
            Rows of each batch, at least 1.
        return_indexes : bool, optional
            Whether to add ``"indexes"``.
        prefetch : int, optional
            How many batches a thread, which needs no GIL, gathers ahead. 0: none, and no thread.
        tensors : bool, optional
            Whether batches are dicts of torch tensors that share the arrays' memory. bfloat16 and
            float8 fields become tensors of PyTorch's dtypes of these names.
        pin_memory : bool, optional
            Whether the arrays, except ``"indexes"``, lie in page-locked memory, from which torch
            copies to the GPU asynchronously. Such memory is reused when nothing references it and
            the GPU has finished the work that was queued in the current CUDA stream until then.
        time_major : bool, optional
            As for sample().

        Returns
        -------
        Batches
            For one thread, which closes it at the end. It raises what sample() does.

        Raises
        ------
        TypeError, ValueError
            If `batch_size` or `prefetch` is not as above.
        ImportError, RuntimeError
            If torch, or CUDA, is needed and missing.
        """
        return Batches(
            self,
            batch_size,
            return_indexes=bool(return_indexes),
            prefetch=prefetch,
            tensors=tensors,
            pin_memory=pin_memory,
            time_major=bool(time_major),
        )

    def writer(
        self,
        flush_every: int | None = None,
        *,
        Nstep: NstepArgument = None,
        priorities: PrioritiesOf | Literal["td"] | None = None,
        n_envs: int = 1,
    ) -> StepWriter:
        """Return a writer, which takes an explorer's steps and writes rows many at a time.

        Any process may call it; each makes its own. Parameters and exceptions as for StepWriter.

        Parameters
        ----------
        flush_every : int, optional
            How many finished rows are written together. Default: 50, or 1 of sequences.
        Nstep : mapping, optional
            Default: this buffer's.
        priorities : callable or "td", optional
            What computes the rows' priorities, if add() is not given them.
        n_envs : int, optional
            How many environments are stepped together.

        Returns
        -------
        StepWriter
            Close it before this handle.
        """
        return StepWriter(self, flush_every, Nstep=Nstep, priorities=priorities, n_envs=n_envs)

    @property
    def sequence(self) -> SequenceRule | None:
        """How steps become sequences; None if the rows are none."""
        rule = self._sequence()
        return None if rule is None else SequenceRule(*rule[:3], tuple(rule[3]), *rule[4:])

    def processes(self) -> list[ProcessStatus]:
        """Return a line for each open handle of the buffer, in the order of their numbers.

        Handles whose process has certainly ended are left out; ``rows_added()`` still counts their
        rows. A handle whose process cannot be inspected, for instance in another pid namespace,
        counts as open until it is closed.
        """
        return [ProcessStatus(*line) for line in self._processes()]

    def stats(self) -> dict[str, int | float]:
        """Return how full the buffer is, and what has happened in it since its creation.

        Any process may call it. It looks at no row: it takes O(handles), and a count of all rows
        where ``len()`` takes one. It waits for no other process. Counters are exact while nobody
        uses the buffer, and never decrease, but for those of the learner.

        Returns
        -------
        dict of str to int or float
            Rows, of a buffer of sequences these:

            - ``"size"``: how many fit.
            - ``"fill"``: how many are there, as ``len()``.
            - ``"rows_added"``: how many were added, as ``rows_added()``.
            - ``"early"``: how many went before their slot was needed, as frames or steps of theirs
              had been overwritten: more `sources` would have kept them. A process that is killed
              when it has just retired rows may leave these out. A row whose writer was held up
              until it had to go is not counted.

            Sources, the frames or steps that rows share; 0 where rows share nothing:

            - ``"sources"``: how many fit, of all fields together.
            - ``"sources_written"``: how many were written.

            Handles:

            - ``"handles"``: how many are open, as ``processes()`` lists them.
            - ``"skips"``, ``"steals"``: of all handles, closed ones included, for rows and for
              sources, as in ProcessStatus.
            - ``"redraws"``: of this handle's samples alone, how many draws missed, as their row, or
              what it shares, had been overwritten or was not complete yet. Each was drawn again.

            A prioritized buffer also has what its learner last published, as in LearnerStatus:
            ``"learner_pid"`` (0: nobody), ``"learner_draws"``, ``"learner_updates"``,
            ``"learner_stale"``, ``"learner_rows_folded"``, ``"sampleable"`` and ``"total"``.

        Raises
        ------
        BufferClosed
            If this handle is closed.
        LearnerBusy
            If the learner was stopped while it published, as for learner_status().
        """
        return self._statistics()
