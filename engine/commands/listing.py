"""Lists of all choices: methods, networks, data, partitions, shifts, presets, comparisons."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch

from actors.steps.orders import find_method, method_names
from algorithms.core.contract import ClientSpec, Method
from algorithms.core.needs import Needs
from algorithms.core.payload import KINDS
from algorithms.core.task import Task
from algorithms.core.training import Work
from algorithms.nets import names as net_names
from algorithms.nets.registry import PATTERNS
from engine.config.reading import comparison_names, comparison_text, preset_names, preset_text
from engine.data import DataConfig, load
from engine.errors import one_line
from engine.partition import PartitionConfig, ShiftConfig

Catalogue = Mapping[str, Any]

WORK = Work(steps=1, epochs=None, batch=2, lr=0.1)

ALIKE = (ClientSpec(0, "small_cnn"), ClientSpec(1, "small_cnn"))
WIDTHS = (ClientSpec(0, "small_cnn", 1.0), ClientSpec(1, "small_cnn", 0.5))
UNRELATED = (ClientSpec(0, "mlp"), ClientSpec(1, "small_cnn"), ClientSpec(2, "resnet8"))
ONE_FEATURE_SIZE = (ClientSpec(0, "small_cnn"), ClientSpec(1, "cnn2"))
"""Clients that differ, each group in one way, whom a method is asked to serve. Both of these give 128 features."""

ANY_NETWORK = "NET"
"""Stands for whichever of the clients' networks a person chooses."""


def catalogue() -> Catalogue:
    """Everything that a configuration may name, as JSON has it."""
    methods = [describe_method(name) for name in method_names()]
    return {
        "methods": methods,
        "nets": {**net_names(), **PATTERNS},
        "data": bullets(DataConfig),
        "partitions": bullets(PartitionConfig),
        "shifts": bullets(ShiftConfig),
        "presets": {name: headline(preset_text(name)) for name in preset_names()},
        "comparisons": {name: headline(comparison_text(name)) for name in comparison_names()},
        "kinds": {**KINDS, **{kind: text for method in methods for kind, text in method.pop("own_kinds").items()}},
    }


def describe_method(name: str) -> dict[str, Any]:
    """A method's paper, what it does, what leaves a client by default, and its settings."""
    method = find_method(name)
    needs = _needs_of(method, method.Config(), ALIKE)
    return {
        "name": name,
        "paper": method.paper,
        "about": inspect.getdoc(inspect.getmodule(method)),
        "up": sorted(needs.up),
        "down": sorted(needs.down),
        "own_kinds": dict(needs.own_kinds),
        "serves": heterogeneity(method),
        "settings": [describe_setting(method.Config, field) for field in dataclasses.fields(method.Config)],
    }


def heterogeneity(method: type[Method[Any]]) -> dict[str, dict[str, Any]]:
    """The heterogeneity that a method serves, as it answers when it is asked to serve clients that differ; and the
    settings that it needs for them besides its defaults."""
    own = method.Config()
    if "adapters" in method.task_traits:
        ranks = [] if _needs_of(method, own, WIDTHS).refusals else ["ranks of one adapter"]
        own_models = ["personal models"] if method.personal else []
        return {words: {} for words in ("language models with adapters", *ranks, *own_models)}
    # No method sees the partition before it starts, and every one is tested with clients of one class.
    found: dict[str, dict[str, Any]] = {"label skew": {}}
    if not _needs_of(method, own, WIDTHS).refusals:
        found["widths of one network"] = {}
    for words, clients in (
        ("unrelated networks", UNRELATED),
        ("unrelated networks with features of one size", ONE_FEATURE_SIZE),
    ):
        ready = _needs_of(method, own, clients).for_mixture or own
        if not _needs_of(method, ready, clients).refusals:
            found[words] = _changes(own, ready)
            break
    if method.personal:
        found["personal models"] = {}
    return found


@cache
def _task() -> Task:
    """A small task to ask methods about."""
    return load(DataConfig(source="digits")).task


def _needs_of(method: type[Method[Any]], config: Any, clients: Sequence[ClientSpec]) -> Needs:
    task = _task()
    return method.needs(config, task, clients, WORK, torch.ones(len(clients), task.classes, dtype=torch.int64))


def _changes(own: Any, other: Any) -> dict[str, Any]:
    """The fields of one Config in which another differs, with the other's values; `NET` for a network's name."""
    return {
        field.name: ANY_NETWORK if field.metadata.get("network") else getattr(other, field.name)
        for field in dataclasses.fields(own)
        if getattr(other, field.name) != getattr(own, field.name)
    }


def describe_setting(config: type, field: dataclasses.Field[Any]) -> dict[str, Any]:
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


def with_settings(difference: str, settings: Mapping[str, Any]) -> str:
    """`unrelated networks (student: NET, meta_data: images)`."""
    needed = ", ".join(f"{name}: {one_line(value).strip(chr(34))}" for name, value in sorted(settings.items()))
    return f"{difference} ({needed})" if needed else difference


def bullets(kind: type) -> dict[str, str]:
    """The choices that a class lists in its docstring, as "- `name`: what it is;", which may go on in further lines."""
    text = inspect.getdoc(kind) or ""
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
        yield f"    goes to clients: {', '.join(method['down'])}"
        yield f"    serves: {'; '.join(with_settings(*item) for item in method['serves'].items())}"
        for setting in method["settings"]:
            yield f"    {setting['name']} = {one_line(setting['default'])} ({setting['type']}): {setting['about']}"
    for section in ("nets", "data", "partitions", "shifts", "presets", "comparisons"):
        yield ""
        yield f"{section}:"
        for name, about in found[section].items():
            yield f"    {name}: {about}"
