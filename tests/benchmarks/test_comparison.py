"""Two runs of the suite side by side."""

import pytest

from benchmarks.comparison import compare, table, verdict
from benchmarks.figures import Figure, figure_of, read


def seconds(*values, loops=(), name="round", **others):
    return Figure(name, "s", values, loops=loops, **others)


def row_of(now, last):
    (row,) = compare([now], [last])
    return row


def test_a_change_is_that_of_the_medians():
    row = row_of(seconds(3.0, 2.2, 1.0), seconds(2.0, 1.9, 2.1))

    assert row.change == pytest.approx(2.2 / 2.0 - 1)


def test_noise_is_the_larger_of_both_ranges_relative_to_the_medians():
    row = row_of(seconds(2.0, 2.1, 2.4), seconds(0.9, 1.0, 1.1))

    assert row.noise == pytest.approx(max(0.4 / 2.1, 0.2 / 1.0))


def test_what_changed_within_the_noise_is_not_named():
    row = row_of(seconds(1.15, 1.2, 1.25), seconds(0.9, 1.0, 1.2))

    assert row.change == pytest.approx(0.2)
    assert row.noise == pytest.approx(0.3)
    assert not row.worse


def test_what_got_slower_by_more_than_the_noise_is_named():
    row = row_of(seconds(1.3, 1.3, 1.3), seconds(1.0, 1.0, 1.1))

    assert row.worse
    assert verdict([row]) == ["worse by more than the noise: round: +30.0%, noise 10.0%"]


def test_what_got_faster_is_not_worse():
    assert not row_of(seconds(0.5, 0.5), seconds(1.0, 1.0)).worse


def test_less_is_worse_where_more_is_better():
    last = seconds(2.0, 2.0, better="higher")

    assert row_of(seconds(1.0, 1.0, better="higher"), last).worse
    assert not row_of(seconds(3.0, 3.0, better="higher"), last).worse


def test_a_slower_machine_is_not_taken_for_slower_code():
    """Everything took twice as long, the calibration loop too."""
    row = row_of(seconds(2.0, 4.0, loops=(0.2, 0.4)), seconds(1.0, 1.0, loops=(0.1, 0.1)))

    assert row.change == pytest.approx(0.0)
    assert row.noise == pytest.approx(0.0)


def test_slower_code_is_told_from_a_slower_machine():
    row = row_of(seconds(6.0, 6.0, loops=(0.2, 0.2)), seconds(1.0, 1.0, loops=(0.1, 0.1)))

    assert row.change == pytest.approx(2.0)
    assert row.worse


def test_a_single_value_says_nothing_of_noise_so_nothing_is_named():
    row = row_of(seconds(5.0), seconds(1.0))

    assert row.change == pytest.approx(4.0)
    assert (row.noise, row.worse) == (None, False)


def test_a_figure_that_the_last_run_did_not_have_stands_alone():
    (row,) = compare([seconds(1.0, name="new")], [seconds(1.0, name="old")])

    assert (row.last, row.change, row.worse) == (None, None, False)


@pytest.mark.parametrize(("better", "missed"), [("lower", True), ("higher", False)])
def test_a_goal_is_held_against_the_median(better, missed):
    row = row_of(seconds(1.0, 3.0, 9.0, better=better, goal=2.0), seconds(3.0, better=better))

    assert row.misses_goal is missed


def test_the_table_has_a_row_for_each_figure_with_its_goal_and_change():
    last = [seconds(1.0, 1.0)]
    rows = compare([seconds(1.5, 1.5, goal=1.2), Figure("store", "MB", (1234.5,), goal=2000)], last)

    assert table(rows).splitlines()[2:] == [
        "| round | s | <= 1.2 | 1 | 1.5 | +50.0% | 0.0% | worse, goal missed |",
        "| store | MB | <= 2000 |  | 1,234 |  |  |  |",
    ]


def test_figures_are_read_from_among_other_lines():
    figure = seconds(1.0, 2.0, loops=(0.1, 0.2), goal=3.0)

    assert read(f"starting\n{figure.line()}\n") == [figure]
    assert figure_of({"name": "n", "unit": "s", "values": [1.0]}) == Figure("n", "s", (1.0,))


def test_each_value_has_a_loop_or_none_has():
    with pytest.raises(ValueError, match="2 values beside 1 calibration loops"):
        seconds(1.0, 2.0, loops=(0.1,))
