"""The `method` section: a name, and the fields of that method's own Config."""

from __future__ import annotations

import dataclasses
import inspect
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
from engine.config.own_code import is_own
from engine.errors import nearest


@dataclasses.dataclass(frozen=True)
class MethodChoice:
    """The method that runs, and its settings.

    Attributes:
        name: of the method's file in `algorithms/methods`, or `pkg.module:Class`.
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
        LookupError: no such method, or one of the user's own whose Config is none.
    """
    return model_of(f"{name} settings", find_method(name).Config)


def model_of(title: str, config: Any) -> type[BaseModel]:
    """A model with the fields of a Config: their types, defaults, sentences and ranges.

    Raises:
        LookupError: it is no such dataclass.
    """
    if not (inspect.isclass(config) and issubclass(config, Config) and dataclasses.is_dataclass(config)):
        found = getattr(config, "__qualname__", title)
        raise LookupError(f"{found} must be a frozen dataclass derived from algorithms.core.settings.Config")
    hints = typing.get_type_hints(config)
    fields: dict[str, Any] = {
        field.name: (
            Annotated[hints[field.name], AfterValidator(_within(field))],
            Field(default=_default(field), description=field.metadata.get("sentence")),
        )
        for field in dataclasses.fields(config)
    }
    return create_model(title, __config__=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False), **fields)


def _default(field: dataclasses.Field[Any]) -> Any:
    """As pydantic says it, for which `...` is none."""
    return ... if field.default is dataclasses.MISSING else field.default


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
    if not isinstance(name, str):
        raise refusal("name", name, f"must name a method; there are {_known_methods()}")
    try:
        model = settings_model(name)
    # Whatever goes wrong in a user's module is the answer to why there is no method; the traceback travels as cause.
    except Exception as error:
        raise refusal("name", name, _why_not(name, error)) from error
    given = {key: value for key, value in section.items() if key != "name"}
    # A ValidationError of the inner model keeps its places below `method`.
    checked = model.model_validate_json(json.dumps(given))
    values = {key: getattr(checked, key) for key in type(checked).model_fields}
    return MethodChoice(name, find_method(name).Config(**values))


def _why_not(name: str, error: Exception) -> str:
    """The reason why there is no method of a name.

    Raises:
        Exception: the error itself, where it is one of ours.
    """
    if is_own(name):
        return str(error) if type(error) is LookupError else f"{type(error).__name__}: {error}"
    if isinstance(error, LookupError):
        return f"no such method; {nearest(name, method_names())}there are {_known_methods()}"
    raise error


def _known_methods() -> str:
    return f"{', '.join(method_names())}, or one of your own as pkg.module:Class"


def refusal(key: str, value: Any, reason: str) -> ValidationError:
    """An error at a key of the section."""
    error = PydanticCustomError("method", "{reason}", {"reason": reason})
    return ValidationError.from_exception_data("method", [InitErrorDetails(type=error, loc=(key,), input=value)])


def write(choice: MethodChoice) -> dict[str, Any]:
    """The section that `read` takes, with every field."""
    return {"name": choice.name, **dataclasses.asdict(choice.settings)}


MethodSection = Annotated[MethodChoice, PlainValidator(read), PlainSerializer(write)]
"""A field of the run's configuration that holds a MethodChoice."""
