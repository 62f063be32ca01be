"""What a client's step is expected to cost, before and after it has run."""

import numpy as np
import pytest

from actors.hosts.costs import StepCosts, examples_of, operations_of, planned_costs
from actors.steps.orders import WorkerSetup
from actors.steps.shards import ShardArrays
from algorithms.core.contract import ClientSpec
from algorithms.core.training import Work
from algorithms.tasks.images import ImageTask
from benchmarks.idle import Idle

EPOCHS = Work(steps=None, epochs=2, batch=10, lr=0.1)
STEPS = Work(steps=5, epochs=None, batch=10, lr=0.1)
TASK = ImageTask(("even", "odd"), (1, 8, 8), mean=(0.0,), std=(1.0,))


def test_examples_follow_from_passes_or_from_steps():
    held = np.array([3, 10, 100, 0])
    assert examples_of(EPOCHS, held).tolist() == [6, 20, 200, 1]
    assert examples_of(STEPS, held).tolist() == [15, 50, 50, 1]


def plan(nets, held):
    clients = tuple(ClientSpec(k, net) for k, net in enumerate(nets))
    setup = WorkerSetup("benchmarks.idle:Idle", Idle.Config(), TASK, EPOCHS, clients, seed=0)
    ends = np.cumsum(held)
    rows = [np.arange(end - n, end) for end, n in zip(ends, held, strict=True)]
    return planned_costs(setup, ShardArrays.of({"label": np.zeros(ends[-1], np.int64)}, rows))


def test_of_equal_networks_examples_alone_count():
    assert plan(["mlp", "mlp"], [10, 30]).tolist() == [20, 60]


def test_a_client_costs_its_examples_times_the_operations_of_its_network():
    costs = plan(["mlp", "small_cnn"], [10, 30])
    assert costs.tolist() == [20 * operations_of(TASK, "mlp", 1.0), 60 * operations_of(TASK, "small_cnn", 1.0)]


def test_operations_are_those_of_products_and_one_for_each_parameter():
    """mlp: 64 pixels, 64 hidden units, 2 outputs; a product of m x k and k x n is 2mkn operations."""
    weights = 64 * 64 + 64 * 2
    assert operations_of(TASK, "mlp", 1.0) == 2 * weights + weights + 64 + 2


def test_what_a_step_took_counts_and_others_are_expected_in_its_seconds():
    costs = StepCosts(np.array([10.0, 20.0, 40.0]))
    assert [costs.of("train", k) for k in range(3)] == [10, 20, 40]
    costs.note("train", 0, 2.0)
    assert [costs.of("train", k) for k in range(3)] == pytest.approx([2, 4, 8])
    assert costs.of("evaluate", 0) == 10
    costs.note("train", 0, 3.0)
    assert costs.of("train", 0) == 3


def test_steps_of_a_moment_are_alike():
    costs = StepCosts(np.array([10.0, 10.0]))
    costs.note("train", 0, 0.001)
    costs.note("train", 1, 0.004)
    assert costs.of("train", 0) == costs.of("train", 1)
