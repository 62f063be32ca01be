"""From PNG and JPEG files to arrays of bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from engine.errors import DataError

FORMATS = ("PNG", "JPEG")
_GREY = ("1", "L", "LA")
_COLOUR = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")

Item = TypeVar("Item")


class Unreadable(Exception):
    """The reason why an image cannot be used, not yet saying which."""


def open_image(encoded: bytes | None) -> Image.Image:
    """A PNG or JPEG file's image.

    Raises:
        Unreadable: for anything else, None included.
    """
    if encoded is None:
        raise Unreadable("holds no image")
    # Only two formats are allowed because some of Pillow's readers start other programs.
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        image.load()
    except Exception as error:  # damaged bytes make Pillow's readers raise errors of a dozen types
        raise Unreadable(f"is not a readable PNG or JPEG image ({type(error).__name__})") from error
    return image


def pixels(image: Image.Image, size: int | None) -> np.ndarray:
    """uint8, (1, H, W) for a grey image and (3, H, W) for a colour one; transparency is dropped.

    Args:
        size: side in pixels to scale to, after a crop at the centre to a square; None leaves the image as it is.
    """
    if image.mode not in _GREY + _COLOUR:
        raise Unreadable(f"has pixels of mode {image.mode!r}, not of 8 bits a channel")
    image = image.convert("L" if image.mode in _GREY else "RGB")
    if size is not None and image.size != (size, size):
        image = ImageOps.fit(image, (size, size))
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def stack(
    items: Iterable[Item],
    opened: Callable[[Item], Image.Image],
    size: int | None,
    source: str,
    place: Callable[[int], str],
) -> np.ndarray:
    """uint8, (N, C, H, W): all images as one array, of one channel where all are grey, else of three.

    Pillow holds Python's lock while it decodes images as small as these, so threads would only add their cost.

    Args:
        items: one per row.
        opened: opens a row's item; raises `Unreadable`.
        size: side in pixels to scale to, or None.
        source, place: the configuration's source and the words for a row, for errors.

    Raises:
        DataError: naming the first row that cannot be read or whose size is not the first row's.
    """
    arrays: list[np.ndarray] = []
    for row, item in enumerate(items):
        try:
            array = pixels(opened(item), size)
        except Unreadable as error:
            raise DataError("data.source", source, f"{place(row)} {error}", "replace or remove it") from error
        if arrays and array.shape[1:] != arrays[0].shape[1:]:
            sizes = f"{place(row)} is {_side(array)} pixels, but {place(0)} is {_side(arrays[0])} (height x width)"
            raise DataError("data.source", source, sizes, "set data.size to scale all images to one size")
        arrays.append(array)
    return _join(arrays)


def _side(array: np.ndarray) -> str:
    return f"{array.shape[-2]}x{array.shape[-1]}"


def _join(arrays: list[np.ndarray]) -> np.ndarray:
    if not arrays:
        return np.empty((0, 1, 1, 1), np.uint8)
    channels = max(array.shape[0] for array in arrays)
    joined = np.empty((len(arrays), channels, *arrays[0].shape[1:]), np.uint8)
    for row, array in enumerate(arrays):
        joined[row] = array
    return joined


def rescale(images: np.ndarray, size: int | None) -> np.ndarray:
    """Images (N, C, H, W) of one or three channels that are an array already, scaled as `pixels` scales files."""
    if size is None or images.shape[2:] == (size, size):
        return images
    pictures = (image[0] if len(image) == 1 else image.transpose(1, 2, 0) for image in images)
    return _join([pixels(Image.fromarray(np.ascontiguousarray(picture)), size) for picture in pictures])
