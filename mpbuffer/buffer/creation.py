"""Checks of the arguments that a buffer is created with."""

from __future__ import annotations

import logging
import secrets
import time
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpbuffer._arguments.handles import checked_handles
from mpbuffer._arguments.integers import whole_number
from mpbuffer._segment.handing_on import names_of
from mpbuffer.buffer.frames import FrameArguments, FramePlan, frame_plan
from mpbuffer.buffer.nstep import NstepArgument, NstepRule, check_nstep, nstep_rule
from mpbuffer.buffer.schema import Field, fields_from
from mpbuffer.buffer.sequences import (
    SequenceArgument,
    SequenceRule,
    check_sequence,
    checked_steps,
    sequence_rule,
)

EnvDict = Mapping[str, Mapping[str, Any]]

_MOST_ROWS = 2**40
_OF_CPPRB = {
    "backend",
    "check_for_update",
    "ctx",
    "mmap_prefix",
}


class MemoryArguments(NamedTuple):
    """How a buffer's memory is made and found, as it was given."""

    name: str | None = None
    overwrite: bool = False
    numa_interleave: bool = False
    max_handles: int | None = None
    shared: bool = True


class Memory(NamedTuple):
    """The same, checked, as the core takes it."""

    name: str
    numa_interleave: bool
    nameless: bool
    overwrite: bool
    max_handles: int  # 0: the core's default
    shared: bool


def checked_memory(given: MemoryArguments) -> Memory:
    """Return where a new buffer's memory will be."""
    name, nameless = names_of(given.name, bool(given.overwrite))
    handles = 0 if given.max_handles is None else checked_handles(given.max_handles)
    shared = bool(given.shared)
    if not shared:
        for argument in ("name", "max_handles"):
            value = getattr(given, argument)
            if value is not None:
                raise ValueError(
                    f"cannot create a private buffer with {argument}={value!r}: with shared=False "
                    f"it has one handle, and nobody can find it; leave {argument}= or shared=False "
                    "away"
                )
        handles = 1
    return Memory(
        name, bool(given.numa_interleave), nameless, bool(given.overwrite), handles, shared
    )


def checked_size(size: float) -> int:
    """Return how many rows; a float must be whole."""
    is_whole = isinstance(size, (float, np.floating)) and float(size).is_integer()
    return whole_number("size", int(size) if is_whole else size, 1, _MOST_ROWS)


def checked_fields(
    env_dict: EnvDict | None,
    default_dtype: npt.DTypeLike | None,
    Nstep: NstepArgument,
    frames: FrameArguments,
    sequence: SequenceArgument,
    *,
    size: int | None,
    prioritized: bool,
    warned_frame: int,
) -> tuple[FramePlan, NstepRule | None, SequenceRule | None]:
    """Return a new buffer's fields, the discount's included, and how steps become its rows."""
    default = np.float32 if default_dtype is None else default_dtype
    given = {} if env_dict is None else env_dict
    rule = sequence_rule(sequence)
    fields = fields_from(given, default, warned_frame=warned_frame + 1)
    if rule is not None:
        plan = _plan_of_steps(rule, frames, fields, size, prioritized)
    else:
        plan = frame_plan(frames, fields)
    fields, cuts = plan.fields, plan.cuts
    nstep = nstep_rule(Nstep)
    if rule is not None and nstep is not None:
        raise ValueError(
            "cannot create a buffer with both Nstep= and sequence=: n-step returns of sequences "
            "are computed from the steps that are sampled; expected one of them"
        )
    if nstep is not None:
        if nstep.discount and all(field != nstep.discount for field, _, _ in fields):
            fields.append((nstep.discount, np.dtype(np.float32), [1]))
            if cuts:
                cuts.append((0, 1, False))
        check_nstep(nstep, fields)
    if prioritized:
        reserved = {"priorities", "weights", "indexes"} & {field for field, _, _ in fields}
        if reserved:
            names = ", ".join(map(repr, sorted(reserved)))
            raise ValueError(f"a field name is reserved in prioritized buffers: {names}")
    return plan, nstep, rule


def _plan_of_steps(
    rule: SequenceRule,
    frames: FrameArguments,
    fields: list[Field],
    size: int | None,
    prioritized: bool,
) -> FramePlan:
    if frames.next_of is not None or frames.stack_compress is not None:
        raise ValueError(
            "cannot create a buffer with sequence= and next_of= or stack_compress=: each step of a "
            "sequence is stored once as it is, and its next observation is in the step after it; "
            "expected single frames as observations, and sequence= alone"
        )
    check_sequence(rule, fields, prioritized=prioritized)
    return FramePlan(fields, [], checked_steps(rule, size, frames.sources))


def checked_seed(seed: int | None) -> int:
    """Return the seed; a random one for None."""
    return secrets.randbits(64) if seed is None else whole_number("seed", seed, 0, 2**64 - 1)


def checked_exponent(name: str, value: float) -> float:
    """Return alpha or eps, whose name it is."""
    number = float(value)
    if not 0 <= number < float("inf"):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
    return number


def accept_cpprb_arguments(given: Mapping[str, Any], *, warned_frame: int) -> None:
    """Check arguments that cpprb's classes take, and that need nothing here.

    Raises
    ------
    TypeError
        If one is not an argument of cpprb's.
    ValueError, multiprocessing.ProcessError
        As cpprb, for `backend` and `ctx`.
    """
    unknown = [repr(name) for name in given if name not in _OF_CPPRB]
    if unknown:
        raise TypeError(f"cannot create a buffer: unexpected argument {', '.join(unknown)}")
    backend = given.get("backend")
    if backend not in (None, "sharedctypes", "SharedMemory"):
        raise ValueError(f"backend must be 'sharedctypes' or 'SharedMemory', got {backend!r}")
    if given.get("mmap_prefix"):
        warnings.warn(
            f"mmap_prefix={given['mmap_prefix']!r} is ignored: rows are in shared memory, not in "
            "files; largest_size() tells how many fit",
            stacklevel=warned_frame,
        )
    _start(given.get("ctx"))


def _start(ctx: Any) -> None:
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


class CreationLog:
    """Logs the progress of an allocation once a second."""

    def __init__(self, name: str, logger: Any) -> None:
        usable = isinstance(logger, (logging.Logger, logging.LoggerAdapter))
        self._logger = logger if usable else _LOGGER
        self._name = name
        self._next = time.monotonic() + 1.0

    def __call__(self, done: int) -> None:
        """Take note that so many bytes are allocated."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + 1.0
            self._logger.info("creating %r: %.1f GB allocated", self._name, done / 2**30)
