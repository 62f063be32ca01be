"""Data sets of the benchmarks, and where to get one that is not here."""

from __future__ import annotations

from engine.data import DataConfig, DataError, DataSet, load

WHERE = {
    "parquet:mnist": "MNIST: the Parquet files of huggingface.co/datasets/ylecun/mnist, as mnist/train.parquet and "
    "mnist/test.parquet in the folder that TESSERA_DATA names",
    "parquet:cifar10": "CIFAR-10: the Parquet files of huggingface.co/datasets/uoft-cs/cifar10, with the column img "
    "named image, as cifar10/train.parquet and cifar10/test.parquet in the folder that TESSERA_DATA names",
}
"""By source, what it is and where it is to be had."""


def first_rows(source: str, limit: int) -> DataSet:
    """The first `limit` training rows of a source of `WHERE`, and its test rows.

    Raises:
        DataError: it is not here; the message ends with where to get it.
    """
    try:
        return load(DataConfig(source=source, limit=limit))
    except DataError as error:
        raise with_place(error, source) from error


def with_place(error: DataError, source: str) -> DataError:
    """The same error, with where to get the data."""
    return DataError(error.key, error.value, error.problem, f"{error.remedy}. {WHERE[source]}")
