"""From PNG, JPEG and WebP files to arrays of bytes: the one way in which every reader decodes images.

Images stand as a camera's orientation mark (EXIF) says. Of 16 bits a channel the upper 8 are kept, as Pillow does with
colour images, and told. Of several frames the first is taken. Transparency is dropped.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from engine.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP")
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_GREY = ("1", "L", "LA")
_COLOUR = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH = 24
"""Place of a PNG file's byte that says its bits a channel (PNG specification, 11.2.1)."""

_WAS_DEEP = "tessera: 16 bits a channel"
"""Key, among what Pillow knows of an image, of colour images that it has reduced to 8 bits itself."""

DIM = 64
"""Brightest pixel of 16-bit images after their reduction, below which most of them is lost."""

Item = TypeVar("Item")


class Unreadable(Exception):
    """The reason why an image cannot be used, not yet saying which."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images of one size.

    Attributes:
        values: uint8, (N, C, H, W).
        facts: notes on what was changed as they were decoded.
    """

    values: np.ndarray
    facts: tuple[str, ...] = ()


def decode(encoded: bytes | None, size: int | None = None) -> np.ndarray:
    """An image file's pixels, as `pixels` has them.

    Raises:
        Unreadable: what is not a PNG, JPEG or WebP file, None included.
    """
    return pixels(open_image(encoded), size)


def open_image(encoded: bytes | None) -> Image.Image:
    """The image of a PNG, JPEG or WebP file, turned as its orientation mark says.

    Raises:
        Unreadable: for anything else, None included.
    """
    if encoded is None:
        raise Unreadable("holds no image")
    # Few formats are allowed because some of Pillow's readers start other programs.
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # damaged bytes make Pillow's readers raise errors of a dozen types
        raise Unreadable(f"is not a readable PNG, JPEG or WebP image ({type(error).__name__})") from error
    if encoded.startswith(_PNG) and encoded[_PNG_DEPTH] == 16:
        image.info[_WAS_DEEP] = True
    return image


def pixels(image: Image.Image, size: int | None) -> np.ndarray:
    """uint8, (1, H, W) for a grey image and (3, H, W) for a colour one; transparency is dropped.

    Args:
        size: side in pixels to scale to, after a crop at the centre to a square; None leaves the image as it is.
    """
    if image.mode in _DEEP:
        image = _upper_bits(image)
    if image.mode not in _GREY + _COLOUR:
        raise Unreadable(f"has pixels of mode {image.mode!r}, not of 8 or 16 bits a channel")
    image = image.convert("L" if image.mode in _GREY else "RGB")
    if size is not None and image.size != (size, size):
        image = ImageOps.fit(image, (size, size))
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _upper_bits(image: Image.Image) -> Image.Image:
    """The upper 8 of 16 bits a pixel."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise Unreadable(f"has pixels from {values.min()} to {values.max()}, not of 8 or 16 bits")
    return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))


def stack(
    items: Iterable[Item],
    opener: Callable[[Item], Image.Image],
    size: int | None,
    source: str,
    place: Callable[[int], str],
) -> Pictures:
    """All images as one array, of one channel where all are grey, else of three.

    Pillow holds Python's lock while it decodes images as small as these, so threads would only add their cost.

    Args:
        items: one per row.
        opener: opens a row's item; raises `Unreadable`.
        size: side in pixels to scale to, or None.
        source, place: the configuration's source and the words for a row, for errors.

    Raises:
        DataError: naming the first row that cannot be read or whose size is not the first row's.
    """
    arrays: list[np.ndarray] = []
    deep: list[int] = []
    for row, item in enumerate(items):
        try:
            image = opener(item)
            array = pixels(image, size)
        except Unreadable as error:
            raise DataError("data.source", source, f"{place(row)} {error}", "replace or remove it") from error
        if arrays and array.shape[1:] != arrays[0].shape[1:]:
            sizes = f"{place(row)} is {_side(array)} pixels, but {place(0)} is {_side(arrays[0])} (height x width)"
            raise DataError("data.source", source, sizes, "set data.size to scale all images to one size")
        arrays.append(array)
        if image.mode in _DEEP or _WAS_DEEP in image.info:
            deep.append(int(array.max()))
    return Pictures(_join(arrays), _depth_facts(deep))


def _depth_facts(brightest: list[int]) -> tuple[str, ...]:
    """A note on images of 16 bits, by the brightest pixel of each after the reduction to 8."""
    if not brightest:
        return ()
    fact = f"{len(brightest)} images of 16 bits a channel are read with the upper 8"
    if max(brightest) < DIM:
        fact += f", of which the brightest pixel has {max(brightest)} of 255: stretch them over all 16 bits before"
    return (fact,)


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


def blank_file(channels: int, height: int, width: int) -> bytes:
    """A PNG file of black pixels, grey for one channel."""
    file = io.BytesIO()
    Image.new("L" if channels == 1 else "RGB", (width, height)).save(file, format="PNG")
    return file.getvalue()
