"""Weights: the learner publishes them, explorers read them.

Uses ``_segment``, ``_arguments``, and ``buffer`` for the description of dtypes.
"""
