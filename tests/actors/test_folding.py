"""Updates added up in groups: the same bits wherever a group is added up, and nothing is lost where a client fails."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.steps.folding import GROUP, Groups, fold, whole_groups
from actors.steps.orders import Failure, Outcome
from algorithms.core.payload import Payload
from algorithms.core.seeds import Seed
from algorithms.core.states import WeightedMean


def outcome(client):
    """Client k sends values whose sums in another order have other bits."""
    values = torch.rand(3, generator=torch.Generator().manual_seed(client)) ** 9
    return Outcome(client, Payload.of(weights={"w": values}, examples={"n": client % 5}), None, {}, 0.1)


def failure(client):
    return Failure(client, "fedavg", "train", Seed(0), "ArithmeticError: no", "")


def terms(update):
    state = update.payload.tensors("weights")
    return {"by examples": (state, update.payload.number("examples", "n")), "alike": (state, 1.0)}


def means(outcomes):
    groups = Groups(len(outcomes), terms)
    for place, one in enumerate(outcomes):
        groups.take(place, one)
    nothing = {"w": torch.zeros(3)}
    return {name: (mean.weight, mean.result(nothing)["w"].tolist()) for name, mean in groups.means.items()}


def by_hand(outcomes):
    """Groups in float64, one after another."""
    total, weight = torch.zeros(3, dtype=torch.float64), 0.0
    for first in range(0, len(outcomes), GROUP):
        there = [one for one in outcomes[first : first + GROUP] if one is not None]
        if there:
            total += sum(one.payload.tensors("weights")["w"].double() for one in there)
            weight += len(there)
    return weight, (total / weight).float().tolist()


@given(
    st.integers(1, 40),
    st.lists(st.integers(1, 20), max_size=8),
    st.sets(st.integers(0, 39), max_size=6),
    st.sets(st.integers(0, 39), max_size=3),
)
def test_the_bits_are_those_of_groups_whoever_adds_them_up(clients, ends, again, left_out):
    """Calls of any lengths; clients that fail in theirs and are tried again, or are left out."""
    whole = [None if k in left_out else outcome(k) for k in range(clients)]
    called = [failure(k) if k in again | left_out else outcome(k) for k in range(clients)]
    cuts = sorted({0, clients, *(end for end in ends if end < clients)})
    came = [one for a, b in pairwise(cuts) for one in fold(called[a:b], a, clients, terms)]
    final = [whole[k] if isinstance(one, Failure) else one for k, one in enumerate(came)]
    assert means(final) == means(whole)
    if any(one is not None for one in whole):
        assert means(whole)["alike"] == by_hand(whole)


def test_of_a_group_that_is_whole_its_sums_travel_and_no_update():
    """Twenty clients from the ninth place on: a whole group, and the last one, which ends with the cohort."""
    came = fold([outcome(k) for k in range(8, 20)], 8, 20, terms)
    assert [one.payload for one in came] == [None] * 12
    assert [place for place, one in enumerate(came, start=8) if one.group] == [15, 19]
    assert came[7].group["alike"].weight == 8
    assert came[0].nbytes() == {"weights": 12, "examples": 8}


def test_of_a_group_in_parts_or_with_a_failure_every_update_travels():
    parts = fold([outcome(k) for k in range(4, 12)], 4, 20, terms)
    assert [one.payload is None for one in parts] == [False] * 8
    failed = fold([outcome(k) if k != 3 else failure(k) for k in range(8)], 0, 20, terms)
    assert [isinstance(one, Failure) or one.payload is not None for one in failed] == [True] * 8
    assert all(isinstance(one, Failure) or one.group is None for one in failed)


def test_a_mean_to_which_nobody_contributed_has_no_weight():
    lone = Outcome(0, Payload.of(weights={"w": torch.full((3,), torch.nan)}, examples={"n": 0}), None, {}, 0.1)
    (came,) = fold([lone], 0, 1, terms)
    groups = Groups(1, terms)
    groups.take(0, came)
    assert groups.means["by examples"].weight == 0
    assert groups.means["by examples"].result({"w": 9}) == {"w": 9}


@pytest.mark.parametrize(("clients", "groups"), [(1, 1), (3, 3), (5, 8), (11, 8), (12, 16), (13, 16), (16, 16)])
def test_calls_hold_whole_groups_where_that_is_near(clients, groups):
    assert whole_groups(clients) == groups


def test_a_mean_takes_over_anothers_sums_and_leaves_it_as_it_is():
    first, second = WeightedMean(), WeightedMean()
    first.add({"w": torch.tensor([1.0])}, 1)
    second.join(first)
    second.add({"w": torch.tensor([5.0])}, 3)
    assert second.result({})["w"].tolist() == [(1 + 3 * 5) / 4]
    assert first.result({})["w"].tolist() == [1.0]
