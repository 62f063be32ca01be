"""The references of the documentation, drawn from the code: every key of a configuration, every method."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from actors.steps.orders import find_method
from algorithms.core.settings import Config
from algorithms.nets import names
from algorithms.nets.registry import forms_of
from engine.commands.listing import catalogue, describe_setting, with_settings
from engine.config.method import MethodChoice
from engine.config.schema import RunConfig
from engine.data.task import TaskChoice, find_task, task_names

HEAD = "<!-- Written by `python -m docs.make` from the code; change it there. -->\n"
_WORDS = {"int": "whole number", "float": "number", "str": "text", "bool": "true or false", "Path": "path"}
_PLURALS = {"whole number": "whole numbers", "number": "numbers"}
_BOUNDS = ((Ge, "ge", "at least"), (Gt, "gt", "above"), (Le, "le", "at most"), (Lt, "lt", "below"))


def configuration() -> str:
    """The page on the keys of a configuration, and on the names that they take."""
    found = catalogue()
    lines = [
        HEAD,
        "# Configuration",
        "",
        "A configuration is a YAML file with the sections below. `--set section.key=value` changes one key. A key",
        "without a default is required. Every mistake in a configuration is reported before anything starts.",
        "",
        "- [Sections](#sections)",
        *(f"- [`{name}`](#{_anchor(name)})" for name, _ in sections(RunConfig)),
        "- [Tasks](#tasks), [networks](#networks), [presets](#presets), [comparisons](#comparisons)",
        "",
        "## Sections",
        "",
        *_keys(RunConfig),
    ]
    for name, section in sections(RunConfig):
        lines += ["", f"## {name}", "", inspect.getdoc(section) or "", "", *_keys(section)]
    lines += ["", "## Tasks", "", "`task.name` takes one of these names, or one's own as `pkg.module:Class`."]
    for name in task_names():
        lines += ["", *_task(name)]
    lines += ["", "## Networks", "", *_table(("name", "takes", "what it is"), _networks(found["nets"]))]
    for title, key in (("Presets", "presets"), ("Comparisons", "comparisons")):
        rows = ((f"`{name}`", about) for name, about in found[key].items())
        lines += ["", f"## {title}", "", *_table(("name", "what it is"), rows)]
    return "\n".join(lines) + "\n"


def methods() -> str:
    """The page on the methods."""
    described = catalogue()["methods"]
    lines = [
        HEAD,
        "# Methods",
        "",
        "`method.name` takes one of these names; the other keys of the `method` section are the settings in its table.",
        'What "serves" lists is asked of the method itself, with its defaults or with the settings in brackets.',
        "",
        *_table(
            ("method", "what it does", "paper"),
            ((f"[`{m['name']}`](#{m['name']})", first_sentence(m["about"]), m["paper"]) for m in described),
        ),
    ]
    for method in described:
        lines += ["", *_method(method)]
    return "\n".join(lines) + "\n"


def _networks(kind: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    own = names()
    for name, about in kind.items():
        forms = [form.__name__.lower() for form in forms_of(name)] if name in own else []
        yield f"`{name}`", ", ".join(forms) or ("images" if name.startswith("torchvision") else "any"), about


def _task(name: str) -> Iterator[str]:
    task = find_task(name)
    figures = ", ".join(f"`{figure.name}`" for figure in task.figures)
    yield f"### {name}"
    yield ""
    yield f"{task.title.capitalize()}. It reports {figures}; the first is the headline."
    settings = _settings(task.Settings)
    if settings:
        yield ""
        yield from _settings_table(settings)


def _settings(config: type[Config]) -> list[Mapping[str, Any]]:
    return [describe_setting(config, field) for field in dataclasses.fields(config)]


def _settings_table(settings: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from _table(
        ("setting", "type", "default", "range", "meaning"),
        (
            (f"`{s['name']}`", s["type"].replace(" | ", ", "), f"`{_value(s['default'])}`", _range(s), s["about"])
            for s in settings
        ),
    )


def _method(kind: Mapping[str, Any]) -> Iterator[str]:
    citation = (inspect.getdoc(find_method(kind["name"])) or "").split("\n\n")[0]
    yield f"## {kind['name']}"
    yield ""
    yield first_sentence(kind["about"])
    yield ""
    yield citation
    yield ""
    yield f"- Leaves a client: {', '.join(kind['up'])}."
    yield f"- Goes to clients: {', '.join(kind['down'])}."
    yield f"- Serves: {'; '.join(with_settings(*item) for item in kind['serves'].items())}."
    if kind["settings"]:
        yield ""
        yield from _settings_table(kind["settings"])


def sections(model: type[BaseModel], place: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section below a model by its place, as `runner.distillation`, each before those below it."""
    for name, field in model.model_fields.items():
        section = section_of(field)
        if section:
            yield f"{place}{name}", section
            yield from sections(section, f"{place}{name}.")


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that is a section, also of one that may be null."""
    for hint in (field.annotation, *typing.get_args(field.annotation)):
        if inspect.isclass(hint) and issubclass(hint, BaseModel):
            return hint
    return None


def _keys(model: type[BaseModel]) -> Iterator[str]:
    rows = []
    for name, field in model.model_fields.items():
        meaning = field.description or _about(field)
        rows.append((f"`{name}`", _type(field), _default(field), _range(_bounds(field)), meaning))
    yield from _table(("key", "type", "default", "range", "meaning"), rows)


def _bounds(field: FieldInfo) -> dict[str, Any]:
    return {key: getattr(limit, key) for limit in field.metadata for kind, key, _ in _BOUNDS if isinstance(limit, kind)}


def _about(field: FieldInfo) -> str:
    return first_sentence(inspect.getdoc(section_of(field)) or "")


def _type(field: FieldInfo) -> str:
    if section_of(field):
        return "section"
    if field.annotation is MethodChoice:
        return "[a method](methods.md) and its settings"
    if TaskChoice in typing.get_args(field.annotation):
        return "[a task](#tasks) and its settings, null"
    return ", ".join(dict.fromkeys(_type_words(field.annotation)))


def _type_words(hint: Any) -> Iterator[str]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        yield "null"
    elif origin is typing.Literal:
        yield from (f"`{word}`" for word in arguments)
    elif origin is tuple:
        yield f"list of {' or '.join(_PLURALS.get(word, word) for word in _type_words(arguments[0]))}"
    elif origin in (typing.Union, types.UnionType):
        for argument in arguments:
            yield from _type_words(argument)
    else:
        yield _WORDS.get(getattr(hint, "__name__", ""), "mapping")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "its defaults" if isinstance(value, BaseModel) else f"`{_value(value)}`"


def _value(value: Any) -> str:
    """A value as YAML has it."""
    return json.dumps(value, default=str, ensure_ascii=False).strip('"')


def _range(bounds: Mapping[str, Any]) -> str:
    return ", ".join(f"{words} {bounds[key]:g}" for _, key, words in _BOUNDS if key in bounds)


def first_sentence(text: str) -> str:
    """The first sentence of a docstring, in one line."""
    return " ".join(re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0].split())


def _anchor(title: str) -> str:
    return title.lower().replace(".", "").replace(" ", "-")


def _table(head: tuple[str, ...], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(_cell(cell) for cell in row)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
