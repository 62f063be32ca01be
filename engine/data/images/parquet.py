"""Parquet in the layout of the Hugging Face hub: `image` struct<bytes, path>, `label` int64, and further columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.data.config import DataConfig
from engine.data.folders import folder_of
from engine.data.images.decode import open_image, stack
from engine.data.split import Half, Split, numbered
from engine.errors import DataError


def read(config: DataConfig, half: Half, limit: int | None) -> Split:
    """The first `limit` rows of `train.parquet` or `test.parquet`; no others are decoded.

    Class names are `class_names` of the schema's metadata (a JSON list), else those of the hub's feature description
    (`huggingface`), else the label numbers of the whole file.
    """
    path = folder_of(config) / f"{half}.parquet"
    file = _opened(config, path)
    _check_columns(config, path, file.schema_arrow)
    table = _first_rows(config, path, file, limit)

    def place(row: int) -> str:
        return f"{path} row {row}"

    names = _class_names(config, path, file.schema_arrow)
    if names is None and half == "train":
        names = numbered(_labels(config, path, file.read(columns=["label"])["label"]))
    return Split(
        images=stack(
            pc.struct_field(table["image"], "bytes").to_pylist(), open_image, config.size, config.source, place
        ),
        labels=_labels(config, path, table["label"]),
        class_names=names,
        place=place,
        columns={name: table[name].to_numpy() for name in _plain_columns(table.schema)},
    )


def _opened(config: DataConfig, path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise DataError(
            "data.source", config.source, f"there is no file {path}", "the folder needs train.parquet and test.parquet"
        )
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise _damaged(config, path, error) from error


def _damaged(config: DataConfig, path: Path, error: Exception) -> DataError:
    return DataError("data.source", config.source, f"{path} is not a readable Parquet file ({error})", "replace it")


def _first_rows(config: DataConfig, path: Path, file: pq.ParquetFile, limit: int | None) -> pa.Table:
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    before = np.cumsum([0, *sizes])[: len(sizes)]
    groups = [group for group, start in enumerate(before) if limit is None or start < limit]
    try:
        return file.read_row_groups(groups).slice(0, limit)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise _damaged(config, path, error) from error


def _check_columns(config: DataConfig, path: Path, schema: pa.Schema) -> None:
    has = f"it has {', '.join(schema.names)}"
    remedy = "rename the columns to image (struct<bytes, path>) and label (integer)"
    missing = [name for name in ("image", "label") if name not in schema.names]
    if missing:
        raise DataError(
            "data.source", config.source, f"{path} has no column {' and no column '.join(missing)}; {has}", remedy
        )
    image = schema.field("image").type
    if not pa.types.is_struct(image) or image.get_field_index("bytes") < 0:
        raise DataError("data.source", config.source, f"{path}: image is {image}, not struct<bytes, path>", remedy)
    encoded = image.field("bytes").type
    if not (pa.types.is_binary(encoded) or pa.types.is_large_binary(encoded)):
        raise DataError("data.source", config.source, f"{path}: image.bytes is {encoded}, not binary", remedy)
    label = schema.field("label").type
    if not pa.types.is_integer(label):
        raise DataError("data.source", config.source, f"{path}: label is {label}, not an integer", remedy)


def _labels(config: DataConfig, path: Path, column: pa.ChunkedArray) -> np.ndarray:
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise DataError("data.source", config.source, f"{path} row {row} has no label", "every row needs one")
    return cast(np.ndarray, column.to_numpy()).astype(np.int64)


def _class_names(config: DataConfig, path: Path, schema: pa.Schema) -> tuple[str, ...] | None:
    metadata = schema.metadata or {}
    try:
        names = json.loads(metadata.get(b"class_names", b"null"))
        if names is None:
            names = _hub_names(json.loads(metadata.get(b"huggingface", b"null")))
    except json.JSONDecodeError as error:
        raise DataError(
            "data.source",
            config.source,
            f"{path}: the schema's metadata is no JSON ({error})",
            "write class_names as a JSON list",
        ) from error
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(
            "data.source", config.source, f"{path}: class_names is {names!r}", "write it as a JSON list of strings"
        )
    return tuple(names)


def _hub_names(description: Any) -> Any:
    for key in ("info", "features", "label", "names"):
        description = description.get(key) if isinstance(description, dict) else None
    return description


def _plain_columns(schema: pa.Schema) -> list[str]:
    """Columns of words or numbers; lists and structs tell clients apart in no obvious way.

    Types that a library adds to Arrow are passed over: reading a value of one runs that library's code, and Ray Data
    has a type whose values are pickles.
    """
    return [f.name for f in schema if f.name not in ("image", "label") and _is_plain(f.type)]


def _is_plain(kind: pa.DataType) -> bool:
    return not (pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType))
