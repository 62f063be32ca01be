"""The specification of a comparison: methods with their settings, all else equal, over several seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config import RunConfig, reading, resolve, to_tree
from engine.errors import MISSING, ConfigError, Problem, nearest, one_line

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Attributes:
        label: of the method, unique among those compared.
        config: complete; inside one process, with MLflow left to the comparison.
    """

    label: str
    seed: int
    config: RunConfig

    @property
    def name(self) -> str:
        """Name of the run's folder, which people see too."""
        return f"{self.label}-seed-{self.seed}"


@dataclass(frozen=True)
class Comparison:
    """Several methods, several seeds.

    Attributes:
        source: name or file that it came from.
        common: a configuration whose runner and MLflow are the comparison's own.
        cells: of every label and seed, by label in the order asked.
    """

    source: str
    common: RunConfig
    labels: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]

    def of(self, label: str) -> tuple[Cell, ...]:
        """A method's cells, by seed."""
        return tuple(cell for cell in self.cells if cell.label == label)

    def tree(self) -> dict[str, Any]:
        """As a file has it, complete; the seeds are told beside it."""
        common = to_tree(self.common)
        common.pop("method")
        methods = {label: to_tree(self.of(label)[0].config)["method"] for label in self.labels}
        return {"methods": methods, **common}


def comparison_of(
    methods: Sequence[str], source: str | Mapping[str, Any], overrides: Sequence[str], seeds: int
) -> Comparison:
    """A comparison of methods under a preset, a file, or a comparison by name.

    Args:
        methods: labels; each names a method, or an entry of the source's `methods`. All entries where it is empty.
        source: a name or a file, or the plain tree that one would hold.
        overrides: `section.key=value` for all methods, `methods.LABEL.key=value` for one.
        seeds: how many, counted up from the configuration's own.

    Raises:
        ConfigError: everything that is wrong for any of the methods, each thing once.
    """
    names = {label_of(name): name for name in methods}
    tree = tree_of(source)
    tree = reading.override(tree, overrides, dotted_keys=[*names, *_labels(tree)])
    entries = _entries(tree)
    labels = list(names or entries)
    found: dict[str, RunConfig] = {}
    problems: dict[str, Problem] = {}
    for label in labels:
        section = {"name": names.get(label, label), **entries.get(label, {})}
        try:
            found[label] = resolve({**tree, "method": section})
        except ConfigError as error:
            for problem in error.problems:
                named = _relabel(problem, label)
                problems.setdefault(str(named), named)
    if problems:
        raise ConfigError(list(problems.values()))
    common = found[labels[0]]
    numbers = tuple(common.seed + offset for offset in range(seeds))
    cells = tuple(Cell(label, seed, alone(config, seed)) for label, config in found.items() for seed in numbers)
    origin = source if isinstance(source, str) else "python"
    return Comparison(origin, common, tuple(labels), numbers, cells)


def label_of(name: str) -> str:
    """A method's label where it is given none: its name, and `pkg.module.Class` of one of the user's own."""
    return name.replace(":", ".")


def _labels(tree: Mapping[str, Any]) -> list[str]:
    """The labels that a source's `methods` have; none where it has none, or has them wrong."""
    entries = tree.get("methods")
    return [label for label in entries if isinstance(label, str)] if isinstance(entries, Mapping) else []


def tree_of(source: str | Mapping[str, Any]) -> dict[str, Any]:
    """The plain tree of a comparison, a preset or a file.

    Raises:
        ConfigError: there is none of that name.
    """
    if isinstance(source, Mapping):
        return dict(source)
    names = reading.comparison_names()
    if source not in names and source not in reading.preset_names() and not Path(source).exists():
        known = [*names, *reading.preset_names()]
        reason = f"no comparison, preset or file; {nearest(source, known)}there are {', '.join(known)}"
        raise ConfigError([Problem(source, MISSING, reason)])
    if source not in names:
        return reading.read(source)
    tree: dict[str, Any] = reading.parse(reading.comparison_text(source), source)
    base = tree.pop("base", None)
    return tree if base is None else merge(tree_of(base), tree)


def merge(base: Any, changes: Any) -> Any:
    """A tree with another's values in the place of its own, key by key."""
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    return {**base, **{key: merge(base.get(key), value) for key, value in changes.items()}}


def _entries(tree: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings by label, taken out of the tree: the source's `methods`, and its one `method` under its own name."""
    entries, own = tree.pop("methods", {}), tree.pop("method", None)
    wrong = [Problem("methods", entries, "must be a mapping from a label to a method's settings")]
    if not isinstance(entries, Mapping):
        raise ConfigError(wrong)
    wrong = [
        Problem(f"methods.{label}", value, "must hold a method's settings, as a mapping; {} for its defaults")
        for label, value in entries.items()
        if not isinstance(value, Mapping)
    ]
    wrong += [
        Problem(
            f"methods.{label}", MISSING, "a label names a folder: letters, digits, dots, - and _ only, the first no dot"
        )
        for label in entries
        if not _LABEL.fullmatch(label)
    ]
    if wrong:
        raise ConfigError(wrong)
    if isinstance(own, Mapping) and isinstance(own.get("name"), str):
        label = label_of(own["name"])
        entries = {**entries, label: {**own, **entries.get(label, {})}}
    return {label: dict(settings) for label, settings in entries.items()}


def _relabel(problem: Problem, label: str) -> Problem:
    """A problem of one method's section, under its label; any other as it is."""
    section, dot, key = problem.place.partition(".")
    if section != "method":
        return problem
    return Problem(f"methods.{label}{dot}{key}", problem.value, problem.reason)


def alone(config: RunConfig, seed: int) -> RunConfig:
    """The same run as one cell: its steps in its own process, which gives the same bits as hosts on Ray do."""
    tree = to_tree(config)
    runner = {"kind": "inline", "device": tree["runner"]["device"], "bits": tree["runner"]["bits"]}
    return resolve({**tree, "seed": seed, "runner": runner, "mlflow": {"enabled": False}})


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], place: str = "") -> list[str]:
    """The differences of two trees, as `clients.lr = 0.05 here, 0.1 there`."""
    found: list[str] = []
    for key in dict.fromkeys([*ours, *theirs]):
        here, there = ours.get(key, MISSING), theirs.get(key, MISSING)
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            found += differences(here, there, f"{place}{key}.")
        elif here != there:
            found.append(f"{place}{key} = {_word(here)} now, {_word(there)} then")
    return found


def _word(value: Any) -> str:
    return "nothing" if value is MISSING else one_line(value)
