"""An explorer's task, on its way from the learner to the explorer's process."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple

from mpbuffer.buffer.replay_buffer import ReplayBuffer
from mpbuffer.explorers.standard_multiprocessing import Inheritance, passing_on, reduction_of

__all__ = ["PickledTask", "Task"]


class Task(NamedTuple):
    """An explorer's task. It travels as bytes, so that errors in it can be reported."""

    function: Callable[..., object]
    buffer: ReplayBuffer
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def unpacked(self) -> Task:
        """Return itself: a fork copied it."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by value what an import in the other process would not find."""
        with passing_on() as inheritance:
            return PickledTask, (_pickled(tuple(self)), inheritance)


class PickledTask(NamedTuple):
    """A task that was pickled for another process."""

    pickled: bytes
    inheritance: Inheritance

    def unpacked(self) -> Task:
        """Import what it needs, and open the process's handle of the buffer."""
        from multiprocess.reduction import ForkingPickler

        self.inheritance.take_over()
        return Task(*ForkingPickler.loads(self.pickled))


def _pickled(task: tuple[Any, ...]) -> bytes:
    from multiprocess.reduction import ForkingPickler

    class TaskPickler(ForkingPickler):  # type: ignore[misc]
        """Pickles modules, and functions and classes of the main module, by name: dill would copy.

        Shares what processes of the standard library would share with the learner.
        """

        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, types.ModuleType) and _can_be_imported(value.__name__):
                return importlib.import_module, (value.__name__,)
            if (reduction := reduction_of(value)) is not None:
                return reduction
            return _name_in_main_module(value) or NotImplemented

    return bytes(TaskPickler.dumps(task, recurse=True))


def _can_be_imported(module: str) -> bool:
    if module == "__main__":
        return False
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _name_in_main_module(value: Any) -> str | None:
    """Return a function's or class's name in the main module, if the process imports that module.

    It does if the module is a program's, but not if it was typed at a prompt.
    """
    if not isinstance(value, (type, types.FunctionType)) or value.__module__ != "__main__":
        return None
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if name is not None:
        is_imported = name.rpartition(".")[2] != "__main__"
    else:
        is_imported = getattr(main, "__file__", None) is not None and not hasattr(sys, "ps1")
    found: Any = main
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return value.__qualname__ if is_imported and found is value else None
