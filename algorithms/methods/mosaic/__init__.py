"""Mosaic: the method, and its parts beside it."""

from algorithms.methods.mosaic.method import Mosaic

__all__ = ["Mosaic"]
