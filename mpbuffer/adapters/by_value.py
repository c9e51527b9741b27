"""Adapters pickled by value: their rows go into the pickle, unless a process is being started."""

from __future__ import annotations

import io
import sys
from typing import Any

import mpbuffer

__all__ = ["PickledByValue"]


class PickledByValue:
    """Base of adapters that have a buffer of mpbuffer's, `rows`.

    Handed to a process that is being started, an adapter brings its handle; anywhere else a pickle
    holds the rows, and what is unpickled is another buffer, without a name.
    """

    rows: Any
    _arguments: dict[str, Any]

    def _create_rows(
        self,
        size: int,
        fields: dict[str, Any],
        of_mpbuffer: dict[str, Any],
        *,
        prioritized: bool,
        Nstep: Any = None,
    ) -> None:
        """Create `rows` with the parameters `of_mpbuffer` that the user has given.

        Raises
        ------
        TypeError
            If `Nstep` or `sequence` is among them: the adapter must know how steps become rows.
        """
        if "Nstep" in of_mpbuffer:
            raise TypeError(
                f"cannot create a {type(self).__name__}: unexpected argument 'Nstep'; expected "
                "n_steps and gamma where there are n-step rows"
            )
        if "sequence" in of_mpbuffer:
            raise TypeError(
                f"cannot create a {type(self).__name__}: unexpected argument 'sequence'; its rows "
                "are transitions, use mpbuffer's own classes for sequences"
            )
        cls = mpbuffer.PrioritizedReplayBuffer if prioritized else mpbuffer.ReplayBuffer
        arguments = {"size": size, "env_dict": fields, "Nstep": Nstep, **of_mpbuffer}
        self.rows = cls(**arguments)
        self._arguments = arguments

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.rows is not None and not _is_starting_a_process():
            file = io.BytesIO()
            self.rows.save_transitions(file)
            state["rows"] = type(self.rows), file.getvalue()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.rows, tuple):
            cls, saved = self.rows
            rows = cls(**{**self._arguments, "name": None, "overwrite": False})
            rows.load_transitions(io.BytesIO(saved))
            self.rows = rows


def _is_starting_a_process() -> bool:
    for package in ("multiprocessing", "multiprocess"):
        context = sys.modules.get(f"{package}.context")
        if context is not None and context.get_spawning_popen() is not None:
            return True
    return False
