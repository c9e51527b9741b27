"""copy_rows.c, compiled when it is first needed."""

import ctypes
import functools
import os
import pathlib
import shutil
import subprocess
import tempfile

import numpy as np

from peers.adapter import Unsupported

SOURCE = pathlib.Path(__file__).with_name("copy_rows.c")


@functools.cache
def library() -> ctypes.CDLL:
    """Return the compiled functions; calls of them hold no Python lock.

    Raises
    ------
    Unsupported
        If there is no C compiler.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Unsupported("no C compiler is here: set CC")
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder) / "copy_rows.so"
        subprocess.run([compiler, "-O3", "-shared", "-fPIC", "-o", target, SOURCE], check=True)
        loaded = ctypes.CDLL(str(target))
    loaded.compute.argtypes = (ctypes.c_int64,)
    loaded.compute.restype = ctypes.c_double
    return loaded


class RowCopy:
    """A C loop that copies rows, field by field, from where a buffer has them into arrays.

    Parameters
    ----------
    sources : dict of str to int
        The address of each field of slot 0.
    stride : int
        Bytes from a slot to the next.
    targets : dict of str to numpy.ndarray
        Contiguous, (rows,) + shape.
    """

    def __init__(
        self, sources: dict[str, int], stride: int, targets: dict[str, np.ndarray]
    ) -> None:
        self.targets = [targets[name] for name in sources]  # keeps them alive
        count = len(sources)
        addresses = ctypes.c_void_p * count
        self.to = addresses(*(array.ctypes.data for array in self.targets))
        self.of = addresses(*sources.values())
        sizes = (array.nbytes // len(array) for array in self.targets)
        self.bytes = (ctypes.c_size_t * count)(*sizes)
        self.count, self.stride = ctypes.c_size_t(count), ctypes.c_size_t(stride)
        self.run = library().copy_rows

    def __call__(self, slots: np.ndarray) -> None:
        """Copy these slots, int64."""
        to, rows = ctypes.c_void_p(slots.ctypes.data), ctypes.c_size_t(len(slots))
        self.run(self.to, self.of, self.bytes, self.count, self.stride, to, rows)
