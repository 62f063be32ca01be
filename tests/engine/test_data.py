"""Data sets: the configuration's mistakes, digits, held-out rows, pixel statistics, and the real files."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.datasets import load_digits

from algorithms.tasks.images import Augment, ImageTask, pixel_statistics
from engine.data import DataConfig, DataError, load
from engine.data.task import TaskChoice

REAL = pytest.mark.skipif(not os.environ.get("TESSERA_DATA"), reason="TESSERA_DATA names no folder of real data")


def mistakes(**fields):
    """Key and message of everything that is wrong with a `data` section."""
    with pytest.raises(ValidationError) as caught:
        DataConfig(**fields)
    return {".".join(map(str, error["loc"])): error["msg"] for error in caught.value.errors()}


def test_all_mistakes_are_reported_together():
    found = mistakes(source="digits", root="/tmp", download=True, limit=0, size="8", validation=1.0, colour=True)
    assert set(found) == {"root", "download", "limit", "size", "validation", "colour"}
    assert "not used by digits" in found["root"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("paquet:mnist", "did you mean parquet?"),
        ("parquet", "parquet needs a folder"),
        ("torchvision:", "torchvision needs a name"),
        ("digits:8", "digits takes no name"),
    ],
)
def test_a_source_that_is_none_is_told_what_would_be_one(source, words):
    assert words in mistakes(source=source)["source"]


def test_a_torchvision_source_needs_a_root():
    assert "needs the folder" in mistakes(source="torchvision:MNIST")["root"]


def test_augmentation_reaches_the_task():
    choice = TaskChoice("images", ImageTask.Settings(crop=1, flip=True))
    assert load(DataConfig(source="digits"), choice).task.augment == Augment(crop=1, flip=True)


def test_digits_are_split_once_and_for_all():
    data = load(DataConfig(source="digits"))
    assert data.name == "digits"
    assert data.train["image"].shape == (1297, 1, 8, 8)
    assert data.test["image"].shape == (500, 1, 8, 8)
    assert (data.train["image"].dtype, data.train_labels.dtype) == (np.uint8, np.int64)
    assert data.task.class_names == tuple("0123456789")
    both = np.concatenate([data.train["image"], data.test["image"]]).reshape(-1, 64)
    whole = np.rint(load_digits().data * 255 / 16)
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, whole.tolist()))
    assert load(DataConfig(source="digits")).fingerprint == data.fingerprint


def test_limits_keep_the_first_rows():
    whole, few = load(DataConfig(source="digits")), load(DataConfig(source="digits", limit=30, test_limit=7))
    assert np.array_equal(few.train["image"], whole.train["image"][:30])
    assert np.array_equal(few.test_labels, whole.test_labels[:7])
    assert few.fingerprint != whole.fingerprint


def test_held_out_rows_are_training_rows_and_replace_the_test_set():
    whole = load(DataConfig(source="digits", limit=100))
    data = load(DataConfig(source="digits", limit=100, validation=0.25))
    assert (len(data.train_labels), len(data.test_labels)) == (75, 25)
    images = np.concatenate([data.train["image"], data.test["image"]]).reshape(-1, 64)
    assert sorted(map(tuple, images.tolist())) == sorted(map(tuple, whole.train["image"].reshape(-1, 64).tolist()))


@pytest.mark.parametrize(("validation", "learnt"), [(0.0, 80), (0.25, 55)])
def test_public_rows_are_training_rows_that_no_client_can_come_to_hold(validation, learnt):
    whole = load(DataConfig(source="digits", limit=100, validation=validation))
    data = load(DataConfig(source="digits", limit=100, validation=validation, public=0.2))
    assert (len(data.train_labels), len(data.public["label"])) == (learnt, 20)
    parts = np.concatenate([data.train["image"], data.public["image"]]).reshape(-1, 64)
    assert sorted(map(tuple, parts.tolist())) == sorted(map(tuple, whole.train["image"].reshape(-1, 64).tolist()))
    assert np.array_equal(data.test["image"], whole.test["image"])
    assert len(data.task.mean) == 1
    assert data.task.mean == pytest.approx([(data.train["image"] / 255).mean()])
    assert data.fingerprint != whole.fingerprint
    assert whole.public is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"public": 0}, "a share of the training rows above 0 and below 1, a folder, or null"),
        ({"public": 1.0}, "above 0 and below 1"),
        ({"public": True}, "above 0 and below 1"),
        ({"public": ""}, "above 0 and below 1"),
        ({"public": float("nan")}, "above 0 and below 1"),
        ({"public": 0.5, "validation": 0.5}, "leaves no training row beside validation = 0.5"),
    ],
)
def test_a_share_that_the_server_cannot_own_is_refused(fields, words):
    assert words in mistakes(source="digits", **fields)["public"]


def test_a_share_of_less_than_a_row_is_refused():
    with pytest.raises(DataError, match=r"data\.public = 0\.01: is less than one row"):
        load(DataConfig(source="digits", limit=20, public=0.01))


def test_mean_and_deviation_come_from_training_rows_alone():
    data = load(DataConfig(source="digits", limit=100, validation=0.25))
    pixels = data.train["image"] / 255
    assert data.task.mean == pytest.approx([pixels.mean()])
    assert data.task.std == pytest.approx([pixels.std()])


def test_a_share_that_holds_out_nothing_is_refused():
    with pytest.raises(DataError, match=r"the held-out set of 0\.001 of the rows is empty"):
        load(DataConfig(source="digits", validation=0.001, limit=10))


def test_every_source_can_be_scaled():
    assert load(DataConfig(source="digits", size=28, limit=3)).task.shape == (1, 28, 28)


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 5))
def test_pixel_statistics_are_those_of_numpy_in_64_bits(seed, channels, side):
    images = np.random.default_rng(seed).integers(0, 256, (7, channels, side, side), np.uint8)
    mean, std = pixel_statistics(images)
    scaled = images.astype(np.float64) / 255
    assert mean == pytest.approx(scaled.mean(axis=(0, 2, 3)))
    assert std == pytest.approx(scaled.std(axis=(0, 2, 3)))


def test_a_constant_channel_can_be_divided_by_its_deviation():
    assert pixel_statistics(np.full((2, 1, 3, 3), 51, np.uint8)) == ((pytest.approx(0.2),), (1.0,))


@REAL
@pytest.mark.parametrize(
    ("folder", "shape", "classes"),
    [("mnist", (1, 28, 28), 10), ("cifar10", (3, 32, 32), 10), ("pacs64", (3, 64, 64), 7)],
)
def test_real_sets_have_their_known_shapes(folder, shape, classes):
    data = load(DataConfig(source=f"parquet:{folder}", limit=300, test_limit=100))
    assert (data.name, data.task.shape, data.task.classes) == (folder, shape, classes)
    assert (len(data.train_labels), len(data.test_labels)) == (300, 100)


@REAL
def test_mnist_has_the_mean_and_deviation_usually_quoted():
    task = load(DataConfig(source="parquet:$TESSERA_DATA/mnist", test_limit=1)).task
    assert (round(task.mean[0], 4), round(task.std[0], 4)) == (0.1307, 0.3081)


@REAL
def test_further_columns_tell_rows_apart():
    data = load(DataConfig(source="parquet:pacs64", limit=200, test_limit=1))
    assert set(data.columns) == {"domain"}
    assert set(data.columns["domain"]) == {"art_painting", "cartoon", "photo", "sketch"}


def test_a_missing_folder_names_both_places_and_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("TESSERA_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        load(DataConfig(source="parquet:nowhere"))
    assert str(Path("nowhere").absolute()) in caught.value.problem
    assert str(tmp_path / "nowhere") in caught.value.problem
    assert "set the environment variable TESSERA_DATA" in caught.value.remedy


def test_an_unset_variable_is_said(monkeypatch):
    monkeypatch.delenv("TESSERA_DATA", raising=False)
    with pytest.raises(DataError, match="TESSERA_DATA is not set"):
        load(DataConfig(source="parquet:$TESSERA_DATA/mnist"))
