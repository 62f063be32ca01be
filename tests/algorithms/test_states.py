"""Weighted means of state dicts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algorithms.core.states import PIECE, WeightedMean
from tests.support import weighted_mean


def state(value, count=0):
    return {"w": torch.tensor([value, 2 * value]), "bn.num_batches_tracked": torch.tensor(count)}


def test_two_clients_with_three_and_one_examples():
    mean = weighted_mean([(state(1.0), 3), (state(5.0), 1)], otherwise={})
    assert mean["w"].tolist() == [(3 * 1 + 1 * 5) / 4, (3 * 2 + 1 * 10) / 4]


def test_counters_stay_integers_and_take_the_maximum():
    mean = weighted_mean([(state(1.0, 7), 1), (state(1.0, 4), 9)], otherwise={})
    assert mean["bn.num_batches_tracked"].dtype == torch.int64
    assert mean["bn.num_batches_tracked"] == 7


def test_a_weight_of_zero_is_skipped_even_where_the_state_is_nan():
    mean = weighted_mean([(state(float("nan")), 0), (state(2.0), 5)], otherwise={})
    assert mean["w"].tolist() == [2.0, 4.0]


def test_nothing_to_average_keeps_the_previous_state():
    previous = state(9.0)
    assert weighted_mean([], otherwise=previous) == previous
    assert weighted_mean([(state(1.0), 0)], otherwise=previous) == previous


@given(st.lists(st.tuples(st.floats(-100, 100, width=32), st.integers(1, 50)), min_size=1, max_size=8))
def test_the_mean_of_equal_states_is_that_state_whatever_the_weights(pairs):
    value = pairs[0][0]
    mean = weighted_mean([(state(value), weight) for _, weight in pairs], otherwise={})
    assert torch.equal(mean["w"], torch.tensor([value, 2 * value]))


def test_half_precision_is_summed_in_double_and_returned_in_half():
    ones = {"w": torch.ones(1, dtype=torch.bfloat16)}
    mean = weighted_mean([(ones, 1)] * 1000, otherwise={})
    assert mean["w"].dtype == torch.bfloat16
    assert mean["w"].item() == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [PIECE, PIECE + 1, 2 * PIECE + 13])
def test_a_large_entry_has_the_bits_of_the_same_arithmetic_on_the_whole(size, dtype):
    torch.manual_seed(size)
    values, weights = [torch.randn(size).to(dtype) for _ in range(3)], [0.1, 1 / 3, 17.0]
    whole = values[0].double() * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        whole.add_(value, alpha=weight)
    pairs = [({"w": value}, weight) for value, weight in zip(values, weights, strict=True)]
    assert torch.equal(weighted_mean(pairs, otherwise={})["w"], (whole / sum(weights)).to(dtype))


def test_a_large_entry_of_another_layout_is_averaged_in_its_own_places():
    one = torch.arange(2.0 * PIECE).view(2, PIECE).t()
    mean = weighted_mean([({"w": one}, 1), ({"w": one.contiguous()}, 3)], otherwise={})
    assert torch.equal(mean["w"], one)


def test_the_states_given_are_not_written_into():
    first = state(1.0, 3)
    weighted_mean([(first, 1), (state(5.0, 9), 1)], otherwise={})
    assert first["w"].tolist() == [1.0, 2.0]
    assert first["bn.num_batches_tracked"] == 3


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf")])
def test_impossible_weights_are_refused(weight):
    with pytest.raises(ValueError, match="must be finite and at least 0"):
        WeightedMean().add(state(1.0), weight)


def test_states_of_different_entries_are_refused_by_name():
    mean = WeightedMean()
    mean.add(state(1.0), 1)
    with pytest.raises(ValueError, match="extra"):
        mean.add({**state(1.0), "extra": torch.zeros(1)}, 1)
