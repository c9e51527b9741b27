"""What is built on the buffers by their public calls: cpprb's other buffers, functions and `train`.

A room of its own because nothing here knows how rows are kept: each file is one paper's way to
choose or relabel rows, or one of cpprb's functions around a buffer. Uses ``buffer``, ``envs``,
``_segment`` and ``_arguments``.
"""
