"""A run's model as MLflow serves it: a script and the files of the model. No pickle is written or read.

Of a method with personal models all clients' own are one model, of which a request names a client by the parameter
`client`.

The script imports Tessera, which must be installed where the model is served. A row is a data frame's, with the columns
that the training rows had: images as the bytes of a PNG, JPEG or WebP file (base64 in JSON), signals as lists of
channels, numbers, and words.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel, save_model
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

from algorithms.core.columns import Content
from engine.data.images.decode import blank_file
from engine.models.loading import LoadedModel, load
from engine.store.folder import RunFolder
from engine.store.models import read_description

CLIENT = "client"
"""The parameter of a request that names the client whose own model is asked."""

ROW = "row"
"""The column of an answer that numbers its rows, which whoever asks knows."""

_SCRIPT = '''"""The model of a Tessera run. Its tensors and their description lie beside this file, under artifacts/."""

from mlflow.models import set_model

from engine.models.serving import ServedModel

set_model(ServedModel(code={code!r}))
'''

_TYPES: Mapping[Content, Any] = {
    "image": DataType.binary,
    "signal": Array(Array(DataType.double)),
    "text": DataType.string,
    "number": DataType.double,
    "category": DataType.string,
    "class": DataType.string,
}
"""Types of a request's columns, by their content in training."""

_ARROW: Mapping[Content, pa.DataType] = {
    "image": pa.struct([("bytes", pa.binary())]),
    "signal": pa.list_(pa.list_(pa.float64())),
    "number": pa.float64(),
}
"""The same types as our readers take them; words where there is none."""

with warnings.catch_warnings(record=True):  # MLflow would have `predict` say by its types what the signature says

    class ServedModel(PythonModel):
        """Answers data frames with data frames; see `Task.answers`."""

        def __init__(self, code: Collection[str] = ()) -> None:
            """`code` are modules of one's own that the model may import."""
            self._code = tuple(code)
            self._folder = Path()
            self._clients: tuple[int, ...] = ()
            self._models: dict[int | None, LoadedModel] = {}

        def load_context(self, context: Any) -> None:
            """Load the model of the folder that MLflow hands over; clients' own ones as they are asked for."""
            self._folder = Path(context.artifacts["model"])
            self._clients = owners(self._folder)
            if not self._clients:
                self._model(None)

        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads types as schemas
            """A row of answers for each row."""
            model = self._model((params or {}).get(CLIENT))
            contents = model.reading.contents
            columns = {str(name): list(model_input[name]) for name in model_input if str(name) in contents}
            return model.predict(table_of(columns, contents)).drop_columns([ROW]).to_pandas()

        def _model(self, client: int | None) -> LoadedModel:
            if self._clients and client not in self._clients:
                between = f"{min(self._clients)} to {max(self._clients)}"
                raise MlflowException.invalid_parameter_value(
                    f"params.{CLIENT} = {client}: must be the number of a client whose own model is asked, {between}"
                )
            if client not in self._models:
                self._models[client] = load(self._folder, client, self._code)
            return self._models[client]


def save(folder: Path, target: Path, code: Collection[str] = ()) -> None:
    """Write the model of a finished run, or its clients' own, to a new folder, as MLflow's format of models has it.

    With it go its signature and an example of a request that shows nobody's data.

    Args:
        code: modules of one's own that the model may import where it is served.
    """
    files, clients = RunFolder(folder), owners(folder)
    model = load(folder, clients[0] if clients else None, code)
    contents = model.reading.contents
    example = {name: _example(model, name, content) for name, content in contents.items()}
    answers = model.predict(table_of({name: [value] for name, value in example.items()}, contents))
    with tempfile.TemporaryDirectory(prefix="tessera-model-") as place, _quiet():
        script, kept = Path(place) / "tessera_model.py", Path(place) / "model"
        script.write_text(_SCRIPT.format(code=tuple(code)), encoding="utf-8")
        for file in (files.description, *(files.model(client) for client in clients or (None,))):
            copy = kept / file.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
        save_model(
            path=target,
            python_model=str(script),
            artifacts={"model": str(kept)},
            signature=ModelSignature(
                inputs=_schema(contents),
                outputs=_answer_schema(answers),
                params=ParamSchema([ParamSpec(CLIENT, "long", None)] if clients else []),
            ),
            input_example=(_frame(example), {CLIENT: clients[0]}) if clients else _frame(example),
            pip_requirements=[f"{name}=={model.facts['versions'][name]}" for name in ("tessera-fl", "torch", "mlflow")],
        )


def owners(folder: Path) -> tuple[int, ...]:
    """The clients that have models of their own in a run's folder; () where there is one for all."""
    _, entries = read_description(RunFolder(folder))
    return tuple(entry.client for entry in entries if entry.client is not None)


def table_of(columns: Mapping[str, Sequence[Any]], contents: Mapping[str, Content]) -> pa.Table:
    """An Arrow table of a request's columns, as `LoadedModel.predict` takes it."""
    return pa.table({name: _column(values, contents[name]) for name, values in columns.items()})


def _column(values: Sequence[Any], content: Content) -> pa.Array:
    known = [None if value is None or (isinstance(value, float) and np.isnan(value)) else value for value in values]
    if content == "image":
        known = [None if value is None else {"bytes": value} for value in known]
    elif content == "signal":
        known = [None if value is None else [list(map(float, channel)) for channel in value] for value in known]
    elif content != "number":
        known = [None if value is None else str(value) for value in known]
    return pa.array(known, _ARROW.get(content, pa.string()))


def _schema(contents: Mapping[str, Content]) -> Schema:
    """The columns of a request; of several, values may be missing."""
    return Schema([ColSpec(_TYPES[held], name, required=len(contents) == 1) for name, held in contents.items()])


def _answer_schema(answers: pa.Table) -> Schema:
    kinds = {
        pa.string(): DataType.string,
        pa.bool_(): DataType.boolean,
        pa.float32(): DataType.float,
        pa.float64(): DataType.double,
    }
    return Schema([ColSpec(kinds[field.type], field.name) for field in answers.schema if field.name != ROW])


def _frame(example: Mapping[str, Any]) -> Any:
    import pandas

    return pandas.DataFrame({name: [value] for name, value in example.items()})


def _example(model: LoadedModel, column: str, content: Content) -> Any:
    """A value of a column that is nobody's: a black image, a silent signal, 0, a word."""
    if content == "image":
        channels, height, width = _shape(model, column)
        return blank_file(channels, height, width)
    if content == "signal":
        channels, length = _shape(model, column)
        return [[0.0] * length for _ in range(channels)]
    return 0.0 if content == "number" else "example"


def _shape(model: LoadedModel, column: str) -> Sequence[int]:
    """The shape of a column's tensor, which bears the name of its modality where there are several."""
    named = [role for role, names in model.reading.roles.items() if column in names]
    inputs = model.facts["inputs"]
    found = next(name for name in (*named, column, "input") if name in inputs)
    shape: Sequence[int] = inputs[found]["shape"]
    return shape


@contextmanager
def _quiet() -> Iterator[None]:
    """A block without MLflow's advice about signatures and examples, which are given."""
    import logging

    loggers = [logging.getLogger(name) for name in ("mlflow.pyfunc", "mlflow.models.model", "mlflow.utils")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(record=True):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
