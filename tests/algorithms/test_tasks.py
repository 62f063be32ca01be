"""What every task must do, and that methods serve all of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.runner import InlineRunner
from actors.steps.orders import find_method
from actors.steps.shards import ShardArrays
from actors.steps.worker import one_thread
from algorithms.core import batches
from algorithms.core.scoring import score
from algorithms.core.task import add
from algorithms.core.training import Work
from engine.data.task import find_task, task_names
from tests.algorithms.support_methods import Federation, client_of
from tests.algorithms.support_tasks import (
    CASES,
    WITH_CLASSES,
    GroupedRunner,
    category,
    classes,
    image,
    number,
    signal,
    text,
)
from tests.support import needs_of, play

TASKS = pytest.mark.parametrize("name", CASES)
CPU = torch.device("cpu")

# --- Columns become examples --------------------------------------------------------------------------------------


def test_every_task_has_a_case_here():
    """Instructions, whose networks stand on a language model, have a file of their own."""
    assert set(CASES) | {"instructions"} == set(task_names())


@TASKS
def test_a_network_takes_the_batches_and_answers_as_the_task_expects(name):
    task, shard = CASES[name].prepared.task, CASES[name].shards(0)
    inputs, targets = task.batch(shard, torch.tensor([0, 2, 1]))
    probe = task.form.probe(3)
    shapes = [{k: (v.shape, v.dtype) for k, v in one.items()} if isinstance(one, dict) else (one.shape, one.dtype)
              for one in (inputs, probe)]  # fmt: skip
    assert shapes[0] == shapes[1]
    outputs = task.network(CASES[name].net)(inputs)
    assert outputs.shape[-1] == task.outputs
    losses = task.losses(outputs, targets)
    assert losses.shape == (3,)
    assert task.loss(outputs, targets).shape == ()


@TASKS
def test_a_batch_holds_the_examples_that_were_picked(name):
    task, shard = CASES[name].prepared.task, CASES[name].shards(1)
    whole = ShardArrays.whole(CASES[name].prepared.train)
    together, targets = task.batch(shard, torch.tensor([3, 0]))
    for place, pick in enumerate((3, 0)):
        alone, target = task.batch(whole, shard.rows[[pick]])
        same = list(batches.split(together, [1, 1]))[place]
        pairs = [(alone[k], same[k]) for k in alone] if isinstance(alone, dict) else [(alone, same)]
        assert all(torch.equal(a, b) for a, b in pairs)
        assert torch.equal(target, targets[place : place + 1])


@TASKS
def test_test_rows_change_nothing_of_the_task(name):
    case = CASES[name]
    kind = find_task(name)
    train = case.columns(24, 1)
    twice = [kind.prepare(train, case.columns(10, seed), case.roles, kind.Settings(**case.settings)) for seed in (5, 6)]
    assert twice[0].task == twice[1].task


# --- Which task it is ---------------------------------------------------------------------------------------------


def fitting(columns, roles=None):
    return [name for name in task_names() if find_task(name).fits(columns, roles or {})]


ONE = {
    "photo": image(np.zeros((1, 1, 2, 2))),
    "sound": signal(np.zeros((1, 1, 4))),
    "words": text("so"),
    "age": number(3),
    "town": category("Bern"),
    "label": classes(0),
    "target": number(1),
}
"""A row with a column of every content."""

KINDS = {
    ("photo", "label"): "images",
    ("photo", "age", "town", "label"): "images",
    ("sound", "label"): "signals",
    ("words", "label"): "texts",
    ("words", "age", "label"): "texts",
    ("words",): "language",
    ("words", "town"): "language",
    ("age", "town", "label"): "tables",
    ("age", "target", "label"): "tables",
    ("age", "town", "target"): "regression",
    ("photo", "sound", "label"): "modalities",
    ("photo", "words", "age", "label"): "modalities",
}


@pytest.mark.parametrize("names", KINDS, ids=" ".join)
def test_the_columns_say_which_task_it_is(names):
    assert fitting({name: ONE[name] for name in names}) == [KINDS[names]]


ROLES = [
    ({"target": ("age",)}, ("age", "town", "label"), "regression"),
    ({"label": ("town",)}, ("age", "town"), "tables"),
    ({"label": ("town",)}, ("words", "town"), "texts"),
    ({"ignore": ("photo",)}, ("photo", "words", "label"), "texts"),
    ({"ignore": ("label",)}, ("words", "label"), "language"),
    ({"image": ("photo",)}, ("photo", "sound", "label"), "images"),
    ({"photo": ("photo",), "table": ("age", "town")}, ("photo", "age", "town", "label"), "modalities"),
    ({"label": ("town",), "target": ("age",)}, ("age", "town"), None),
]


@pytest.mark.parametrize(("roles", "names", "task"), ROLES, ids=[f"{roles}" for roles, *_ in ROLES])
def test_roles_that_are_given_decide(roles, names, task):
    assert fitting({name: ONE[name] for name in names}, roles) == ([task] if task else [])


@given(st.sets(st.sampled_from(sorted(ONE))))
def test_never_two_tasks_fit(names):
    assert len(fitting({name: ONE[name] for name in names})) <= 1


# --- Sums add up --------------------------------------------------------------------------------------------------


@TASKS
@given(cut=st.integers(1, 7), seed=st.integers(0, 100))
@settings(max_examples=15)
def test_sums_of_two_sets_add_up_to_those_of_both(name, cut, seed):
    task = CASES[name].prepared.task
    _, targets = task.batch(CASES[name].shards(0), torch.arange(8))
    shape = (*targets.shape, task.outputs)
    outputs = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    whole = task.sums(outputs, targets)
    parts = add(task.sums(outputs[:cut], targets[:cut]), task.sums(outputs[cut:], targets[cut:]))
    assert whole.keys() == parts.keys()
    for key, value in whole.items():
        assert value.dtype in (torch.int64, torch.float64)
        torch.testing.assert_close(parts[key], value, rtol=1e-6, atol=1e-6)
    assert task.report(add({}, whole)) == task.report(whole)


@TASKS
def test_figures_are_those_that_were_announced_and_nan_without_examples(name):
    task = CASES[name].prepared.task
    net = task.network(CASES[name].net)
    figures = task.report(score(net, task, ShardArrays.whole(CASES[name].prepared.test), CPU))
    assert list(figures) == [figure.name for figure in task.figures]
    assert np.isfinite(list(figures.values())).all()
    assert np.isnan(list(task.report({}).values())).all()


def test_macro_f1_is_the_mean_over_the_classes_that_have_examples():
    task = CASES["images"].prepared.task
    right = torch.tensor([0, 0, 0, 1])
    said = torch.tensor([0, 0, 1, 1])
    figures = task.report(task.sums(torch.eye(2)[said], right))
    # Class 0: 2 right, none too many, 1 missed: 2*2 / (2*2 + 0 + 1). Class 1: 1 right, 1 too many: 2*1 / (2*1 + 1).
    assert figures["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert figures["accuracy"] == 3 / 4


# --- Methods serve every task -------------------------------------------------------------------------------------

METHODS = {
    "fedavg": {},
    "scaffold": {},
    "fednova": {},
    "feddyn": {},
    "fedprox": {"mu": 0.1},
    "fedbn": {},
    "fedadam": {},
}
"""Methods that need nothing of a task, with settings."""


@TASKS
@pytest.mark.parametrize("method", METHODS)
def test_methods_without_wishes_serve_every_task_whatever_the_order(name, method):
    case = CASES[name]
    setup = case.setup(method, **METHODS[method])
    config = setup.config
    assert find_method(method).requires(config) == frozenset()
    assert needs_of(setup).refusals == ()
    one_by_one, grouped = (play(setup, runner(setup, case.shards)) for runner in (InlineRunner, GroupedRunner))
    assert one_by_one.digest == grouped.digest
    assert one_by_one.digests[0] != one_by_one.digests[1]


@TASKS
def test_fedprox_that_pulls_with_nothing_is_fedavg(name):
    case = CASES[name]
    plain, proximal = case.setup("fedavg"), case.setup("fedprox", mu=0.0)
    models = [play(c, InlineRunner(c, case.shards)).state.model for c in (plain, proximal)]
    assert all(torch.equal(models[0][entry], models[1][entry]) for entry in models[0])


@TASKS
def test_clients_of_personal_methods_are_judged_by_the_figures_of_the_task(name):
    case = CASES[name]
    federation = Federation.inline(case.setup("fedbn"), case.shards, 1).play_all()
    message, memories = federation.method.own_message(federation.state), federation.runner.memories()
    asked = client_of(federation.setup, case.shards, 0, message, memories[0], step="evaluate_own", test=1)
    with one_thread():
        metrics = federation.method.evaluate_own(asked).metrics
    assert set(metrics) == {*(figure.name for figure in case.prepared.task.figures), "examples"}
    assert metrics["examples"] == len(case.shards(1))


BY_CLASS = {
    "fedrs": {},
    "fedgen": {"hidden": 8, "generator_steps": 2},
    "mosaic": {
        "generator": "features",
        "experts": "replay",
        "least_in_cell": 1,
        "warmup": 1,
        "distil_steps": 3,
        "distil_batch": 8,
    },
}


@pytest.mark.parametrize("name", WITH_CLASSES)
@pytest.mark.parametrize("method", BY_CLASS)
def test_methods_by_class_serve_every_task_with_classes(name, method):
    case = CASES[name]
    setup = case.setup(method, **BY_CLASS[method])
    assert find_method(method).requires(setup.config) == {"classes"}
    assert needs_of(setup).refusals == ()
    runs = [Federation(setup, runner(setup, case.shards), 2).play_all() for runner in (InlineRunner, GroupedRunner)]
    answers = [
        score(run.method.predictor(run.state), setup.task, ShardArrays.whole(case.prepared.test), CPU) for run in runs
    ]
    assert torch.equal(answers[0]["confusion"], answers[1]["confusion"])
    assert answers[0]["loss"] == answers[1]["loss"]
    assert torch.isfinite(answers[0]["loss"])


@TASKS
def test_fedavg_learns_it(name):
    """One round of sixty steps brings the training loss down to less than half."""
    case = CASES[name]
    setup = replace(case.setup("fedavg"), work=Work(steps=60, epochs=None, batch=8, lr=0.1))
    federation = Federation.inline(setup, case.shards, 2)
    whole = ShardArrays.whole(case.prepared.train)
    losses = []
    for round in range(2):
        sums = score(federation.method.predictor(federation.state), setup.task, whole, CPU)
        losses.append(setup.task.report(sums)["loss"])
        federation.play(round)
    assert losses[1] < losses[0] / 2
