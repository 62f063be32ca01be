"""What there is to choose from: methods, networks, data, partitions, presets."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from actors.orders import find_method, method_names
from algorithms.core.payload import KINDS
from algorithms.nets import names as net_names
from algorithms.nets.registry import PATTERNS
from engine.config.reading import preset_names, preset_text
from engine.data import DataConfig
from engine.errors import shown
from engine.partition import PartitionConfig

Catalogue = Mapping[str, Any]


def catalogue() -> Catalogue:
    """Everything that a configuration may name, as JSON has it."""
    return {
        "methods": [describe_method(name) for name in method_names()],
        "nets": {**net_names(), **PATTERNS},
        "data": bullets(DataConfig),
        "partitions": bullets(PartitionConfig),
        "presets": {name: headline(preset_text(name)) for name in preset_names()},
        "kinds": dict(KINDS),
    }


def describe_method(name: str) -> dict[str, Any]:
    """A method's paper, what it does, what leaves a client by default, and its settings."""
    method = find_method(name)
    kinds = method.kinds(method.Config())
    return {
        "name": name,
        "paper": method.paper,
        "about": inspect.getdoc(inspect.getmodule(method)),
        "up": sorted(kinds.up),
        "down": sorted(kinds.down),
        "settings": [_describe_setting(method.Config, field) for field in dataclasses.fields(method.Config)],
    }


def _describe_setting(config: type, field: dataclasses.Field[Any]) -> dict[str, Any]:
    return {
        "name": field.name,
        "type": type_in_words(typing.get_type_hints(config)[field.name]),
        "default": field.default,
        "about": field.metadata.get("sentence", ""),
        **field.metadata.get("bounds", {}),
    }


def type_in_words(hint: Any) -> str:
    """`Literal["a", "b"] | None` as `a | b | null`."""
    if hint is type(None):
        return "null"
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(str, arguments))
    if typing.get_origin(hint) is tuple:
        return f"list of {type_in_words(arguments[0])}"
    if arguments:
        return " | ".join(type_in_words(argument) for argument in arguments)
    return {"int": "whole number", "float": "number", "str": "text", "bool": "true | false"}.get(
        hint.__name__, hint.__name__
    )


def bullets(described: type) -> dict[str, str]:
    """The choices that a class lists in its docstring, as "- `name`: what it is;", which may go on in further lines."""
    text = inspect.getdoc(described) or ""
    found = re.findall(r"^- `([^`]+)`: (.+?)[;.]$(?=\n- |\n\n|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return {name: " ".join(about.split()) for name, about in found}


def headline(text: str) -> str:
    """The first comment of a preset, up to its first empty line, in one line."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#") or line.strip() == "#":
            break
        lines.append(line.lstrip("# ").strip())
    return " ".join(lines)


def lines(found: Catalogue) -> Iterator[str]:
    """The catalogue for a person, line by line."""
    for method in found["methods"]:
        yield f"method {method['name']}: {method['paper']}"
        yield f"    leaves a client: {', '.join(method['up'])}"
        for setting in method["settings"]:
            yield f"    {setting['name']} = {shown(setting['default'])} ({setting['type']}): {setting['about']}"
    for section in ("nets", "data", "partitions", "presets"):
        yield ""
        yield f"{section}:"
        for name, about in found[section].items():
            yield f"    {name}: {about}"
