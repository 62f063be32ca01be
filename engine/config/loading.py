"""From a preset or a file to a run's configuration, or to everything that is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from engine.config import reading
from engine.config.budget import with_budget
from engine.config.problems import problems_of
from engine.config.rules import Look, violations
from engine.config.schema import RunConfig
from engine.errors import ConfigError, Problem


def load(preset_or_file: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a preset or a YAML file, with `section.key=value` put in.

    Raises:
        ConfigError: with every problem that can be seen without the data.
    """
    return resolve(reading.override(reading.read(preset_or_file), overrides))


def resolve(tree: dict[str, Any]) -> RunConfig:
    """The configuration that a plain tree of settings describes; see `load`."""
    tree = with_budget(tree)
    config, problems = _validate(tree)
    problems = [*problems, *violations(Look(RunConfig, tree, problems))]
    if problems or config is None:
        raise ConfigError(problems)
    return config


def _validate(tree: dict[str, Any]) -> tuple[RunConfig | None, list[Problem]]:
    try:
        # As JSON, because there a strict model still takes a list for a tuple and text for a path.
        return RunConfig.model_validate_json(json.dumps(tree), strict=True), []
    except ValidationError as error:
        return None, list(problems_of(error, RunConfig, tree))


def to_tree(config: RunConfig) -> dict[str, Any]:
    """The configuration with every key, as plain mappings, lists and values; `resolve` takes it back."""
    tree: dict[str, Any] = config.model_dump(mode="json")
    return tree


def to_yaml(config: RunConfig) -> str:
    """The configuration with every key, as a file that `load` takes back."""
    return reading.dump(to_tree(config))
