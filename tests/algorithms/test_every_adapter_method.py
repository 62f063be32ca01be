"""What every method on adapters of a language model must do. Methods are found by file: a new one is tested here
without a line being written, and so are those that average whatever state a network has."""

from __future__ import annotations

import dataclasses
import typing
from collections import Counter
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch

from actors.runner import InlineRunner
from actors.steps.orders import WorkerSetup, find_method, method_names
from actors.steps.worker import one_thread
from algorithms.core.records import digest
from algorithms.core.scoring import score
from algorithms.core.training import Work
from algorithms.nets.language_models import load_base
from tests.algorithms.support_language import base, language_setup, language_shards
from tests.algorithms.support_methods import BackwardsRunner, DroppingRunner, Federation, WatchfulRunner, client_of
from tests.support import needs_of, play

ROUNDS = 3

OF_ADAPTERS = [name for name in method_names() if "adapters" in find_method(name).task_traits]

OF_ANY_STATE = ["fedavg", "fedprox", "scaffold", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "feddyn", "fednova"]

METHODS = pytest.mark.parametrize("name", OF_ADAPTERS + OF_ANY_STATE)


def given(constant: str) -> dict[str, dict[str, typing.Any]]:
    """Values that the methods' own test files have under a name."""
    paths = {name: f"tests.algorithms.test_{name}" for name in OF_ADAPTERS}
    files = {name: import_module(path) for name, path in paths.items() if find_spec(path)}
    return {name: getattr(file, constant) for name, file in files.items() if hasattr(file, constant)}


SMALLEST = given("SMALLEST")
"""Settings with which a method's whole course fits into three rounds of small work; none where the defaults do."""


def setup_of(name: str, **changes: typing.Any) -> WorkerSetup:
    """The method with its smallest settings on the rows of `support_language`."""
    return language_setup(name, **{**SMALLEST.get(name, {}), **changes})


@cache
def played(name: str) -> str:
    """The digest of the method's plain run."""
    return play(setup_of(name), rounds=ROUNDS, shards=language_shards()).digest


@METHODS
def test_two_runs_of_one_seed_have_one_digest_and_another_seed_has_another(name):
    assert play(setup_of(name), rounds=ROUNDS, shards=language_shards()).digest == played(name)
    other = dataclasses.replace(setup_of(name), seed=4)
    assert play(other, rounds=ROUNDS, shards=language_shards()).digest != played(name)


@METHODS
def test_the_order_in_which_clients_finish_changes_nothing(name):
    setup = setup_of(name)
    assert play(setup, BackwardsRunner(setup, language_shards()), rounds=ROUNDS).digest == played(name)


@METHODS
def test_a_run_that_is_saved_and_loaded_goes_on_as_if_nothing_had_happened(name):
    setup = setup_of(name)
    first = Federation.inline(setup, language_shards(), ROUNDS)
    first.play(0)
    second = first.reloaded(BackwardsRunner(setup, language_shards()))
    for number in range(1, ROUNDS):
        second.play(number)
    assert digest(second.state) == played(name)


@METHODS
@pytest.mark.slow
def test_a_run_on_ray_hosts_is_the_run_in_this_process(name, ray_cluster):
    from actors.hosts.placement import Placement
    from actors.hosts.ray import RayRunner

    setup = setup_of(name)
    runner = RayRunner(setup, language_shards(), Placement("pooled", 2, cpus=0.1, gpus=0, reason=""))
    try:
        remote = play(setup, runner, rounds=ROUNDS)
    finally:
        runner.close()
    assert remote.digest == played(name)


@METHODS
def test_the_ledger_says_the_bytes_that_travelled_and_no_byte_more(name):
    setup = setup_of(name)
    runner = WatchfulRunner(setup, language_shards())
    written: Counter[tuple[str, int, str]] = Counter()
    for entry in play(setup, runner, rounds=ROUNDS).book.entries:
        written[entry.phase, entry.client, entry.direction] += entry.bytes
    assert {key: count for key, count in written.items() if count} == {k: c for k, c in runner.bytes.items() if c}


@METHODS
def test_what_is_sent_is_what_was_declared_and_nothing_of_the_frozen_model(name):
    setup = setup_of(name)
    needs = needs_of(setup)
    assert all(needs.kinds.values()), "each kind has a sentence on what it tells"
    assert "weights" not in {*needs.up, *needs.down}
    entries = play(setup, rounds=ROUNDS, shards=language_shards()).book.entries
    assert {e.kind for e in entries if e.direction == "up"} == needs.up.keys()
    assert {e.kind for e in entries if e.direction == "down"} == needs.down.keys()


@METHODS
def test_nobody_writes_into_what_was_sent_received_or_remembered(name):
    setup = setup_of(name)
    runner = WatchfulRunner(setup, language_shards())
    play(setup, runner, rounds=ROUNDS)
    assert runner.changed() == []


@METHODS
def test_the_frozen_model_stays_as_it_was(name):
    before = weights_of_base()
    play(setup_of(name), rounds=ROUNDS, shards=language_shards())
    after = weights_of_base()
    assert all(torch.equal(before[key], after[key]) for key in before)


def weights_of_base() -> dict[str, torch.Tensor]:
    model, _ = load_base(base().removeprefix("hf:"), torch.float32, torch.device("cpu"))
    return {key: value.clone() for key, value in model.state_dict().items()}


@METHODS
@pytest.mark.parametrize("dropped", [{0: [0]}, {1: [1, 4]}, {ROUNDS - 1: range(6)}])
def test_dropped_clients_are_done_without(name, dropped):
    setup = setup_of(name)
    federation = Federation(setup, DroppingRunner(setup, language_shards(), dropped), ROUNDS).play_all()
    assert torch.isfinite(predictions(federation)).all()


@METHODS
def test_clients_that_are_asked_now_and_then_take_part(name):
    federation = Federation.inline(setup_of(name), language_shards(), ROUNDS)
    for number, asked in enumerate([(0, 1), (4, 5), (1, 5)]):
        federation.play(number, asked)
    assert torch.isfinite(predictions(federation)).all()


@METHODS
def test_different_ranks_are_served_or_refused_with_a_reason(name):
    setup = language_setup(name, widths=(1.0, 0.5), **SMALLEST.get(name, {}))
    reasons = needs_of(setup).refusals
    if reasons:
        assert "0.5" in " ".join(reasons)
    else:
        federation = Federation.inline(setup, language_shards(), ROUNDS).play_all()
        assert torch.isfinite(predictions(federation)).all()


@METHODS
def test_it_learns_to_answer(name):
    """A model of random weights says every token alike, 512 of them; adapters alone bring it below."""
    setup = dataclasses.replace(
        setup_of(name), work=Work(steps=12, epochs=None, batch=8, lr=LEARNING_RATES.get(name, 0.5))
    )
    federation = Federation.inline(setup, language_shards(), 5)
    before = perplexity(federation)
    federation.play_all()
    assert perplexity(federation) < 0.75 * before


LEARNING_RATES: dict[str, float] = {}
"""Of methods for which half is too much."""
LEARNING_RATES |= {name: float(rate) for name, rate in given("LEARNING_RATE").items()}  # type: ignore[arg-type]


def perplexity(federation: Federation) -> float:
    """Perplexity of the method's predictor, or the mean of the clients' own, on the examples of all."""
    task, method = federation.setup.task, federation.method
    everything = language_shards(1)(0)
    with one_thread():
        if not method.personal:
            sums = score(method.predictor(federation.state), task, everything, torch.device("cpu"))
            return task.report(sums)["perplexity"]
        message, memories = method.own_message(federation.state), federation.runner.memories()
        found = []
        for client in federation.setup.clients:
            asked = client_of(federation.setup, language_shards(), client.id, message, memories.get(client.id))
            sums = score(method.own_predictor(asked), task, asked.shard, torch.device("cpu"))
            found.append(task.report(sums)["perplexity"])
        return sum(found) / len(found)


def predictions(federation: Federation) -> torch.Tensor:
    """Logits of the method's predictor for four examples; of every client's own, for a personal method."""
    method, task = federation.method, federation.setup.task
    inputs, _ = task.batch(language_shards(1)(0), torch.arange(4))
    with one_thread(), torch.no_grad():
        if not method.personal:
            return method.predictor(federation.state)(inputs)
        message, memories = method.own_message(federation.state), federation.runner.memories()
        clients = [
            client_of(federation.setup, language_shards(), spec.id, message, memories.get(spec.id))
            for spec in federation.setup.clients
        ]
        return torch.stack([method.own_predictor(client)(inputs) for client in clients])


def test_the_bytes_of_adapters_are_those_of_the_formula():
    """4 r (d_in + d_out) for queries (64 x 64) and values (32 x 64) of two layers, each way and client."""
    entries = play(setup_of("fedit"), InlineRunner(setup_of("fedit"), language_shards()), rounds=1).book.entries
    expected = 4 * 4 * 2 * ((64 + 64) + (64 + 32))
    assert {e.bytes for e in entries if e.kind == "adapters"} == {expected}
