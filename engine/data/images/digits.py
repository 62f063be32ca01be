"""scikit-learn's handwritten digits (Alpaydin and Kaynak, 1998; the UCI test set): data without any file."""

from __future__ import annotations

import numpy as np

from engine.data.config import DataConfig
from engine.data.half import Half, HalfName, fixed_order, image_half
from engine.data.images.decode import rescale

TRAIN_ROWS = 1297
"""Rows of the training half, of 1,797 images; the other 500 are the test half."""


def read(config: DataConfig, half: HalfName, limit: int | None) -> Half:
    """1x8x8 images, their 17 grey levels spread over 0..255, split after one fixed permutation of the 1,797 rows."""
    from sklearn.datasets import load_digits  # a second and a half, which no other source needs

    bunch = load_digits()
    order = fixed_order(len(bunch.target))
    rows = (order[:TRAIN_ROWS] if half == "train" else order[TRAIN_ROWS:])[:limit]
    images = np.rint(bunch.images[rows] * (255 / 16)).astype(np.uint8)[:, None]
    names = tuple(str(name) for name in bunch.target_names)
    labels = bunch.target[rows]
    return image_half(rescale(images, config.size), labels, names, lambda row: f"digit {row}", "digits")
