"""Partitions: which client holds which training rows. Tables and pictures, which load matplotlib, stand apart."""

from __future__ import annotations

from engine.partition.config import PartitionConfig
from engine.partition.divide import divide
from engine.partition.partition import Partition, PartitionError

__all__ = ["Partition", "PartitionConfig", "PartitionError", "divide"]
