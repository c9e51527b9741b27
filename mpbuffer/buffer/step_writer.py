"""Rows staged in an explorer's own memory and written to the buffer many at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Literal, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from mpbuffer import _core
from mpbuffer._arguments.integers import whole_number
from mpbuffer._segment.exit import close_at_exit
from mpbuffer.buffer.nstep import NstepArgument, NstepRule, check_nstep, nstep_rule
from mpbuffer.buffer.schema import Field

__all__ = ["PrioritiesOf", "StepWriter"]

AnyWriter = TypeVar("AnyWriter", bound="StepWriter")
PrioritiesOf = Callable[[dict[str, npt.NDArray[Any]]], npt.ArrayLike]

_MOST_ENVIRONMENTS = 2**20
_MOST_ROWS = 2**40


class StepWriter(_core.StepWriter):
    """Takes an explorer's steps, and writes finished rows to the buffer many at a time.

    ``buffer.writer()`` makes it; every process makes its own. add() converts a step straight into a
    record in this process's memory, and folds n-step rows for each environment. Rows are written to
    the buffer when `flush_every` of them are finished, when an episode ends, and by flush().
    close() writes all rows; so do leaving a ``with`` block, garbage collection, and the end of the
    process by return, exception or ``sys.exit``, in forked children too. ``os._exit``, ``os.exec*``
    and a kill lose the rows that are still staged, and no others. Functions registered with
    ``atexit`` before mpbuffer was imported run later, and find everything closed.

    An episode ends with a step whose field ``done``, ``terminated`` or ``truncated`` is not 0, and
    with on_episode_end().

    For one thread at a time. A forked child starts with nothing staged.

    Parameters
    ----------
    buffer : ReplayBuffer or PrioritizedReplayBuffer
        Where rows go. close() leaves it open.
    flush_every : int, optional
        Rows, at least 1. Default: 50, or 1 of sequences.
    Nstep : mapping, optional
        As for ReplayBuffer. Default: the buffer's own. A buffer without n-step rows takes any rule
        that suits its fields; a ``"discount"`` must be one of them.
    priorities : callable or "td", optional
        What computes the priorities of rows. For a prioritized buffer.

        Default: add() takes them, and else uses the largest so far, as ``buffer.add`` does.

        A callable is called before rows are written, with a dict of their arrays, each of shape
        ``(rows,) + shape``. It returns (rows,) priorities. If it raises, the rows stay staged, and
        the exception comes out of the call that was to write them.

        ``"td"``: ``|rew + discount * v(next) - q|`` of each n-step row, in double, from the values
        that the explorer acted by (Horgan et al., "Distributed prioritized experience replay",
        2018, section 3). Each step comes with `q` and `v`. ``v(next)`` is the `v` of the step after
        the row's last one: a row waits one step longer for it. Where an episode was cut off it is
        ``next_v`` of its last step or, as an approximation, `v` of that step. Where the last step
        terminates, it is not needed. A result beyond float32 is replaced by the largest priority
        so far. Needs n-step rows (``"size": 1`` is enough) with one reward that is one number.
    n_envs : int, optional
        How many environments are stepped together, at least 1.

    Raises
    ------
    ValueError
        If `Nstep` differs from the buffer's or does not suit its fields, if `priorities` is given
        for a uniform buffer, or if a field has the name of an argument that add() needs; and as for
        ReplayBuffer.
    TypeError
        If an argument is not as above.
    BufferClosed
        If the buffer's handle was closed.

    Examples
    --------
    >>> import mpbuffer
    >>> fields = {"obs": {}, "rew": {}, "next_obs": {}, "terminated": {}}
    >>> nstep = {"size": 3, "rew": "rew", "next": "next_obs", "gamma": 0.5}
    >>> with mpbuffer.ReplayBuffer(100, fields, Nstep=nstep) as buffer, buffer.writer() as writer:
    ...     for t in range(4):
    ...         _ = writer.add(obs=t, rew=1, next_obs=t + 1, terminated=t == 3)
    ...     rows = buffer.get_all_transitions()
    >>> rows["rew"].ravel().tolist()
    [1.75, 1.75, 1.5, 1.0]
    """

    def __init__(
        self,
        buffer: _core.ReplayBuffer,
        flush_every: int | None = None,
        *,
        Nstep: NstepArgument = None,
        priorities: PrioritiesOf | Literal["td"] | None = None,
        n_envs: int = 1,
    ) -> None:
        of_sequences = _core.ReplayBuffer._sequence(buffer) is not None
        if flush_every is None:
            flush_every = 1 if of_sequences else 50
        rows = whole_number("flush_every", flush_every, 1, _MOST_ROWS)
        environments = whole_number("n_envs", n_envs, 1, _MOST_ENVIRONMENTS)
        fields = _core.ReplayBuffer._fields(buffer)  # TypeError if it is no buffer
        if of_sequences:
            _require_neither(Nstep, priorities)
        rule = _rule_for(buffer, Nstep, fields)
        from_values = isinstance(priorities, str)
        if from_values and priorities != "td":
            raise ValueError(f"priorities must be a callable, 'td' or None, got {priorities!r}")
        if priorities is not None:
            if not from_values and not callable(priorities):
                raise TypeError(f"priorities must be a callable, 'td' or None, got {priorities!r}")
            if not buffer._prioritized:
                raise ValueError(f"{buffer.name!r} takes no priorities: it is a uniform buffer")
        if from_values:
            _require_one_reward(rule, fields)
        taken = {"envs"} if environments > 1 else set()
        taken |= {"q", "v", "next_v"} if from_values else set()
        taken &= {name for name, _, _ in fields}
        if taken:
            raise ValueError(
                f"fields have the names of arguments that add() needs here: {sorted(taken)}"
            )
        self._open(
            buffer,
            rows,
            environments,
            None if rule is None else rule.for_core(),
            None if from_values else priorities,
            from_values,
        )
        self._flush_every, self._n_envs, self._buffer_name = rows, environments, buffer.name
        close_at_exit(self, uses_others=True)

    def on_episode_end(self, envs: npt.ArrayLike | None = None) -> int:
        """End episodes that no flag has ended, as if truncated, and write all finished rows.

        Steps whose rows were waiting for more get a row each, of as many steps as there are. Where
        a flag has ended the episode, nothing changes.

        Parameters
        ----------
        envs : array_like of int, optional
            Which environments: what ``VectorTransitions.reset()`` returns. Default: all.

        Returns
        -------
        int
            How many rows were written.

        Raises
        ------
        TypeError, IndexError
            If `envs` are no numbers of environments. Nothing has changed then.
        SlotsHeld, OSError, BufferClosed
            As ``buffer.add``; rows that were not written stay staged. So do they after an exception
            of `priorities`.
        """
        return super().on_episode_end(envs)

    @property
    def flush_every(self) -> int:
        """How many finished rows are written together."""
        return self._flush_every

    @property
    def n_envs(self) -> int:
        """How many environments are stepped together."""
        return self._n_envs

    def __enter__(self: AnyWriter) -> AnyWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not is_finalizing():  # then it was closed at exit
            self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "cannot pickle a StepWriter: its rows belong to one process; pass the buffer, and call "
            "buffer.writer() in each process"
        )

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.rows_staged} staged"
        return f"<StepWriter for {self._buffer_name!r}: {state}, {self.rows_written} rows written>"


def _rule_for(
    buffer: _core.ReplayBuffer, wanted: NstepArgument, fields: list[Field]
) -> NstepRule | None:
    own = buffer._nstep()
    rule = None if own is None else NstepRule(*own[:2], tuple(own[2]), tuple(own[3]), own[4])
    asked = nstep_rule(wanted)
    if asked is None:
        return rule
    if rule is None:
        check_nstep(asked, fields)
    elif asked != rule:
        raise ValueError(
            f"{buffer.name!r} has Nstep {rule}, expected the same or none, got {asked}"
        )
    return asked


def _require_neither(Nstep: NstepArgument, priorities: Any) -> None:
    for name, given in (("Nstep", Nstep), ("priorities", priorities)):
        if given:
            raise ValueError(
                f"a writer of sequences takes no {name}, got {given!r}; expected none: n-step "
                "returns are computed from sampled steps, and priorities from add(td=...)"
            )


def _require_one_reward(rule: NstepRule | None, fields: list[Field]) -> None:
    if rule is None:
        raise ValueError("priorities='td' needs Nstep, of which 'size' may be 1")
    shapes = {name: shape for name, _, shape in fields}
    if len(rule.rew) != 1 or np.prod(shapes[rule.rew[0]], dtype=object) != 1:
        raise ValueError(
            f"priorities='td' needs one reward that is one number, Nstep has {list(rule.rew)}"
        )
