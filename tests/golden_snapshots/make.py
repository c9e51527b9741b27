"""Makes the golden snapshots of a new format: ``PYTHONPATH=tests/support python make.py VERSION``.

Those of earlier formats are never made again: they show that what was saved then is read now.
"""

import sys
from pathlib import Path

import numpy as np
from explorer_processes import FIELDS, rows_of

import mpbuffer

here, version = Path(__file__).parent, sys.argv[1]

with mpbuffer.PrioritizedReplayBuffer(8, FIELDS, alpha=0.6, eps=0.25, seed=1) as buffer:
    buffer.add(**rows_of(0, np.arange(6)), priorities=np.arange(6) + 0.5)
    buffer.add(**rows_of(0, np.arange(6, 11)), priorities=2.0)
    buffer.update_priorities([2], [40.5], buffer.get_generations([2]))
    buffer.sample(3)
    buffer.snapshot(here / f"prioritized-{version}")

env = {"obs": {"shape": (16, 8, 2), "dtype": np.uint8}, "i": {"dtype": np.int32}}
with mpbuffer.ReplayBuffer(5, env, stack_compress="obs", seed=1) as buffer:
    for i in range(7):
        buffer.add(obs=np.broadcast_to(np.arange(i, i + 2, dtype=np.uint8), (16, 8, 2)), i=i)
    buffer.snapshot(here / f"frames-{version}")
