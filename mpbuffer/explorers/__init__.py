"""The processes that explore: started, watched, restarted.

Uses ``buffer``, ``_segment`` and ``_arguments``.
"""
