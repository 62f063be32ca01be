"""Prototypes and the groups they stand for."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_info, threadpool_limits

from algorithms.parts.clusters import groups
from algorithms.parts.prototypes import as_examples, join_prototypes, prototypes


def features(count: int, width: int = 4) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count))


def of_one_label(points: torch.Tensor, most: int, least: int = 1) -> torch.Tensor:
    return prototypes(points, torch.zeros(len(points), dtype=torch.int64), most, least, random_state=0)[0]


def test_a_label_with_fewer_features_than_prototypes_has_their_mean_alone():
    points = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert of_one_label(points, most=10).tolist() == [[2.0, 4.0]]


@pytest.mark.parametrize("most", [2, 10, 60])
def test_a_label_with_enough_features_has_all_its_prototypes(most):
    centres = of_one_label(features(70), most)
    assert centres.shape == (most, 4)
    assert centres.dtype == torch.float32


def test_centres_lie_in_the_middle_of_their_features():
    points = torch.tensor([[0.0], [1.0], [10.0], [11.0], [12.0]])
    assert sorted(of_one_label(points, most=2).flatten().tolist()) == [0.5, 11.0]


def test_identical_features_give_one_prototype():
    assert of_one_label(torch.full((20, 3), 2.0), most=10).tolist() == [[2.0, 2.0, 2.0]]


def test_there_are_no_more_prototypes_than_distinct_features():
    points = torch.tensor([[0.0], [5.0]]).repeat(10, 1)
    assert sorted(of_one_label(points, most=10).flatten().tolist()) == [0.0, 5.0]


def test_each_label_has_its_own_prototypes_and_a_label_without_features_none():
    found = prototypes(torch.tensor([[1.0], [9.0], [3.0]]), torch.tensor([2, 5, 2]), 10, 1, 0)
    assert {label: centres.tolist() for label, centres in found.items()} == {2: [[2.0]], 5: [[9.0]]}


def test_a_prototype_stands_for_the_least_number_of_features():
    points = torch.tensor([[0.0], [0.1], [0.2], [50.0]])
    assert len(of_one_label(points, most=2, least=1)) == 2
    assert of_one_label(points, most=2, least=2).flatten().tolist() == pytest.approx([50.3 / 4])


def test_a_label_with_fewer_features_than_the_least_sends_nothing():
    assert prototypes(features(4), torch.zeros(4, dtype=torch.int64), 10, 5, 0) == {}


def test_prototypes_of_several_clients_are_put_together_by_label():
    one, two = {0: torch.ones(1, 2), 3: torch.ones(2, 2)}, {3: torch.zeros(1, 2), 1: torch.zeros(1, 2)}
    together = join_prototypes(one, two)
    assert list(together) == [0, 1, 3]
    assert together[3].tolist() == [[1, 1], [1, 1], [0, 0]]
    examples, labels = as_examples(together)
    assert labels.tolist() == [0, 1, 3, 3, 3]
    assert examples.shape == (5, 2)


@given(points=st.lists(st.integers(0, 4), min_size=1, max_size=25), most=st.integers(1, 6), least=st.integers(1, 6))
def test_every_group_is_large_enough_and_there_are_not_too_many(points, most, least):
    found = groups(np.array(points, dtype=np.float32)[:, None], most, least, 0)
    if found is None:
        assert len(points) < least
        return
    sizes = np.bincount(found)
    assert sizes.sum() == len(points)
    assert len(sizes) <= most
    assert sizes.min() >= least


def test_groups_are_found_by_one_thread_however_many_are_allowed(monkeypatch):
    seen = []

    class Watched(KMeans):
        def fit(self, points):
            seen.extend(pool["num_threads"] for pool in threadpool_info())
            return super().fit(points)

    monkeypatch.setattr("sklearn.cluster.KMeans", Watched)
    with threadpool_limits(4):
        groups(np.arange(20, dtype=np.float32)[:, None], 2, 1, 7)
    assert set(seen) == {1}
