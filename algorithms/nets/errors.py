"""Errors of networks that cannot be built."""

from __future__ import annotations


class NetworkError(ValueError):
    """A network that is unknown, cannot be made, or does not fit the images; says which, and what would be right."""
