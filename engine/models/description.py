"""The description of a run's models: all that it takes to use one without the run's data."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms.core.columns import Column
from algorithms.core.records import flatten, rebuild
from algorithms.core.task import Task
from engine.config.own_code import refuse_unnamed
from engine.data.questions import Reading
from engine.data.task import find_task, name_of
from engine.planning.federation import Federation

FORMAT = 1
"""Version of model.json's layout."""


def describe(federation: Federation, round: int, digest: str, versions: Mapping[str, str]) -> dict[str, Any]:
    """The contents of model.json, but for the list of models.

    `task.values` holds the normalisation (or the vocabulary, or the encoding of columns); `inputs` are the tensors that
    a network takes for one example, after it. `round` is the one after which the models stood so, from 0; `digest` is
    that of the run's last state.
    """
    config, task, data = federation.config, federation.dataset.task, federation.dataset
    return {
        "format": FORMAT,
        "method": config.method.name,
        "rounds": config.rounds,
        "round": round,
        "seed": config.seed,
        "digest": digest,
        "task": {
            "name": config.task.name if config.task else name_of(task),
            "title": task.title,
            "values": task_values(task),
        },
        "form": str(task.form),
        "inputs": {name: tensor_facts(value) for name, value in probe_of(task, 1).items()},
        "outputs": task.outputs,
        "classes": list(task.class_names),
        "columns": dict(data.contents),
        "roles": {role: list(names) for role, names in config.data.columns.items()},
        "size": config.data.size,
        "versions": dict(versions),
    }


def task_values(task: Task) -> Any:
    """The fields of a task as JSON can say them; None for a task of one's own with others."""
    try:
        tensors, tree = flatten(task)
    except TypeError:
        return None
    return None if tensors else tree


def probe_of(task: Task, count: int) -> dict[str, Tensor]:
    """Network inputs of so many examples by name; `input` where a network takes one tensor."""
    inputs = task.form.probe(count)
    return {"input": inputs} if isinstance(inputs, Tensor) else dict(inputs)


def tensor_facts(value: Tensor) -> dict[str, Any]:
    """Shape without the first axis, and type."""
    return {"shape": list(value.shape[1:]), "dtype": str(value.dtype).removeprefix("torch.")}


def task_of(facts: Mapping[str, Any], code: Collection[str], start: Path | None) -> Task:
    """The task of a description.

    Args:
        code, start: modules that may be imported, and the folder of the run's start; see `refuse_unnamed`.

    Raises:
        ConfigError: it names a class of one's own that may not be imported.
        LookupError, TypeError, ValueError, KeyError, AttributeError: it is damaged.
    """
    name, values = facts["task"]["name"], facts["task"]["values"]
    refuse_unnamed({"task": {"name": name}}, code, start)
    if values is None:
        raise ValueError(f"the fields of {name} cannot be written as JSON, so that it cannot be made again")
    task = rebuild(find_task(name), values, {})
    if task_values(task) != values:
        raise ValueError(f"its task.values are none of {name}")
    return task


def reading_of(facts: Mapping[str, Any], task: Task) -> Reading:
    """The reading of the columns that the task asks for."""
    roles = {str(role): tuple(map(str, names)) for role, names in facts["roles"].items()}
    contents = facts["columns"]
    columns = {name: Column(content, np.empty(0)) for name, content in contents.items()}
    return Reading({name: contents[name] for name in task.question_columns(columns, roles)}, roles, facts["size"])


def same_entries(net: torch.nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether a state is one of a network: the same names and shapes."""
    own = net.state_dict()
    return own.keys() == state.keys() and all(own[name].shape == value.shape for name, value in state.items())
