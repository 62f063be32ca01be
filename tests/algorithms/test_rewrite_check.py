"""The four levels of the check of rewrites, each with the checks of those before it."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.parts.rewrite_check import accept_rewrite, choices, ends_with_number

LEVELS = ("none", "format", "task", "key")

NINE = "one two three four five six seven eight nine"


def reasons(answer, rewrite, instruction="Compute.", finished=True):
    return [accept_rewrite(level, instruction, answer, rewrite, finished) for level in LEVELS]


@pytest.mark.parametrize(
    ("answer", "rewrite", "finished", "expected"),
    [
        ("5", "  \n", True, ["empty"] * 4),
        ("5", "It is 5", False, [None, "no end", "no end", "no end"]),
        ("5", "Your Response is 5", True, [None, *["speaks of the request"] * 3]),
        ("5", "By the REFERENCE ANSWER, 5", True, [None, *["speaks of the request"] * 3]),
        ("5", "my response: 5", True, [None, *["speaks of the request"] * 3]),
        ("5", "Now it's your turn: 5", True, [None, *["speaks of the request"] * 3]),
        ("5", " your turn! 5", True, [None, *["speaks of the request"] * 3]),
        ("5", "It is your turn? 5", True, [None] * 4),
        ("2 + 3 = 5", "2 + 3 = 6", True, [None, None, "another result", "another result"]),
        ("2 + 3 = 5", "the result is 5", True, [None, None, None, "lacks a number"]),
        ("2 + 3 = 5", "2 and 3 make 5", True, [None] * 4),
        ("The dose is 20 mg.", "No idea.", True, [None, None, None, "lacks a number"]),
    ],
)
def test_each_level_refuses_what_it_says(answer, rewrite, finished, expected):
    assert reasons(answer, rewrite, finished=finished) == expected


@pytest.mark.parametrize("level", LEVELS)
def test_an_answer_itself_is_accepted_at_every_level(level):
    for answer in ("5", "f(a, 'b')", "It is positive.", "Why not 3.", "So 1,234"):
        assert accept_rewrite(level, "Is it positive or negative?", answer, answer, True) is None


@pytest.mark.parametrize(("times", "reason"), [(3, None), (4, "repeats itself")])
def test_eight_words_in_a_row_may_come_three_times(times, reason):
    eight = NINE.rsplit(" ", 1)[0]
    text = " x ".join([eight] * times)
    assert accept_rewrite("format", "", "5", text, True) == reason
    assert accept_rewrite("none", "", "5", text, True) is None


def test_overlaps_count_so_that_one_word_eleven_times_repeats_itself():
    assert accept_rewrite("format", "", "5", "la " * 10, True) is None
    assert accept_rewrite("format", "", "5", "la " * 11, True) == "repeats itself"


@pytest.mark.parametrize(
    ("answer", "rewrite", "is_same"),
    [
        ("so 1,234", "it is 1234", True),
        ("so 1234", "about 3.5", False),
        ("so 1234", "no number", False),
        ("so 3.5", "so 3.5 and 5", False),
        ("The first of 3 comes.", "none", True),
        ("get(a, 'b')", 'Call get(a,  "b") now', True),
        ("get(a, 'b')", "Call get(a, c) now", False),
        ("get(1, 2)", "get(1,2)", True),
        ("get(put(a), 1)", "get( put(a),1)", False),
        ("get(put(a), 1)", "it is get(put(a),1)", True),
        ("Call f(1, 'a').", 'We call f(1,"a") again', True),
        ("Call f(1, 'a').", "We call g(1, 'a') again", False),
        ("f(2) is 4", "f(2) gives 5", False),
    ],
)
def test_the_form_of_an_answer_decides_what_a_result_is(answer, rewrite, is_same):
    assert accept_rewrite("task", "Do it.", answer, rewrite, True) == (None if is_same else "another result")


def test_a_label_is_a_word_that_the_instruction_offers():
    instruction = "Is this headline positive, negative or neutral? Nordal sales rose."
    assert choices(instruction) == ("positive", "negative", "neutral")
    assert accept_rewrite("task", instruction, "It looks positive.", "A positive mood.", True) is None
    assert accept_rewrite("task", instruction, "It looks positive.", "A negative mood.", True) == "another result"
    assert accept_rewrite("task", "Rate it.", "It looks positive.", "A negative mood.", True) is None


@pytest.mark.parametrize(
    ("text", "ends"),
    [("#### 20", True), ("is 20.", True), ("(20)!", True), ("20 mg", False), ("v2", False), ("", False)],
)
def test_a_number_at_the_end_may_have_marks_behind_it(text, ends):
    assert ends_with_number(text) == ends


@given(st.text())
def test_no_text_is_refused_by_a_level_and_accepted_by_a_stricter_one(rewrite):
    found = reasons("f(1) is 2, 3", rewrite)
    assert all(strict is not None for lax, strict in pairwise(found) if lax is not None)


def test_a_stricter_level_accepts_nothing_that_a_laxer_one_refuses():
    rewrites = ["", "5", "6", "my response: 5", "2 + 3 = 5", "la " * 11, "2 and 3"]
    for rewrite in rewrites:
        for finished in (True, False):
            found = reasons("2 + 3 = 5", rewrite, finished=finished)
            assert all(strict is not None for lax, strict in pairwise(found) if lax is not None)
