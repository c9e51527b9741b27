"""Weights: the learner publishes them, explorers read them.

Uses ``_segment`` and ``_arguments``.
"""
