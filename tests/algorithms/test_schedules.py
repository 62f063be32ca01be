"""The clients' rate from round to round, by arithmetic."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from algorithms.core.schedules import CONSTANT, RateSchedule
from algorithms.core.seeds import ANY_ROUND
from algorithms.core.training import Work
from algorithms.methods.fedftg import FedFTG


def factors(schedule, rounds):
    return [schedule.at(round) for round in range(rounds)]


def test_falls_are_where_they_are_asked_for_however_far_apart():
    """HeteroFL's code on CIFAR-10, 800 rounds: the whole rate for 300, a tenth for 200, and a hundredth."""
    schedule = RateSchedule("step", rounds=800, factor=0.1, falls=(300, 500))
    assert factors(schedule, 800) == pytest.approx(300 * [1.0] + 200 * [0.1] + 300 * [0.01])


def test_fedftg_s_rates_of_clients_fall_as_those_of_its_server():
    """0.998 a round, in its code for both."""
    schedule = RateSchedule("step", every=1, factor=FedFTG.Config().decay)
    assert factors(schedule, 4) == pytest.approx([1, 0.998, 0.998**2, 0.998**3])


def test_a_constant_rate_is_the_clients_own_to_the_bit():
    assert factors(CONSTANT, 3) == [1.0, 1.0, 1.0]
    assert Work(steps=1, epochs=None, batch=1, lr=0.1).at(7).lr == 0.1


@pytest.mark.parametrize("schedule", [CONSTANT, RateSchedule(warmup=4), RateSchedule("cosine", rounds=8)])
def test_training_before_the_first_round_has_the_rate_of_the_first(schedule):
    assert schedule.at(ANY_ROUND) == schedule.at(0)


def test_a_warm_up_rises_along_a_line_to_the_whole_rate_in_its_last_round():
    assert factors(RateSchedule(warmup=4), 6) == [0.25, 0.5, 0.75, 1, 1, 1]


def test_steps_multiply_the_rate_after_every_so_many_rounds():
    falling = RateSchedule("step", every=3, factor=0.1)
    assert factors(falling, 7) == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01])


def test_a_cosine_is_a_half_in_the_middle_and_would_end_at_0_after_the_last_round():
    falling = RateSchedule("cosine", rounds=8)
    assert [falling.at(round) for round in (0, 2, 4, 8)] == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, 0])


def test_what_follows_a_warm_up_begins_with_the_round_after_it():
    assert RateSchedule("cosine", rounds=10, warmup=2).at(2) == 1
    assert RateSchedule("cosine", rounds=10, warmup=2).at(6) == pytest.approx(0.5)
    assert factors(RateSchedule("step", warmup=2, every=2, factor=0.5), 6) == [0.5, 1, 1, 1, 0.5, 0.5]


@given(
    st.sampled_from(["constant", "step", "cosine"]),
    st.integers(1, 50),
    st.integers(0, 50),
    st.integers(1, 9),
    st.floats(0.5, 1),
)
def test_a_rate_is_above_0_in_all_rounds_and_never_rises_after_the_warm_up(name, rounds, warmup, every, factor):
    found = factors(RateSchedule(name, rounds, min(warmup, rounds), every, factor), rounds)
    assert all(0 < share <= 1 for share in found)
    after = found[max(0, min(warmup, rounds) - 1) :]
    assert after == sorted(after, reverse=True)


def test_the_work_of_a_round_has_its_rate_and_no_schedule_any_more():
    work = Work(steps=1, epochs=None, batch=1, lr=0.4, schedule=RateSchedule("step", every=1, factor=0.5))
    assert work.at(2).lr == 0.1
    assert work.at(2).at(5) == work.at(2)
