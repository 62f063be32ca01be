"""Data sets of the Hugging Face hub by name, through its package `datasets`, from the network or from its cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.data.config import DataConfig
from engine.data.folders import WORDS, name_facts
from engine.data.half import Half, HalfName, rows_of_half
from engine.data.tables.arrow import class_columns, half_of
from engine.errors import DataError


def read(config: DataConfig, half: HalfName, limit: int | None) -> Half:
    """The first `limit` rows of the split `train`, or of `test` or else `validation`.

    A data set of one split is split as `rows_of_half` says.
    """
    dataset, rows = _choose(config, half)
    if rows is not None:
        return _half(config, dataset.select(rows), limit)
    found, word = _half(config, dataset, limit), str(dataset.split)
    return replace(found, facts=(*name_facts(Path(config.place, word), word, half), *found.facts))


def _half(config: DataConfig, dataset: Any, limit: int | None) -> Half:
    split = str(dataset.split)
    read = dataset if limit is None else dataset.select(range(min(limit, len(dataset))))
    table = table_of(read)
    classes = class_columns(config, table.schema) if limit is not None else []
    whole = table_of(dataset.select_columns(classes)) if classes else None
    return half_of(table, config, lambda row: f"{config.place} {split} row {row}", f"{config.place} {split}", whole)


def table_of(dataset: Any) -> pa.Table:
    """A `datasets.Dataset` as an Arrow table whose metadata describe its features, in the order of its rows."""
    table = dataset.with_format("arrow")[:]
    described = dataset.features.arrow_schema.metadata
    return table.replace_schema_metadata(described)


def _choose(config: DataConfig, half: HalfName) -> tuple[Any, Any]:
    """A split, and the numbers of those of its rows that make the half; None for all."""
    splits = _load(config)
    if "train" in splits:
        wanted = WORDS[half]
        found = [name for name in wanted if name in splits]
        if found:
            return splits[found[0]], None
        problem = f"{config.place} has the splits {', '.join(splits)}, and no {' or '.join(wanted[:2])}"
        raise DataError("data.source", config.source, problem, "hold out training rows by data.validation")
    if len(splits) > 1:
        problem = f"{config.place} has the splits {', '.join(splits)}, and no train"
        raise DataError("data.source", config.source, problem, "save the rows wanted as train.parquet and test.parquet")
    (dataset,) = splits.values()
    return dataset, rows_of_half(len(dataset), half)


def _load(config: DataConfig) -> Any:
    """Load all splits, by name."""
    try:
        import datasets
    except ImportError as error:
        problem = f"the package datasets, which reads the Hugging Face hub, cannot be imported ({error})"
        raise DataError("data.source", config.source, problem, "pip install 'tessera-fl[hf]'") from error
    name, _, part = config.place.partition(":")
    try:
        return datasets.load_dataset(name, part or None)
    except Exception as error:  # network, cache, names and builders fail with errors of a dozen types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        problem = f"datasets cannot load {config.place} ({reason})"
        remedy = (
            "correct the name (hf:OWNER/NAME or hf:OWNER/NAME:PART), or, where the hub cannot be reached, load it once "
            "where there is a network, since its cache serves without one"
        )
        raise DataError("data.source", config.source, problem, remedy) from error
