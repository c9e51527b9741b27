"""Two programs that know nothing of each other but a buffer's name.

    python examples/attach_by_name.py

The first creates a named buffer and samples from it. The second, an unrelated Python process of the
same user, opens the buffer by that name and adds rows. It may come and go as it likes: the buffer
is there as long as any process has it open, and nothing is left behind after the last.
"""

import os
import subprocess
import sys

import numpy as np

import mpbuffer

ROWS = 1_000


def add_rows(name: str) -> None:
    """Be the second program: it is told the name, and learns the rest from the buffer."""
    with mpbuffer.attach(name) as rb:
        print(f"process {os.getpid()} opened {rb!r}")
        numbers = np.arange(ROWS)
        squares = numbers.astype(np.float64) ** 2
        rb.add(number=numbers, square=squares, priorities=np.ones(ROWS))


def sample_rows() -> None:
    """Be the first program: create the buffer, let the other one fill it, sample."""
    name = f"squares-{os.getpid()}"
    fields = {"number": {"dtype": np.int64}, "square": {"dtype": np.float64}}
    with mpbuffer.PrioritizedReplayBuffer(2 * ROWS, fields, name=name) as rb:
        print(f"process {os.getpid()} created {rb!r}")
        subprocess.run([sys.executable, __file__, name], check=True)

        sample = rb.sample(32)
        assert np.array_equal(sample["square"], sample["number"].astype(np.float64) ** 2)
        rb.update_priorities(sample["indexes"], sample["square"].ravel())
        print(f"process {os.getpid()} sampled {len(sample['number'])} of {len(rb):,} rows:")
        for number, square in zip(sample["number"][:4, 0], sample["square"][:4, 0], strict=True):
            print(f"  {number} squared is {square:.0f}")
        print(f"{rb.rows_added():,} rows were added by all processes")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        add_rows(sys.argv[1])
    else:
        sample_rows()
