"""Models that runs end with: loaded again, asked for predictions, handed to other tools."""

from __future__ import annotations

from engine.models.loading import LoadedModel, load

__all__ = ["LoadedModel", "load"]
