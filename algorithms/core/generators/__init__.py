"""Generators of images like a client's, by name of their family."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from algorithms.core.generators.cells import CellConfig
from algorithms.core.generators.dcgan import DCGan, GanConfig
from algorithms.core.generators.family import Family
from algorithms.core.generators.lean import FeatureCells, PixelCells
from algorithms.core.generators.mixture import Mixture, Shares
from algorithms.core.kit import Kit

FAMILIES: Mapping[str, Callable[[Any, Kit, Collection[str]], Family]] = {
    "dcgan": DCGan,
    "pca": PixelCells,
    "features": FeatureCells,
}
"""Name to a class made from (settings, kit, names of released rules that apply)."""

__all__ = ["FAMILIES", "CellConfig", "Family", "GanConfig", "Mixture", "Shares"]
