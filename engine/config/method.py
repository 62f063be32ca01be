"""The `method` section: a name, and the fields of that method's own Config."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    create_model,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from actors.steps.orders import find_method, method_names
from algorithms.core.contract import Method
from algorithms.core.settings import Config, out_of_range
from engine.errors import nearest


@dataclasses.dataclass(frozen=True)
class MethodChoice:
    """Which method runs, and how.

    Attributes:
        name: of the method's file in `algorithms`.
        settings: the method's Config.
    """

    name: str
    settings: Config

    @property
    def type(self) -> type[Method[Any]]:
        """The method's class."""
        return find_method(self.name)


@cache
def settings_model(name: str) -> type[BaseModel]:
    """A model with the fields of a method's Config: their types, defaults, sentences and ranges.

    Raises:
        LookupError: no such method.
    """
    return model_of(f"{name} settings", find_method(name).Config)


def model_of(title: str, config: type[Config]) -> type[BaseModel]:
    """A model with the fields of a Config: their types, defaults, sentences and ranges."""
    hints = typing.get_type_hints(config)
    fields: dict[str, Any] = {
        field.name: (
            Annotated[hints[field.name], AfterValidator(_within(field))],
            Field(default=field.default, description=field.metadata.get("sentence")),
        )
        for field in dataclasses.fields(config)
    }
    return create_model(title, __config__=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False), **fields)


def _within(field: dataclasses.Field[Any]) -> Any:
    """A validator that holds a value to the range of its field."""

    def hold(value: Any) -> Any:
        reason = out_of_range(field, value)
        if reason:
            raise ValueError(reason)
        return value

    return hold


def read(section: Any) -> MethodChoice:
    """The choice that a `method` section makes; pydantic's errors name the fields inside it."""
    if not isinstance(section, Mapping):
        raise PydanticCustomError("method", "must be a mapping that names a method")
    name = section.get("name")
    if not isinstance(name, str) or name not in method_names():
        raise refused("name", name, _unknown(name))
    given = {key: value for key, value in section.items() if key != "name"}
    # A ValidationError of the inner model keeps its places below `method`.
    checked = settings_model(name).model_validate_json(json.dumps(given))
    values = {key: getattr(checked, key) for key in type(checked).model_fields}
    return MethodChoice(name, find_method(name).Config(**values))


def _unknown(name: Any) -> str:
    known = ", ".join(method_names())
    if name is None:
        return f"must name a method; there are {known}"
    return f"no such method; {nearest(str(name), method_names())}there are {known}"


def refused(key: str, value: Any, reason: str) -> ValidationError:
    """An error at a key of the section."""
    error = PydanticCustomError("method", "{reason}", {"reason": reason})
    return ValidationError.from_exception_data("method", [InitErrorDetails(type=error, loc=(key,), input=value)])


def write(choice: MethodChoice) -> dict[str, Any]:
    """The section that `read` takes, with every field."""
    return {"name": choice.name, **dataclasses.asdict(choice.settings)}


MethodSection = Annotated[MethodChoice, PlainValidator(read), PlainSerializer(write)]
"""A field of the run's configuration that holds a MethodChoice."""
