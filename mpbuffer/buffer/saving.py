"""Transitions saved to a file, and loaded from one, as cpprb does."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mpbuffer import _core
from mpbuffer._files.transitions import (
    File,
    SavedTransitions,
    read_transitions,
    write_transitions,
)

__all__ = ["SavedToFiles"]


class SavedToFiles(_core.ReplayBuffer):
    """Base of buffers: what saves and loads their rows."""

    def save_transitions(self, file: File, *, safe: bool = True) -> None:
        """Save a copy of all complete rows, in cpprb's format.

        Any process may call it; others may add meanwhile, as with get_all_transitions(). Of a
        prioritized buffer the rows' priorities are saved, too, and the largest one seen. Steps that
        are not yet n-step rows are not saved: call on_episode_end() before. It takes as much memory
        as the rows, and as long as their compression.

        Parameters
        ----------
        file : str, path or binary file
            A path without the ending ``.npz`` gets it. What the path held before is replaced when
            all is written, so that a save that fails or is killed leaves it.
        safe : bool, optional
            Accepted because cpprb takes it; here all files are safe.

        Raises
        ------
        OSError
            If the file cannot be written.
        BufferClosed
            After close().
        ValueError
            If the rows are sequences.
        """
        self._require_rows("save")
        largest = self._largest_priority()
        rows, seqs, priorities = self._marked_rows()
        if largest is not None and priorities is not None:
            # A clear() sets it back. The priorities are rounded, and may be a little beyond.
            largest = max(largest, self._largest_priority() or 0.0)
            if (priorities > largest * 1.001).any():  # of rows between two clears
                largest = float(priorities.max())
            priorities = np.minimum(priorities, largest)
        oldest = int(seqs.argmin()) if len(seqs) else 0
        write_transitions(
            file, SavedTransitions(rows, self.is_Nstep(), priorities, largest, oldest)
        )

    def load_transitions(self, file: File) -> None:
        """Add the rows of a file that save_transitions() or cpprb has written.

        Any process may call it. Rows are added from the oldest to the newest, behind those that
        are there; of more rows than fit, the newest. A full buffer that is loaded into an empty
        one of its size gets each row into its slot. A prioritized buffer restores priorities, and
        the largest one seen, if the file has them; cpprb's files have none, and their rows get the
        largest priority so far. Nothing in the file is run: pickled objects other than cpprb's
        dict of arrays are refused.

        Parameters
        ----------
        file : str, path or binary file
            If there is no such file, the path with ``.npz``.

        Raises
        ------
        ValueError
            If the file is damaged, no such file, or needs pickle; if one of file and buffer has
            n-step rows and the other has not; if a shape is wrong, or the buffer cannot represent
            a value or a priority; if the rows are sequences. Nothing has changed then.
        KeyError, TypeError
            If the file lacks a field, or its values cannot be converted; with ``strict=True``, if
            the buffer lacks one. Nothing has changed then.
        OSError
            If the file cannot be opened.
        SlotsHeld, BufferClosed
            As for add().
        """
        self._require_rows("load")
        saved = read_transitions(file)
        if saved.nstep != self.is_Nstep():
            kinds = ("single steps", "n-step rows")
            raise ValueError(
                f"cannot load transitions into {self.name!r}: the file has {kinds[saved.nstep]}, "
                f"expected {kinds[self.is_Nstep()]}"
            )
        rows, priorities, size = (
            self._converted(saved.rows),
            saved.priorities,
            self.get_buffer_size(),
        )
        is_fresh = len(self) == 0 and self.get_next_index() == 0
        # So many slots further, each row of a full buffer comes into its own.
        ahead = saved.oldest if is_fresh and len(saved) == size else 0
        if saved.oldest or len(saved) > size:
            by_age = (np.arange(len(saved)) + saved.oldest) % len(saved)
            rows = {field: values[by_age[-size:]] for field, values in rows.items()}
            priorities = None if priorities is None else priorities[by_age[-size:]]
        if not self._prioritized:
            priorities = None
        self._add_rows(rows, priorities, saved.largest_priority, ahead)

    def _largest_priority(self) -> float | None:
        if isinstance(self, _core.PrioritizedReplayBuffer):
            return self.get_max_priority()
        return None

    def _require_rows(self, verb: str) -> None:
        if self._sequence() is not None:
            raise ValueError(
                f"cannot {verb} transitions of {self.name!r}: its rows are sequences, which share "
                "steps; keep_after_exit() keeps it for a program that is started again, and "
                "get_all_transitions() returns its sequences as arrays"
            )

    def _converted(self, rows: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the rows with the values of this buffer's fields in their dtypes and shapes."""
        converted = dict(rows)
        for name, dtype, shape in self._fields():
            if name not in rows:
                raise KeyError(
                    f"cannot load transitions into {self.name!r}: the file has no field {name!r}; "
                    f"its fields are {', '.join(map(repr, rows))}"
                )
            what = f"cannot load field {name!r}"
            values = _core.converted(what, rows[name], dtype)
            if list(values.shape[1:]) != shape:
                raise ValueError(
                    f"{what}: its rows have shape {values.shape[1:]}, expected {tuple(shape)}"
                )
            converted[name] = values
        return converted
