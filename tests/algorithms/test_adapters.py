"""Low-rank adapters on a frozen model: what they add, and what is refused."""

import copy

import pytest
import torch

from algorithms.core.states import snapshot
from algorithms.nets import NetworkError
from algorithms.nets.adapters import AdaptedModel, Adapter, freeze
from algorithms.nets.language_models import load_base
from tests.algorithms.support_language import base, prepared

IDS = torch.tensor([[5, 9, 77, 300, 8], [6, 1, 200, 13, 7]])


def model(name: str = "llama-nano", adapter: Adapter | None = None, width: float = 1.0) -> AdaptedModel:
    frozen, tokenizer = load_base(base(name).removeprefix("hf:"), torch.float32, torch.device("cpu"))
    torch.manual_seed(0)
    return AdaptedModel(frozen, tokenizer, adapter or Adapter(rank=4, alpha=8.0), width).eval()


def random_branch(net, seed):
    torch.manual_seed(seed)
    branch = net.new_branch()
    for parameter in branch.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return branch.eval()


def test_adapters_of_queries_and_values_have_the_numbers_of_the_formula():
    """L r (2 d + d + d_kv) = 2 * 4 * (192 + 32) for llama-nano, 7,168 bytes."""
    state = snapshot(model())
    assert sum(value.numel() for value in state.values()) == 1_792
    assert sorted({name.rpartition(".")[2] for name in state}) == ["lora_A", "lora_B"]


def test_fresh_adapters_leave_the_model_as_it_was_to_the_bit():
    net = model()
    with torch.no_grad():
        assert torch.equal(net(IDS), net.base(input_ids=IDS).logits)
        with net.alone():
            assert torch.equal(net(IDS), net.base(input_ids=IDS).logits)


@pytest.mark.parametrize("name", ["llama-nano", "gpt2-nano"])
def test_a_matrix_gains_s_b_a_h_of_every_branch(name):
    """out(R, S) - out(0, 0) = [out(R, 0) - out(0, 0)] + [out(0, S) - out(0, 0)] for each matrix, which is linear."""
    net = model(name)
    matrix = net.matrices()[0]
    module = dict(net.base.named_modules())[matrix]
    net.load_state_dict(snapshot(random_branch(net, 1)))
    other, h = random_branch(net, 2), torch.randn(3, 64)
    state, theirs = snapshot(net), snapshot(other)
    with torch.no_grad():
        with net.alone():
            plain = module(h)
        with net.beside(other, weight=1.0):
            both = module(h)
        with net.beside(other, weight=3.0, own=0.5):
            weighed = module(h)
    own, further = ((h @ one[f"{matrix}.lora_A"].T @ one[f"{matrix}.lora_B"].T) * 2 for one in (state, theirs))
    torch.testing.assert_close(both, plain + own + further)
    torch.testing.assert_close(weighed, plain + 0.5 * own + 3 * further)


def test_a_branch_beside_learns_alone_where_the_model_is_frozen():
    net = model()
    other = net.new_branch()
    with freeze(net), net.beside(other):
        net(IDS).sum().backward()
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(parameter.grad is not None for parameter in other.parameters())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_a_cut_branch_passes_no_gradient_to_what_stands_before_it():
    gradients = []
    for passes in (True, False):
        net = model()
        net.load_state_dict(snapshot(random_branch(net, 1)))
        other = random_branch(net, 2)
        with net.beside(other, passes_gradient=passes):
            net(IDS).sum().backward()
        gradients.append(next(net.parameters()).grad)
        assert (next(other.parameters()).grad is None) == (not passes)
    assert not torch.equal(*gradients)


def test_a_client_of_half_the_width_has_half_the_rank_and_the_same_scale():
    net = model(adapter=Adapter(rank=6, alpha=12.0), width=0.5)
    assert net.rank == 3
    assert {len(v) for n, v in snapshot(net).items() if n.endswith("lora_A")} == {3}
    assert net.adapter.scale == 2


def test_two_models_of_a_process_share_the_frozen_weights_and_nothing_else():
    one, other = model(), model()
    copied = copy.deepcopy(one)
    for another in (other, copied):
        assert all(a is b for a, b in zip(one.base.parameters(), another.base.parameters(), strict=True))
        another.load_state_dict(snapshot(random_branch(another, 5)))
        with torch.no_grad():
            assert not torch.equal(one(IDS), another(IDS))


def test_a_rank_may_be_that_of_a_dimension_and_not_above():
    assert prepared(rank=32).task.network(base()).rank == 32
    with pytest.raises(NetworkError, match=r"rank 33 \(task\.rank\).*v_proj has 64 inputs and 32 outputs.*at most"):
        prepared(rank=33).task.network(base())


def test_matrices_that_are_not_there_are_told_with_those_that_are():
    with pytest.raises(NetworkError, match=r"no matrix q_prj to adapt \(task\.targets\); it has down_proj, gate_proj"):
        prepared(targets=("q_prj",)).task.network(base())


def test_dropout_draws_in_training_alone():
    net = model(adapter=Adapter(rank=4, alpha=8.0, dropout=0.5))
    net.load_state_dict(snapshot(random_branch(net, 1)))
    with torch.no_grad():
        assert torch.equal(net(IDS), net(IDS))
        net.train()
        assert not torch.equal(net(IDS), net(IDS))
