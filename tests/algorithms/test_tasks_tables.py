"""Rows of tables: how numbers and categories are read, and the figures of regression."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algorithms.core.columns import ColumnError
from algorithms.core.task import add
from algorithms.nets.forms import Tables
from tests.algorithms.support_tasks import category, classes, number, prepare, text

# --- Numbers ------------------------------------------------------------------------------------------------------


def test_numbers_are_standardised_by_the_training_rows_that_have_them():
    train = {"a": number(1, 3, None), "b": number(5, 5, 5), "label": classes(0, 1, 0)}
    test = {"a": number(None, 6), "b": number(7, None), "label": classes(0, 1)}
    prepared = prepare("tables", train, test)
    # a: mean 2, deviation 1, missing in training and so with an indicator. b: mean 5, one value, so divided by 1.
    assert prepared.task.form == Tables(numbers=3, categories=())
    assert prepared.train["numbers"].tolist() == [[-1, 0, 0], [1, 0, 0], [0, 0, 1]]
    assert prepared.test["numbers"].tolist() == [[0, 2, 1], [4, 0, 0]]
    assert prepared.train["numbers"].dtype == np.float32
    assert prepared.train["categories"].shape == (3, 0)


def test_a_number_that_no_training_row_has_is_nothing_but_missing():
    prepared = prepare("tables", {"a": number(None, None), "label": classes(0, 1)})
    assert prepared.train["numbers"].tolist() == [[0, 1], [0, 1]]


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20).filter(lambda values: np.std(values) > 1e-3))
def test_standardised_training_numbers_have_the_mean_0_and_the_deviation_1(values):
    prepared = prepare("tables", {"a": number(*values), "label": classes(*[0] * len(values))})
    found = prepared.train["numbers"].astype(np.float64)
    assert found.mean() == pytest.approx(0, abs=1e-5)
    assert found.std() == pytest.approx(1, abs=1e-5)


# --- Categories ---------------------------------------------------------------------------------------------------


def test_categories_are_numbered_and_0_where_they_are_missing_or_new():
    train = {"town": category("Oslo", "Bern", None), "kind": category("x", "x", "x"), "label": classes(0, 1, 0)}
    test = {"town": category("Rome", "Oslo", None), "kind": category("x", "y", None), "label": classes(0, 1, 0)}
    prepared = prepare("tables", train, test)
    assert prepared.task.form == Tables(numbers=0, categories=(3, 2))
    assert prepared.train["categories"].tolist() == [[2, 1], [1, 1], [0, 1]]
    assert prepared.test["categories"].tolist() == [[0, 1], [2, 0], [0, 0]]


def test_classes_that_are_not_the_label_are_categories():
    columns = {"sex": classes(1, 0, names=("f", "m")), "label": classes(0, 1)}
    prepared = prepare("tables", columns, roles={"label": ("label",)})
    assert prepared.train["categories"].tolist() == [[2], [1]]


# --- Which columns are read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roles", "ignore", "count"),
    [
        ({}, (), 3),
        ({}, ("b",), 2),
        ({"ignore": ("a", "b")}, (), 1),
        ({"ignore": ("a",)}, ("b",), 1),
        ({"table": ("a", "c")}, (), 2),
        ({"table": ("a", "c")}, ("c",), 1),
    ],
)
def test_columns_can_be_named_or_ignored(roles, ignore, count):
    columns = {"a": number(1, 2), "b": number(3, 4), "c": number(5, 6), "label": classes(0, 1), "note": text("x", "y")}
    assert prepare("tables", columns, roles=roles, ignore=ignore).train["numbers"].shape == (2, count)


def test_the_label_and_the_target_are_not_read():
    columns = {"a": number(1, 2), "b": number(0, 1), "c": category("x", "y")}
    by_label = prepare("tables", columns, roles={"label": ("b",)})
    assert (by_label.train["numbers"].shape, by_label.task.names) == ((2, 1), ("0", "1"))
    by_target = prepare("regression", columns, roles={"target": ("b",)})
    assert (by_target.train["numbers"].shape, by_target.train["categories"].shape) == ((2, 1), (2, 1))


# --- Regression ---------------------------------------------------------------------------------------------------


def _regression(*targets):
    return prepare("regression", {"x": number(*range(len(targets))), "target": number(*targets)})


def test_targets_are_standardised_and_figures_are_in_their_unit():
    prepared = _regression(10, 30)
    # Mean 20, deviation 10.
    assert prepared.train["target"].tolist() == [-1, 1]
    task = prepared.task
    # Wanted 10, 30, 40, 20; said 20, 30, 10, 20: errors 10, 0, -30, 0.
    wanted, said = torch.tensor([-1.0, 1, 2, 0]), torch.tensor([0.0, 1, -1, 0])
    one, other = (task.sums(said[part, None], wanted[part]) for part in (slice(0, 1), slice(1, 4)))
    figures = task.report(add(one, other))
    assert figures["rmse"] == pytest.approx(math.sqrt((10**2 + 30**2) / 4))
    assert figures["mae"] == pytest.approx((10 + 30) / 4)
    # Mean 25: squared deviations 15^2, 5^2, 15^2, 5^2.
    assert figures["r2"] == pytest.approx(1 - 1000 / 500)
    assert figures["loss"] == pytest.approx((1 + 9) / 4)
    assert float(task.loss(said[:, None], wanted)) == pytest.approx((1 + 9) / 4)
    assert task.losses(said[:, None], wanted).tolist() == [1, 0, 9, 0]


def test_r2_is_0_of_the_mean_and_1_of_the_truth_and_not_a_number_where_all_targets_are_alike():
    task, wanted = _regression(10, 30).task, torch.tensor([0.3, 1.7, -0.5])
    mean = wanted.mean().expand(3)
    assert task.report(task.sums(mean[:, None], wanted))["r2"] == pytest.approx(0, abs=1e-6)
    assert task.report(task.sums(wanted[:, None], wanted))["r2"] == 1
    alike = torch.full((1001,), 0.3)
    assert math.isnan(task.report(task.sums(torch.zeros(1001, 1), alike))["r2"])


def test_less_of_the_headline_figure_of_regression_is_better():
    headline = _regression(10, 30).task.headline
    assert headline.name == "rmse"
    assert headline.rank_key(1.0) < headline.rank_key(2.0)


# --- Wrong input --------------------------------------------------------------------------------------------------


def refusal(task, *halves, **options):
    with pytest.raises(ColumnError) as error:
        prepare(task, *halves, **options)
    return str(error.value)


X = {"x": number(1, 2)}


def test_a_target_that_is_no_number_is_refused():
    assert refusal("regression", X | {"target": number(1, None)}) == (
        "training row 1 has no value in column 'target'; leave such rows out"
    )
    assert refusal("regression", X | {"target": number(1, 2)}, X | {"target": number(None, 2)}) == (
        "test row 0 has no value in column 'target'; leave such rows out"
    )
    assert refusal("regression", X | {"target": number(1, np.inf)}) == (
        "training row 1 holds inf in column 'target'; numbers must be finite, or missing"
    )
    assert refusal("regression", X | {"target": text("a", "b")}) == (
        "column 'target' holds text values (training row 0 has 'a'); name a number column"
    )
    assert refusal("regression", X | {"y": category("1.5", None, "b")}, roles={"target": ("y",)}) == (
        "column 'y' holds category values (training row 2 has 'b'); name a number column"
    )
    assert refusal("regression", X) == (
        "no column is said to be what is predicted; say which by data.columns: {target: NAME}; there are x"
    )


def test_numbers_that_are_infinite_are_refused():
    rows = {"label": classes(0, 1)}
    assert refusal("tables", X | rows, {"x": number(1, -np.inf)} | rows) == (
        "test row 1 holds -inf in column 'x'; numbers must be finite, or missing"
    )


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ((0, np.inf), (0, 0), "column 'y' holds inf, which is no class; classes are whole numbers or words"),
        ((0, 0.5), (0, 0), "column 'y' holds 0.5, which is no class; classes are whole numbers or words"),
        ((0, 1), (0, np.inf), "test row 1 is of class 'inf', which no training row has; leave it out"),
        ((0, 1), (0, 0.5), "test row 1 is of class '0.5', which no training row has; leave it out"),
    ],
)
def test_numbers_that_are_no_classes_are_refused(train, test, words):
    halves = (X | {"y": number(*train)}, X | {"y": number(*test)})
    assert refusal("tables", *halves, roles={"label": ("y",)}) == words


def test_columns_that_are_not_there_are_refused():
    rows = X | {"label": classes(0, 1)}
    assert refusal("tables", rows, ignore=("y",)) == "there is no column 'y' to ignore; there are x, label"
    assert refusal("tables", rows, roles={"table": ("y",)}) == "there is no column 'y'; there are x, label"
    assert refusal("tables", rows, ignore=("x",)) == (
        "no column of numbers or categories is left to learn from; ignore fewer"
    )
    assert refusal("tables", {"label": classes(0, 1)}) == (
        "no column of numbers or categories is left to learn from; there must be one beside label"
    )
    assert refusal("tables", rows | {"note": text("a", "b")}, roles={"table": ("note",)}) == (
        "column 'note' holds text values; a table is made of numbers and categories"
    )
    assert refusal("tables", rows, {"label": classes(0, 1)}) == (
        "the test rows have no column 'x'; write it into both halves"
    )
    assert refusal("tables", rows, {"x": category("1", "2"), "label": classes(0, 1)}) == (
        "column 'x' holds number values, but category values in the test rows;"
        " write the same kind of values into both halves"
    )
