"""The buffer that the learner samples in proportion to priorities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mpbuffer import _core
from mpbuffer.buffer.batches import Batches, WeightNorm
from mpbuffer.buffer.creation import EnvDict, MemoryArguments
from mpbuffer.buffer.frames import FieldNames, FrameArguments
from mpbuffer.buffer.nstep import NstepArgument
from mpbuffer.buffer.replay_buffer import ReplayBuffer
from mpbuffer.buffer.sequences import SequenceArgument
from mpbuffer.buffer.statuses import LearnerStatus

__all__ = ["PrioritizedReplayBuffer"]


class PrioritizedReplayBuffer(_core.PrioritizedReplayBuffer, ReplayBuffer):
    """A replay buffer in shared memory, sampled in proportion to (priority + eps) ** alpha.

    Schaul et al., "Prioritized experience replay", 2016: proportional prioritization, stratified
    draws, importance weights. Any number of processes add rows. One process at a time is the
    learner, which calls sample() and update_priorities(). Everything else is as in ReplayBuffer.

    Parameters
    ----------
    size, env_dict, default_dtype, name, overwrite, seed, strict, numa_interleave : optional
    max_handles, shared, Nstep, next_of, stack_compress, sources, sequence : optional
    logger, ctx, backend, check_for_update, mmap_prefix : optional
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
            MemoryArguments(name, overwrite, numa_interleave, max_handles, shared),
            seed,
            strict,
            Nstep,
            FrameArguments(next_of, stack_compress, sources),
            sequence,
            logger,
            of_cpprb,
            prioritized=True,
            alpha=alpha,
            eps=eps,
        )

    def batches(  # type: ignore[override]
        self,
        batch_size: int,
        beta: float = 0.4,
        *,
        weight_norm: WeightNorm = "buffer",
        return_probabilities: bool = False,
        prefetch: int = 0,
        tensors: bool = False,
        pin_memory: bool = False,
        time_major: bool = False,
    ) -> Batches:
        """Return an endless iterator over samples, in memory that is reused.

        For the learner, as sample(). Prefetched batches use priorities that are up to `prefetch`
        updates old. Updates stay exact, as described for update_priorities().

        Parameters
        ----------
        batch_size : int
            Rows of each batch, at least 1.
        beta : float, optional
            Exponent of the importance weights, at least 0. The iterator's attribute ``beta``
            changes it for later draws.
        weight_norm, return_probabilities : optional
            As for sample().
        prefetch, tensors, pin_memory, time_major : optional
            As for ReplayBuffer.

        Returns
        -------
        Batches
            For one thread, which closes it at the end. It raises what sample() does.

        Raises
        ------
        TypeError, ValueError, ImportError, RuntimeError
            As for ReplayBuffer. For `beta`, `weight_norm` and `return_probabilities` as for
            sample().
        """
        return Batches(
            self,
            batch_size,
            beta=beta,
            weight_norm=weight_norm,
            return_probabilities=return_probabilities,
            return_indexes=True,
            prefetch=prefetch,
            tensors=tensors,
            pin_memory=pin_memory,
            time_major=bool(time_major),
        )

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
            uint64 (n,). If `indexes` shares a sample's memory: the rows sampled. Else the rows that
            this handle last sampled in these slots, as far back as its last eight batches; where
            it sampled none, the row that the last sample() saw there, or that this handle has
            added since. 0 for a slot without a row.

        Raises
        ------
        LearnerBusy
            If another handle has the learner's role.
        """
        return super().get_generations(indexes)

    def get_priorities(self, indexes: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the priorities that rows have now. Any process may call it. It never blocks.

        A priority is what add() or update_priorities() was last given, to the precision that the
        float32 leaf ``(priority + eps) ** alpha`` keeps. With alpha 0, where all rows have one
        leaf, it is 1.

        Parameters
        ----------
        indexes : array_like of int
            (n,) slots in [0, size).

        Returns
        -------
        numpy.ndarray
            float64 (n,); NaN for a slot that holds no complete row.

        Raises
        ------
        TypeError
            If the indexes are no integers.
        IndexError
            If an index is not in [0, size).
        BufferClosed
            After close().
        """
        return super().get_priorities(indexes)

    def acquire_learner(self) -> None:
        """Take the learner's role now, instead of at the first sample().

        A stray sample() in another process then fails there, and not in the learner. Takes some
        15 ns for each row there is, as the first sample() would.

        Raises
        ------
        LearnerBusy
            If another handle has the role; names it, at once.
        BufferClosed
            After close().
        """
        super().acquire_learner()

    def learner_status(self) -> LearnerStatus:
        """Return the statistics that the learner last published. Any process may call it.

        All figures are 0 if the learner died while publishing them.

        Raises
        ------
        LearnerBusy
            If the learner was stopped while publishing.
        """
        return LearnerStatus(**self._learner_status())

    def stats(self) -> dict[str, int | float]:
        """Return ReplayBuffer's figures, and what the learner last published; see there."""
        learner = self.learner_status()
        return {
            **super().stats(),
            "learner_pid": learner.pid,
            "learner_draws": learner.draws,
            "learner_updates": learner.updates,
            "learner_stale": learner.stale,
            "learner_rows_folded": learner.rows_folded,
            "sampleable": learner.sampleable,
            "total": learner.total,
        }
