"""The specification of a sweep: a configuration, the values of some of its keys that are tried, and how they are."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from algorithms.core.seeds import Seed
from algorithms.core.task import Figure
from engine.compare.spec import Cell, alone, merge
from engine.config import RunConfig, reading, resolve
from engine.config.problems import problems_of
from engine.config.schema import Section
from engine.errors import MISSING, ConfigError, Problem

RESERVED = {
    "seed": "sweep.seeds says over how many a setting is tried",
    "stop": "it says on which rows settings are judged",
    "runner": "no result depends on it",
    "mlflow": "no result depends on it",
    "checkpoint": "no result depends on it",
    "failures": "no result depends on it",
}
"""Sections whose keys a sweep does not try, and why."""


class SweepSection(Section):
    """The settings that are tried, and how. A setting's score is the best value that its model reached on validation
    rows, as the mean over all seeds and partitions. Test rows have no part in any choice."""

    search: Literal["grid", "random", "asha"] = Field(
        default="grid",
        description="every combination of the values; settings drawn at random; or the same, of which at certain "
        "rounds only the best go on (asynchronous successive halving)",
    )
    keys: dict[str, Any] = Field(
        description="by key, as clients.lr: a list of values; for random and asha also {from: A, to: B}, with "
        "log: true for equal chances of equal factors, and whole: true for whole numbers"
    )
    samples: int | None = Field(default=None, ge=1, description="of random and asha: how many settings are drawn")
    seeds: int = Field(default=1, ge=1, description="seeds under which each setting is tried, from the file's own")
    partitions: tuple[dict[str, Any], ...] = Field(
        default=(), description="partitions under which each setting is tried, each as keys that differ, as {alpha: 1}"
    )
    first: int | None = Field(default=None, ge=1, description="of asha: rounds that every setting has; null: 1")
    factor: float | None = Field(
        default=None,
        gt=1,
        description="of asha: one of so many settings goes on, to so many times the rounds; null: 3",
    )


@dataclass(frozen=True)
class Setting:
    """One setting of a sweep.

    Attributes:
        name: of its runs' folders: its number in three digits or more.
        values: by key.
        cells: its runs, one for each partition and seed.
    """

    number: int
    name: str
    values: Mapping[str, Any]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Sweep:
    """Settings to try.

    Attributes:
        source: name or file that it came from.
        tree: as the file has it.
        section: what it says of the sweep.
        common: a configuration whose runner and MLflow are the sweep's own.
    """

    source: str
    tree: Mapping[str, Any]
    section: SweepSection
    common: RunConfig
    settings: tuple[Setting, ...]

    @property
    def rounds(self) -> int:
        """Rounds of the longest run."""
        return max(cell.config.rounds for setting in self.settings for cell in setting.cells)

    def figure(self, figures: Sequence[Figure]) -> Figure:
        """The figure, of those of a task, by which settings are judged."""
        stop = self.settings[0].cells[0].config.stop
        assert stop is not None
        return next((figure for figure in figures if stop.metric in (None, figure.name)), figures[0])

    def usual(self, setting: Setting) -> RunConfig:
        """The configuration of a setting as a run of its own, with the sweep's runner."""
        first = setting.cells[0].config
        return first.model_copy(update={"runner": self.common.runner, "mlflow": self.common.mlflow})


def sweep_of(source: str | Mapping[str, Any], overrides: Sequence[str]) -> Sweep:
    """The sweep that a file describes: a configuration, or the `base` of one and what differs, and a section `sweep`.

    Args:
        source: the file, or the plain tree that one would hold.
        overrides: `section.key=value`.

    Raises:
        ConfigError: everything that is wrong for any of the settings, each thing once.
    """
    tree = reading.override(dict(source) if isinstance(source, Mapping) else reading.read(source), overrides)
    section = _section(tree)
    base = tree.pop("base", None)
    tree.pop("sweep")
    whole = tree if base is None else merge(_base(base, source), tree)
    common = resolve(_with_validation(whole))
    settings, problems = [], dict[str, Problem]()
    for number, values in enumerate(_draw_all(section, common.seed)):
        try:
            settings.append(_setting(number, values, whole, section))
        except ConfigError as error:
            problems.update({str(problem): problem for problem in error.problems})
    if problems:
        raise ConfigError(list(problems.values()))
    origin = source if isinstance(source, str) else "python"
    kept = {**({} if base is None else {"base": base}), **tree, "sweep": section.model_dump(mode="json")}
    return Sweep(origin, kept, section, common, tuple(settings))


def _base(base: Any, source: str | Mapping[str, Any]) -> dict[str, Any]:
    """The tree of a base: a preset, or a file, looked for beside the sweep's own."""
    if not isinstance(base, str):
        raise ConfigError([Problem("base", base, "must be the name of a preset, or a file")])
    beside = Path(source).parent / base if isinstance(source, str) else Path(base)
    return reading.read(str(beside) if beside.is_file() and base not in reading.preset_names() else base)


def _section(tree: Mapping[str, Any]) -> SweepSection:
    if "sweep" not in tree:
        reason = "is needed: which keys are tried, as {search: grid, keys: {clients.lr: [0.01, 0.1]}}"
        raise ConfigError([Problem("sweep", MISSING, reason)])
    try:
        section = SweepSection.model_validate_json(json.dumps(tree["sweep"]), strict=True)
    except ValidationError as error:
        found = problems_of(error, SweepSection, tree["sweep"])
        raise ConfigError([Problem(f"sweep.{p.place}", p.value, p.reason) for p in found]) from None
    problems = [*_wrong_keys(section), *_wrong_search(section)]
    if problems:
        raise ConfigError(problems)
    return section


def _wrong_keys(section: SweepSection) -> Iterator[Problem]:
    if not section.keys:
        yield Problem("sweep.keys", section.keys, "must name a key at least, as {clients.lr: [0.01, 0.1]}")
    for key, values in section.keys.items():
        place, top = f"sweep.keys.{key}", key.partition(".")[0]
        if top in RESERVED:
            yield Problem(place, values, f"cannot be tried: {RESERVED[top]}; leave it out")
        elif isinstance(values, list):
            if not values:
                yield Problem(place, values, "must hold a value at least")
        elif (reason := _wrong_interval(values)) is not None:
            yield Problem(place, values, reason)
        elif section.search == "grid":
            yield Problem(place, values, "an interval has no end of values: give a list, or set sweep.search: random")


def _wrong_interval(values: Any) -> str | None:
    """The fault of `{from: A, to: B}`; None where nothing is."""
    right = "must be a list of values, or {from: A, to: B} with numbers A < B (with log: true above 0)"
    if not isinstance(values, Mapping) or not {"from", "to"} <= values.keys() <= {"from", "to", "log", "whole"}:
        return right
    low, high = values["from"], values["to"]
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
    switches = all(isinstance(values.get(name, False), bool) for name in ("log", "whole"))
    if not (numbers and switches) or low >= high or (values.get("log") and low <= 0):
        return right
    return None


def _wrong_search(section: SweepSection) -> Iterator[Problem]:
    if section.search == "grid" and section.samples is not None:
        yield Problem("sweep.samples", section.samples, "is for random and asha; a grid has all combinations")
    if section.search != "grid" and section.samples is None:
        yield Problem("sweep.samples", MISSING, f"is needed where sweep.search is {section.search}")
    for name in ("first", "factor"):
        value = getattr(section, name)
        if section.search != "asha" and value is not None:
            yield Problem(f"sweep.{name}", value, f"is for asha, and sweep.search is {section.search}; leave it out")


def _draw_all(section: SweepSection, seed: int) -> Iterator[dict[str, Any]]:
    """The values of each setting, by key."""
    if section.search == "grid":
        for values in itertools.product(*section.keys.values()):
            yield dict(zip(section.keys, values, strict=True))
        return
    for number in range(section.samples or 0):
        draw = Seed(seed).at(phase="sweep", round=number)
        yield {key: _draw(values, draw.numpy(key)) for key, values in section.keys.items()}


def _draw(values: Any, random: np.random.Generator) -> Any:
    if isinstance(values, list):
        return values[int(random.integers(len(values)))]
    low, high = float(values["from"]), float(values["to"])
    if values.get("whole"):
        high += 1  # the last number is one of them
    share = random.random()
    found = low * (high / low) ** share if values.get("log") else low + (high - low) * share
    return int(found) if values.get("whole") else float(f"{found:.4g}")


def _setting(number: int, values: Mapping[str, Any], whole: Mapping[str, Any], section: SweepSection) -> Setting:
    """A setting with its runs.

    Raises:
        ConfigError: what is wrong with it, at the sweep's own keys.
    """
    name = f"{number:03}"
    cells = []
    for place, partition in enumerate(section.partitions or ({},)):
        tree = dict(whole)
        if partition:
            tree = merge(tree, {"partition": partition})
        options = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
        tree = _with_validation(reading.override(tree, options))
        config = resolve(tree)
        label = f"{name}-partition-{place}" if section.partitions else name
        cells += [Cell(label, seed, alone(config, seed)) for seed in range(config.seed, config.seed + section.seeds)]
    return Setting(number, name, dict(values), tuple(cells))


def _with_validation(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with a section `stop`, so that there are validation rows; one that ends no run where it had none."""
    if tree.get("stop") is not None:
        return dict(tree)
    rounds = tree.get("rounds")
    return {**tree, "stop": {"patience": rounds} if type(rounds) is int and rounds > 0 else {}}
