"""Data sets: where images come from, decoded once to bytes."""

from __future__ import annotations

from engine.data.config import AugmentConfig, DataConfig
from engine.data.load import DataSet, load
from engine.errors import DataError, InputError

__all__ = ["AugmentConfig", "DataConfig", "DataError", "DataSet", "InputError", "load"]
