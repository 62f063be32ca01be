"""scikit-learn's tables: data without any file."""

from __future__ import annotations

import numpy as np

from algorithms.core.columns import Column
from engine.data.config import DataConfig
from engine.data.half import Half, HalfName, rows_of_half


def read(config: DataConfig, half: HalfName, limit: int | None) -> Half:
    """Numbers by the names that scikit-learn gives them, and classes `label`, or of `diabetes` a number `target`.

    Split as `rows_of_half` says. The `digits` are tables of 64 numbers here; the source `digits` has the images.
    """
    from sklearn import datasets  # a second and a half, which no other source needs

    # As measured: scikit-learn's own scaling of `diabetes` would let test rows into the statistics.
    options = {"scaled": False} if config.place == "diabetes" else {}
    bunch = getattr(datasets, f"load_{config.place}")(**options)
    rows = rows_of_half(len(bunch.target), half)[:limit]
    columns = {
        str(name): Column("number", values.astype(np.float64))
        for name, values in zip(bunch.feature_names, bunch.data[rows].T, strict=True)
    }
    target = Column("number", bunch.target[rows].astype(np.float64))
    names = [] if config.place == "diabetes" else [str(name) for name in bunch.target_names]
    columns["label" if names else "target"] = target
    return Half(columns, lambda row: f"row {row}", config.source, names={"label": tuple(names)} if names else {})
