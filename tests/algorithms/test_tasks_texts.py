"""Texts as tokens: classification, and language modelling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.steps.shards import ShardArrays
from algorithms.core.columns import ColumnError
from algorithms.core.task import add
from algorithms.nets.forms import Sequences, Texts
from algorithms.tasks._tokens import most_frequent, words_of
from algorithms.tasks.language import NO_TARGET, cut_windows
from tests.algorithms.support_tasks import classes, number, prepare, text

# --- Tokens -------------------------------------------------------------------------------------------------------


def test_words_are_in_lower_case_and_signs_stand_alone():
    assert words_of("Don't stop: 3 Äpfel_1!") == ["don't", "stop", ":", "3", "äpfel_1", "!"]


def test_the_most_frequent_tokens_are_kept_those_as_frequent_by_their_letters():
    assert most_frequent([["b", "a", "c"], ["c", "b"], ["a", "d"]], 3) == ("a", "b", "c")
    assert most_frequent([["z", "z", "a"]], 1) == ("z",)


# --- Text classification ------------------------------------------------------------------------------------------


def test_texts_become_numbers_of_their_first_words():
    train = {"text": text("to be or to be", "BE"), "label": classes(0, 1)}
    test = {"text": text("be not", ""), "label": classes(1, 0)}
    prepared = prepare("texts", train, test, vocabulary=2, length=3)
    # "be" is met three times and "to" twice; "or" is left out, and "not" is not met at all.
    assert prepared.task.words == ("be", "to")
    assert prepared.task.form == Texts(vocabulary=4, length=3)
    assert prepared.train["ids"].tolist() == [[3, 2, 1], [2, 0, 0]]
    assert prepared.train["length"].tolist() == [3, 1]
    assert prepared.test["ids"].tolist() == [[2, 1, 0], [1, 0, 0]]
    assert prepared.test["length"].tolist() == [2, 1]
    assert prepared.rows is None


@pytest.mark.parametrize(
    ("unknown", "facts"), [(1, ()), (2, ("18% of the tokens in test rows are outside the vocabulary",))]
)
@pytest.mark.parametrize("task", ["texts", "language"])
def test_many_unknown_tokens_in_test_rows_are_said(task, unknown, facts):
    """1 of 10 and 2 of 11 tokens; of a language the first of a row counts once, and the end of a text not at all."""
    said = text(" ".join(["a"] * 9 + ["x"] * unknown))
    labels = {"label": classes(0)} if task == "texts" else {}
    options = {"tokens": "words"} if task == "language" else {}
    prepared = prepare(task, {"text": text("a a"), **labels}, {"text": said, **labels}, length=20, **options)
    assert prepared.facts == facts


# --- Windows ------------------------------------------------------------------------------------------------------


def test_a_text_is_cut_into_windows_that_share_one_token():
    assert cut_windows(np.arange(2, 8), 2).tolist() == [[2, 3, 4], [4, 5, 6], [6, 7, 0]]
    assert cut_windows(np.arange(2, 7), 2).tolist() == [[2, 3, 4], [4, 5, 6]]


@given(count=st.integers(0, 40), length=st.integers(1, 12))
def test_every_token_but_the_first_is_to_be_predicted_once(count, length):
    tokens = np.arange(2, 2 + count)
    windows = cut_windows(tokens, length)
    assert windows.shape[1] == length + 1
    targets = windows[:, 1:]
    assert targets[targets > 0].tolist() == tokens[1:].tolist()
    before = windows[:, :-1][targets > 0]
    assert before.tolist() == tokens[:-1].tolist()


# --- Language modelling -------------------------------------------------------------------------------------------


def test_a_row_becomes_several_examples_or_none():
    prepared = prepare("language", {"text": text("aaab", "b", "ab", "")}, {"text": text("ac")}, length=2)
    assert prepared.task.vocabulary == ("a", "b")
    assert prepared.task.form == Sequences(vocabulary=4, length=2)
    assert prepared.train["tokens"].tolist() == [[2, 2, 2], [2, 3, 0], [2, 3, 0]]
    assert prepared.rows.tolist() == [0, 0, 2]
    assert prepared.test["tokens"].tolist() == [[2, 1, 0]]


@pytest.mark.parametrize(
    ("tokens", "vocabulary", "expected"),
    [
        ("characters", ("é", "É"), [2, 2, 3]),
        ("words", ("ééé",), None),
        ("bytes", tuple(map(chr, range(256))), [0xC3 + 2, 0xA9 + 2, 0xC3 + 2, 0xA9 + 2, 0xC3 + 2, 0x89 + 2]),
    ],
)
def test_tokens_are_characters_words_or_bytes(tokens, vocabulary, expected):
    columns = {"text": text("ééÉ")}
    if expected is None:
        with pytest.raises(ColumnError, match="no training row has two words in column 'text'"):
            prepare("language", columns, tokens=tokens)
        return
    prepared = prepare("language", columns, tokens=tokens, length=len(expected) - 1)
    assert prepared.task.vocabulary == vocabulary
    assert prepared.train["tokens"].tolist() == [expected]


def test_bytes_of_a_test_text_are_never_unknown():
    prepared = prepare("language", {"text": text("ab")}, {"text": text("zü")}, tokens="bytes", length=4)
    assert prepared.test["tokens"].tolist() == [[ord("z") + 2, 0xC3 + 2, 0xBC + 2, 0, 0]]


def _language():
    return prepare("language", {"text": text("abc", "ab")}, length=3).task


def test_perplexity_is_that_of_the_mean_over_all_tokens():
    task = _language()
    # Five tokens: a network that gives the right one the probability p has -log p of each.
    shares = torch.tensor([[0.5, 0.25, 0.125], [0.5, 0.1, 0.1]])
    targets = torch.tensor([[2, 3, 4], [3, 2, NO_TARGET]])
    outputs = ((1 - shares) / 4).log()[..., None].repeat(1, 1, 5)
    outputs.scatter_(2, targets.clamp(min=0)[..., None], shares.log()[..., None])
    nll = -math.log(0.5 * 0.25 * 0.125 * 0.5 * 0.1)
    one, other = (task.sums(outputs[i : i + 1], targets[i : i + 1]) for i in range(2))
    figures = task.report(add(one, other))
    assert figures["loss"] == pytest.approx(nll / 5, rel=1e-6)
    assert figures["perplexity"] == pytest.approx(math.exp(nll / 5), rel=1e-6)
    # (1 - 0.25) / 4 of the others is less than 0.25, (1 - 0.125) / 4 is more than 0.125.
    assert figures["accuracy"] == 3 / 5
    assert int(add(one, other)["tokens"]) == 5
    assert float(task.loss(outputs, targets)) == pytest.approx(nll / 5, rel=1e-6)
    first, second = -math.log(0.5 * 0.25 * 0.125) / 3, -math.log(0.5 * 0.1) / 2
    assert task.losses(outputs, targets).tolist() == pytest.approx([first, second], rel=1e-6)


def test_the_next_token_is_the_target_and_none_after_the_end():
    prepared = prepare("language", {"text": text("abc", "ab")}, length=2)
    inputs, targets = prepared.task.batch(ShardArrays.whole(prepared.train), torch.tensor([0, 1]))
    assert inputs.tolist() == [[2, 3], [2, 3]]
    assert targets.tolist() == [[3, 4], [3, NO_TARGET]]


def test_nothing_is_learnt_where_a_text_has_ended():
    task = _language()
    outputs = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    task.loss(outputs, torch.tensor([[2, NO_TARGET, NO_TARGET]])).backward()
    assert outputs.grad[0, 0].abs().sum() > 0
    assert outputs.grad[0, 1:].abs().sum() == 0


# --- Wrong input --------------------------------------------------------------------------------------------------


def refusal(task, *halves, **options):
    with pytest.raises(ColumnError) as error:
        prepare(task, *halves, **options)
    return str(error.value)


def test_a_text_that_is_missing_is_refused():
    columns = {"text": text("a b", None), "label": classes(0, 1)}
    expected = "training row 1 has no value in column 'text'; leave such rows out"
    assert refusal("texts", columns) == expected
    assert refusal("language", columns) == expected


def test_columns_that_do_not_fit_are_refused():
    columns = {"a": text("x"), "b": text("y"), "label": classes(0)}
    assert refusal("texts", columns) == (
        "columns a, b could be it; say which by data.columns: {text: NAME}; there are a, b, label"
    )
    assert refusal("texts", columns, roles={"text": ("label",)}) == (
        "column 'label' holds class values; name a text column"
    )
    assert refusal("texts", {"text": text("x")}) == (
        "no column holds class values; say which by data.columns: {label: NAME}; there are text"
    )
    halves = {"text": text("x y"), "label": classes(0)}, {"label": classes(0)}
    assert refusal("texts", *halves) == "the test rows have no column 'text'; write it into both halves"
    halves = {"text": text("x y")}, {"text": number(1)}
    assert refusal("language", *halves) == (
        "column 'text' holds text values, but number values in the test rows;"
        " write the same kind of values into both halves"
    )


def test_texts_too_short_to_predict_anything_are_refused():
    assert refusal("language", {"text": text("a", "")}) == (
        "no training row has two characters in column 'text', of which one follows the other; give longer texts"
    )
    assert "no test row has two characters" in refusal("language", {"text": text("ab")}, {"text": text("a")})
