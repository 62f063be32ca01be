"""Generators of images like a client's, by name of their family."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from algorithms.core.kit import Kit
from algorithms.methods.mosaic.generators.cells import CellConfig
from algorithms.methods.mosaic.generators.dcgan import DCGan, GanConfig
from algorithms.methods.mosaic.generators.family import Family
from algorithms.methods.mosaic.generators.lean import FeatureCells, PixelCells
from algorithms.methods.mosaic.generators.mixture import Mixture, Shares

FAMILIES: Mapping[str, Callable[[Any, Kit, Collection[str]], Family]] = {
    "dcgan": DCGan,
    "pca": PixelCells,
    "features": FeatureCells,
}
"""Name to a class made from (settings, kit, names of released rules that apply)."""

__all__ = ["FAMILIES", "CellConfig", "Family", "GanConfig", "Mixture", "Shares"]
