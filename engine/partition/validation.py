"""Validation rows: a share of each client's training rows that nobody trains on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from algorithms.core.seeds import Seed
from engine.partition.partition import Partition


def hold_out(partition: Partition, share: float, seed: Seed) -> tuple[Partition, tuple[np.ndarray, ...]]:
    """Take `share * n_k` rows of each client, to the nearest whole number, at random; never its last row.

    Which rows are taken follows from (run, client) alone.

    Args:
        share: above 0 and below 1.
        seed: of the run.

    Returns:
        the partition of the rows that stay for training; and int64 (m_k,), sorted, the rows taken of each client.
    """
    held_rows = tuple(
        _draw(rows, share, seed.at(phase="validation", client=k)) for k, rows in enumerate(partition.rows)
    )
    left = tuple(np.setdiff1d(rows, held) for rows, held in zip(partition.rows, held_rows, strict=True))
    return replace(partition, rows=left), held_rows


def _draw(rows: np.ndarray, share: float, seed: Seed) -> np.ndarray:
    count = min(round(share * len(rows)), len(rows) - 1)
    return np.sort(seed.numpy("rows").permutation(rows)[:count])
