"""From pydantic's errors to sentences about keys."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from engine.config.method import model_of, settings_model
from engine.data.task import find_task
from engine.errors import MISSING, Problem, nearest

_SENTENCES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "path_type": "must be the path of a file or folder",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "dataclass_type": "must be a mapping",
    "greater_than": "must be larger than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
}


def problems_of(error: ValidationError, model: type[BaseModel], tree: Any) -> Iterator[Problem]:
    """A problem for each error pydantic found in a tree."""
    for found in error.errors(include_url=False):
        place = tuple(found["loc"])
        yield Problem(dotted_key(place), _value(found), _reason(found, place, model, tree))


def dotted_key(place: Sequence[Any]) -> str:
    """`clients.net`, or `(the whole)` for the root."""
    return ".".join(map(str, place)) or "(the whole)"


def _value(found: Any) -> Any:
    return MISSING if found["type"] == "missing" else found["input"]


def _reason(found: Any, place: tuple[Any, ...], model: type[BaseModel], tree: Any) -> str:
    if found["type"] == "extra_forbidden":
        return _unknown_key(place, model, tree)
    if found["type"] == "missing":
        field = fields_at(model, place[:-1], tree).get(place[-1])
        return f"is needed: {field.description}" if field and field.description else "is needed"
    if found["type"] == "literal_error":
        return _unknown_word(found["input"], found["ctx"]["expected"])
    sentence = _SENTENCES.get(found["type"])
    if sentence:
        return sentence.format(**found.get("ctx", {}))
    reason: str = found["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return reason


def _unknown_key(place: tuple[Any, ...], model: type[BaseModel], tree: Any) -> str:
    known = list(fields_at(model, place[:-1], tree))
    hint = nearest(str(place[-1]), known) or _elsewhere(str(place[-1]), model, tree)
    return f"unknown key; {hint}{'known here are ' if known else 'none is known here'}{', '.join(known)}"


def _unknown_word(found: Any, expected: str) -> str:
    """`expected` is pydantic's list of the words, each in quotes."""
    words = re.findall(r"'([^']*)'", expected)
    return (
        f"must be one of {', '.join(words)}; {nearest(str(found), words)}".rstrip("; ")
        if words
        else f"must be {expected}"
    )


def _elsewhere(key: str, model: type[BaseModel], tree: Any) -> str:
    """The section in which a key would be right."""
    homes = [section for section in model.model_fields if key in fields_at(model, (section,), tree)]
    return f"did you mean {homes[0]}.{key}? " if homes else ""


def fields_at(model: type[BaseModel], place: tuple[Any, ...], tree: Any) -> dict[str, FieldInfo]:
    """The fields that are known at a place of a configuration; {} where there are none.

    Args:
        tree: the configuration as it was read, whose method and task decide which fields their sections have.
    """
    if place[:1] in _SETTINGS:
        (section,) = place[:1]
        name = (tree.get(section) or {}).get("name") if isinstance(tree.get(section), dict) else None
        return _settings_of(section, name) if len(place) == 1 and isinstance(name, str) else {}
    inner: type[BaseModel] | None = model
    for name in place:
        field = inner.model_fields.get(name) if inner else None
        inner = _model_in(field.annotation) if field else None
    return dict(inner.model_fields) if inner else {}


_SETTINGS: Mapping[tuple[str, ...], Callable[[str], type[BaseModel]]] = {
    ("method",): settings_model,
    ("task",): lambda name: model_of(name, find_task(name).Settings),
}
"""The model of a section whose fields depend on a name in it."""


def _settings_of(section: str, name: str) -> dict[str, FieldInfo]:
    """The fields of a method's or a task's section; {} where there is none of that name, which is a problem of its
    own."""
    try:
        return dict(_SETTINGS[(section,)](name).model_fields)
    except Exception:
        return {}


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation is, or allows beside None."""
    candidates = [annotation, *typing.get_args(annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
