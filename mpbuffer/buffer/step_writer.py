"""Rows staged in an explorer's own memory and written to the buffer many at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from mpbuffer import _core
from mpbuffer._arguments.integers import whole_number
from mpbuffer._segment.exit import close_at_exit
from mpbuffer.buffer.nstep import NstepRule, check_nstep, nstep_rule
from mpbuffer.buffer.schema import Field

__all__ = ["PrioritiesOf", "Staging"]

AnyStaging = TypeVar("AnyStaging", bound="Staging")
PrioritiesOf = Callable[[dict[str, npt.NDArray[Any]]], npt.ArrayLike]

_MOST_ENVIRONMENTS = 2**20
_MOST_ROWS = 2**40


class Staging(_core.Staging):
    """An explorer's side of a buffer: takes steps, and writes finished rows many at a time.

    Made by ``buffer.explorer()``; every process makes its own. add() converts a step straight into
    a record in this process's memory, folds n-step rows, for each environment by itself, and writes
    to the buffer when `flush_every` rows are finished, when an episode ends, by flush(), by
    close(), by leaving a ``with`` block, when this object is garbage collected, and when the
    process ends (by returning, by an exception, by ``sys.exit``; not by ``os._exit``, nor when
    ``os.exec*`` replaces it), a forked child too. A process that is killed loses the rows that it
    had staged, and no others. Functions that were registered with ``atexit`` before mpbuffer was
    imported run after that end, and find everything closed.

    An episode ends by a row in which a field ``done``, ``terminated`` or ``truncated`` is not 0,
    and by on_episode_end().

    For one thread at a time. A child of a fork starts with nothing staged.

    Parameters
    ----------
    buffer : ReplayBuffer or PrioritizedReplayBuffer
        Where rows go. It is kept, not closed.
    flush_every : int, optional
        Rows, at least 1.
    Nstep : mapping, optional
        As for ReplayBuffer; the buffer's own if not given. A buffer without takes any that suits
        its fields; a ``"discount"`` must be one of them.
    priorities : callable or "td", optional
        Of the rows that are written; for a prioritized buffer.

        Not given: what add() is told, and else the largest so far, as in ``buffer.add``.

        A callable is called before rows are written, with a dict of their arrays, each of shape
        ``(rows,) + shape``, and returns (rows,) priorities. If it raises, the rows stay staged, and
        the call that was about to write them raises that.

        ``"td"``: ``|rew + discount * v(next) - q|`` of each n-step row, in double, by the values
        that acting was based on (Horgan et al., "Distributed prioritized experience replay", 2018,
        section 3). Each step comes with `q` and `v`. ``v(next)`` is the `v` of the step that
        follows the row's last one: a row waits for it, one step longer. Where an episode was cut
        off it is ``next_v`` of its last step, and if that is not given, as an approximation, `v` of
        that step. Where the last step terminates none is needed. If it comes out beyond float32,
        the row gets the largest so far. Needs n-step rows (``"size": 1`` does) of one reward that
        is one number.
    n_envs : int, optional
        How many environments are stepped together, at least 1.

    Raises
    ------
    ValueError
        If `Nstep` is not the buffer's, the buffer's fields do not suit it, priorities are asked for
        where there can be none, or a field has the name of an argument of add() that is needed; and
        as for ReplayBuffer.
    TypeError
        If an argument is none of the above.
    BufferClosed
        If the buffer's handle was closed.

    Examples
    --------
    >>> import mpbuffer
    >>> fields = {"obs": {}, "rew": {}, "next_obs": {}, "terminated": {}}
    >>> nstep = {"size": 3, "rew": "rew", "next": "next_obs", "gamma": 0.5}
    >>> with mpbuffer.ReplayBuffer(100, fields, Nstep=nstep) as buffer, buffer.explorer() as stage:
    ...     for t in range(4):
    ...         _ = stage.add(obs=t, rew=1, next_obs=t + 1, terminated=t == 3)
    ...     rows = buffer.get_all_transitions()
    >>> rows["rew"].ravel().tolist()
    [1.75, 1.75, 1.5, 1.0]
    """

    def __init__(
        self,
        buffer: _core.ReplayBuffer,
        flush_every: int = 50,
        *,
        Nstep: Mapping[str, Any] | None = None,
        priorities: PrioritiesOf | Literal["td"] | None = None,
        n_envs: int = 1,
    ) -> None:
        rows = whole_number("flush_every", flush_every, 1, _MOST_ROWS)
        environments = whole_number("n_envs", n_envs, 1, _MOST_ENVIRONMENTS)
        fields = _core.ReplayBuffer._fields(buffer)  # TypeError if it is no buffer
        rule = _rule_for(buffer, Nstep, fields)
        from_values = isinstance(priorities, str)
        if from_values and priorities != "td":
            raise ValueError(f"priorities must be a callable, 'td' or None, got {priorities!r}")
        if priorities is not None:
            if not from_values and not callable(priorities):
                raise TypeError(f"priorities must be a callable, 'td' or None, got {priorities!r}")
            if not buffer._prioritized:
                raise ValueError(f"{buffer.name!r} takes no priorities: it is sampled uniformly")
        if from_values:
            _require_one_reward(rule, fields)
        taken = {"envs"} if environments > 1 else set()
        taken |= {"q", "v", "next_v"} if from_values else set()
        taken &= {name for name, _, _ in fields}
        if taken:
            raise ValueError(
                f"a field is named as an argument of add() that is needed here: {sorted(taken)}"
            )
        _core.open_staging(
            self,
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

        The steps whose rows were waiting for more get a row each, of as many steps as there are.
        Where a step ended its episode by a flag, nothing is left to be done.

        Parameters
        ----------
        envs : array_like of int, optional
            Which environments: what ``VectorTransitions.reset()`` returns. All if not given.

        Returns
        -------
        int
            How many rows were written.

        Raises
        ------
        TypeError, IndexError
            If `envs` are no numbers of environments. Nothing has changed then.
        SlotsHeld, OSError, BufferClosed
            As ``buffer.add``; rows that were not written are staged still. So after an exception of
            `priorities`.
        """
        return _core.end_staged_episodes(self, envs)

    def flush(self) -> int:
        """Write all finished rows to the buffer; return how many. Raises as on_episode_end()."""
        return _core.flush_staging(self)

    def close(self) -> None:
        """End all episodes, as on_episode_end() does, write all rows, and take no more.

        Twice is once. If it raises, as on_episode_end() does, it is closed all the same, and what
        was not written is lost.
        """
        _core.close_staging(self)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return not _core.staging_is_open(self)

    @property
    def steps(self) -> int:
        """How many steps add() has taken, in this process."""
        return _core.staging_counts(self)[0]

    @property
    def rows_staged(self) -> int:
        """How many steps and rows wait, in this process, to become rows of the buffer."""
        return _core.staging_counts(self)[1]

    @property
    def rows_written(self) -> int:
        """How many rows this process has written through it."""
        return _core.staging_counts(self)[2]

    @property
    def flush_every(self) -> int:
        """How many finished rows are written together."""
        return self._flush_every

    @property
    def n_envs(self) -> int:
        """How many environments are stepped together."""
        return self._n_envs

    def __enter__(self: AnyStaging) -> AnyStaging:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not is_finalizing():  # then it was closed at exit
            self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "cannot pickle a Staging: its rows are those of one process; pass the buffer, and call "
            "buffer.explorer() in each process"
        )

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.rows_staged} staged"
        return f"<Staging for {self._buffer_name!r}: {state}, {self.rows_written} rows written>"


def _rule_for(
    buffer: _core.ReplayBuffer, wanted: Mapping[str, Any] | None, fields: list[Field]
) -> NstepRule | None:
    own = buffer._nstep()
    rule = None if own is None else NstepRule(*own[:2], tuple(own[2]), tuple(own[3]), own[4])
    if wanted is None:
        return rule
    asked = nstep_rule(wanted)
    if rule is None:
        check_nstep(asked, fields)
    elif asked != rule:
        raise ValueError(
            f"{buffer.name!r} has Nstep {rule}, expected the same or none, got {asked}"
        )
    return asked


def _require_one_reward(rule: NstepRule | None, fields: list[Field]) -> None:
    if rule is None:
        raise ValueError("priorities='td' needs Nstep, of which 'size' may be 1")
    shapes = {name: shape for name, _, shape in fields}
    if len(rule.rew) != 1 or np.prod(shapes[rule.rew[0]], dtype=object) != 1:
        raise ValueError(
            f"priorities='td' needs one reward that is one number, Nstep has {list(rule.rew)}"
        )
