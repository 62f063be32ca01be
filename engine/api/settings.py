"""Keywords of a Python call as a configuration: nested mappings over what a preset or a file says."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from engine.config import RunConfig, reading, resolve
from engine.config.problems import fields_at
from engine.errors import ConfigError, Problem

Configuration: TypeAlias = str | Path | Mapping[str, Any]
"""A preset's name, the path of a YAML file, or a mapping of sections."""

_BY_NAME = ("method", "methods", "task")
"""Sections whose fields depend on a name in them."""


def config_of(configuration: Configuration, keys: Mapping[str, Any]) -> RunConfig:
    """A configuration with keywords put in.

    Raises:
        ConfigError: with everything that is wrong.
    """
    tree = tree_of(configuration)
    return resolve(reading.override(tree, overrides_of(keys, tree)))


def name_of(configuration: Configuration) -> str:
    """A preset's name or a file as it was given; of a mapping, that it came from Python."""
    return "python" if isinstance(configuration, Mapping) else str(configuration)


def tree_of(configuration: Configuration) -> dict[str, Any]:
    """The plain tree that a preset, a file or a mapping holds."""
    if isinstance(configuration, Mapping):
        return dict(_plain_tree(configuration))
    return reading.read(str(configuration))


def overrides_of(keys: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[str, ...]:
    """The same as options of the command line, `clients.lr=0.1`.

    A mapping changes the keys it has; one with another `name` than stands there, as for another method, takes the
    place of the whole, since the settings that are there belong to the first.

    Raises:
        ConfigError: for all values that no configuration can hold.
    """
    return tuple(
        f"{place}={json.dumps(value, ensure_ascii=False)}" for place, value in _leaves(_plain_tree(keys), base)
    )


def _leaves(tree: Mapping[str, Any], base: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        place, there = (*above, key), base.get(key) if isinstance(base, Mapping) else None
        if isinstance(value, Mapping) and _is_section(place) and not _has_another_name(value, there):
            yield from _leaves(value, there, place)
        else:
            yield ".".join(place), value


def _is_section(place: tuple[str, ...]) -> bool:
    """Whether a mapping at a place holds keys of the configuration; others are values, as {mlp: 5, small_cnn: 5}."""
    if place[0] in _BY_NAME:
        return len(place) == (1 if place[0] != "methods" else min(len(place), 2))
    return bool(fields_at(RunConfig, place, {}))


def _has_another_name(value: Mapping[str, Any], there: Any) -> bool:
    return "name" in value and isinstance(there, Mapping) and there.get("name") != value["name"]


def _plain_tree(tree: Mapping[str, Any]) -> dict[str, Any]:
    problems: list[Problem] = []
    plain = _plain(tree, "", problems)
    if problems:
        raise ConfigError(problems)
    found: dict[str, Any] = plain
    return found


def _plain(value: Any, place: str, problems: list[Problem]) -> Any:
    """A value as YAML would have it; what is none of that is noted."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{place}.{key}".lstrip("."), problems) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}.{number}", problems) for number, item in enumerate(value)]
    if getattr(value, "ndim", None) == 0:  # a number of numpy or torch
        return value.item()
    if inspect.isclass(value) or inspect.isfunction(value):
        return _name_of_code(value, place, problems)
    reason = f"is a {type(value).__name__}; give text, a number, true or false, None, a list or a mapping"
    problems.append(Problem(place, repr(value), reason))
    return None


def _name_of_code(code: Any, place: str, problems: list[Problem]) -> str:
    """`pkg.module:Class`, by which a run's processes and its folder name code of one's own."""
    module, name = code.__module__, code.__qualname__
    if getattr(sys.modules.get(module), name, None) is not code:
        reason = "cannot be found by its name: define it at the top of a module, not within a function or a class"
        problems.append(Problem(place, f"{module}:{name}", reason))
    return f"{module}:{name}"
