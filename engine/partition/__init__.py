"""Partitions: which client holds which training rows."""

from __future__ import annotations

from engine.partition.config import PartitionConfig
from engine.partition.divide import divide
from engine.partition.partition import Partition, PartitionError
from engine.partition.picture import draw, table

__all__ = ["Partition", "PartitionConfig", "PartitionError", "divide", "draw", "table"]
