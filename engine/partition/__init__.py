"""Partitions: which client holds which training rows. Tables and pictures, which load matplotlib, stand apart."""

from __future__ import annotations

from engine.partition.config import PartitionConfig, ShiftConfig
from engine.partition.divide import divide, divide_tests
from engine.partition.partition import Partition, PartitionError
from engine.partition.shift import shift_columns
from engine.partition.validation import hold_out

__all__ = [
    "Partition",
    "PartitionConfig",
    "PartitionError",
    "ShiftConfig",
    "divide",
    "divide_tests",
    "hold_out",
    "shift_columns",
]
