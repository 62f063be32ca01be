"""What every method must do. Methods are found by file: a new one is tested here without a line being written."""

from __future__ import annotations

import dataclasses
import typing
from collections import Counter
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from actors.runner import InlineRunner, StepRequest
from actors.steps.orders import WorkerSetup, find_method, method_names
from actors.steps.shards import ShardArrays
from actors.steps.worker import one_thread
from algorithms.core.records import digest, flatten
from algorithms.core.schedules import RateSchedule
from algorithms.core.scoring import score
from algorithms.core.seeds import Seed
from algorithms.core.settings import out_of_range
from algorithms.core.training import Work, fit, training_loss
from algorithms.tasks.images import ImageTask
from engine.models.description import same_entries
from tests.algorithms.support_methods import (
    BackwardsRunner,
    DroppingRunner,
    Federation,
    Sizes,
    Travel,
    WatchfulRunner,
    as_fedavg,
    by_class,
    client_of,
    lone_example,
)
from tests.algorithms.test_ties import built
from tests.support import needs_of, play, tiny_setup, tiny_shards

SMALLEST: dict[str, dict[str, typing.Any]] = {
    "mosaic": {
        "generator": "pca",
        "warmup": 2,
        "meta_feedforward": 32,
        "meta_steps": 4,
        "meta_images": 24,
        "distil_steps": 4,
        "distil_batch": 32,
    },
}
"""Settings with which a method's whole course fits into three rounds of small work; none where the defaults do.

A method's own test file, `test_NAME.py`, may give them as its `SMALLEST`, and those for the digits as its `ON_DIGITS`.
"""


def given(constant: str) -> dict[str, typing.Any]:
    """Values that the methods' own test files have under a name."""
    paths = {name: f"tests.algorithms.test_{name}" for name in method_names()}
    files = {name: import_module(path) for name, path in paths.items() if find_spec(path)}
    return {name: getattr(file, constant) for name, file in files.items() if hasattr(file, constant)}


SMALLEST |= given("SMALLEST")

ROUNDS = 3

IMAGE_METHODS = [name for name in method_names() if "adapters" not in find_method(name).task_traits]
"""The others are in `test_every_adapter_method.py`."""

METHODS = pytest.mark.parametrize("name", IMAGE_METHODS)


def setup_of(name: str, net: str = "small_cnn", **changes: typing.Any) -> WorkerSetup:
    """The method with its smallest settings on the tiny task, over a network with batch normalisation."""
    return tiny_setup(name, nets=(net,), **{**SMALLEST.get(name, {}), **changes})


@cache
def played(name: str) -> str:
    """The digest of the method's plain run."""
    return play(setup_of(name), rounds=ROUNDS).digest


# --- One run, one digest ------------------------------------------------------------------------------------------


@METHODS
def test_two_runs_of_one_seed_have_one_digest_and_another_seed_has_another(name):
    assert play(setup_of(name), rounds=ROUNDS).digest == played(name)
    assert play(dataclasses.replace(setup_of(name), seed=4), rounds=ROUNDS).digest != played(name)


@METHODS
def test_the_order_in_which_clients_finish_changes_nothing(name):
    setup = setup_of(name)
    assert play(setup, BackwardsRunner(setup, tiny_shards()), rounds=ROUNDS).digest == played(name)


@METHODS
@pytest.mark.parametrize("saved_after", [1, 2])
def test_a_run_that_is_saved_and_loaded_goes_on_as_if_nothing_had_happened(name, saved_after):
    setup = setup_of(name)
    first = Federation.inline(setup, tiny_shards(), ROUNDS)
    for number in range(saved_after):
        first.play(number)
    second = first.reloaded(BackwardsRunner(setup, tiny_shards()))
    for number in range(saved_after, ROUNDS):
        second.play(number)
    assert digest(second.state) == played(name)


@METHODS
@pytest.mark.slow
def test_a_run_on_ray_hosts_is_the_run_in_this_process(name, ray_cluster):
    from actors.hosts.placement import Placement
    from actors.hosts.ray import RayRunner

    setup = setup_of(name)
    runner = RayRunner(setup, tiny_shards(), Placement("pooled", 2, cpus=0.1, gpus=0, reason=""))
    try:
        remote = play(setup, runner, rounds=ROUNDS)
    finally:
        runner.close()
    assert remote.digest == played(name)
    assert remote.book.entries == play(setup, rounds=ROUNDS).book.entries


@METHODS
def test_a_network_without_a_last_linear_layer_is_served_or_refused_before_the_start(name):
    setup = setup_of(name, "tests.algorithms.test_nets:noisy")
    reasons = needs_of(setup).refusals
    if reasons:
        assert all("in one; let it end in an nn.Linear" in reason for reason in reasons)
    else:
        play(setup, rounds=ROUNDS)


@METHODS
def test_what_it_predicts_with_is_a_network_by_name_which_can_be_made_again(name):
    setup = setup_of(name)
    runner = InlineRunner(setup, tiny_shards())
    run = play(setup, runner, rounds=ROUNDS)
    if not run.method.personal:
        assert {run.method.kit.name_of(run.method.predictor(state)) for state in run.states} == {("small_cnn", 1.0)}
        return
    request = StepRequest("give_own", (0,), run.method.own_message(run.states[-1]), Seed(setup.seed))
    (given,) = runner.run(request)
    assert same_entries(setup.task.network("small_cnn"), given.payload.tensors("model"))


# --- Local work ---------------------------------------------------------------------------------------------------


@METHODS
def test_clients_train_by_adam_under_a_schedule_or_the_method_says_why_not(name):
    schedule = RateSchedule("cosine", rounds=ROUNDS, warmup=1)
    work = Work(steps=3, epochs=None, batch=8, lr=0.01, optimiser="adam", schedule=schedule)
    setup = dataclasses.replace(setup_of(name), work=work)
    refusals = list(needs_of(setup).refusals)
    if refusals:
        assert [reason for reason in refusals if reason.endswith("the clients' optimiser is adam")] == refusals
    else:
        assert play(setup, rounds=ROUNDS).digest != played(name)


@METHODS
def test_all_training_of_clients_is_on_labels_smoothed_as_they_ask(name, monkeypatch):
    """Whatever a method makes of the task's loss while clients train, it has it from `training_loss`."""
    setup, counts, training = setup_of(name), Counter(), []
    own, through = type(setup.task).loss, training_loss

    def counted(task, outputs, targets):
        counts["in all"] += len(training)
        return own(task, outputs, targets)

    def smoothed(task, work):
        def loss(outputs, targets):
            counts["smoothed"] += len(training)
            return through(task, work)(outputs, targets)

        return loss

    def watched(*args, **settings):
        training.append(True)
        try:
            return fit(*args, **settings)
        finally:
            training.pop()

    monkeypatch.setattr(type(setup.task), "loss", counted)
    for module in ("training", "kit"):
        monkeypatch.setattr(f"algorithms.core.{module}.training_loss", smoothed)
    play(setup, InlineRunner(setup, tiny_shards(), watched), rounds=ROUNDS)
    assert counts["smoothed"] == counts["in all"] > 0


TIES = "tests.algorithms.test_ties"
"""Has a network whose matrix is registered under two names, `tied`, and the same with the matrix once, `untied`."""


@METHODS
@pytest.mark.parametrize("frozen", ["", "_frozen"])
def test_a_matrix_under_two_names_is_trained_like_one_that_is_used_twice(name, frozen):
    has_norm = any(field.name == "norm" for field in dataclasses.fields(find_method(name).Config))
    settings = {"norm": 0.0} if has_norm else {}  # neither has batch normalisation
    tied, untied = f"{TIES}:tied{frozen}", f"{TIES}:untied{frozen}"
    under_two, once = (play(setup_of(name, net, **settings), rounds=ROUNDS) for net in (tied, untied))
    found, expected = flatten(under_two.state)[0], flatten(once.state)[0]
    assert found.keys() == {path.replace(untied, tied) for path in expected}
    for path, value in expected.items():
        assert torch.allclose(found[path.replace(untied, tied)], value, rtol=1e-4, atol=1e-6), path
    start = built(f"tied{frozen}").state_dict()
    trained, kept = (
        [torch.equal(value, start[entry]) for path, value in found.items() if path.endswith(f"/{entry}")]
        for entry in ("body.first.weight", "body.inside.weight")
    )
    assert not any(trained)
    if "weights" in needs_of(setup_of(name)).up:  # else the server has no such matrix
        assert trained
        assert all(kept) == bool(frozen)


# --- What travels -------------------------------------------------------------------------------------------------


@METHODS
def test_the_ledger_says_the_bytes_that_travelled_and_no_byte_more(name):
    setup = setup_of(name)
    runner = WatchfulRunner(setup, tiny_shards())
    written: Counter[tuple[str, int, str]] = Counter()
    for entry in play(setup, runner, rounds=ROUNDS).book.entries:
        written[entry.phase, entry.client, entry.direction] += entry.bytes
    assert {key: count for key, count in written.items() if count} == {k: c for k, c in runner.bytes.items() if c}


@METHODS
def test_what_is_sent_is_what_was_declared(name):
    setup = setup_of(name)
    needs = needs_of(setup)
    assert all(needs.kinds.values()), "each kind has a sentence on what it tells"
    entries = play(setup, rounds=ROUNDS).book.entries
    assert {e.kind for e in entries if e.direction == "up"} == needs.up.keys()
    assert {e.kind for e in entries if e.direction == "down"} == needs.down.keys()


GUESSED = {"mosaic": ("up", "statistics")}
"""Kinds whose size depends on how a client's examples form groups, of which their numbers tell no more than how many
fit."""


@METHODS
@pytest.mark.parametrize("net", ["small_cnn", "mlp"])
def test_the_bytes_that_are_planned_are_those_that_travel(name, net):
    """In the last round, when methods of several phases have come to their last; or once in the run."""
    if needs_of(setup_of(name, net)).refusals:
        pytest.skip(f"{name} refuses {net}")
    setup, shards = setup_of(name, net), tiny_shards()
    entries = play(setup, rounds=ROUNDS).book.entries
    held = [shards(client.id).label_counts(setup.task.classes) for client in setup.clients]
    needs, found, planned = setup.needs(torch.stack(held)), {}, {}
    for direction, kinds in (("up", needs.up), ("down", needs.down)):
        for kind, sent in kinds.items():
            if sent.bytes is not None:
                rounds = range(ROUNDS) if sent.once else [ROUNDS - 1]
                planned[direction, kind] = sent.bytes * len(setup.clients)
                found[direction, kind] = sum(
                    e.bytes for e in entries if (e.direction, e.kind) == (direction, kind) and e.round in rounds
                )
    assert planned.keys() & {("up", "weights"), ("up", "adapters")}
    guess = found.pop(GUESSED.get(name), None), planned.pop(GUESSED.get(name), None)
    assert guess[0] == pytest.approx(guess[1], rel=0.1)
    assert found == planned


@METHODS
def test_the_stages_that_are_shown_have_captions(name):
    setup, shown = setup_of(name), set()
    federation = Federation.inline(setup, tiny_shards(), ROUNDS)
    federation.method.kit.show = lambda stage, predictor: shown.add(stage)
    federation.play_all()
    captions = {stage.name: stage for stage in needs_of(setup).stages}
    assert shown <= captions.keys()
    assert {stage.against for stage in captions.values()} <= {"", *captions}


TRAVELS: dict[str, typing.Callable[[Sizes], Travel]] = given("travels")
"""Formulas of the specifications: those that the methods' own test files give as `travels`, else FedAvg's."""


@METHODS
def test_the_bytes_of_a_client_are_those_of_the_specifications_formula(name):
    expected = TRAVELS.get(name, as_fedavg)(Sizes(ROUNDS))
    sent: Counter[tuple[str, str]] = Counter()
    for entry in play(setup_of(name), rounds=ROUNDS).book.entries:
        if entry.client == 0:
            sent[entry.direction, entry.kind] += entry.bytes
    assert sent.keys() == expected.keys()
    assert {key: sent[key] for key, count in expected.items() if count is not None} == {
        key: count for key, count in expected.items() if count is not None
    }


WEIGHTED = [name for name in IMAGE_METHODS if hasattr(find_method(name).Config(), "weights")]


@pytest.mark.parametrize("weights", ["examples", "uniform"])
@pytest.mark.parametrize("name", WEIGHTED)
def test_a_client_says_how_many_examples_it_has_only_where_its_share_depends_on_it(name, weights):
    setup = setup_of(name, weights=weights)
    declared = needs_of(setup).up
    sent = {entry.kind for entry in play(setup, rounds=1).book.entries if entry.direction == "up"}
    assert ("examples" in declared, "examples" in sent) == (weights == "examples",) * 2


@METHODS
def test_nobody_writes_into_what_was_sent_received_or_remembered(name):
    setup = setup_of(name)
    runner = WatchfulRunner(setup, tiny_shards())
    play(setup, runner, rounds=ROUNDS)
    assert runner.changed() == []


# --- Clients that are missing or hold little ----------------------------------------------------------------------


@METHODS
def test_a_round_without_clients_leaves_the_predictions_as_they_were(name):
    federation = Federation.inline(setup_of(name), tiny_shards(), ROUNDS + 1)
    for number in range(ROUNDS):
        federation.play(number)
    before = predictions(federation)
    federation.play(ROUNDS, asked=[])
    assert torch.equal(predictions(federation), before)


@METHODS
@pytest.mark.parametrize("dropped", [{0: [0]}, {1: [1, 4]}, {0: [2, 3], 1: [3, 5]}, {ROUNDS - 1: range(6)}])
def test_dropped_clients_are_done_without(name, dropped):
    setup = setup_of(name)
    federation = Federation(setup, DroppingRunner(setup, tiny_shards(), dropped), ROUNDS).play_all()
    assert torch.isfinite(predictions(federation)).all()


@METHODS
@pytest.mark.parametrize("shards", [by_class, lone_example])
def test_clients_of_one_class_or_one_example_take_part(name, shards):
    federation = Federation.inline(setup_of(name), shards(), ROUNDS).play_all()
    assert torch.isfinite(predictions(federation)).all()


@METHODS
def test_clients_that_are_asked_now_and_then_take_part(name):
    federation = Federation.inline(setup_of(name), tiny_shards(), ROUNDS)
    for number, asked in enumerate([(0, 1), (4, 5), (1, 5)]):
        federation.play(number, asked)
    assert torch.isfinite(predictions(federation)).all()


MIXTURES = {
    "four networks": (("mlp", "small_cnn", "cnn2", "resnet8"), (1.0,)),
    "features of one size": (("small_cnn", "cnn2"), (1.0,)),
    "two widths": (("small_cnn",), (1.0, 0.5)),
    "widths of a residual network": (("resnet8",), (0.25, 1.0, 0.5)),
    "networks and widths": (("resnet8", "small_cnn"), (1.0, 1.0, 0.5)),
}
"""Networks and widths, each dealt to the clients in turn."""


@METHODS
@pytest.mark.parametrize("mixture", MIXTURES)
def test_different_networks_are_served_or_refused_with_a_reason(name, mixture):
    nets, widths = MIXTURES[mixture]
    setup = tiny_setup(name, nets=nets, **SMALLEST.get(name, {}))
    clients = tuple(dataclasses.replace(c, width=widths[c.id % len(widths)]) for c in setup.clients)
    setup = dataclasses.replace(setup, clients=clients)
    if len(nets) > 1:
        setup = dataclasses.replace(setup, config=needs_of(setup).for_mixture or setup.config)
    reasons = needs_of(setup).refusals
    if reasons:
        words = [*(f"{w:g}" for w in widths if w < 1), *(nets if len(nets) > 1 else ())]
        assert any(word in " ".join(reasons) for word in words)
    else:
        federation = Federation.inline(setup, tiny_shards(), ROUNDS).play_all()
        assert torch.isfinite(predictions(federation)).all()


@METHODS
def test_equal_networks_are_refused_by_nobody(name):
    setup = setup_of(name)
    assert needs_of(setup).refusals == ()


# --- Settings -----------------------------------------------------------------------------------------------------


FIELDS = [(name, field) for name in method_names() for field in dataclasses.fields(find_method(name).Config)]


@pytest.mark.parametrize(("name", "field"), FIELDS, ids=[f"{name}.{field.name}" for name, field in FIELDS])
def test_every_setting_says_what_it_means_and_refuses_what_is_out_of_range(name, field):
    assert field.metadata["sentence"]
    assert out_of_range(field, field.default) is None
    hint = typing.get_type_hints(find_method(name).Config)[field.name]
    numeric = hint in (int, float) or {int, float} & set(typing.get_args(hint))
    given = (lambda value: (value,)) if typing.get_origin(hint) is tuple else (lambda value: value)
    bounds = field.metadata["bounds"]
    assert bounds or not numeric, f"{field.name} is a number without a range"
    for bound, limit in bounds.items():
        wrong = {"ge": limit - 1, "gt": limit, "le": limit + 1, "lt": limit}[bound]
        for value in (wrong, float("nan")):
            with pytest.raises(ValueError, match=rf"\b{field.name} = "):
                find_method(name).Config(**{**SMALLEST.get(name, {}), field.name: given(value)})


@METHODS
def test_a_method_names_its_paper_and_its_state(name):
    method = find_method(name)
    assert any(digit in method.paper for digit in "0123456789")
    assert dataclasses.is_dataclass(method.State)
    assert type(Federation.inline(setup_of(name), tiny_shards()).state) is method.State


# --- It learns ----------------------------------------------------------------------------------------------------


@cache
def digits() -> tuple[ImageTask, np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 digits of 8x8 pixels, in an order of our own."""
    raw = load_digits()
    order = np.random.default_rng(0).permutation(len(raw.target))
    images = (raw.images[order, None] * 15).astype(np.uint8)
    task = ImageTask(tuple("0123456789"), (1, 8, 8), mean=(0.29,), std=(0.35,))
    return task, images, raw.target[order].astype(np.int64)


LEARNT = 0.8
"""Accuracy on 497 unseen digits that every method reaches; guessing reaches 0.1."""


@METHODS
def test_it_learns_the_digits(name):
    task, images, labels = digits()
    config = {**SMALLEST.get(name, {}), **ON_DIGITS.get(name, {})}
    setup = dataclasses.replace(
        tiny_setup(name, clients=4, nets=("small_cnn",), **config),
        task=task,
        work=Work(steps=25, epochs=None, batch=32, lr=0.1),
    )
    shards = ShardArrays.of(
        {"image": images, "label": labels}, [np.arange(k, 1300, 4) for k in range(4)] + [np.arange(1300, 1797)]
    )
    federation = Federation.inline(setup, shards, rounds=6).play_all()
    assert accuracy(federation, shards, test=4) > LEARNT


ON_DIGITS: dict[str, dict[str, typing.Any]] = {
    "mosaic": {"meta_steps": 40, "meta_images": 400, "distil_steps": 40},
}
"""Settings of a method for the digits, in addition to its smallest ones."""
ON_DIGITS |= given("ON_DIGITS")


def accuracy(federation: Federation, shards: ShardArrays, test: int) -> float:
    """Accuracy of the method's predictor, or the mean of the clients' own, on the examples of shard `test`."""
    kit = federation.method.kit
    with one_thread():
        if not federation.method.personal:
            predictor = federation.method.predictor(federation.state)
            return kit.task.report(score(predictor, kit.task, shards(test), kit.device))["accuracy"]
        return float(np.mean([reply.metrics["accuracy"] for reply in own_scores(federation, shards, test)]))


def own_scores(federation, shards, test):
    """Replies of `evaluate_own`, client by client."""
    message = federation.method.own_message(federation.state)
    memories = federation.runner.memories()
    for client in federation.setup.clients:
        asked = client_of(
            federation.setup, shards, client.id, message, memories.get(client.id), step="evaluate_own", test=test
        )
        yield federation.method.evaluate_own(asked)


def predictions(federation: Federation) -> torch.Tensor:
    """Logits of the method's predictor on twelve images; of every client's own, for a personal method."""
    method, task = federation.method, federation.setup.task
    inputs, _ = task.batch(tiny_shards(1)(0), torch.arange(12))
    with one_thread(), torch.no_grad():
        if not method.personal:
            return method.predictor(federation.state)(inputs)
        message, memories = method.own_message(federation.state), federation.runner.memories()
        clients = [
            client_of(federation.setup, tiny_shards(), spec.id, message, memories.get(spec.id))
            for spec in federation.setup.clients
        ]
        return torch.stack([method.own_predictor(client)(inputs) for client in clients])


@METHODS
def test_every_phase_of_the_server_is_told_step_by_step_to_its_end(name):
    told: list[tuple[str, int, int]] = []
    setup = setup_of(name)
    play(setup, rounds=ROUNDS, tell=lambda phase, done, steps: told.append((phase, done, steps)))
    under_way: dict[str, int] = {}
    for phase, done, steps in told:
        assert done == under_way.pop(phase, 0) + 1, f"{phase}: step {done}"
        if done < steps:
            under_way[phase] = done
    assert under_way == {}, "phases that were not told to their end"
    assert told or not find_method(name).budgets, "nothing is told of what takes long"
