"""Code of the user's own that a configuration names as `pkg.module:function` or `pkg.module:Class`, and who may have it
imported."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from algorithms.nets.language_models import HUB
from engine.errors import ConfigError, Problem


def named_modules(tree: Mapping[str, Any]) -> dict[str, str]:
    """Modules that a configuration, as a tree, has imported, by the key that names each."""
    clients, task = tree.get("clients"), tree.get("task")
    found = [
        *_names("clients.net", clients.get("net") if isinstance(clients, Mapping) else None),
        *_names("method", tree.get("method")),
        *_names("task.name", task.get("name") if isinstance(task, Mapping) else None),
    ]
    return {place: name.partition(":")[0] for place, name in found if is_own(name)}


def is_own(name: str) -> bool:
    """Whether a name is of the form `pkg.module:function`, of code of the user's own."""
    return ":" in name and not name.startswith(("torchvision:", HUB))


def _names(place: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every text of a tree, keys included, by its place."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield f"{place}.{key}", key
            yield from _names(f"{place}.{key}", item)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _names(f"{place}.{number}", item)


def refuse_unnamed(tree: Mapping[str, Any], allowed: Collection[str], start: Path | None = None) -> None:
    """Hold the configuration of a run's folder, which may come from somebody else, to the modules named here and now.

    Args:
        start: the folder where the run was started, as far as that is known. Nothing is imported from there, since the
            run's folder alone says which one it is.

    Raises:
        ConfigError: it names others, or modules that are not found from here; none of them has been imported.
    """
    problems = [
        Problem(place, module, reason)
        for place, module in named_modules(tree).items()
        if (reason := _refusal(module, allowed, start))
    ]
    if problems:
        raise ConfigError(problems)


def _refusal(module: str, allowed: Collection[str], start: Path | None) -> str:
    """The reason not to import a module; empty where there is none."""
    if module not in allowed:
        return f"this folder names code of one's own; if you trust it, add --code {module}"
    if start is None or _is_found(module):
        return ""
    return (
        f"no module of this name is found in {Path.cwd()}, nor where Python looks; the run was started in {start}: "
        f"call this there, or, if you trust what lies there, with PYTHONPATH={shlex.quote(str(start))}"
    )


def _is_found(module: str) -> bool:
    """Whether the outermost package of a module is found, of which nothing is imported."""
    package = module.partition(".")[0]
    return package in sys.modules or not package or find_spec(package) is not None


def code_options(tree: Mapping[str, Any]) -> str:
    """The `--code` options (with a leading space) that a command on this run's folder needs."""
    return "".join(f" --code {shlex.quote(module)}" for module in sorted(set(named_modules(tree).values())))


def resume_command(folder: Path, tree: Mapping[str, Any]) -> str:
    """The command that resumes the run of a folder with this configuration."""
    return f"tessera resume {shlex.quote(str(folder))}{code_options(tree)}"
