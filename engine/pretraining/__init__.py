"""Pre-training of the tiny language models: from a seed alone, on this machine, with nothing downloaded."""

from __future__ import annotations

from engine.pretraining.cache import ensure_base
from engine.pretraining.making import Pretraining, PretrainingError, pretrain
from engine.pretraining.recipe import RECIPES

__all__ = ["RECIPES", "Pretraining", "PretrainingError", "ensure_base", "pretrain"]
