"""Which hosts a run gets, decided without a cluster."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.placement import PROCESS_BYTES, Placement, PlacementError, Request, decide
from clusters.nodes import Node, nodes_of

GIB = 2**30
LAPTOP = (Node(cpus=2, gpus=0, memory=16 * GIB),)
CARDS = (Node(cpus=16, gpus=2, memory=128 * GIB),)


def fits(placement: Placement, request: Request, nodes) -> bool:
    """Whether the hosts start and the pipeline finds its CPUs on one node beside them, on a cluster of one node."""
    (node,) = nodes
    held = placement.hosts * placement.cpus
    return held + min(request.pipeline_cpus, node.cpus) <= node.cpus + 1e-9


def test_clients_get_a_host_each_where_there_is_room():
    placement = decide(Request(clients=4), LAPTOP)
    assert (placement.kind, placement.hosts, placement.cpus) == ("dedicated", 4, 0.25)
    assert "one host for each of 4 clients" in placement.reason


def test_without_the_memory_hosts_are_pooled_and_the_reason_says_what_dedicated_would_need():
    placement = decide(Request(clients=4, bytes_per_host=6 * GIB), LAPTOP)
    assert (placement.kind, placement.hosts) == ("pooled", 2)
    assert "24.0 GiB" in placement.reason
    assert "room for 2" in placement.reason


def test_without_the_cpus_hosts_are_pooled_and_the_reason_says_what_dedicated_would_need():
    placement = decide(Request(clients=100, bytes_per_host=2**20), LAPTOP)
    assert (placement.kind, placement.hosts, placement.cpus) == ("pooled", 2, 0.5)
    assert "would need 26 CPUs" in placement.reason  # a quarter for each of 100, and 1 for the pipeline


def test_there_are_as_many_pooled_hosts_as_cpus_and_one_cpu_stays_for_the_pipeline():
    nodes = (Node(8, 0, 64 * GIB),)
    placement = decide(Request(clients=100, kind="pooled"), nodes)
    assert (placement.hosts, placement.cpus) == (8, 0.875)


def test_there_are_no_more_pooled_hosts_than_clients():
    assert decide(Request(clients=3, kind="pooled"), (Node(8, 0, 64 * GIB),)).hosts == 3


def test_on_one_cpu_hosts_reserve_nothing_so_that_the_pipeline_can_run():
    placement = decide(Request(clients=5, kind="pooled"), (Node(1, 0, 4 * GIB),))
    assert (placement.hosts, placement.cpus) == (1, 0.0)


def test_a_number_of_hosts_means_pooled():
    placement = decide(Request(clients=10, hosts=3), LAPTOP)
    assert (placement.kind, placement.hosts) == ("pooled", 3)


def test_more_hosts_than_cpus_are_allowed_and_said():
    placement = decide(Request(clients=10, kind="pooled", hosts=5), LAPTOP)
    assert (placement.hosts, placement.cpus) == (5, 0.2)
    assert "more hosts than the 2 CPUs" in placement.reason


def test_dedicated_placement_does_not_take_a_number_of_hosts():
    with pytest.raises(PlacementError, match="hosts = 3 with placement dedicated"):
        decide(Request(clients=10, kind="dedicated", hosts=3), LAPTOP)


def test_dedicated_clients_that_memory_does_not_hold_are_refused_with_the_number_that_fits():
    with pytest.raises(PlacementError, match=r"100 clients .* memory suffice\w* for 81"):
        decide(Request(clients=100, kind="dedicated"), LAPTOP)
    assert 16 * GIB // PROCESS_BYTES == 81


def test_hosts_whose_cpus_do_not_fit_are_refused_with_the_number_that_does():
    with pytest.raises(PlacementError, match=r"4 hosts .* CPUs suffice\w* for 3 .*1 kept for the pipeline"):
        decide(Request(clients=10, hosts=4, cpus_per_host=2), (Node(8, 0, 64 * GIB),))


def test_a_share_of_a_gpu_lies_on_one_card():
    assert decide(Request(clients=4, kind="dedicated", gpus_per_host=0.5), CARDS).gpus == 0.5
    with pytest.raises(PlacementError, match=r"3 hosts .* GPUs suffice\w* for 2"):
        decide(Request(clients=9, hosts=3, gpus_per_host=0.6), CARDS)


def test_gpus_that_are_not_there_are_refused():
    with pytest.raises(PlacementError, match="GPUs"):
        decide(Request(clients=2, kind="pooled", gpus_per_host=0.1), LAPTOP)


def test_the_pipeline_keeps_its_gpu():
    request = Request(clients=9, kind="pooled", gpus_per_host=1.0, pipeline_gpus=1.0)
    assert decide(request, CARDS).hosts == 1


def test_a_pipeline_larger_than_the_cluster_is_refused():
    with pytest.raises(PlacementError, match="needs 4 CPUs and 0 GPUs; there are 2 and 0"):
        decide(Request(clients=2, pipeline_cpus=4), LAPTOP)


def test_rests_on_two_nodes_do_not_make_room_for_one_more_host():
    nodes = (Node(3, 0, 64 * GIB), Node(3, 0, 64 * GIB), Node(4, 0, 64 * GIB))
    with pytest.raises(PlacementError, match=r"CPUs suffice\w* for 3 "):
        decide(Request(clients=10, hosts=4, cpus_per_host=2), nodes)


@given(clients=st.integers(1, 300), hosts=st.none() | st.integers(1, 40), cpus=st.integers(1, 64))
def test_every_plan_leaves_the_pipeline_its_room(clients, hosts, cpus):
    nodes = (Node(cpus, 0, 1024 * GIB),)
    request = Request(clients=clients, hosts=hosts)
    placement = decide(request, nodes)
    assert fits(placement, request, nodes)
    assert placement.hosts >= 1
    assert hosts is None or placement.hosts == hosts


def test_machines_are_read_from_rays_listing_and_dead_ones_left_out():
    listing = [
        {"Alive": True, "Resources": {"CPU": 2.0, "memory": 1e9, "node:10.0.0.1": 1.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "memory": 1e12}},
        {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0, "memory": 2e9}},
    ]
    assert nodes_of(listing) == (Node(2.0, 0.0, 10**9), Node(4.0, 1.0, 2 * 10**9))
