"""Data sets: sources, their columns, and what a task makes of them."""

from __future__ import annotations

from engine.data.config import DataConfig
from engine.data.load import DataSet, load
from engine.errors import DataError, InputError

__all__ = ["DataConfig", "DataError", "DataSet", "InputError", "load"]
