"""Callbacks that whoever calls may leave out."""

from __future__ import annotations


def ignore(*_: object) -> None:
    """Default callback: does nothing."""
