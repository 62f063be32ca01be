"""FedIT: FedAvg on adapters, and how far the product of means is from the mean of products."""

import pytest
import torch

from algorithms.parts.low_rank import norm, products
from tests.algorithms.support_language import language_setup, language_shards
from tests.support import play


def test_it_is_fedavg_on_adapters_to_the_bit():
    both = [play(language_setup(name), rounds=2, shards=language_shards()) for name in ("fedit", "fedavg")]
    assert both[0].digest == both[1].digest


def test_one_client_alone_gives_the_server_its_own_adapters():
    played = play(language_setup("fedit", clients=1), rounds=1, shards=language_shards(1), cohort=lambda _: [0])
    other = play(language_setup("fedit", clients=1, weights="uniform"), rounds=1, shards=language_shards(1))
    assert played.digest == other.digest


def test_the_product_of_an_adapter_is_b_a():
    state = {"q.lora_A": torch.tensor([[1.0, 2.0, 3.0]]), "q.lora_B": torch.tensor([[10.0], [100.0]])}
    assert products(state)["q"].tolist() == [[10, 20, 30], [100, 200, 300]]
    assert norm({"x": torch.tensor([[3.0]]), "y": torch.tensor([[4.0]])}) == 5


def test_the_error_of_averaging_is_that_of_its_formula():
    """With clients k of equal shares, E = mean_k (B_k - B) (A_k - A)."""
    setup, shards = language_setup("fedit", clients=2, measure_error=True), language_shards(2)
    played = play(setup, rounds=1, shards=shards)
    alone = [play(setup, rounds=1, shards=shards, cohort=lambda _, k=k: [k]).state.model for k in range(2)]
    mean = {name: (alone[0][name] + alone[1][name]) / 2 for name in alone[0]}
    apart = [{name: one[name] - mean[name] for name in mean} for one in alone]
    error = {name: sum(products(one)[name] for one in apart) / 2 for name in products(mean)}
    whole = {name: sum(products(one)[name] for one in alone) / 2 for name in products(mean)}
    assert norm(error) > 0
    assert played.metrics[0]["aggregation_error"] == pytest.approx(norm(error) / norm(whole), rel=1e-3)


def test_the_error_is_zero_where_all_clients_are_alike():
    played = play(language_setup("fedit", clients=1, measure_error=True), rounds=2, shards=language_shards(1))
    assert played.metrics[-1]["aggregation_error"] == pytest.approx(0, abs=1e-6)
