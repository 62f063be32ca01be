"""Examples by class, as a server uses them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.steps.shards import ShardArrays
from algorithms.core.training import Fit, Work
from algorithms.parts.label_counts import labels_like, seen_counts, shares_by_class
from algorithms.parts.losses import distances, sameness
from tests.algorithms.support_methods import client_of
from tests.support import tiny_columns, tiny_setup

counts_by_class = st.lists(st.integers(0, 50), min_size=2, max_size=6).filter(any)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_clients_share_of_a_class_is_its_part_of_the_examples():
    shares = shares_by_class([torch.tensor([3, 0, 1]), torch.tensor([1, 0, 3])])
    assert shares.tolist() == [[0.75, 0.0, 0.25], [0.25, 0.0, 0.75]]


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=5))
def test_shares_of_every_class_that_somebody_holds_sum_to_one(counts):
    shares, held = shares_by_class([torch.tensor(c) for c in counts]), torch.tensor(counts).sum(0) > 0
    assert shares.sum(0).tolist() == pytest.approx(held.float().tolist())


@given(counts_by_class, st.integers(1, 200))
def test_labels_are_as_frequent_as_their_counts_up_to_one(counts, number):
    labels = labels_like(torch.tensor(counts), number, draws())
    found = torch.bincount(labels, minlength=len(counts))
    exact = torch.tensor(counts) / sum(counts) * number
    assert len(labels) == number
    assert ((found - exact).abs() <= 1 + 1e-4).all()
    assert all(n == 0 for n, count in zip(found.tolist(), counts, strict=True) if count == 0)


def test_labels_come_in_a_drawn_order():
    orders = [labels_like(torch.tensor([20, 20]), 40, draws(seed)).tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])


def test_no_label_can_be_asked_where_none_was_counted():
    with pytest.raises(ValueError, match="no label"):
        labels_like(torch.zeros(3, dtype=torch.int64), 4, draws())


def counted(examples: int, batch: int, position: int, steps: int) -> list[int]:
    """The classes that a client that holds the first tiny images has seen after so many steps from a position on."""
    shards = ShardArrays.of(tiny_columns(), [np.arange(examples)])
    setup = tiny_setup(clients=1)
    work = Work(steps=steps, epochs=None, batch=batch, lr=0.1)
    client = client_of(setup, shards, 0, received=None)
    return seen_counts(client, work, Fit(0.0, steps, position + steps), 3).tolist()


def test_a_client_that_has_seen_all_its_examples_twice_counts_them_twice():
    # Twelve images, of the classes 0 1 2 0 1 2 ...: three batches of four are one pass.
    assert counted(12, 4, position=0, steps=6) == [8, 8, 8]


def test_only_the_examples_of_this_round_are_counted():
    first, second = counted(12, 4, position=0, steps=2), counted(12, 4, position=2, steps=1)
    assert sum(first) == 8
    assert [a + b for a, b in zip(first, second, strict=True)] == [4, 4, 4]


def test_a_client_that_took_no_step_has_seen_nothing():
    assert counted(12, 4, position=3, steps=0) == [0, 0, 0]


# --- Sameness -----------------------------------------------------------------------------------------------------


def test_distances_are_means_over_the_entries():
    values = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert distances(values, 1).tolist() == [[0.0, 3.5], [3.5, 0.0]]
    assert distances(values, 2)[0, 1].item() == pytest.approx((25 / 2) ** 0.5)


def test_sameness_is_the_exponential_of_minus_the_mean_product_of_distances():
    left, right = torch.tensor([[0.0, 2.0], [2.0, 0.0]]), torch.tensor([[0.0, 0.5], [0.5, 0.0]])
    assert sameness(left, right).item() == pytest.approx(np.exp(-2 * 1.0 / 4))


def test_images_that_are_all_the_same_have_sameness_1_and_a_finite_gradient():
    images = torch.ones(4, 1, 2, 2, requires_grad=True)
    for order in (1.0, 2.0):
        same = sameness(distances(images, order), distances(torch.randn(4, 3, generator=draws()), 2))
        same.backward()
        assert same.item() == 1
        assert torch.isfinite(images.grad).all()


@given(st.integers(0, 1000))
def test_sameness_lies_between_0_and_1(seed):
    values = torch.randn(2, 5, 3, generator=draws(seed))
    assert 0 < sameness(distances(values[0], 1), distances(values[1], 2) ** 2).item() <= 1
