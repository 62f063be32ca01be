"""Shifts: what makes the examples of one client differ from those of another, besides which examples it holds.

Every row of a partition belongs to one client at most, so shifted examples are made once, in a copy of the arrays that
all clients share. What is drawn follows from (run, client) alone, so that no client's examples depend on another's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from algorithms.core.seeds import Seed
from engine.errors import ConfigError, Problem
from engine.partition.config import ShiftConfig

_BLOCK = 2**22
"""Values that are changed at a time: a few float copies of them are all that a shift needs besides its result."""


def shift_columns(
    columns: Mapping[str, np.ndarray],
    rows: Sequence[np.ndarray],
    config: ShiftConfig,
    seed: Seed,
    *,
    target: str | None,
    classes: int = 0,
    test: bool = False,
) -> Mapping[str, np.ndarray]:
    """Shift each client's rows in copies of the columns; columns that no shift concerns are handed back as they are.

    The given arrays are not written to. Images are turned, then coloured, then made noisy.

    Args:
        columns: (N, ...) by name: images are uint8 (N, C, H, W); numbers and signals are float32, and may be NaN;
            columns of other kinds are left alone.
        rows: int64, (n_k,) for each client, sorted; no row belongs to two clients.
        seed: of the run.
        target: name of the column that is to be predicted, int64 (N,) in [0, classes) where there are classes; nothing
            but `labels` changes it. None where there is none.
        classes: number of classes, 0 where there are none.
        test: these are clients' own test rows: the same angles, gains and strengths as in training, other noise, and
            no wrong labels.

    Raises:
        ConfigError: for every shift that makes no sense for such columns.
    """
    inputs = {name: values for name, values in columns.items() if name != target}
    images = [name for name, values in inputs.items() if values.dtype == np.uint8 and values.ndim == 4]
    numbers = [name for name, values in inputs.items() if values.dtype == np.float32]
    _refuse(config, rows, bool(images), bool(numbers), target, classes)
    changed = {}
    if config.rotation or config.colour or config.noise:
        changed.update({name: _shift_images(columns[name], rows, config, seed, f"{name}:{test}") for name in images})
    if config.noise:
        changed.update({name: _add_noise(columns[name], rows, config, seed, f"{name}:{test}") for name in numbers})
    if config.labels and target is not None and not test:
        changed[target] = _flip_labels(columns[target], rows, config.labels, classes, seed)
    return {**columns, **changed}


def _refuse(
    config: ShiftConfig,
    rows: Sequence[np.ndarray],
    has_images: bool,
    has_numbers: bool,
    target: str | None,
    classes: int,
) -> None:
    problems = [
        _pointless(config, name, "changes images, and these examples have none")
        for name in ("rotation", "colour")
        if getattr(config, name) and not has_images
    ]
    if config.noise and not (has_images or has_numbers):
        problems.append(_pointless(config, "noise", "changes images and numbers, and these examples have neither"))
    if config.labels and (target is None or classes < 2):
        problems.append(
            _pointless(
                config, "labels", f"puts other classes in the place of true ones, and there are {classes} classes"
            )
        )
    if config != ShiftConfig() and len(np.unique(np.concatenate(rows))) < sum(map(len, rows)):
        reason = "needs a partition that deals no row to two clients, since each has examples of its own form"
        problems.append(Problem("shift", config.model_dump(exclude_defaults=True), reason))
    if problems:
        raise ConfigError(problems)


def _pointless(config: ShiftConfig, name: str, reason: str) -> Problem:
    return Problem(f"shift.{name}", getattr(config, name), f"{reason}; leave it out, or set it to 0")


def strength(largest: float, client: int, clients: int) -> float:
    """`largest * (k + 1) / K`: it rises linearly over the clients, as the noise of Li et al. (2022, arXiv 2102.02079:
    level sigma * i / N for party i, from 1), here as a standard deviation."""
    return largest * (client + 1) / clients


def channel_gains(colour: float, client: int, channels: int, seed: Seed) -> np.ndarray:
    """float32, (channels,): uniform in [1 - colour, 1 + colour].

    A gain for each channel is what another light does to an image (the diagonal model: Finlayson et al., 1994, JOSA A
    11(11), "Color constancy: diagonal transforms suffice"). With one channel it is brightness.
    """
    random = seed.at(phase="shift", client=client).numpy("gains")
    return random.uniform(1 - colour, 1 + colour, channels).astype(np.float32)


def rotate(images: np.ndarray, degrees: float) -> np.ndarray:
    """Turn uint8 images (n, C, H, W) anticlockwise about their centre; black where nothing was.

    Square images are turned by right angles exactly, as for the rotated MNIST of Ghosh et al. (2020, IFCA, arXiv
    2006.04088, experiments); otherwise pixels are interpolated between their four neighbours.
    """
    height, width = images.shape[2:]
    quarters, rest = divmod(degrees % 360, 90)
    if rest == 0 and (height == width or quarters % 2 == 0):
        return np.rot90(images, int(quarters), axes=(2, 3))
    down, right = _sources(height, width, degrees)
    top, left = np.floor(down).astype(np.int64), np.floor(right).astype(np.int64)
    low, far = (down - top).astype(np.float32), (right - left).astype(np.float32)
    # A black frame of one pixel stands for everything outside.
    framed = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    mixed = np.zeros(images.shape, np.float32)
    for row, vertical in ((top, 1 - low), (top + 1, low)):
        for column, horizontal in ((left, 1 - far), (left + 1, far)):
            inside = framed[:, :, np.clip(row + 1, 0, height + 1), np.clip(column + 1, 0, width + 1)]
            mixed += inside * (vertical * horizontal)
    return _pixels(mixed)


def _sources(height: int, width: int, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """float64, (H, W) each: from which row and column of an image each pixel of the turned image comes."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    centre_down, centre_right = (height - 1) / 2, (width - 1) / 2
    down, right = np.mgrid[0:height, 0:width].astype(np.float64)
    down, right = down - centre_down, right - centre_right
    # Rows count downwards, so that anticlockwise for the eye turns (right, down) by minus the angle, and back by plus.
    return centre_down + sine * right + cosine * down, centre_right + cosine * right - sine * down


def _shift_images(
    images: np.ndarray, rows: Sequence[np.ndarray], config: ShiftConfig, seed: Seed, purpose: str
) -> np.ndarray:
    result = images.copy()
    for client, own in enumerate(rows):
        degrees = client * config.rotation
        tint = channel_gains(config.colour, client, images.shape[1], seed)[:, None, None]
        deviation = np.float32(255 * strength(config.noise, client, len(rows)))
        random = seed.at(phase="shift", client=client).numpy(purpose)
        for some in _blocks(own, images):
            block = rotate(images[some], degrees)
            if config.colour or config.noise:
                noise = random.standard_normal(block.shape, np.float32) if config.noise else np.float32(0)
                block = _pixels(block * tint + deviation * noise)
            result[some] = block
    return result


def _add_noise(
    numbers: np.ndarray, rows: Sequence[np.ndarray], config: ShiftConfig, seed: Seed, purpose: str
) -> np.ndarray:
    """Noise in standard deviations, over all rows, of a column (N,), of each feature (N, D) or channel (N, C, ...)."""
    others = tuple(axis for axis in range(numbers.ndim) if axis != 1)
    scale = np.nan_to_num(np.nanstd(numbers, axis=others, keepdims=True, dtype=np.float64))
    result = numbers.copy()
    for client, own in enumerate(rows):
        deviation = (strength(config.noise, client, len(rows)) * scale).astype(np.float32)
        random = seed.at(phase="shift", client=client).numpy(purpose)
        for some in _blocks(own, numbers):
            result[some] += deviation * random.standard_normal(result[some].shape, np.float32)
    return result


def _flip_labels(labels: np.ndarray, rows: Sequence[np.ndarray], share: float, classes: int, seed: Seed) -> np.ndarray:
    """Replace `strength * n_k` of each client's labels, to the nearest whole number, by other classes, each as likely.

    Symmetric label noise as in Han et al. (2018, Co-teaching, arXiv 1804.06872), of a level that differs by client as
    in Xu et al. (2022, FedCorr, arXiv 2204.04677).
    """
    result = labels.copy()
    for client, own in enumerate(rows):
        random = seed.at(phase="shift", client=client).numpy("labels")
        wrong = random.permutation(own)[: round(strength(share, client, len(rows)) * len(own))]
        result[wrong] = (labels[wrong] + random.integers(1, classes, len(wrong))) % classes
    return result


def _blocks(rows: np.ndarray, of: np.ndarray) -> Iterator[np.ndarray]:
    step = max(1, _BLOCK // math.prod(of.shape[1:]))
    return (rows[start : start + step] for start in range(0, len(rows), step))


def _pixels(values: np.ndarray) -> np.ndarray:
    """float images in [0, 255] or beyond, to the nearest byte."""
    return np.rint(values).clip(0, 255).astype(np.uint8)
