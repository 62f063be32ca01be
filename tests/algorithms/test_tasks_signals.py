"""Signals, and several modalities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from actors.steps.shards import ShardArrays
from algorithms.core.columns import Column, ColumnError
from algorithms.nets.forms import Images, Modalities, Signals, Tables, Texts
from tests.algorithms.support_tasks import category, classes, image, number, prepare, signal, text

LABELS = {"label": classes(0, 1)}


def refusal(task, *halves, **options):
    with pytest.raises(ColumnError) as error:
        prepare(task, *halves, **options)
    return str(error.value)


# --- Signals ------------------------------------------------------------------------------------------------------


def test_signals_are_normalised_by_channel():
    prepared = prepare("signals", {"s": signal([[[0, 2], [5, 5]], [[4, 6], [5, 5]]])} | LABELS)
    # First channel 0, 2, 4, 6: mean 3, variance 5. Second: one value, divided by 1.
    assert prepared.task.form == Signals((2, 2))
    assert prepared.task.mean == (3, 5)
    assert prepared.task.std == (pytest.approx(5**0.5), 1)
    inputs, targets = prepared.task.batch(ShardArrays.whole(prepared.train), torch.tensor([1]))
    torch.testing.assert_close(inputs, torch.tensor([[[1 / 5**0.5, 3 / 5**0.5], [0, 0]]]))
    assert targets.tolist() == [1]


def test_signals_that_are_not_whole_are_refused():
    good = {"s": signal(np.zeros((2, 1, 3)))} | LABELS
    bad = {"s": signal([[[0, 0, 0]], [[0, np.nan, 0]]])} | LABELS
    assert refusal("signals", bad) == (
        "training row 1 has a sample in column 's' that is no finite number; mend or leave out such rows"
    )
    assert refusal("signals", good, {"s": signal(np.zeros((2, 1, 4)))} | LABELS) == (
        "training signals of column 's' are 1x3 but test signals are 1x4 (channels x samples); make them the same"
    )
    gap = {"s": replace(good["s"], present=np.array([True, False]))} | LABELS
    assert refusal("signals", good, gap) == "test row 1 has no value in column 's'; leave such rows out"


def test_signals_without_a_sample_are_refused_before_their_mean_is_asked():
    assert refusal("signals", {"s": signal(np.zeros((2, 1, 0)))} | LABELS) == (
        "training signals of column 's' have no sample; give each of them one at least"
    )


# --- Several modalities -------------------------------------------------------------------------------------------


def pixels(*values, present=None):
    whole = np.array(values)[:, None, None, None] * np.ones((1, 1, 2, 2))
    return Column("image", whole.astype(np.uint8), present=None if present is None else np.array(present))


def test_each_modality_is_prepared_as_the_task_of_it_alone_would():
    columns = {"photo": pixels(0, 255), "sound": signal([[[0, 2]], [[4, 6]]]), "words": text("a b", "b")} | LABELS
    together = prepare("modalities", columns, length=3)
    task, shard = together.task, ShardArrays.whole(together.train)
    inputs, targets = task.batch(shard, torch.tensor([0, 1]))
    assert inputs["present"].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert targets.tolist() == [0, 1]
    for name, kind, options in (("photo", "images", {}), ("sound", "signals", {}), ("words", "texts", {"length": 3})):
        alone = prepare(kind, {name: columns[name]} | LABELS, **options)
        expected, _ = alone.task.batch(ShardArrays.whole(alone.train), torch.tensor([0, 1]))
        found = task.form.part(name, inputs)
        pairs = [(expected, found)] if kind != "texts" else [(expected[key], found[key]) for key in ("ids", "length")]
        assert all(torch.equal(a, b) for a, b in pairs)


def test_names_that_are_given_are_those_of_the_modalities():
    columns = {"a": pixels(0, 255), "b": number(1, 3), "c": category("x", None), "d": text("a", "b")} | LABELS
    roles = {"view": ("a",), "facts": ("b", "c")}
    prepared = prepare("modalities", columns, roles=roles)
    assert prepared.task.form == Modalities({"view": Images((1, 2, 2)), "facts": Tables(1, (2,))})
    inputs, _ = prepared.task.batch(ShardArrays.whole(prepared.train), torch.tensor([1]))
    assert inputs["facts.numbers"].tolist() == [[1]]
    assert inputs["facts.categories"].tolist() == [[0]]


def test_a_modality_that_an_example_lacks_is_zeros_and_counts_in_no_statistics():
    columns = {
        "photo": pixels(0, 100, 255, present=[True, False, True]),
        "words": text("b c", "b", None),
        "label": classes(0, 1, 0),
    }
    prepared = prepare("modalities", columns, length=2)
    photo = dict(prepared.task.parts)["photo"]
    # Of 0 and 1 alone.
    assert (photo.mean, photo.std) == ((0.5,), (0.5,))
    inputs, _ = prepared.task.batch(ShardArrays.whole(prepared.train), torch.arange(3))
    assert inputs["present"].tolist() == [[1, 1], [0, 1], [1, 0]]
    assert inputs["photo"][:, 0, 0, 0].tolist() == [-1, 0, 1]
    assert inputs["words.ids"].tolist() == [[2, 3], [2, 0], [0, 0]]
    assert inputs["words.length"].tolist() == [2, 1, 0]
    assert prepared.task.form == Modalities({"photo": Images((1, 2, 2)), "words": Texts(4, 2)})


def test_test_rows_may_lack_a_modality_altogether():
    train = {"photo": pixels(0, 255), "words": text("a", "b")} | LABELS
    prepared = prepare("modalities", train, {"photo": pixels(0, 255), "words": text(None, None)} | LABELS)
    assert prepared.test["present"].tolist() == [[True, False], [True, False]]


def test_a_medium_that_no_test_row_has_takes_the_shape_of_the_training_rows():
    train = {"photo": pixels(0, 255), "sound": signal([[[0, 2]], [[4, 6]]])} | LABELS
    nothing = Column("signal", np.zeros((2, 1, 0), np.float32), present=np.zeros(2, bool))
    prepared = prepare("modalities", train, {"photo": pixels(0, 255), "sound": nothing} | LABELS)
    inputs, _ = prepared.task.batch(ShardArrays.whole(prepared.test), torch.tensor([0, 1]))
    assert inputs["sound"].tolist() == [[[0, 0]], [[0, 0]]]
    assert inputs["present"].tolist() == [[1, 0], [1, 0]]


def test_a_modality_that_no_training_row_has_is_refused():
    columns = {"photo": pixels(0, 255), "words": text(None, None)} | LABELS
    assert refusal("modalities", columns) == (
        "no training row has a value in column 'words'; leave this modality out by data.columns"
    )


def test_modalities_that_do_not_fit_are_refused():
    columns = {"photo": pixels(0, 255), "words": text("a", "b"), "present": text("a", "b")} | LABELS
    assert refusal("modalities", columns) == (
        "a modality cannot be called 'present'; name it by data.columns, without a point and other than 'present'"
    )
    assert refusal("modalities", columns, roles={"view": ("photo",), "sound": ("noise",)}) == (
        "there is no column 'noise'; there are photo, words, present, label"
    )
    assert refusal("modalities", columns, roles={"view": ("photo", "words")}) == (
        "column 'photo' holds image values; a table is made of numbers and categories"
    )


def test_images_alone_must_all_be_there():
    gap = {"photo": pixels(0, 255, present=[True, False])} | LABELS
    assert refusal("images", gap) == "training row 1 has no value in column 'photo'; leave such rows out"
    assert prepare("images", {"photo": image(np.zeros((2, 1, 2, 2)))} | LABELS).task.shape == (1, 2, 2)
