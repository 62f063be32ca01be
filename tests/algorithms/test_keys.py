"""Keys: numbers as people write them, values that stand by themselves, what was lost and what was added."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.core import keys


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("it costs 1,234.50 euros", ["1234.5"]),
        ("12 + 7 = 19", ["12", "7", "19"]),
        ("51-3=48", ["51", "3", "48"]),
        ("-4 degrees, (-5), x = -6", ["-4", "-5", "-6"]),
        ("f(4) - 3 and [1, 2][0]-1", ["4", "3", "1", "2", "0", "1"]),
        ("max(14,8) of 1,2,3", ["14", "8", "1", "2", "3"]),
        ("007 and 5.", ["7", "5"]),
        ("version2 and 2nd and v1.5", []),
        ("$60.00, 25% of 0.10", ["60", "25", "0.1"]),
        ("", []),
    ],
)
def test_numbers_are_found_and_written_one_way(text, numbers):
    assert list(keys.numbers_of(text)) == numbers


@given(st.integers(0, 10**9))
def test_a_number_reads_the_same_with_and_without_separators_of_thousands(number):
    assert keys.numbers_of(f"{number:,}") == keys.numbers_of(f"{number}") == (str(number),)
    assert keys.last_integer(f"so {number:,}.") == number


@pytest.mark.parametrize(
    ("text", "last"),
    [("1,234", 1234), ("#### 20", 20), ("3 and then 3.5", None), ("no number", None), ("10 - 12 = -2.", -2)],
)
def test_the_last_integer_is_none_where_the_last_number_is_not_whole(text, last):
    assert keys.last_integer(text) == last


def test_values_stand_by_themselves_with_or_without_capitals():
    assert keys.has_value("Positive, because", "positive")
    assert not keys.has_value("positively", "positive")
    assert not keys.has_value("Perax 205 mg", "20")
    assert not keys.has_value("2.5 mg", "5")
    assert keys.has_value("5 mg", "5.0")
    assert keys.has_value("so (max(14, 8)).", "max(14, 8)")
    assert not keys.has_value("argmax(14, 8)", "max(14, 8)")
    assert keys.has_value("'a' + 'ox' gives aox", "'a' + 'ox'")


def test_a_key_is_had_whole_or_in_part():
    key = "Perax|20|once"
    assert keys.values_of(key) == ("Perax", "20", "once")
    assert keys.has_key("Take 20 mg of perax once.", key)
    assert not keys.has_key("Take 25 mg of Perax once.", key)
    assert keys.share_of_key("Take 25 mg of Perax once.", key) == 2 / 3
    assert keys.share_of_key("anything", "|") == 1.0


def test_what_is_lost_and_what_is_added_is_told_apart():
    reference, words = "Perax 20 mg once", ("Perax", "Zolmit", "once", "twice")
    assert keys.keys_of(reference, words) == {"20", "Perax", "once"}
    assert keys.additions(reference, "Perax and Zolmit 20 mg twice, 7 days", words) == {"Zolmit", "twice", "7"}
    assert not keys.has_same_keys(reference, "20 mg once", words)
    assert keys.has_same_keys(reference, "once a day: Perax, 20.0 mg", words)


def test_numbers_are_the_same_or_only_kept():
    assert keys.same_numbers("2 + 3 = 5", "5 = 3 + 2, so 5")
    assert not keys.same_numbers("2 + 3 = 5", "2 + 3 = 5, not 6")
    assert keys.keeps_numbers("2 + 3 = 5", "2 + 3 = 5, not 6")
    assert not keys.keeps_numbers("2 + 3 = 5", "2 + 3")
