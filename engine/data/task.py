"""Choice of the task: by name, or the one that fits the columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.steps.finding import find_class, module_names
from algorithms import tasks
from algorithms.core.columns import Column, first_word
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

    def reading_for(self, net: str | None, folder: str | None = None) -> TaskChoice:
        """The same; where the task reads data as a network does (its Settings have fields `net` and `folder`), with
        this network, unless it names one, and the folder where that lies on this machine."""
        settings: Any = self.settings
        if not hasattr(settings, "net"):
            return self
        return replace(self, settings=replace(settings, net=settings.net or net, folder=settings.folder or folder))

    @property
    def is_own(self) -> bool:
        """Whether it is code of the user's own."""
        return ":" in self.name


def task_names() -> Sequence[str]:
    """Names of all tasks: the modules of `algorithms.tasks`, sorted."""
    return module_names(tasks)


def find_task(name: str) -> type[Task]:
    """The task of the module `algorithms.tasks.NAME`, or of one's own `pkg.module:Class`.

    Raises:
        LookupError: no such module or class, or one that lacks a part; the message lists the tasks there are.
    """
    found = find_class(name, tasks, Task, "task")  # type: ignore[type-abstract]
    attributes = [attribute for attribute in ("title", "figures") if not getattr(found, attribute, None)]
    missing = [*attributes, *sorted(found.__abstractmethods__)]
    if missing:
        raise LookupError(f"{found.__name__} lacks {', '.join(missing)}, which every task has")
    return found


def name_of(task: Task) -> str:
    """The name under which `find_task` finds a task's class."""
    module, _, name = type(task).__module__.rpartition(".")
    return name if module == tasks.__name__ else f"{type(task).__module__}:{type(task).__qualname__}"


def fitting_task(config: DataConfig, half: Half) -> TaskChoice:
    """The one task that fits the columns of some rows, with its default settings.

    Raises:
        DataError: none or more than one.
    """
    found = [name for name in task_names() if find_task(name).fits(half.columns, config.columns)]
    if len(found) == 1:
        return TaskChoice(found[0], find_task(found[0]).Settings())
    contents = ", ".join(f"{name} ({_content(column)})" for name, column in half.columns.items())
    unread = f"; {'; '.join(half.unread.values())}" if half.unread else ""
    problem = (
        f"{' and '.join(found) if found else 'no task'} {'fit' if found else 'fits'} the columns of {half.origin}: "
    )
    remedy = (
        f"say by task.name which it is ({', '.join(task_names())}) and by data.columns what is what, as {{label: NAME}}"
    )
    raise DataError("data.source", config.source, f"{problem}{contents}{unread}", remedy)


def _content(column: Column) -> str:
    """`number`, or `category, as 'red'`."""
    word = first_word(column) if column.content == "category" else None
    return f"{column.content}, as {word[1]!r}" if word else column.content
