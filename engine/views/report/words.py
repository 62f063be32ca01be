"""Numbers and names as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.records import GLOBAL, VALIDATION, Evaluation
from engine.store.folder import StoredRun

FINAL = "final"
"""The stage that is the global model after the last round, in result.json."""

FINAL_CAPTION = "the global model after the last round"


def captions(run: StoredRun) -> dict[str, str]:
    """A caption for each stage: the method's own, and `final`."""
    return {**{stage.name: stage.caption for stage in run.captions}, FINAL: FINAL_CAPTION}


def as_words(name: str) -> str:
    """The name of a figure or kind as words."""
    return name.replace("_", " ")


def count(amount: int, one: str, several: str | None = None) -> str:
    """`1 round`, `2,000 rounds`; `several` where it is not made with an s."""
    return f"{amount:,} {one if amount == 1 else several or one + 's'}"


def labels(runs: Sequence[StoredRun]) -> list[str]:
    """The shortest names that tell the runs apart."""
    ways = [
        [str(run.result["method"]) for run in runs],
        [f"{run.result['method']}, seed {run.result['seed']}" for run in runs],
        [run.folder.name for run in runs],
    ]
    return next((names for names in ways if len(set(names)) == len(runs)), [str(run.folder) for run in runs])


def stages(run: StoredRun) -> dict[str, Evaluation]:
    """The last evaluation of each stage, in the order in which stages first came; the last global one is `final`."""
    shown = {record.stage: record.evaluation for record in run.stages if record.stage != VALIDATION}
    if GLOBAL in shown:
        shown[FINAL] = shown.pop(GLOBAL)
    return shown


def settings(config: Any, place: str = "") -> dict[str, Any]:
    """A configuration as `clients.lr: 0.05`, one line for each value that holds no others."""
    if not isinstance(config, dict):
        return {place: config}
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= settings(value, f"{place}.{key}" if place else str(key))
    return found
