"""What is said of memory over many rounds."""

import pytest

from benchmarks.steady import SETTLED, growth, slope


def test_what_happens_while_a_run_settles_does_not_count():
    weights = [*range(SETTLED), *[300.0] * 200]

    assert growth(weights) == (0.0, 0.0, 0.0)
    assert slope(weights) == pytest.approx(0.0)


def test_growth_is_that_of_the_last_tenths_over_the_first():
    tenths = [100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 100.0, 101.0, 102.0, 103.0]
    weights = [0.0] * SETTLED + [weight for weight in tenths for _ in range(20)]

    assert growth(weights) == pytest.approx((1.0, 2.0, 3.0))


def test_the_slope_is_in_kib_a_round():
    assert slope([0.0] * SETTLED + [100 + n / 1024 for n in range(100)]) == pytest.approx(1.0)
