"""Handles on a segment: described, passed on, closed at exit, kept after. Uses only ``errors``."""
