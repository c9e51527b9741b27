"""Handles on a segment: passed on, closed at exit, kept after it. Uses only ``errors``."""
