"""The `task` section: a name, and the fields of that task's own Settings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator
from pydantic_core import PydanticCustomError

from engine.config.method import model_of, refusal
from engine.config.own_code import is_own
from engine.data.task import TaskChoice, find_task, task_names
from engine.errors import nearest


def read(section: Any) -> TaskChoice | None:
    """The choice that a `task` section makes; None leaves it to the data. pydantic's errors name the fields inside."""
    if section is None:
        return None
    if not isinstance(section, Mapping):
        raise PydanticCustomError("task", "must be a mapping that names a task, or null: what fits the data")
    name = section.get("name")
    if not isinstance(name, str):
        raise refusal("name", name, f"must name a task; there are {', '.join(task_names())}")
    try:
        task = find_task(name)
        model = model_of(f"{name} settings", task.Settings)
    # Whatever goes wrong in a user's module is the answer to why there is no task; the traceback travels as cause.
    except Exception as error:
        raise refusal("name", name, _why_not(name, error)) from error
    given = {key: value for key, value in section.items() if key != "name"}
    # A ValidationError of the inner model keeps its places below `task`.
    checked = model.model_validate_json(json.dumps(given))
    return TaskChoice(name, task.Settings(**{key: getattr(checked, key) for key in type(checked).model_fields}))


def _why_not(name: str, error: Exception) -> str:
    """The reason why there is no task of a name.

    Raises:
        Exception: the error itself, where it is one of ours.
    """
    if type(error) is LookupError:  # not a KeyError or the like of the user's module
        return f"{nearest(name, task_names())}{error}"
    if is_own(name):
        return f"{type(error).__name__}: {error}"
    raise error


def write(choice: TaskChoice | None) -> dict[str, Any] | None:
    """The section that `read` takes, with every field."""
    return None if choice is None else {"name": choice.name, **dataclasses.asdict(choice.settings)}


TaskSection = Annotated[TaskChoice | None, PlainValidator(read), PlainSerializer(write)]
"""A field of the run's configuration that holds a TaskChoice, or None."""
