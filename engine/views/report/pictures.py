"""Pictures as PNG: images of clients in a grid, and tables of numbers as one pixel for each number."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

_TEAL = (38, 121, 122)


def heat(values: np.ndarray) -> bytes:
    """One pixel per number: the more of it, the less transparent, so that it can lie on light and on dark paper.

    Args:
        values: (H, W) in [0, 1].
    """
    pixels = np.empty((*values.shape, 4), dtype=np.uint8)
    pixels[..., :3] = _TEAL
    pixels[..., 3] = np.rint(np.clip(values, 0, 1) * 255)
    return _png(pixels)


def grid(images: np.ndarray, columns: int) -> bytes:
    """Images in rows, one transparent pixel apart.

    Args:
        images: uint8 (n, C, H, W), n >= 1; three channels are red, green and blue, any other number is shown as its
            mean in grey.
    """
    count, _, height, width = images.shape
    colours = images if images.shape[1] == 3 else np.repeat(images.mean(axis=1, keepdims=True), 3, axis=1)
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1, 4), dtype=np.uint8)
    for index, image in enumerate(colours):
        top, left = (index // columns) * (height + 1), (index % columns) * (width + 1)
        sheet[top : top + height, left : left + width, :3] = image.transpose(1, 2, 0).astype(np.uint8)
        sheet[top : top + height, left : left + width, 3] = 255
    return _png(sheet)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return file.getvalue()
