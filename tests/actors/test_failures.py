"""The failure policy: a pure function from a fault and the tries so far to what is done."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.failures import FailurePolicy

FAULTS = ("host_lost", "client_error", "bad_update")
ACTIONS = ("retry", "leave out", "stop")


def test_by_default_lost_hosts_are_retried_three_times_and_all_else_stops_the_run():
    policy = FailurePolicy()
    assert [policy.decide("host_lost", tried) for tried in range(5)] == ["retry", "retry", "retry", "stop", "stop"]
    assert policy.decide("client_error", 0) == "stop"
    assert policy.decide("bad_update", 0) == "stop"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("action", ACTIONS)
def test_each_fault_has_a_setting_of_its_own(fault, action):
    others = {f"on_{other}": "stop" for other in FAULTS if other != fault}
    policy = FailurePolicy(**{f"on_{fault}": action}, **others)
    assert policy.decide(fault, 0) == action
    assert {policy.decide(other, 0) for other in FAULTS if other != fault} == {"stop"}


@given(st.sampled_from(FAULTS), st.integers(0, 10), st.integers(0, 20))
def test_a_step_is_tried_again_as_often_as_the_policy_says_and_not_once_more(fault, most, tried):
    policy = FailurePolicy(**{f"on_{fault}": "retry"}, max_retries=most)
    assert policy.decide(fault, tried) == ("retry" if tried < most else "stop")


@pytest.mark.parametrize(("on_host_lost", "retries"), [("retry", 3), ("leave out", 0), ("stop", 0)])
def test_a_process_of_the_distillation_is_replaced_where_hosts_are_and_never_left_out(on_host_lost, retries):
    policy = FailurePolicy(on_host_lost=on_host_lost, max_retries=3)
    assert policy.retries("worker_lost") == retries
    assert policy.decide("worker_lost", retries) == "stop"


@pytest.mark.parametrize(("on_host_lost", "retries"), [("retry", 3), ("leave out", 3), ("stop", 0)])
def test_a_lost_memory_is_brought_back_also_where_clients_are_left_out_as_the_next_round_needs_it(
    on_host_lost, retries
):
    policy = FailurePolicy(on_host_lost=on_host_lost, max_retries=3)
    assert [policy.decide("memory_lost", tried) for tried in range(retries + 1)] == retries * ["retry"] + ["stop"]


@given(st.sampled_from(FAULTS), st.integers(0, 20))
def test_who_may_be_left_out_is_left_out_however_often_it_was_tried(fault, tried):
    assert FailurePolicy(**{f"on_{fault}": "leave out"}).decide(fault, tried) == "leave out"
