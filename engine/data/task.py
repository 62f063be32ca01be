"""Choice of the task: by name, or the one that fits the columns."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass

from algorithms import tasks
from algorithms.core.settings import Config
from algorithms.core.task import Task
from engine.data.config import DataConfig
from engine.data.half import Half
from engine.errors import DataError


@dataclass(frozen=True)
class TaskChoice:
    """A task and its settings.

    Attributes:
        name: of the task's module in `algorithms/tasks`, or `pkg.module:Class`.
        settings: the task's Settings.
    """

    name: str
    settings: Config

    @property
    def type(self) -> type[Task]:
        """The task's class."""
        return find_task(self.name)

    @property
    def is_own(self) -> bool:
        """Whether it is code of the user's own."""
        return ":" in self.name


def task_names() -> Sequence[str]:
    """Names of all tasks: the modules of `algorithms.tasks`, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(tasks.__path__) if not module.name.startswith("_"))


def find_task(name: str) -> type[Task]:
    """The task of the module `algorithms.tasks.NAME`, or of one's own `pkg.module:Class`.

    Raises:
        LookupError: no such module or class; the message lists the tasks there are.
    """
    if ":" in name:
        return _own_task(name)
    known = task_names()
    if name not in known:
        raise LookupError(f"no task named {name!r}; there are {', '.join(known)}, or one's own as pkg.module:Class")
    module = importlib.import_module(f"algorithms.tasks.{name}")
    classes = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, Task)]
    own = [c for c in classes if c.__module__ == module.__name__]
    if len(own) != 1:
        raise LookupError(f"algorithms/tasks/{name} defines {len(own)} tasks, it must be one")
    return own[0]


def _own_task(name: str) -> type[Task]:
    source, _, wanted = name.partition(":")
    found = getattr(importlib.import_module(source), wanted, None)
    if not (inspect.isclass(found) and issubclass(found, Task)):
        raise LookupError(f"{wanted!r} in {source} is not a class derived from algorithms.core.task.Task")
    attributes = [attribute for attribute in ("title", "figures") if not getattr(found, attribute, None)]
    missing = [*attributes, *sorted(found.__abstractmethods__)]
    if missing:
        raise LookupError(f"{wanted} lacks {', '.join(missing)}, which every task has")
    return found


def fitting_task(config: DataConfig, half: Half) -> TaskChoice:
    """The one task that fits the columns of some rows, with its default settings.

    Raises:
        DataError: none or more than one.
    """
    found = [name for name in task_names() if find_task(name).fits(half.columns, config.columns)]
    if len(found) == 1:
        return TaskChoice(found[0], find_task(found[0]).Settings())
    contents = ", ".join(f"{name} ({column.content})" for name, column in half.columns.items())
    unread = f"; {'; '.join(half.unread.values())}" if half.unread else ""
    problem = (
        f"{' and '.join(found) if found else 'no task'} {'fit' if found else 'fits'} the columns of {half.origin}: "
    )
    remedy = f"say by task.name which it is ({', '.join(task_names())}) and by data.columns what is what"
    raise DataError("data.source", config.source, f"{problem}{contents}{unread}", remedy)
