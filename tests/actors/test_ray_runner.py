"""Steps on Ray hosts: the same run as inline, whoever carries it out, in whatever order, and whoever dies."""

# ruff: noqa: E402 (where Ray is not installed the file is skipped before it imports what needs Ray)
import os
import re
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ray = pytest.importorskip("ray", reason="Ray is not installed", exc_type=ImportError)

from actors.cohort.delivery import Book, FaultEntry
from actors.distillation.plan import DistilResources
from actors.failures import FailurePolicy
from actors.hosts import fleet as hosts_module
from actors.hosts import ray as runner_module
from actors.hosts.dispatch import HostLostError
from actors.hosts.fleet import Host, HostStartError
from actors.hosts.placement import Placement
from actors.hosts.ray import RayRunner, RepliesInPlace
from actors.runner import InlineRunner, Listener, StepRequest
from actors.steps.folding import Groups
from actors.steps.orders import Outcome, StepError
from algorithms.core.payload import Payload, PayloadError
from algorithms.core.schedules import RateSchedule
from algorithms.core.seeds import Seed
from algorithms.core.training import Work
from clusters.bits import processor
from clusters.processors import machine_here
from tests import bounded
from tests.support import play, tiny_setup, tiny_shards
from tests.toys import place_in_store

CLIENTS = 16
SHARDS = tiny_shards(CLIENTS, images=3000)
NETS = ("mlp", "small_cnn", "resnet8")


def pooled(hosts: int) -> Placement:
    return Placement("pooled", hosts, cpus=0.1, gpus=0, reason="")


def dedicated(clients: int) -> Placement:
    return Placement("dedicated", clients, cpus=0.1, gpus=0, reason="")


def toy(step: str = "walk", clients: int = CLIENTS, **config):
    return tiny_setup("tests.toys:Toy", clients=clients, nets=NETS, step=step, **config)


@pytest.fixture(scope="module")
def two_hosts(ray_cluster):
    """Two hosts for the toy method; which step is asked is up to the server's side."""
    runner = RayRunner(toy(), SHARDS, pooled(2))
    yield runner
    runner.close()


@pytest.fixture
def two_hosts_afresh(two_hosts):
    """The two hosts with clients that remember nothing."""
    two_hosts.restore({})
    return two_hosts


def rows(played):
    return played.state.rows


def message(size: int = 4) -> Payload:
    return Payload.of(weights={"w": torch.zeros(size)}, examples={"id": -1})


def request(step: str, clients=range(CLIENTS), messages=None) -> StepRequest:
    return StepRequest(step, tuple(clients), messages or message(), Seed(3, round=0))


@pytest.mark.parametrize(
    "placement", [pooled(1), pooled(2), pooled(3), dedicated(4)], ids=lambda p: f"{p.kind}{p.hosts}"
)
def test_fedavg_on_ray_is_the_run_that_it_is_inline(ray_cluster, placement):
    setup, shards = tiny_setup("fedavg", clients=4, nets=("small_cnn",)), tiny_shards(4)
    inline = play(setup, InlineRunner(setup, shards), rounds=3)
    runner = RayRunner(setup, shards, placement)
    try:
        remote = play(setup, runner, rounds=3)
    finally:
        runner.close()
    assert remote.digests == inline.digests
    assert remote.book.entries == inline.book.entries
    assert remote.book.metrics == inline.book.metrics


@pytest.mark.parametrize("own", [False, True], ids=["one message for all", "a message for each"])
@pytest.mark.parametrize("step", ["walk", "keep"])
def test_messages_memories_and_random_numbers_are_those_of_an_inline_run(two_hosts_afresh, step, own):
    setup = toy(step, own=own)
    inline = InlineRunner(setup, SHARDS)
    here, there = play(setup, inline, rounds=3), play(setup, two_hosts_afresh, rounds=3)
    assert there.digests == here.digests
    assert there.book.entries == here.book.entries
    memories = two_hosts_afresh.memories()
    assert memories.keys() == inline.memories().keys()
    assert all(memories[c]["calls"] == kept["calls"] for c, kept in inline.memories().items())
    assert all(torch.equal(memories[c]["drift"], kept["drift"]) for c, kept in inline.memories().items())


@pytest.mark.parametrize("step", ["walk", "stumble", "send_living"])
def test_means_are_those_of_an_inline_run_and_whole_groups_travel_as_sums(ray_cluster, step, monkeypatch):
    """40 clients in five groups, in one of which client 2 raises and is left out: then seven updates travel."""
    setup, shards, policy = toy(step, 40, means=True), tiny_shards(40), FailurePolicy(on_client_error="leave out")
    took, take = [], Groups.take

    def watched(self, place, outcome):
        took.append(outcome)
        return take(self, place, outcome)

    inline = play(setup, shards=shards, rounds=3, policy=policy)
    monkeypatch.setattr(Groups, "take", watched)
    runner = RayRunner(setup, shards, pooled(1))
    try:
        remote = play(setup, runner, rounds=3, policy=policy)
    finally:
        runner.close()
    assert remote.digests == inline.digests
    assert remote.book.entries == inline.book.entries
    assert remote.book.metrics == inline.book.metrics
    updates = sum(outcome is not None and outcome.payload is not None for outcome in took)
    assert updates == (3 * 7 if step == "stumble" else 0)


def test_adam_under_a_schedule_on_smoothed_labels_is_the_run_that_it_is_inline(ray_cluster):
    schedule = RateSchedule("cosine", rounds=3, warmup=1)
    work = Work(3, None, batch=8, lr=0.01, optimiser="adam", schedule=schedule, label_smoothing=0.1)
    setup, shards = tiny_setup("fedprox", clients=4, nets=("small_cnn",), work=work), tiny_shards(4)
    runner = RayRunner(setup, shards, pooled(2))
    try:
        remote = play(setup, runner, rounds=3)
    finally:
        runner.close()
    assert remote.digests == play(setup, InlineRunner(setup, shards), rounds=3).digests


@pytest.mark.parametrize("hosts", [1, 3])
def test_a_cohort_of_several_groups_has_one_mean_for_every_number_of_hosts(ray_cluster, hosts):
    setup, shards = tiny_setup("scaffold", clients=27), tiny_shards(27)
    inline = play(setup, InlineRunner(setup, shards))
    runner = RayRunner(setup, shards, pooled(hosts))
    try:
        remote = play(setup, runner)
    finally:
        runner.close()
    assert remote.digests == inline.digests
    assert remote.book.entries == inline.book.entries


def test_only_the_clients_asked_are_asked(two_hosts_afresh):
    cohort = {0: [1, 5, 9], 1: [5, 2]}.__getitem__
    inline = play(toy(), shards=SHARDS, rounds=2, cohort=cohort)
    assert play(toy(), two_hosts_afresh, rounds=2, cohort=cohort).digests == inline.digests
    assert sorted(two_hosts_afresh.memories()) == [1, 2, 5, 9]


@ray.remote(num_cpus=0)
class Gate:
    """Writes down who begins, and lets a held client go on only when another one has begun."""

    def __init__(self, held):
        import asyncio

        self.held, self.order = held, []
        self.begun = {other: asyncio.Event() for other in held.values()}

    async def begin(self, client):
        self.order.append(client)
        if client in self.begun:
            self.begun[client].set()
        if client in self.held:
            await self.begun[self.held[client]].wait()

    async def seen(self):
        return self.order


def test_updates_that_finish_in_another_order_give_the_same_run(two_hosts_afresh):
    open_gate = Gate.options(name="gate").remote({})
    inline = play(toy("wait_for_others"), shards=SHARDS, rounds=1)
    assert ray.get(open_gate.seen.remote()) == list(range(CLIENTS))
    ray.kill(open_gate)

    gate = Gate.options(name="gate").remote({0: CLIENTS - 1})
    remote = play(toy("wait_for_others"), two_hosts_afresh, rounds=1)
    order = ray.get(gate.seen.remote())
    ray.kill(gate)
    assert order.index(CLIENTS - 1) < order.index(1)  # client 1 follows client 0 in the same call
    assert [row[0] for row in rows(remote)] == list(range(CLIENTS))
    assert remote.digest == inline.digest


def test_pooled_hosts_are_processes_of_their_own_with_one_thread_each(two_hosts_afresh):
    seen = rows(play(toy("pid"), two_hosts_afresh, rounds=1))
    pids = {pid for _, pid, _ in seen}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert {threads for _, _, threads in seen} == {1}


def test_dedicated_clients_stay_with_their_hosts(ray_cluster):
    runner = RayRunner(toy("pid", clients=3), SHARDS, dedicated(3))
    try:
        first, second = (rows(play(toy("pid", clients=3), runner, rounds=1)) for _ in range(2))
    finally:
        runner.close()
    assert len({pid for _, pid, _ in first}) == 3
    assert first == second


def test_clients_of_one_run_may_have_different_networks(two_hosts_afresh):
    setup = toy("peek")
    inline = play(setup, shards=SHARDS, rounds=1)
    assert rows(play(setup, two_hosts_afresh, rounds=1)) == rows(inline)
    assert len({parameters for _, parameters in rows(inline)}) == len(NETS)


def test_hosts_view_the_data_in_the_object_store_without_a_copy(two_hosts_afresh):
    places = {place for _, place in rows(play(toy("look_at_data"), two_hosts_afresh, rounds=1))}
    assert len(places) == 1
    assert min(places) >= 0


def test_what_all_clients_receive_is_put_into_the_object_store_once(two_hosts_afresh, monkeypatch):
    puts, put = [], ray.put
    monkeypatch.setattr(runner_module.ray, "put", lambda value: puts.append(value) or put(value))
    odd, even = message(), message()
    list(two_hosts_afresh.run(request("walk")))
    assert len(puts) == 1
    list(two_hosts_afresh.run(request("walk", messages={c: (even, odd)[c % 2] for c in range(CLIENTS)})))
    assert len(puts) == 3


def test_work_starts_when_it_is_asked_for_and_runs_ahead_only_so_far(two_hosts_afresh, monkeypatch):
    calls, perform = [], two_hosts_afresh.fleet.perform
    monkeypatch.setattr(
        two_hosts_afresh.fleet,
        "perform",
        lambda host, call, parcels: calls.append(call) or perform(host, call, parcels),
    )
    monkeypatch.setattr(runner_module, "look_ahead", lambda size, hosts, bytes_each: 3 * size)
    outcomes = two_hosts_afresh.run(request("walk"))
    assert [call.clients for call in calls] == [(0, 1), (2, 3), (4, 5)]  # 16 clients on 2 hosts: 2 a call
    for taken, outcome in enumerate(outcomes):
        assert outcome.client == taken
        assert sum(len(call.clients) for call in calls) <= 2 * (taken // 2) + 2 + 6
    assert [c for call in calls for c in call.clients] == list(range(CLIENTS))


def test_a_memory_lies_in_the_object_store_and_outcomes_come_without_it(two_hosts_afresh):
    outcomes = list(two_hosts_afresh.run(request("walk")))
    assert all(isinstance(outcome, Outcome) and outcome.memory is None for outcome in outcomes)
    assert all(isinstance(ref, ray.ObjectRef) for ref in two_hosts_afresh.memory_refs.values())


def test_memories_of_numbers_alone_stay_with_the_driver_and_take_no_object_of_the_store(two_hosts_afresh, monkeypatch):
    calls, perform = [], two_hosts_afresh.fleet.perform
    monkeypatch.setattr(
        two_hosts_afresh.fleet,
        "perform",
        lambda host, call, parcels: calls.append(call) or perform(host, call, parcels),
    )
    for count in (1, 2):
        calls.clear()
        list(two_hosts_afresh.run(request("ripen")))
        assert all(memory["calls"] == count for memory in two_hosts_afresh.memories().values())
    assert not any(isinstance(ref, ray.ObjectRef) for ref in two_hosts_afresh.memory_refs.values())
    assert all(not call.parts and sorted(call.memories) == sorted(call.clients) for call in calls)
    monkeypatch.undo()
    inline = InlineRunner(toy("ripen"), SHARDS)
    for _ in range(4):
        list(inline.run(request("ripen")))
    for count in (3, 4):  # the driver had expected numbers again, and learns
        list(two_hosts_afresh.run(request("ripen")))
        assert all(float(memory["drift"]) == count for memory in two_hosts_afresh.memories().values())
        assert all(isinstance(ref, ray.ObjectRef) for ref in two_hosts_afresh.memory_refs.values())
    assert not two_hosts_afresh.is_lean("ripen")
    there = two_hosts_afresh.memories()
    assert {c: m["calls"] for c, m in there.items()} == {c: m["calls"] for c, m in inline.memories().items()}


def test_a_memory_changes_when_its_outcome_is_taken_and_not_before(two_hosts_afresh):
    outcomes = two_hosts_afresh.run(request("walk"))
    next(outcomes)
    assert sorted(two_hosts_afresh.memories()) == [0]


def test_memories_are_restored(two_hosts_afresh):
    inline = InlineRunner(toy(), SHARDS)
    list(inline.run(request("walk")))
    two_hosts_afresh.restore(inline.memories())
    here, there = list(inline.run(request("walk"))), list(two_hosts_afresh.run(request("walk")))
    assert [o.payload.number("examples", "calls") for o in there] == [2] * CLIENTS
    assert [o.metrics for o in there] == [o.metrics for o in here]


def test_what_the_server_keeps_of_an_update_is_its_own(two_hosts_afresh):
    kept = next(two_hosts_afresh.run(request("walk", messages=message(100_000)))).payload.tensors("weights")["w"]
    assert place_in_store(kept) == -1


LARGE = 600_000
"""Entries of 4 bytes: 2.4 MB."""


def test_large_updates_that_are_dropped_one_after_another_are_read_where_they_lie(two_hosts_afresh):
    places = [
        place_in_store(outcome.payload.tensors("weights")["w"])
        for outcome in two_hosts_afresh.run(request("walk", messages=message(LARGE)))
    ]
    assert len(places) == CLIENTS
    assert -1 not in places


def test_of_large_updates_that_are_kept_only_so_many_stay_in_the_object_store(two_hosts_afresh, monkeypatch):
    """With room for one reply of 2.4 MB a client, where each client is asked by itself."""
    inline = InlineRunner(toy(), SHARDS)
    monkeypatch.setattr(two_hosts_afresh, "replies", RepliesInPlace(limit=5 * LARGE))
    kept = [
        next(two_hosts_afresh.run(request("walk", [client], message(LARGE)))).payload.tensors("weights")["w"]
        for client in range(4)
    ]
    assert [place_in_store(w) != -1 for w in kept] == [True, False, False, False]
    right = [o.payload.tensors("weights")["w"] for o in inline.run(request("walk", range(4), message(LARGE)))]
    assert all(map(torch.equal, kept, right))
    del kept, right
    again = next(two_hosts_afresh.run(request("walk", [4], message(LARGE))))
    assert place_in_store(again.payload.tensors("weights")["w"]) != -1


def test_an_exception_in_a_step_says_who_what_when_and_where(two_hosts_afresh):
    with pytest.raises(StepError) as caught:
        play(toy("stumble"), two_hosts_afresh, rounds=1)
    text = str(caught.value)
    for part in (
        "ArithmeticError: two is one too many",
        "tests.toys:Toy",
        "step stumble",
        "client 2",
        "round 0",
        "seed 3",
    ):
        assert part in text
    assert 'raise ArithmeticError("two is one too many")' in text
    assert "toys.py" in text


def test_a_failure_carries_the_order_that_led_to_it(two_hosts_afresh):
    list(two_hosts_afresh.run(request("walk")))
    (failure,) = two_hosts_afresh.run(request("stumble", clients=[2]))
    assert failure.order is not None
    assert (failure.order.step, failure.order.client, failure.order.memory["calls"]) == ("stumble", 2, 1)
    assert torch.equal(failure.order.received.tensors("weights")["w"], torch.zeros(4))


def test_after_a_failure_the_hosts_go_on(two_hosts_afresh):
    kinds = Counter(type(outcome).__name__ for outcome in two_hosts_afresh.run(request("stumble")))
    assert kinds == {"Failure": 1, "Outcome": CLIENTS - 1}
    two_hosts_afresh.restore({})
    assert play(toy(), two_hosts_afresh, rounds=1).digest == play(toy(), shards=SHARDS, rounds=1).digest


def ended(setup, runner, policy):
    """The end of two rounds: digests, or the error's first line; and what the book says of faults."""
    book = Book()
    try:
        played = play(setup, runner, rounds=2, policy=policy, book=book)
    except StepError as error:
        return str(error).splitlines()[0], book.faults
    return played.digests, book.faults


@pytest.mark.parametrize("action", ["retry", "leave out", "stop"])
@pytest.mark.parametrize(
    ("step", "fault", "words"),
    [
        ("stumble", "client_error", "two is one too many"),
        ("diverge", "bad_update", "weights.w holds NaN"),
        ("misshape", "bad_update", "of shape (8,), but float32 of shape (4,)"),
        ("rename", "bad_update", "weights.w was received, but does not come back; weights.v comes back, but"),
    ],
)
def test_what_goes_wrong_in_a_step_comes_to_the_same_on_ray_as_inline(two_hosts_afresh, step, fault, words, action):
    policy = FailurePolicy(**{f"on_{fault}": action}, max_retries=2)
    end, faults = ended(toy(step), two_hosts_afresh, policy)
    assert (end, faults) == ended(toy(step), InlineRunner(toy(step), SHARDS), policy)
    if action == "leave out":
        assert faults == [FaultEntry(number, step, 2, fault, "leave out") for number in (0, 1)]
    else:
        assert faults == (2 * [FaultEntry(0, step, 2, fault, "retry")] if action == "retry" else [])
        assert words in end


def test_a_step_that_raises_once_and_is_tried_again_has_the_same_bits_on_ray(ray_cluster, tmp_path):
    setup, policy = toy("stumble_once", file=str(tmp_path / "mark")), FailurePolicy(on_client_error="retry")
    runner = RayRunner(setup, SHARDS, pooled(2), policy=policy)
    try:
        remote = play(setup, runner, rounds=3, policy=policy)
    finally:
        runner.close()
    assert remote.digests == play(setup, shards=SHARDS, rounds=3).digests  # the mark is there: nobody stumbles
    assert remote.book.faults == [FaultEntry(1, "stumble_once", 2, "client_error", "retry")]


@pytest.mark.parametrize(("step", "what"), [("scribble", "received weights.w"), ("scribble_memory", "memory.drift")])
def test_a_step_that_writes_into_what_it_was_given_fails(two_hosts_afresh, step, what):
    list(two_hosts_afresh.run(request("walk")))
    with pytest.raises(StepError, match=f"wrote into what it was given .{what}"):
        play(toy(step), two_hosts_afresh, rounds=1)


def test_a_step_without_the_mark_is_refused_by_name(two_hosts_afresh):
    with pytest.raises(PayloadError, match=r"Toy.whisper is not marked @client_side"):
        play(toy("whisper"), two_hosts_afresh, rounds=1)
    with pytest.raises(PayloadError, match=r"Toy.whisper is not marked @client_side"):
        next(two_hosts_afresh.run(request("whisper")))


def test_a_kind_that_is_not_declared_is_refused(two_hosts_afresh):
    with pytest.raises(PayloadError, match=r"sends logits up .client 0., which the method does not declare"):
        play(toy("send_logits"), two_hosts_afresh, rounds=1)


def test_asking_nobody_gives_nothing(two_hosts_afresh):
    assert list(two_hosts_afresh.run(request("walk", clients=[]))) == []


def test_hosts_tell_their_largest_memory(two_hosts_afresh):
    peaks = two_hosts_afresh.peak_rss_mb()
    assert list(peaks) == ["host 0", "host 1"]
    assert all(50 < peak < 5000 for peak in peaks.values())


def test_hosts_on_the_drivers_own_machine_add_no_processor(two_hosts_afresh):
    two_hosts_afresh.peak_rss_mb()
    assert two_hosts_afresh.processors() == {}
    two_hosts_afresh.fleet._here = "another machine"
    assert two_hosts_afresh.processors() == {machine_here(): processor()}


@pytest.mark.parametrize("placement", [pooled(2), dedicated(4)], ids=lambda p: p.kind)
def test_a_host_killed_in_the_middle_of_a_step_changes_nothing(ray_cluster, tmp_path, placement, caplog):
    mark = tmp_path / "killed"
    setup, shards = toy("die_once", clients=4, file=str(mark)), tiny_shards(4)
    runner = RayRunner(setup, shards, placement)
    try:
        remote = play(setup, runner, rounds=3)
    finally:
        runner.close()
    assert mark.exists()
    told = re.search(
        r"round 2, step die_once: host \d was lost; clients sent again: (1, )?3; left out: none", caplog.text
    )
    assert told
    # Ray may not have sent the answer of the client before; then the fault stands on that one.
    assert remote.book.faults == [FaultEntry(1, "die_once", 1 if told[1] else 3, "host_lost", "retry")]
    assert remote.digests == play(setup, shards=shards, rounds=3).digests  # the mark is there: nobody dies inline


@pytest.mark.skipif(bool(bounded.why_not()), reason=bounded.why_not())
def test_a_host_that_the_kernel_kills_when_memory_runs_out_changes_nothing(ray_cluster):
    shards = tiny_shards(4)
    with bounded.bounded() as group:
        setup = toy("fill_once", clients=4, file=str(group.folder))
        runner = RayRunner(setup, shards, pooled(2))
        try:
            remote = play(setup, runner, rounds=2)
        finally:
            runner.close()
        assert group.killed() == 1
        inline = play(setup, shards=shards, rounds=2)  # one was killed: nobody enters the group inline
    # Ray may not have sent the answer of the client before; then the fault stands on that one.
    assert remote.book.faults in [[FaultEntry(0, "fill_once", client, "host_lost", "retry")] for client in (1, 3)]
    assert remote.digests == inline.digests


def test_others_do_the_work_of_a_host_that_finds_no_room_to_start_again(ray_cluster, tmp_path, monkeypatch):
    setup, shards = toy("die_once", clients=4, file=str(tmp_path / "killed")), tiny_shards(4)
    runner = RayRunner(setup, shards, pooled(2))
    try:
        while len(runner.peak_rss_mb()) < 2:  # until both have started, or the test's time is over
            pass
        runner.fleet.placement = replace(runner.fleet.placement, cpus=1000)
        monkeypatch.setattr(hosts_module, "START_SECONDS", 0.0)
        monkeypatch.setattr(hosts_module, "SECONDS_PER_START", 0.0)
        monkeypatch.setattr(runner_module, "LOOK_SECONDS", 0.1)
        remote = play(setup, runner, rounds=3)
        assert len(runner.fleet.absent()) == 1
        assert len(runner.peak_rss_mb()) == 1  # who is away is not waited for
    finally:
        runner.close()
    assert remote.digests == play(setup, shards=shards, rounds=3).digests


def test_a_client_that_kills_every_host_stops_the_run_and_is_named(ray_cluster):
    runner = RayRunner(toy("die_always"), SHARDS, pooled(2), policy=FailurePolicy(max_retries=1))
    try:
        with pytest.raises(HostLostError) as caught:
            play(toy("die_always"), runner, rounds=1)
    finally:
        runner.close()
    assert caught.value.clients == (3,)
    assert "SIGKILL" in str(caught.value) or "died" in caught.value.reason


def test_a_client_whose_host_was_lost_may_be_left_out_of_the_round(ray_cluster):
    policy = FailurePolicy(on_host_lost="leave out")
    setup, shards = toy("die_always", clients=4), tiny_shards(4)
    runner = RayRunner(setup, shards, dedicated(4), policy=policy)
    try:
        remote = play(setup, runner, rounds=2, policy=policy)
    finally:
        runner.close()
    without = play(setup, shards=shards, rounds=2, cohort=lambda number: [0, 1, 2])
    assert remote.digests == without.digests
    assert remote.book.faults == [FaultEntry(n, "die_always", 3, "host_lost", "leave out") for n in (0, 1)]


@pytest.mark.parametrize(("step", "grace"), [("hang_once", 600.0), ("stop_once", 0.0)])
def test_a_host_that_never_answers_is_lost_at_the_deadline_and_its_step_done_elsewhere(
    ray_cluster, tmp_path, monkeypatch, step, grace
):
    """One that waits for ever ends itself, with its stacks in Ray's log; one that was stopped is ended from here."""
    monkeypatch.setattr(runner_module, "GRACE_SECONDS", grace)
    monkeypatch.setattr(runner_module, "LOOK_SECONDS", 0.2)
    setup, shards = toy(step, clients=4, file=str(tmp_path / "mark")), tiny_shards(4)
    runner = RayRunner(setup, shards, pooled(2), policy=FailurePolicy(deadline=5.0))
    try:
        remote = play(setup, runner, rounds=2)
    finally:
        runner.close()
    # Ray may not have sent the answer of client 1, before it on this host, when the process was stopped.
    clients = (3,) if step == "hang_once" else (1, 3)
    assert remote.book.faults in [[FaultEntry(0, step, client, "host_lost", "retry")] for client in clients]
    assert remote.digests == play(setup, shards=shards, rounds=2).digests
    stacks = [path.read_text() for path in Path(ray_cluster_logs()).glob("worker-*.err")]
    assert any("Timeout (0:00:05)!" in text and "in hang_once" in text for text in stacks) or step == "stop_once"


def test_a_host_that_was_stopped_after_its_work_does_not_hold_up_the_end_of_the_run(ray_cluster, monkeypatch):
    runner = RayRunner(toy("pid", clients=2), SHARDS, pooled(1))
    try:
        pids = {int(pid) for _, pid, _ in rows(play(toy("pid", clients=2), runner, rounds=1))}
        os.kill(pids.pop(), signal.SIGSTOP)
        monkeypatch.setattr(hosts_module, "ANSWER_SECONDS", 0.5)
        assert runner.peak_rss_mb() == {}
    finally:
        runner.close()


def ray_cluster_logs():
    return Path(ray._private.worker.global_worker.node.get_session_dir_path()) / "logs"


def test_a_host_that_cannot_start_is_an_error_with_the_reason(ray_cluster):
    runner = RayRunner(replace(toy(), method="tests.toys:Nobody"), SHARDS, pooled(1))
    try:
        with pytest.raises(HostStartError, match=r"'Nobody' in tests.toys is not a class derived from"):
            next(runner.run(request("walk")))
    finally:
        runner.close()


def test_hosts_that_the_cluster_has_no_room_for_are_an_error_and_not_a_wait(ray_cluster, monkeypatch):
    monkeypatch.setattr(hosts_module, "START_SECONDS", 0.0)
    monkeypatch.setattr(hosts_module, "SECONDS_PER_START", 0.0)
    monkeypatch.setattr(runner_module, "LOOK_SECONDS", 0.1)
    runner = RayRunner(toy(), SHARDS, Placement("pooled", 2, cpus=1000, gpus=0, reason=""))
    try:
        with pytest.raises(HostStartError, match=r"2 of 2 hosts have not started .* each wants 1000 CPU"):
            next(runner.run(request("walk")))
    finally:
        runner.close()


@pytest.mark.parametrize(("device", "gpus", "kept"), [("cuda", 0.25, [0.25]), ("cuda", 1.0, []), ("cpu", 0.25, [])])
def test_a_host_keeps_to_its_share_of_a_gpu(monkeypatch, device, gpus, kept):
    fractions = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    Host(replace(toy(), device=device), SHARDS, gpus)
    assert fractions == kept


def test_a_runner_may_be_closed_twice(ray_cluster):
    runner = RayRunner(toy(), SHARDS, pooled(1))
    runner.close()
    runner.close()
    assert runner.peak_rss_mb() == {}


def test_a_distillation_goes_to_the_cluster_with_its_resources_and_a_place_for_checkpoints(ray_cluster, monkeypatch):
    asked, resources, listener = [], DistilResources(retries=5), Listener()

    def on_cluster(job, resources, storage, listener):
        asked.append((job, resources, storage, storage.is_dir(), listener))
        return {"w": torch.ones(1)}

    monkeypatch.setattr("actors.distillation.job.distil_on_ray", on_cluster)
    runner = RayRunner(toy(), SHARDS, pooled(1), distillation=resources)
    try:
        assert runner.distil("a job", listener) == {"w": torch.ones(1)}
        assert runner.distil("a job", listener, Path("checkpoints")) == {"w": torch.ones(1)}
    finally:
        runner.close()
    (_, _, temporary, _, _), _ = asked
    assert asked == [
        ("a job", resources, temporary, True, listener),
        ("a job", resources, Path("checkpoints"), False, listener),
    ]
    assert not temporary.exists()
