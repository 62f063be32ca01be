"""Which hosts a run gets, decided without a cluster."""

import re
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from actors.distillation.plan import Actors, DistilResources, RemainingRoom, place_all
from actors.hosts.placement import LIBRARY_BYTES, PROCESS_BYTES, Placement, PlacementError, Request, decide
from clusters.nodes import Node, nodes_of

GIB = 2**30
LAPTOP = (Node(cpus=2, gpus=0, memory=16 * GIB),)
CARDS = (Node(cpus=16, gpus=2, memory=128 * GIB),)


def all_start(placement: Placement, request: Request, nodes) -> bool:
    """Whether hosts that are dealt to the nodes in turn all start, and the distillation in what they leave."""
    left = [RemainingRoom.of({"CPU": node.cpus, "GPU": node.gpus}) for node in nodes]
    for _ in range(placement.hosts):
        found = next((node for node in left if node.take(placement.cpus, placement.gpus)), None)
        if found is None:
            return False
        left.remove(found)
        left.append(found)
    return request.pipeline is None or place_all(request.pipeline, left)


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
    assert "would need 26 CPUs" in placement.reason  # a quarter for each of 100, and 1 for the distillation


def test_there_are_as_many_pooled_hosts_as_cpus_and_one_cpu_stays_for_the_distillation():
    nodes = (Node(8, 0, 64 * GIB),)
    placement = decide(Request(clients=100, kind="pooled"), nodes)
    assert (placement.hosts, placement.cpus) == (8, 0.875)


def test_without_a_distillation_hosts_have_all_cpus():
    request = Request(clients=100, kind="pooled", pipeline=None)
    assert (decide(request, LAPTOP).hosts, decide(request, LAPTOP).cpus) == (2, 1.0)
    assert decide(Request(clients=8, pipeline=None), LAPTOP).kind == "dedicated"
    # With one, 8 clients would have (2 - 1) / 8 of a CPU each, less than a quarter.
    assert decide(Request(clients=8), LAPTOP).kind == "pooled"


def test_there_are_no_more_pooled_hosts_than_clients():
    assert decide(Request(clients=3, kind="pooled"), (Node(8, 0, 64 * GIB),)).hosts == 3


def test_on_one_cpu_hosts_reserve_nothing_so_that_the_distillation_can_run():
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
    with pytest.raises(PlacementError, match=r"100 clients .* memory suffices for 81 \(200 MiB each, 15.8 GiB free"):
        decide(Request(clients=100, kind="dedicated"), LAPTOP)
    # Libraries are there once; 81.02 hosts fit beside them.
    assert (16 * GIB - LIBRARY_BYTES) // PROCESS_BYTES == 81
    assert decide(Request(clients=81, kind="dedicated"), LAPTOP).hosts == 81


def test_the_driver_and_all_else_take_memory_from_hosts_where_there_is_one_machine():
    request = Request(clients=9, kind="pooled", bytes_per_host=4 * GIB, bytes_per_node=0, bytes_beside=5 * GIB)
    assert decide(request, (Node(8, 0, 16 * GIB),)).hosts == 2  # 11 GiB are left, of which each takes 4
    assert decide(request, (Node(8, 0, 16 * GIB), Node(8, 0, 16 * GIB))).hosts == 8


def test_a_machine_too_small_for_one_host_is_refused():
    with pytest.raises(
        PlacementError, match=r"1 host does not fit: memory suffices for 0 \(200 MiB each, 0.0 GiB free"
    ):
        decide(Request(clients=3), (Node(4, 0, LIBRARY_BYTES),))


def test_hosts_whose_cpus_do_not_fit_are_refused_with_the_number_and_the_share_that_do():
    with pytest.raises(PlacementError) as caught:
        decide(Request(clients=10, hosts=4, cpus_per_host=2), (Node(8, 0, 64 * GIB),))
    text = (
        "4 hosts do not fit: CPUs suffice for 3 (2 each, 1 kept for the distillation, of 8); 4 would fit with 1.75 each"
    )
    assert str(caught.value) == text
    assert decide(Request(clients=10, hosts=4, cpus_per_host=1.75), (Node(8, 0, 64 * GIB),)).hosts == 4


def test_more_cpus_for_a_host_than_a_node_has_are_refused_with_the_share_that_fits():
    nodes = (Node(4, 0, 64 * GIB), Node(4, 0, 64 * GIB))
    with pytest.raises(PlacementError, match=r"CPUs suffice for 0 .*; 1 would fit with 4 each"):
        decide(Request(clients=10, hosts=1, cpus_per_host=6), nodes)


def test_a_share_of_a_gpu_lies_on_one_card():
    assert decide(Request(clients=4, kind="dedicated", gpus_per_host=0.5), CARDS).gpus == 0.5
    with pytest.raises(PlacementError, match=r"3 hosts .* GPUs suffice for 2 .*; 3 would fit with 0.5 each"):
        decide(Request(clients=9, hosts=3, gpus_per_host=0.6), CARDS)


def test_gpus_that_are_not_there_are_refused():
    with pytest.raises(PlacementError, match=r"GPUs suffice for 0 \(0.1 each, of 0\)"):
        decide(Request(clients=2, kind="pooled", gpus_per_host=0.1), LAPTOP)


ON_CARDS = DistilResources(Actors(gpus=0.25), Actors(gpus=0.25), Actors(cpus=0.5, gpus=0.5))
"""A distillation that takes one whole card."""


def test_the_distillation_keeps_its_card():
    request = Request(clients=9, kind="pooled", gpus_per_host=1.0, pipeline=ON_CARDS)
    assert decide(request, CARDS).hosts == 1
    assert decide(Request(clients=9, kind="pooled", gpus_per_host=0.5, pipeline=ON_CARDS), CARDS).hosts == 2


def test_a_distillation_larger_than_the_cluster_is_refused_with_the_numbers_that_fit():
    with pytest.raises(PlacementError) as caught:
        decide(Request(clients=2, pipeline=DistilResources(samplers=Actors(8), trainers=Actors(cpus=0.5))), LAPTOP)
    assert str(caught.value) == (
        "the distillation asks for 8 samplers of 0.25 CPU, 1 teacher of 0.25 CPU, 1 train worker of 0.5 CPU "
        "(2.75 CPU in all), and 2 CPU is free with no host beside it; 5 samplers, 1 teacher, 1 train worker would fit"
    )


def test_a_distillation_may_lie_on_several_nodes():
    small = (Node(1, 0, 64 * GIB),) * 3
    request = Request(clients=3, kind="pooled", pipeline=DistilResources(trainers=Actors(4, cpus=0.5)))
    placement = decide(request, small)
    # 2.5 of 3 CPUs are the distillation's. Its halves fill whole nodes, so that hosts find an eighth each.
    assert all_start(placement, request, small)
    assert placement.hosts == 3


def test_rests_on_two_nodes_do_not_make_room_for_one_more_host():
    nodes = (Node(3, 0, 64 * GIB), Node(3, 0, 64 * GIB), Node(4, 0, 64 * GIB))
    # One host on each small node, two on the large one; the distillation finds its CPU in what a small one has left.
    assert decide(Request(clients=10, hosts=4, cpus_per_host=2), nodes).hosts == 4
    with pytest.raises(PlacementError, match=r"CPUs suffice for 4 "):
        decide(Request(clients=10, hosts=5, cpus_per_host=2), nodes)


def test_hosts_start_although_ray_does_not_know_what_memory_they_take():
    """In turn the small node gets five hosts of nine, where its memory is for four: at 5/16 of a CPU each they would
    leave it 7/16, and the train worker needs half a CPU beside its card."""
    pipeline = DistilResources(Actors(), Actors(), Actors(cpus=0.5, gpus=0.1))
    nodes = (Node(2, 1, 1 * GIB), Node(2, 0, 2 * GIB))
    request = Request(clients=9, pipeline=pipeline)
    placement = decide(request, nodes)
    assert all_start(placement, request, nodes)
    assert (placement.kind, placement.hosts, placement.cpus) == ("dedicated", 9, 0.3)


@st.composite
def clusters(draw):
    """One to four machines of all sizes, with cards or without."""
    machine = st.builds(Node, st.integers(1, 32), st.integers(0, 4), st.integers(1, 64).map(lambda n: n * GIB))
    return tuple(draw(st.lists(machine, min_size=1, max_size=4)))


@st.composite
def requests(draw):
    """Requests that a run may make, whether they can be met or not."""
    actors = st.builds(Actors, st.integers(1, 6), st.sampled_from([0.25, 0.5, 1.0]), st.sampled_from([0.0, 0.1, 0.5]))
    return Request(
        clients=draw(st.integers(1, 100)),
        kind=draw(st.sampled_from(["auto", "pooled"])),
        hosts=draw(st.none() | st.integers(1, 40)),
        cpus_per_host=draw(st.none() | st.sampled_from([0.3, 1.0, 2.5])),
        gpus_per_host=draw(st.sampled_from([0.0, 0.0, 0.2, 1.0])),
        bytes_per_host=draw(st.sampled_from([PROCESS_BYTES, 3 * GIB])),
        pipeline=draw(st.none() | st.builds(DistilResources, actors, actors, actors)),
    )


@given(request=requests(), nodes=clusters())
def test_whatever_is_granted_starts_and_whatever_is_refused_says_a_number(request, nodes):
    try:
        placement = decide(request, nodes)
    except PlacementError as error:
        placement, said = None, str(error)
    if placement is None:
        assert re.search(r"\d", said)
        return
    assert all_start(placement, request, nodes)
    assert placement.hosts >= 1
    assert request.hosts in (None, placement.hosts)
    assert request.cpus_per_host in (None, placement.cpus)
    assert placement.hosts * request.bytes_per_host <= sum(node.memory for node in nodes)


@given(request=requests(), nodes=clusters())
def test_one_host_more_than_the_number_in_a_refusal_is_refused_too(request, nodes):
    """The number named is the largest that fits, as far as the resource goes that is short."""
    try:
        decide(request, nodes)
    except PlacementError as error:
        found = re.search(r"suffices? for (\d+) ", str(error))
        assume(found is not None)
        assume(int(found[1]) + 1 <= 40)
        with pytest.raises(PlacementError):
            decide(replace(request, kind="pooled", hosts=int(found[1]) + 1), nodes)


def test_machines_are_read_from_rays_listing_and_dead_ones_left_out():
    listing = [
        {"Alive": True, "Resources": {"CPU": 2.0, "memory": 1e9, "node:10.0.0.1": 1.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "memory": 1e12}},
        {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0, "memory": 2e9}},
    ]
    assert nodes_of(listing) == (Node(2.0, 0.0, 10**9), Node(4.0, 1.0, 2 * 10**9))
