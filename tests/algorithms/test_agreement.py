"""Agreement of gradients, and the share of items that one model is better on, by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algorithms.parts.agreement import agreement_of, paired_win_share


def test_clients_with_one_gradient_agree_wholly():
    gradient = torch.tensor([3.0, -4.0])
    found = agreement_of([gradient, gradient, gradient], [1, 5, 2])
    assert found.cosine == pytest.approx(1.0)
    assert found.dissimilarity == pytest.approx(1.0)


def test_agreement_by_hand():
    # cosines of (1,0) (0,2) (1,1): 0, 1/sqrt 2, 1/sqrt 2
    found = agreement_of([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0])])
    assert found.cosine == pytest.approx(math.sqrt(2) / 3)
    # mean of squares (1 + 4 + 2) / 3; mean gradient (2/3, 1), its square 13/9
    assert found.dissimilarity == pytest.approx((7 / 3) / (13 / 9))


def test_weights_count_in_the_dissimilarity():
    # p = (3/4, 1/4): 3/4 + 1/4 = 1 over ||(3/4, 1/4)||^2 = 10/16
    found = agreement_of([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])], [30, 10])
    assert found.dissimilarity == pytest.approx(1.6)
    assert found.cosine == 0.0


def test_gradients_that_cancel_out_and_gradients_of_zero():
    opposite = agreement_of([torch.tensor([1.0]), torch.tensor([-1.0])])
    assert (opposite.cosine, opposite.dissimilarity) == (-1.0, math.inf)
    assert math.isnan(agreement_of([torch.zeros(2), torch.ones(2)]).cosine)
    assert math.isnan(agreement_of([torch.ones(2)]).cosine)
    with pytest.raises(ValueError, match="no gradient"):
        agreement_of([])


@given(st.lists(st.lists(st.integers(-5, 5), min_size=4, max_size=4).filter(any), min_size=2, max_size=5))
def test_the_scale_of_all_gradients_changes_nothing_and_dissimilarity_is_at_least_one(rows):
    gradients = [torch.tensor(row, dtype=torch.float32) for row in rows]
    one, other = agreement_of(gradients), agreement_of([1e-3 * gradient for gradient in gradients])
    assert one.cosine == pytest.approx(other.cosine, abs=1e-6)
    assert one.dissimilarity >= 1 - 1e-9


def test_the_share_counts_ties_half():
    # wins: 1, 0, 1/2, 1
    found = paired_win_share([1, 2, 3, 1], [2, 1, 3, 5], np.random.default_rng(0))
    assert found.share == 2.5 / 4
    assert 0 <= found.low <= found.share <= found.high <= 1


def test_the_interval_is_that_of_a_binomial_share():
    # 300 of 400: 0.75 -+ 1.96 * sqrt(0.75 * 0.25 / 400) = 0.75 -+ 0.0424
    ours = [0.0] * 300 + [2.0] * 100
    found = paired_win_share(ours, [1.0] * 400, np.random.default_rng(1))
    assert found.share == 0.75
    assert found.low == pytest.approx(0.75 - 0.0424, abs=0.004)
    assert found.high == pytest.approx(0.75 + 0.0424, abs=0.004)


def test_an_interval_follows_from_its_generator_and_is_a_point_where_every_item_is_won():
    ours, theirs = [1.0, 3.0, 2.0], [2.0, 2.0, 2.5]
    first, second = (paired_win_share(ours, theirs, np.random.default_rng(5)) for _ in range(2))
    assert first == second
    whole = paired_win_share([0.0, 0.0], [1.0, 1.0], np.random.default_rng(0))
    assert (whole.low, whole.share, whole.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], []), ([], [])])
def test_losses_that_cannot_be_paired_are_refused(ours, theirs):
    with pytest.raises(ValueError, match=f"{len(ours)} and {len(theirs)} losses cannot be paired"):
        paired_win_share(ours, theirs, np.random.default_rng(0))
