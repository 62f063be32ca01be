"""Room for a distillation: what fits, and the numbers a refusal names. No Ray is needed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.distillation.plan import Actors, DistilResources, shortage

PLAIN = DistilResources()
"""One sampler and one teacher of 0.25 CPU, one train worker of 0.5: one CPU."""


def test_the_smallest_plan_fits_into_exactly_one_free_cpu():
    assert shortage(PLAIN, [{"CPU": 1.0}]) is None
    assert shortage(PLAIN, [{"CPU": 0.9999}]) is not None


def test_tenths_that_add_up_to_a_whole_fit_into_it():
    tenths = DistilResources(Actors(3, 0.1), Actors(3, 0.1), Actors(4, 0.1))
    assert shortage(tenths, [{"CPU": 1.0}]) is None


def test_a_refusal_names_what_is_asked_what_is_free_and_what_would_fit():
    asked = DistilResources(samplers=Actors(4, 0.5), teachers=Actors(1, 0.5), trainers=Actors(2, 1.0))
    assert shortage(asked, [{"CPU": 3.0, "memory": 1e9}]) == (
        "the distillation asks for 4 samplers of 0.5 CPU, 1 teacher of 0.5 CPU, 2 train workers of 1 CPU "
        "(4.5 CPU in all), and 3 CPU is free beside what hosts hold; 1 sampler, 1 teacher, 2 train workers would fit"
    )


def test_where_not_even_one_of_each_fits_the_refusal_says_how_much_must_be_free():
    assert shortage(DistilResources(samplers=Actors(2)), [{"CPU": 0.5}]) == (
        "the distillation asks for 2 samplers of 0.25 CPU, 1 teacher of 0.25 CPU, 1 train worker of 0.5 CPU "
        "(1.25 CPU in all), and 0.5 CPU is free beside what hosts hold; "
        "even one of each does not fit: 1 CPU must be free on nodes that can hold them"
    )


def test_what_is_left_on_two_nodes_does_not_make_room_for_one_actor():
    assert shortage(PLAIN, [{"CPU": 0.5}, {"CPU": 0.5}]) is None
    halves = [{"CPU": 0.4}, {"CPU": 0.4}, {"CPU": 0.4}]
    assert "0.4 CPU and 0.4 CPU and 0.4 CPU are free" in str(shortage(PLAIN, halves))


def test_a_fraction_of_a_card_lies_on_one_card():
    on_cards = DistilResources(Actors(1, 0.1, 0.6), Actors(1, 0.1, 0.6), Actors(1, 0.1, 0.6))
    assert shortage(on_cards, [{"CPU": 4.0, "GPU": 3.0}]) is None
    assert "1.8 GPU in all" in str(shortage(on_cards, [{"CPU": 4.0, "GPU": 2.0}]))


def test_whole_cards_are_given_to_one_actor_each():
    two_cards = DistilResources(trainers=Actors(1, 0.5, 2.0))
    assert shortage(two_cards, [{"CPU": 4.0, "GPU": 2.0}]) is None
    assert shortage(two_cards, [{"CPU": 2.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}]) is not None


@given(
    counts=st.tuples(*[st.integers(1, 4)] * 3),
    cpus=st.tuples(*[st.sampled_from([0.25, 0.5, 1.0])] * 3),
    free=st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=1, max_size=3),
)
def test_more_room_never_hurts_and_what_fits_is_no_more_than_there_is(counts, cpus, free):
    asked = DistilResources(*(Actors(n, each) for n, each in zip(counts, cpus, strict=True)))
    nodes = [{"CPU": cpu} for cpu in free]
    if shortage(asked, nodes) is None:
        assert sum(n * each for n, each in zip(counts, cpus, strict=True)) <= sum(free)
        assert shortage(asked, [*nodes, {"CPU": 1.0}]) is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Actors(0), "count = 0: must be at least 1"),
        (lambda: Actors(1, cpus=-1), "cpus = -1"),
        (lambda: DistilResources(patience=0.5), "patience = 0.5: must be at least 1"),
        (lambda: DistilResources(checkpoint_every=0), "checkpoint_every = 0: must be at least 1"),
        (lambda: DistilResources(retries=-1), "retries = -1: must be at least 0"),
        (lambda: DistilResources(ahead_mb=0), "ahead_mb = 0: must be at least 1"),
    ],
)
def test_impossible_numbers_are_refused_by_name(make, said):
    with pytest.raises(ValueError, match=said):
        make()
