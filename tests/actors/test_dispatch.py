"""Which host performs which clients next. No cluster is needed: events go in, instructions come out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.failures import FailurePolicy
from actors.hosts.dispatch import (
    AHEAD_BYTES,
    CALLS_AHEAD,
    CALLS_PER_HOST,
    CHUNK_BYTES,
    LARGEST_CHUNK,
    Chunk,
    Dispatch,
    HostLostError,
    Loss,
    chunk_size,
    chunks_for_any,
    chunks_for_own,
    look_ahead,
)


def dispatch(chunks, hosts=2, ahead=100, **policy):
    return Dispatch("train", chunks, hosts, ahead, FailurePolicy(**policy))


def test_clients_are_cut_into_calls_in_cohort_order():
    assert chunks_for_any([7, 3, 9, 1, 4], 2) == [Chunk(0, (7, 3)), Chunk(2, (9, 1)), Chunk(4, (4,))]


def test_with_a_host_for_each_client_every_call_goes_to_its_own():
    assert chunks_for_own([2, 5]) == [Chunk(0, (2,), host=2), Chunk(1, (5,), host=5)]
    assert dispatch(chunks_for_own([2, 5]), hosts=6).send() == [(2, Chunk(0, (2,), 2)), (5, Chunk(1, (5,), 5))]


def test_hosts_get_calls_in_turn_and_no_more_than_two_each():
    plan = dispatch(chunks_for_any(range(6), 1))
    assert [(host, chunk.start) for host, chunk in plan.send()] == [(0, 0), (1, 1), (0, 2), (1, 3)]
    assert plan.send() == []


def test_a_host_that_has_answered_gets_the_next_call():
    plan = dispatch(chunks_for_any(range(6), 1))
    sent = plan.send()
    plan.receive(*sent[1])
    assert [(host, chunk.start) for host, chunk in plan.send()] == [(1, 4)]


def test_nothing_is_sent_further_ahead_than_allowed_until_the_first_is_taken():
    plan = dispatch(chunks_for_any(range(6), 1), ahead=3)
    sent = plan.send()
    assert [chunk.start for _, chunk in sent] == [0, 1, 2]
    for host, chunk in sent[1:]:
        plan.receive(host, chunk)
    assert plan.send() == []
    assert plan.take() is None
    plan.receive(*sent[0])
    assert plan.take() == Chunk(0, (0,))
    assert [chunk.start for _, chunk in plan.send()] == [3]


@given(
    clients=st.integers(1, 40),
    size=st.integers(1, 7),
    hosts=st.integers(1, 5),
    ahead=st.integers(1, 30),
    dedicated=st.booleans(),
    data=st.data(),
)
def test_whatever_finishes_first_and_whichever_host_dies_every_client_is_taken_once_in_order(
    clients, size, hosts, ahead, dedicated, data
):
    order = list(range(clients))
    if dedicated:
        chunks, hosts = chunks_for_own(order), clients
    else:
        chunks = chunks_for_any(order, size)
    plan = dispatch(chunks, hosts, ahead, max_retries=2)
    flying, taken, deaths = [], [], 0
    while not plan.is_finished:
        flying += plan.send()
        assert max(sum(h == host for h, _ in flying) for host in range(hosts)) <= CALLS_PER_HOST
        assert all(chunk.start < len(taken) + ahead for _, chunk in flying)
        host, chunk = data.draw(st.sampled_from(flying))
        if deaths < 2 and data.draw(st.booleans()):
            deaths += 1
            again = [client for chunk in plan.lose_host(host, "killed").again for client in chunk.clients]
            assert again == [client for h, chunk in flying if h == host for client in chunk.clients]
            flying = [(h, c) for h, c in flying if h != host]
        else:
            flying.remove((host, chunk))
            plan.receive(host, chunk)
        while (ready := plan.take()) is not None:
            taken += ready.clients
    assert taken == order
    assert flying == []


def test_after_a_loss_the_clients_of_the_call_under_way_go_out_one_by_one_each_alone_on_its_host():
    """A step's reply may be lost with a host that the step behind it kills; then the loss is charged to the first one.
    Alone, it cannot be charged again."""
    plan = dispatch(chunks_for_any([4, 5, 6, 7], 2), hosts=1)
    plan.send()
    plan.lose_host(0, "killed")
    for expected in (Chunk(0, (4,), losses=1), Chunk(1, (5,), losses=1), Chunk(2, (6, 7))):
        sent = plan.send()
        assert sent == [(0, expected)]
        plan.receive(*sent[0])


def test_nothing_is_sent_behind_what_was_lost_before():
    plan = dispatch(chunks_for_any(range(6), 1), hosts=2)
    plan.send()  # 0 and 2 to host 0, 1 and 3 to host 1
    plan.lose_host(0, "killed")
    assert plan.send() == [(0, Chunk(0, (0,), losses=1))]
    assert plan.send() == []


def test_a_call_that_waited_at_the_door_is_not_charged_with_the_loss():
    plan = dispatch(chunks_for_any([4, 5], 1), hosts=1)
    plan.send()
    plan.lose_host(0, "killed")
    sent = plan.send()
    assert sent == [(0, Chunk(0, (4,), losses=1))]
    plan.receive(*sent[0])
    assert plan.send() == [(0, Chunk(1, (5,), losses=0))]


def test_other_hosts_get_the_lost_clients_and_not_the_replacement_that_still_starts():
    plan = dispatch(chunks_for_any(range(4), 1), hosts=2)
    sent = plan.send()
    plan.receive(*sent[0])
    plan.receive(*sent[2])
    plan.lose_host(1, "killed")
    sent = plan.send(absent={1})
    assert [(host, chunk.start) for host, chunk in sent] == [(0, 1)]
    plan.receive(*sent[0])
    assert [(host, chunk.start) for host, chunk in plan.send(absent={1})] == [(0, 3)]


def test_a_replacement_gets_no_call_while_others_are_there_and_its_share_as_soon_as_it_is():
    plan = dispatch(chunks_for_any(range(8), 1), hosts=2)
    plan.send()
    plan.lose_host(1, "killed")
    assert plan.send(absent={1}) == []
    sent = plan.send()
    assert [host for host, _ in sent] == [1]
    plan.receive(*sent[0])
    assert [host for host, _ in plan.send()] == [1, 1]


def test_where_all_hosts_still_start_they_are_waited_for():
    plan = dispatch(chunks_for_any(range(2), 1), hosts=2)
    assert [host for host, _ in plan.send(absent={0, 1})] == [0, 1]


def test_the_replacement_gets_the_clients_that_are_its_own():
    plan = dispatch(chunks_for_own([0, 1]), hosts=2)
    plan.send()
    plan.lose_host(1, "killed")
    assert plan.send() == [(1, Chunk(1, (1,), host=1, losses=1))]


def test_a_client_that_kills_every_host_stops_the_run_and_is_named():
    plan = dispatch(chunks_for_any([4, 5], 2), hosts=1, max_retries=2)
    plan.send()
    plan.lose_host(0, "killed")
    plan.receive(*plan.send()[0])  # client 4, alone
    plan.send()
    plan.lose_host(0, "killed")
    plan.send()
    with pytest.raises(HostLostError) as caught:
        plan.lose_host(0, "out of memory")
    error = caught.value
    assert (error.host, error.clients, error.losses) == (0, (5,), 3)
    for part in ("host 0", "step train", "client 5", "3 hosts have died", "out of memory", "inline"):
        assert part in str(error)


def test_where_the_policy_leaves_out_the_call_under_way_counts_as_landed_and_the_next_one_is_sent_again():
    plan = dispatch(chunks_for_any(range(6), 2), hosts=1, on_host_lost="leave out")
    plan.send()
    loss = plan.lose_host(0, "killed")
    assert loss == Loss(again=(Chunk(2, (2, 3)),), left_out=Chunk(0, (0, 1), losses=1))
    assert plan.take() == Chunk(0, (0, 1), losses=1)
    assert plan.send() == [(0, Chunk(2, (2, 3))), (0, Chunk(4, (4, 5)))]


def test_where_the_policy_stops_the_first_loss_does():
    plan = dispatch(chunks_for_any([4], 1), hosts=1, on_host_lost="stop")
    plan.send()
    with pytest.raises(HostLostError, match="1 host has died"):
        plan.lose_host(0, "killed")


def test_a_host_performs_the_first_call_that_it_was_sent():
    plan = dispatch(chunks_for_any(range(3), 1), hosts=1)
    assert plan.under_way(0) is None
    sent = plan.send()
    assert plan.under_way(0) == Chunk(0, (0,))
    plan.receive(*sent[0])
    assert plan.under_way(0) == Chunk(1, (1,))


def test_a_death_between_requests_costs_nothing():
    plan = dispatch([], hosts=1)
    assert plan.lose_host(0, "killed") == Loss()
    assert plan.is_finished


def test_calls_are_few_but_leave_every_host_about_four():
    assert chunk_size(clients=100, hosts=2, bytes_each=200_000) == 12
    assert chunk_size(clients=10, hosts=2, bytes_each=200_000) == 1
    assert chunk_size(clients=10_000, hosts=2, bytes_each=8) == LARGEST_CHUNK


def test_a_call_of_large_replies_carries_fewer_clients():
    assert chunk_size(clients=1000, hosts=2, bytes_each=CHUNK_BYTES // 3) == 3
    assert chunk_size(clients=1000, hosts=2, bytes_each=10 * CHUNK_BYTES) == 1


def test_the_look_ahead_is_bounded_in_calls_and_in_bytes_but_keeps_every_host_busy():
    assert look_ahead(size=5, hosts=2, bytes_each=1000) == 5 * CALLS_AHEAD * 2
    assert look_ahead(size=1, hosts=2, bytes_each=AHEAD_BYTES // 3) == 3
    assert look_ahead(size=1, hosts=4, bytes_each=AHEAD_BYTES) == 4


def duration(costs, hosts):
    """The time at which the last call ends if every client takes its cost, and hosts nothing else."""
    size = chunk_size(len(costs), hosts, 1000)
    plan = dispatch(chunks_for_any(range(len(costs)), size, costs.__getitem__), hosts, look_ahead(size, hosts, 1000))
    queues, free_at, now = {host: [] for host in range(hosts)}, [0.0] * hosts, 0.0
    while not plan.is_finished:
        for host, chunk in plan.send():
            free_at[host] = max(free_at[host], now) + chunk.cost
            queues[host].append((free_at[host], chunk))
        now, host, chunk = min((queue[0][0], host, queue[0][1]) for host, queue in queues.items() if queue)
        queues[host].pop(0)
        plan.receive(host, chunk)
        while plan.take() is not None:
            pass
    return now


@pytest.mark.parametrize("place", [0, 7, 19])
def test_one_client_ten_times_as_large_is_begun_first_wherever_it_stands_in_the_cohort(place):
    """29 units of work: 14.5 each for 2 hosts, whose calls are of 2 clients; 4 hosts wait for the large one alone."""
    costs = [10.0 if k == place else 1.0 for k in range(20)]
    assert duration(costs, hosts=2) == 15
    assert duration(costs, hosts=4) == 10


@given(clients=st.integers(20, 2000), place=st.floats(0, 1, exclude_max=True), hosts=st.integers(2, 8))
def test_a_cohort_with_one_client_ten_times_as_large_ends_near_the_bound(clients, place, hosts):
    """The bound: an equal share for each host, or the longest call. Beyond it, one call of the others at most."""
    costs = [10.0 if k == int(place * clients) else 1.0 for k in range(clients)]
    size = chunk_size(clients, hosts, 1000)
    assert duration(costs, hosts) <= max(sum(costs) / hosts, 9 + size) + size


def test_long_calls_beyond_the_window_go_first_and_take_half_its_room_at_most():
    costs = [1.0] * 12 + [5.0, 6.0, 7.0]
    plan = dispatch(chunks_for_any(range(15), 1, costs.__getitem__), hosts=4, ahead=4)
    assert [(host, chunk.start) for host, chunk in plan.send()] == [(0, 14), (1, 13), (2, 0), (3, 1), (2, 2), (3, 3)]


def test_clients_that_differ_a_little_keep_the_order_of_the_cohort():
    plan = dispatch(chunks_for_any(range(4), 1, [1.0, 1.2, 0.9, 1.4].__getitem__))
    assert [chunk.start for _, chunk in plan.send()] == [0, 1, 2, 3]
