"""Distances between clients' texts and the marks of rewriting, by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.parts.texts_apart import (
    divergence,
    fillers_per_100,
    length_ratios,
    mean_cosine,
    mean_divergence,
    repetition,
    unigrams,
    words_of,
)


def test_words_are_in_small_letters_and_without_marks():
    assert words_of("So, 2+3 = 5: It's OK.") == ["so", "2", "3", "5", "it", "s", "ok"]


def test_unigrams_are_shares_of_all_texts_together():
    assert unigrams(["a b", "a a"]) == {"a": 0.75, "b": 0.25}
    assert unigrams(["ab"], tokens=list) == {"a": 0.5, "b": 0.5}
    with pytest.raises(ValueError, match="without a token"):
        unigrams(["...", ""])


def test_divergence_of_half_an_overlap_by_hand():
    # m = (a 3/4, b 1/4); KL(p || m) = log2(4/3), KL(q || m) = 1/2 log2(2/3) + 1/2 log2(2)
    expected = (math.log2(4 / 3) + 0.5 * math.log2(2 / 3) + 0.5) / 2
    assert divergence({"a": 1.0}, {"a": 0.5, "b": 0.5}) == pytest.approx(expected)


def test_texts_without_a_common_word_are_one_bit_apart_and_equal_ones_none():
    assert mean_divergence([["a b"], ["c d"]]) == 1.0
    assert mean_divergence([["a b", "b"], ["b a b"]]) == 0.0
    assert math.isnan(mean_divergence([["a"]]))


def test_divergence_is_the_mean_over_pairs():
    # (1, 2) are equal, (1, 3) and (2, 3) have nothing in common
    assert mean_divergence([["a"], ["a"], ["b"]]) == pytest.approx(2 / 3)


shares = (
    st.lists(st.integers(0, 9), min_size=3, max_size=3)
    .filter(any)
    .map(lambda n: dict(zip("abc", [x / sum(n) for x in n], strict=True)))
)


@given(shares, shares)
def test_divergence_is_symmetric_and_in_the_unit_interval(p, q):
    assert divergence(p, q) == pytest.approx(divergence(q, p))
    assert -1e-12 <= divergence(p, q) <= 1 + 1e-12


def test_cosine_of_joined_texts_by_hand():
    # of 2 documents "a b", "a c": idf(a) = 1, idf(b) = idf(c) = ln(3/2) + 1, and a alone is common
    rare = math.log(3 / 2) + 1
    assert mean_cosine([["a", "b"], ["a c"]]) == pytest.approx(1 / (1 + rare**2))
    assert mean_cosine([["b a"], ["a", "b"]]) == pytest.approx(1.0)
    assert mean_cosine([["a"], ["b"]]) == 0.0
    assert math.isnan(mean_cosine([["a"]]))


def test_repetition_is_the_share_of_words_in_a_row_that_came_before():
    # abc bca cab abc bca: two of five came before
    assert repetition("a b c a b c a", length=3) == pytest.approx(2 / 5)
    assert repetition("a b c d", length=3) == 0.0
    assert repetition("a b", length=3) == 0.0


def test_fillers_count_phrases_once_and_no_parts_of_words():
    # 10 words; basically, you know, well; not "justice"
    assert fillers_per_100(["Well, it is basically 5, you know.", "justice for all"]) == pytest.approx(300 / 10)
    assert fillers_per_100([""]) == 0.0


def test_ratios_of_lengths_by_hand():
    found = length_ratios(["a b", "a", "", "a b c d"], ["a b c d", "a", "x y z", "a"])
    # ratios 2, 1, 3, 1/4; sorted 0.25, 1, 2, 3: at 10 % of 3 steps 0.25 + 0.3 * 0.75, at 90 % 2 + 0.7
    assert (found.low, found.median, found.high) == pytest.approx((0.475, 1.5, 2.7))
    with pytest.raises(ValueError, match="no rewrite"):
        length_ratios([], [])
