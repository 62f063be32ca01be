"""Configurations: what a run is told, from a preset or a file, with everything wrong in it reported together."""

from __future__ import annotations

from engine.config.loading import load, resolve, to_tree, to_yaml
from engine.config.reading import preset_names
from engine.config.schema import (
    ClientsConfig,
    EvaluateConfig,
    MlflowConfig,
    PrivacyConfig,
    RunConfig,
    RunnerConfig,
)

__all__ = [
    "ClientsConfig",
    "EvaluateConfig",
    "MlflowConfig",
    "PrivacyConfig",
    "RunConfig",
    "RunnerConfig",
    "load",
    "preset_names",
    "resolve",
    "to_tree",
    "to_yaml",
]
