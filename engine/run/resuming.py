"""Changes allowed when a run is resumed: whatever its result does not depend on, and more rounds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from engine.config import RunConfig, reading, resolve, to_tree
from engine.config.anchoring import with_paths_from
from engine.config.own_code import refuse_unnamed
from engine.errors import ConfigError, Problem, UserError, one_line
from engine.planning.federation import Federation
from engine.store.folder import RunFolder
from engine.views.local_store import anchored_uri, file_of

FREE = ("runner", "checkpoint", "failures", "mlflow")
"""Sections of which no result depends."""

BOUND = ("runner.device", "runner.bits", "runner.distillation.trainers")
"""Keys in them on which results do depend, in their last bits."""


class ResumeError(UserError):
    """A run that cannot go on as it was asked to."""


def apply_overrides(
    files: RunFolder, overrides: tuple[str, ...], code: Collection[str] = ()
) -> tuple[RunConfig, dict[str, str]]:
    """Apply overrides to a run's configuration: the new one, and the differences in words by key.

    Args:
        code: modules of one's own that may be imported where the configuration names them.

    Raises:
        ConfigError: for everything that may not differ, or for code that may not be imported.
    """
    start = files.start_folder()
    tree = _with_store_from(with_paths_from(reading.read(str(files.path / "config.yaml")), start), start)
    asked = reading.override(tree, overrides)
    for named in (tree, asked):  # before a method of one's own is looked for, which imports it
        refuse_unnamed(named, code, start)
    before, config = to_tree(resolve(tree)), resolve(asked)
    old, new = dict(_leaves(before)), dict(_leaves(to_tree(config)))
    differing = [place for place in {**old, **new} if old.get(place) != new.get(place)]
    problems = [_refusal(place, old, new) for place in differing if not _may_differ(place, old, new)]
    if problems:
        raise ConfigError(problems)
    return config, {place: f"{one_line(old.get(place))} -> {one_line(new.get(place))}" for place in differing}


def _with_store_from(tree: dict[str, Any], start: Path | None) -> dict[str, Any]:
    """A configuration whose MLflow store, if it is a file by a relative path, is the one that lies in a folder."""
    section = tree.get("mlflow")
    if start is None or not isinstance(section, dict) or not isinstance(section.get("tracking_uri"), str):
        return tree
    there = anchored_uri(section["tracking_uri"], start)
    file = file_of(there)
    return tree if file is None or not file.exists() else {**tree, "mlflow": {**section, "tracking_uri": there}}


def binding_settings(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The settings on which a run's result depends, by key as `clients.lr`."""
    return {place: value for place, value in _leaves(tree) if not _is_free(place)}


def _is_free(place: str) -> bool:
    return place.partition(".")[0] in FREE and place not in BOUND


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _may_differ(place: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    if place == "rounds":
        return bool(new[place] > old[place]) and old["clients.schedule.name"] != "cosine"
    return _is_free(place)


def _refusal(place: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Problem:
    if place == "rounds" and new[place] > old[place]:
        reason = f"was {old[place]} when the run began, over which the cosine of clients.schedule falls; leave it so"
        return Problem(place, new[place], reason)
    reason = (
        f"was {one_line(old.get(place))} when the run began, and its result depends on it; what may differ are rounds "
        f"(more of them) and {', '.join(f'{section}.*' for section in FREE)} (but not {', '.join(BOUND)})"
    )
    return Problem(place, new.get(place), reason)


def same_inputs(files: RunFolder, federation: Federation) -> None:
    """Hold the data, the way it is dealt and the weights that the run started from against what it began with.

    Raises:
        ResumeError: they are not what they were.
    """
    _same_data(files, federation)
    then, now, source = files.weights(), federation.weights_digest, federation.config.clients.weights
    if then is not None and then != now:
        raise ResumeError(
            f"clients.weights = {source}: its tensors had the SHA-256 {then} when {files.path} began, and have {now} "
            "now: bring the file back as it was, or start a run of its own with `tessera run`"
        )


def _same_data(files: RunFolder, federation: Federation) -> None:
    if not files.partition.exists():
        return
    metadata = pq.read_schema(files.partition).metadata or {}
    for key, now, what in (
        (b"data", federation.dataset.fingerprint, "the training data"),
        (b"fingerprint", federation.partition.fingerprint, "the partition"),
    ):
        then = metadata.get(key, b"").decode()
        if then != now:
            raise ResumeError(
                f"{what} of {files.path} had the fingerprint {then} when the run began, and has {now} now: "
                "bring the data back as it was, or start a run of its own with `tessera run`"
            )
