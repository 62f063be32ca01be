"""One step for one client: what it may depend on, and what it may not do."""

import os
import platform
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from actors.runner import InlineRunner, StepRequest
from actors.steps.orders import Failure, Order, Outcome, find_method
from actors.steps.shards import ShardArrays
from actors.steps.worker import Worker
from algorithms.core.payload import Payload, PayloadError
from algorithms.core.seeds import Seed
from algorithms.methods.fedavg import FedAvg
from tests.support import tiny_setup, tiny_shards
from tests.toys import Toy

SETUP = tiny_setup("tests.toys:Toy", clients=4)
ZEROS = Payload.of(weights={"w": torch.zeros(4)}, examples={"id": -1})


@pytest.fixture
def worker():
    return Worker(SETUP, tiny_shards(4))


def order(step="walk", client=0, round=0, received=ZEROS, memory=None) -> Order:
    return Order(step, client, Seed(3, round, step, client), received, memory or {})


def sent(outcome: Outcome | Failure) -> list[float]:
    assert isinstance(outcome, Outcome), outcome
    return outcome.payload.tensors("weights")["w"].tolist()


def test_the_same_order_gives_the_same_bits_whatever_was_done_before(worker):
    first = sent(worker.perform(order()))
    worker.perform(order(client=1))
    torch.rand(7)
    assert sent(worker.perform(order())) == first
    assert sent(Worker(SETUP, tiny_shards(4)).perform(order())) == first


def test_an_outcome_says_when_and_where_its_step_was_performed(worker):
    first, second = (worker.perform(order(client=client)).span for client in (0, 1))
    assert first.start <= first.end <= second.start
    assert first.host == second.host == f"{platform.node()} {os.getpid()}"


def test_another_client_or_round_draws_other_numbers(worker):
    drawn = [sent(worker.perform(order(client=c, round=r))) for c in range(2) for r in range(2)]
    assert len({tuple(numbers) for numbers in drawn}) == 4


def test_torchs_global_generator_is_left_as_it_was(worker):
    before = torch.get_rng_state()
    worker.perform(order())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_computes_with_one_thread_and_the_number_is_put_back(worker):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        outcome = worker.perform(order("pid"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert outcome.payload.number("examples", "threads") == 1


def test_an_exception_comes_back_with_its_traceback_and_order(worker):
    given = order("stumble", client=2)
    failure = worker.perform(given)
    assert isinstance(failure, Failure)
    assert (failure.client, failure.step, failure.seed, failure.order) == (2, "stumble", given.seed, given)
    assert failure.error == "ArithmeticError: two is one too many"
    assert "toys.py" in failure.traceback


def test_a_step_without_the_mark_is_refused_by_name(worker):
    with pytest.raises(PayloadError, match=r"tests.toys:Toy.whisper is not marked @client_side"):
        worker.perform(order("whisper"))


@pytest.mark.parametrize(("step", "what"), [("scribble", "received weights.w"), ("scribble_memory", "memory.drift")])
def test_a_step_may_not_write_into_the_tensors_it_is_given(worker, step, what):
    failure = worker.perform(order(step, memory={"calls": 1, "drift": torch.zeros(())}))
    assert isinstance(failure, Failure)
    assert f"wrote into what it was given ({what})" in failure.error


def test_a_step_may_not_change_the_memory_it_is_given(worker, monkeypatch):
    def forget(method, client):
        client.memory["calls"] = 0

    monkeypatch.setitem(worker._steps, "walk", forget)
    assert "TypeError" in worker.perform(order(memory={"calls": 1})).error


def test_what_an_inline_step_returns_is_no_longer_its_networks(monkeypatch):
    kept = torch.zeros(4)
    runner = InlineRunner(SETUP, tiny_shards(4))

    def lend(method, client):
        reply = Toy.walk(method, client)
        return replace(reply, payload=Payload.of(weights={"w": kept.add_(1)}), memory={"m": kept})

    monkeypatch.setitem(runner._crew._worker._steps, "walk", lend)
    outcomes = list(runner.run(StepRequest("walk", (0, 1), ZEROS, Seed(3, 0))))
    assert [sent(o)[0] for o in outcomes] == [1, 2]
    assert [m["m"][0] for m in runner.memories().values()] == [1, 2]


def test_a_method_is_found_by_its_file_or_as_a_class_of_ones_own():
    assert find_method("fedavg") is FedAvg
    assert find_method("tests.toys:Toy") is Toy
    with pytest.raises(LookupError, match=r"no method named 'fedagv'; there are .*fedavg"):
        find_method("fedagv")
    with pytest.raises(LookupError, match=r"'Trace' in tests.toys is not a class derived from"):
        find_method("tests.toys:Trace")


def test_shards_are_rows_of_shared_arrays_even_where_these_are_read_only():
    images = np.arange(5 * 4, dtype=np.uint8).reshape(5, 1, 2, 2)
    labels = np.array([0, 1, 0, 1, 2])
    shards = ShardArrays.of(
        {"image": images, "label": labels}, [np.array([4, 0]), np.array([], dtype=np.int64), np.array([3])]
    )
    for array in (shards.columns["image"], shards.columns["label"], shards.rows):
        array.flags.writeable = False
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            held = [shards(client) for client in range(len(shards))]
    finally:
        torch.set_warn_always(False)
    assert [shard.rows.tolist() for shard in held] == [[4, 0], [], [3]]
    assert held[0].own_labels.tolist() == [2, 0]
    assert {shard.columns["image"].data_ptr() for shard in held} == {images.ctypes.data}
    assert shards.nbytes == 20 + 40 + 24 + 24


def test_in_this_process_an_outcome_is_copied_once(monkeypatch):
    """When it is packed: what is unpacked lies where it was packed."""
    from actors import runner

    packed = []

    def pack_and_note(outcome):
        packed.append(pack_outcome(outcome))
        return packed[-1]

    pack_outcome = runner.pack_outcome
    monkeypatch.setattr(runner, "pack_outcome", pack_and_note)
    (outcome,) = InlineRunner(SETUP, tiny_shards(4)).run(StepRequest("walk", (0,), ZEROS, Seed(3, round=0)))
    first = outcome.payload.tensors("weights")["w"]
    assert first.data_ptr() == packed[0][0].payload.buffers[0].ctypes.data
