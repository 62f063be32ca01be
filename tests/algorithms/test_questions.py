"""Rows that nobody has labelled: a task makes of them what it makes of test rows, and says what a network answers."""

import math

import numpy as np
import pytest
import torch

from algorithms.core.columns import ColumnError
from algorithms.core.records import flatten, rebuild
from algorithms.core.task import LABEL
from algorithms.tasks.language import LanguageTask
from tests.algorithms.support_tasks import CASES, ROWS, image, number, prepare, signal, text

NAMES = sorted(CASES)


def question_of(case, columns):
    """Of the columns that the task asks for alone, as one who has no labels gives them."""
    task = case.prepared.task
    asked = task.question_columns(case.columns(ROWS, 1), case.roles)
    return task.question({name: columns[name] for name in asked}, case.roles)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "language"])
def test_rows_without_labels_become_the_arrays_of_the_same_test_rows(name):
    case = CASES[name]
    made, expected = question_of(case, case.columns(ROWS // 2, 2)), case.prepared.test
    assert made.keys() == expected.keys()
    for column in made.keys() - {LABEL, "target"}:
        assert made[column].dtype == expected[column].dtype
        np.testing.assert_array_equal(made[column], expected[column])


@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_the_same_once_it_was_written_as_json(name):
    task = CASES[name].prepared.task
    tensors, tree = flatten(task)
    assert not tensors
    assert rebuild(type(task), tree, {}) == task


def test_classes_are_answered_with_the_softmax_of_each_and_the_name_of_the_largest():
    task = CASES["tables"].prepared.task
    outputs = torch.tensor([[0.0, math.log(3)], [math.log(4), 0.0]])
    answers = task.answers(outputs, {})
    assert list(answers) == ["class", "p_no", "p_yes"]
    assert answers["class"].tolist() == ["yes", "no"]
    assert answers["p_yes"] == pytest.approx([3 / 4, 1 / 5])
    assert answers["p_no"] == pytest.approx([1 / 4, 4 / 5])


def test_numbers_are_answered_in_their_own_unit():
    """Targets 10 and 30 have the mean 20 and the deviation 10."""
    task = prepare("regression", {"size": number(1, 2), "target": number(10, 30)}).task
    assert task.answers(torch.tensor([[0.0], [1.5]]), {})["prediction"].tolist() == [20.0, 35.0]


def test_the_next_token_is_the_most_likely_one_of_the_vocabulary_after_the_last_place():
    """Tokens a and b are 2 and 3, padding 0, the unknown one 1, which is never an answer."""
    task = LanguageTask(("a", "b"), length=3)
    windows = task.question({"text": text("ab", "xbabab")}, {})["tokens"]
    assert windows.tolist() == [[2, 3, 0, 0], [3, 2, 3, 0]]  # the last three of the second text
    outputs = torch.zeros(2, 3, 4)
    outputs[0, 1] = torch.tensor([9.0, 9.0, math.log(2), 0.0]).log_softmax(0)
    outputs[1, 2] = torch.tensor([0.0, 0.0, 0.0, math.log(5)])
    answers = task.answers(outputs, torch.from_numpy(windows[:, :-1]).long())
    assert answers["next"].tolist() == ["a", "b"]
    assert answers["probability"][1] == pytest.approx(5 / 8)


@pytest.mark.parametrize(("tokens", "asked"), [("words", "Red fish"), ("bytes", "é"), ("characters", "é!")])
def test_a_text_is_cut_as_training_texts_were(tokens, asked):
    task = prepare("language", {"text": text("red fish, é! red")}, tokens=tokens, length=4).task
    assert (task.question({"text": text(asked)}, {})["tokens"] > 0).sum() == 2


def test_a_modality_of_which_no_column_is_given_is_absent_from_every_row():
    case = CASES["modalities"]
    columns = case.columns(5, 3)
    made = case.prepared.task.question({"caption": columns["caption"]}, {})
    assert made["present"].tolist() == [[False, True], [False, False], [False, True], [False, True], [False, True]]
    assert not made["photo.image"].any()
    assert made["photo.image"].shape == (5, 1, 8, 8)
    assert made[LABEL].tolist() == [-1] * 5


@pytest.mark.parametrize(
    ("name", "columns", "words"),
    [
        ("images", {"image": image(np.zeros((2, 1, 9, 8)))}, "the images are 1x9x8 and the network takes 1x8x8"),
        ("images", {"image": image(np.zeros((2, 3, 8, 8)))}, "the images are 3x8x8 and the network takes 1x8x8"),
        ("signals", {"signal": signal(np.zeros((2, 2, 5)))}, "the signals are 2x5 and the network takes 2x12"),
        ("tables", {"age": number(1.0)}, "the asked rows have no column 'town'"),
        ("texts", {"text": text("red", None)}, "asked row 1 has no value in column 'text'"),
        ("language", {"text": text("ab", "")}, "asked row 1 has no characters"),
        ("regression", {"size": number(math.inf), "town": text("Bern")}, "asked row 0 holds inf in column 'size'"),
    ],
)
def test_rows_that_a_network_cannot_take_are_refused_with_what_is_wrong(name, columns, words):
    with pytest.raises(ColumnError, match=words):
        CASES[name].prepared.task.question(columns, {})
