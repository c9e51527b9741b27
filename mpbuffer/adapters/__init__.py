"""Buffers with the faces of trainers' own: one module for each library, imported by its users.

Nothing here is imported by ``import mpbuffer``, and each module uses mpbuffer's public names alone.
"""
