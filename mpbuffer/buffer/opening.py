"""How a buffer comes to be: created, or opened as somebody else made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy.typing as npt

from mpbuffer import _core
from mpbuffer._segment.exit import close_at_exit
from mpbuffer.buffer import creation
from mpbuffer.buffer.description import Description, describe, read_description
from mpbuffer.buffer.frames import FieldNames, FrameArguments
from mpbuffer.buffer.nstep import NstepArgument
from mpbuffer.buffer.sequences import SequenceArgument

__all__ = ["Opened"]

AnyBuffer = TypeVar("AnyBuffer", bound="Opened")


class Opened(_core.ReplayBuffer):
    """Base of buffers: what creates and attaches one."""

    @classmethod
    def largest_size(
        cls,
        env_dict: creation.EnvDict,
        share: float = 0.5,
        *,
        default_dtype: npt.DTypeLike | None = None,
        Nstep: NstepArgument = None,
        next_of: FieldNames = None,
        stack_compress: FieldNames | Mapping[str, int | None] = None,
        sequence: SequenceArgument = None,
        named: bool = False,
    ) -> int:
        """Return how many rows fit into a share of the memory that is free now.

        Free is the machine's available memory, or what this cgroup may still take if that is less.
        The creation of a buffer checks the same.

        Parameters
        ----------
        env_dict : mapping of str to mapping
        default_dtype, Nstep, next_of, stack_compress, sequence : optional
            As the buffer will be given them.
        named : bool, optional
            Whether the buffer will have a ``name=``. Then the free space of /dev/shm counts, too.
        share : float, optional
            More than 0, at most 1. Leave memory for explorers, networks and the learner's sum tree.

        Returns
        -------
        int
            Rows; 0 if none fits.

        Raises
        ------
        TypeError, ValueError
            If an argument is not as above.
        """
        share = float(share)
        if not 0.0 < share <= 1.0:
            raise ValueError(f"share must be in (0, 1], got {share}")
        prioritized = issubclass(cls, _core.PrioritizedReplayBuffer)
        frames = FrameArguments(next_of, stack_compress)
        (fields, cuts, _), nstep, of_steps = creation.checked_fields(
            env_dict,
            default_dtype,
            Nstep,
            frames,
            sequence,
            size=None,
            prioritized=prioritized,
            warned_frame=3,
        )
        return _core.largest_size(
            fields,
            cuts,
            None if of_steps is None else of_steps.for_core(),
            prioritized,
            describe(Description(prioritized, fields, cuts, False, nstep, of_steps)),
            share,
            not named,
        )

    def _make(
        self,
        size: float,
        env_dict: creation.EnvDict | None,
        default_dtype: npt.DTypeLike | None,
        memory: creation.MemoryArguments,
        seed: int | None,
        strict: bool,
        Nstep: NstepArgument,
        frames: FrameArguments,
        sequence: SequenceArgument,
        logger: Any,
        of_cpprb: Mapping[str, Any],
        *,
        prioritized: bool,
        alpha: float = 0.0,
        eps: float = 0.0,
    ) -> None:
        rows = creation.checked_size(size)
        (fields, cuts, sources), nstep, of_steps = creation.checked_fields(
            env_dict,
            default_dtype,
            Nstep,
            frames,
            sequence,
            size=rows,
            prioritized=prioritized,
            warned_frame=4,
        )
        number = creation.checked_seed(seed)
        place = creation.checked_memory(memory)
        exponents = creation.checked_exponent("alpha", alpha), creation.checked_exponent("eps", eps)
        creation.accept_cpprb_arguments(of_cpprb, warned_frame=4)
        self._create(
            place.name,
            rows,
            fields,
            cuts,
            sources,
            prioritized,
            *exponents,
            number,
            bool(strict),
            None if nstep is None else nstep.for_core(),
            None if of_steps is None else of_steps.for_core(),
            describe(Description(prioritized, fields, cuts, strict, nstep, of_steps)),
            place.numa_interleave,
            place.nameless,
            place.overwrite,
            place.max_handles,
            place.shared,
            creation.CreationLog(place.name, logger),
            False,
        )
        close_at_exit(self)

    @classmethod
    def _opened(cls: type[AnyBuffer], name: str, descriptor: int) -> AnyBuffer:
        buffer = cls.__new__(cls)
        buffer._finish_attaching(name, buffer._attach(name, descriptor))
        return buffer

    def _finish_attaching(self, name: str, description: bytes) -> None:
        try:
            _, fields, cuts, strict, nstep, sequence = read_description(name, description)
            self._set_fields(
                fields,
                cuts,
                strict,
                None if nstep is None else nstep.for_core(),
                None if sequence is None else sequence.for_core(),
            )
        except BaseException:
            self.close()
            raise
        close_at_exit(self)
