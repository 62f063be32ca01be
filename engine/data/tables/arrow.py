"""Arrow tables, as Parquet files and the Hugging Face hub have them, to columns.

- a struct with `bytes` (binary) is an image, PNG, JPEG or WebP;
- a list of floating-point numbers of one length is a signal of one channel, a list of such lists one of several; a
  `shape` [channels, T] in the schema's metadata cuts the plain list of that many values into channels;
- a null in the place of an image or of a list is a row that has none;
- strings, dates and times are words, truth values the words `false` and `true`;
- whole and floating-point numbers and decimals are numbers, except whole ones beyond 2^53, which are words.

Everything else, as binary, other lists and structs, is left unread, and so are types that a library adds to Arrow:
reading a value of one runs that library's code, and Ray Data has a type whose values are pickles.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from algorithms.core.columns import Column, Content
from algorithms.core.task import LABEL
from engine.data.config import DataConfig
from engine.data.half import Half
from engine.data.images.decode import open_image, stack
from engine.errors import DataError

EXACT = 2**53
"""Whole numbers up to here are floating-point numbers too."""


def half_of(
    table: pa.Table,
    config: DataConfig,
    place: Callable[[int], str],
    origin: str,
    whole: pa.Table | None = None,
    unread: Mapping[str, str] | None = None,
) -> Half:
    """A table's columns; images of columns that `data.columns` does not name stay undecoded where it names some.

    Args:
        place: the words for a row in an error message.
        origin: the words for the whole table.
        whole: columns of classes over more rows than these, see `Half.whole`.
        unread: columns that the table lacks because they cannot be read, each with what it is.

    Raises:
        DataError: two columns of one name, an image that cannot be read, metadata that are none.
    """
    left = {**(unread or {}), **unread_columns(config, table.schema, origin)}
    names = class_names(config, table.schema, origin)
    columns, ragged, facts = {}, {}, []
    for field in table.schema:
        if field.name in left or _is_unwanted_image(config, table.schema, field):
            continue
        values = table[field.name]
        if _is_image(field.type):
            columns[field.name], noted = _images(values, config, place)
            facts += [f"{origin}, {field.name}: {fact}" for fact in noted]
            continue
        column = _column(values, table.schema, config, origin)
        if column is None:
            reason = f"{field.name} is {field.type} of several lengths{_odd_length(values, place)}"
            left[field.name] = ragged[field.name] = reason
        else:
            columns[field.name] = column
    if not columns:
        has = "; ".join(left.values()) or "it has none"
        remedy = "it needs columns of images (struct<bytes, path>), signals, words or numbers"
        raise DataError("data.source", config.source, f"{origin} has no column that can be read: {has}", remedy)
    over = {} if whole is None else {name: _plain(whole[name], config, origin) for name in whole.column_names}
    return Half(columns, place, origin, names, over, left, tuple(facts), ragged)


def class_columns(config: DataConfig, schema: pa.Schema) -> list[str]:
    """Columns over whose every row classes are counted where the file does not name them."""
    return [name for name in config.columns.get(LABEL, (LABEL,)) if name in schema.names and _is_plain(schema, name)]


def unread_columns(config: DataConfig, schema: pa.Schema, origin: str) -> dict[str, str]:
    """Columns whose type is none of the contents there are, each with what it is."""
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise DataError("data.source", config.source, f"{origin} has two columns {twice[0]}", "rename one of them")
    return {field.name: f"{field.name} is {_why_unread(field)}" for field in schema if not _is_readable(field.type)}


def _is_readable(kind: pa.DataType) -> bool:
    return _is_image(kind) or _is_signal(kind) or _is_words(kind) or _is_number(kind)


def _is_plain(schema: pa.Schema, name: str) -> bool:
    kind = schema.field(name).type
    return _is_words(kind) or _is_number(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_image(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_signal(kind: pa.DataType) -> bool:
    inner = kind.value_type if _is_list(kind) else None
    return inner is not None and pa.types.is_floating(inner.value_type if _is_list(inner) else inner)


def _is_words(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_string = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return is_string or pa.types.is_boolean(kind) or pa.types.is_temporal(kind)


def _is_number(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return (
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)
    )


def _why_unread(field: pa.Field) -> str:
    kind = field.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return f"an image whose bytes are {kind.field('bytes').type}, not binary"
    return f"{kind}, not struct<bytes, path>" if _is_binary(kind) else str(kind)


def _is_unwanted_image(config: DataConfig, schema: pa.Schema, field: pa.Field) -> bool:
    named = {name for names in config.columns.values() for name in names}
    has_named_image = any(name in schema.names and _is_image(schema.field(name).type) for name in named)
    return _is_image(field.type) and has_named_image and field.name not in named


def _images(values: pa.ChunkedArray, config: DataConfig, place: Callable[[int], str]) -> tuple[Column, tuple[str, ...]]:
    """The column, and notes on what was changed as it was decoded."""
    encoded = pc.struct_field(values, "bytes").to_pylist()
    present = np.array([image is not None for image in encoded], dtype=bool)
    rows, found = np.flatnonzero(present), [image for image in encoded if image is not None]
    images = stack(found, open_image, config.size, config.source, lambda row: place(int(rows[row])))
    return _with_gaps("image", images.values, present), images.facts


def _column(values: pa.ChunkedArray, schema: pa.Schema, config: DataConfig, origin: str) -> Column | None:
    """None for lists of several lengths."""
    if _is_signal(values.type):
        present = values.is_valid().to_numpy()
        samples = signals(values.drop_null(), _shape(config, schema, origin))
        return None if samples is None else _with_gaps("signal", samples, present)
    return _plain(values, config, origin)


def _with_gaps(content: Content, found: np.ndarray, present: np.ndarray) -> Column:
    """A column of the values of those rows that have one, zeros in the others."""
    if present.all():
        return Column(content, found)
    values = np.zeros((len(present), *found.shape[1:]), found.dtype)
    values[present] = found
    return Column(content, values, present=present)


def _plain(values: pa.ChunkedArray, config: DataConfig, origin: str) -> Column:
    """Words, object (N,) of str or None, or numbers, float64 (N,)."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    kind = values.type
    try:
        if pa.types.is_integer(kind) and _is_beyond(values):
            values = values.cast(pa.string())
        elif not _is_words(kind):
            return Column("number", np.asarray(values.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64))
        words = np.empty(len(values), dtype=object)
        words[:] = values.cast(pa.string()).to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError("data.source", config.source, f"{origin} cannot be read ({error})", "replace it") from error
    return Column("text", words)


def _is_beyond(values: pa.ChunkedArray) -> bool:
    limits = pc.min_max(values).as_py()
    return any(value is not None and abs(value) > EXACT for value in limits.values())


def signals(values: pa.ChunkedArray, shape: tuple[int, int] | None) -> np.ndarray | None:
    """float32 (N, channels, T) of lists; NaN for a value that is missing; None where lengths differ or one is missing.

    Args:
        shape: (channels, T) of plain lists with so many values.
    """
    array = values.combine_chunks()
    count = len(array)
    sizes = []
    while _is_list(array.type):
        if array.null_count:
            return None
        size = _common_length(array)
        if size is None:
            return None
        sizes.append(size)
        array = array.flatten()
    flat = array.to_numpy(zero_copy_only=False).astype(np.float32)
    if len(sizes) == 1:
        sizes = list(shape) if shape and math.prod(shape) == sizes[0] else [1, *sizes]
    return flat.reshape(count, *sizes)


def _odd_length(values: pa.ChunkedArray, place: Callable[[int], str]) -> str:
    """The first row that has another number of values than one before it, as the end of a sentence; "" where the lists
    inside of the rows differ, or a value is missing."""
    lengths = pc.list_value_length(values).to_pylist()
    known = [(row, length) for row, length in enumerate(lengths) if length is not None]
    odd = next(((row, length) for row, length in known if length != known[0][1]), None)
    return f": {place(odd[0])} has {odd[1]} values, {place(known[0][0])} has {known[0][1]}" if odd else ""


def _common_length(array: Any) -> int | None:
    if pa.types.is_fixed_size_list(array.type):
        return int(array.type.list_size)
    limits = pc.min_max(pc.list_value_length(array)).as_py()
    if limits["min"] != limits["max"]:
        return None
    return int(limits["min"] or 0)


def _shape(config: DataConfig, schema: pa.Schema, origin: str) -> tuple[int, int] | None:
    shape = _json(config, schema, origin).get("shape")
    if shape is None:
        return None
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(size) is int and size > 0 for size in shape)):
        problem, remedy = f"{origin}: shape is {shape!r}", "write it as a JSON list [channels, samples]"
        raise DataError("data.source", config.source, problem, remedy)
    return shape[0], shape[1]


def class_names(config: DataConfig, schema: pa.Schema, origin: str) -> dict[str, tuple[str, ...]]:
    """Names of classes by column: `class_names` of the schema's metadata (a JSON list) for the column of classes, and
    those of the hub's feature description (`huggingface`)."""
    metadata = _json(config, schema, origin)
    found = dict(_hub_names(metadata.get("huggingface")))
    (label, *_) = config.columns.get(LABEL, (LABEL,))
    if metadata.get("class_names") is not None:
        found[label] = metadata["class_names"]
    for names in found.values():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            problem, remedy = f"{origin}: class_names is {names!r}", "write it as a JSON list of strings"
            raise DataError("data.source", config.source, problem, remedy)
    return {name: tuple(names) for name, names in found.items() if name in schema.names}


def _hub_names(description: Any) -> Mapping[str, Any]:
    for key in ("info", "features"):
        description = description.get(key) if isinstance(description, dict) else None
    features = description if isinstance(description, dict) else {}
    return {
        name: feature["names"] for name, feature in features.items() if isinstance(feature, dict) and "names" in feature
    }


def _json(config: DataConfig, schema: pa.Schema, origin: str) -> dict[str, Any]:
    """The schema's metadata under the keys that are read here."""
    metadata = schema.metadata or {}
    found = {}
    for key in ("class_names", "huggingface", "shape"):
        try:
            found[key] = json.loads(metadata.get(key.encode(), b"null"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            problem = f"{origin}: the schema's metadata is no JSON ({error})"
            raise DataError("data.source", config.source, problem, f"write {key} as JSON") from error
    return found
