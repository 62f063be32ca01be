"""Relative paths of a run's configuration, which mean the folder where the run was started, wherever it is resumed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

FILES = ("parquet", "imagefolder", "csv")
"""Kinds of `data.source` that name a file or folder."""

_PLACES = (("data", "root"), ("data", "public"), ("partition", "path"), ("clients", "weights"))


def with_paths_from(tree: dict[str, Any], start: Path | None) -> dict[str, Any]:
    """A configuration whose relative paths lead where they led in the folder `start`, as far as something is there.

    What is not there stays as it is: it may lie below TESSERA_DATA, or where the command is called now.
    """
    if start is None:
        return tree
    tree = copy.deepcopy(tree)
    for section, key in _PLACES:
        values = tree.get(section)
        if isinstance(values, dict) and isinstance(values.get(key), str):
            values[key] = _anchored_path(values[key], start)
    data = tree.get("data")
    if isinstance(data, dict) and isinstance(data.get("source"), str):
        kind, colon, place = data["source"].partition(":")
        if colon and kind in FILES:
            data["source"] = f"{kind}:{_anchored_path(place, start)}"
    return tree


def _anchored_path(path: str, start: Path) -> str:
    there = start / path
    return str(there) if path and not Path(path).is_absolute() and there.exists() else path
