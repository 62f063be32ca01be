"""HetLoRA: ranks by width, the brake on the last ranks, pruning, and the average by norm."""

import math
from itertools import pairwise

import pytest
import torch

from algorithms.core.contract import ClientSpec, Plan, Update
from algorithms.core.payload import Payload
from algorithms.core.seeds import Seed
from algorithms.core.training import Work
from algorithms.methods.hetlora import HetLoRA, HetLoRAState, tail_norms
from algorithms.parts.low_rank import cut, norm, pad, pairs, product_norm, products, rank_of
from tests.algorithms.support_language import base, language_setup, language_shards
from tests.algorithms.support_methods import Federation, client_of, method_of, train
from tests.support import play

SMALLEST = {"least_rank": 1}


def adapters(rank: int, seed: int = 0):
    """Two adapted matrices, of 5 x 4 and 3 x 4."""
    draws = torch.Generator().manual_seed(seed)
    sizes = {"q": (4, 5), "v": (4, 3)}
    return {
        f"{name}.{factor}": torch.randn(shape, generator=draws)
        for name, (d_in, d_out) in sizes.items()
        for factor, shape in (("lora_A", (rank, d_in)), ("lora_B", (d_out, rank)))
    }


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class FixedCohort:
    """Clients that send given adapters of given ranks."""

    def __init__(self, sent):
        self._sent = sent

    def ask(self, step, messages, clients=None):
        for client, state in self._sent.items():
            yield Update(client, Payload.of(weights=state, rank={"r": rank_of(state)}, examples={"n": client + 1}))


def averaged(sent, largest=4, **config):
    """The global adapters after clients have sent these."""
    setup = language_setup("hetlora", **config)
    plan = tiny_plan_of(len(sent))
    before = HetLoRAState(base(), adapters(largest, seed=9), ranks={})
    return method_of(setup).round(before, plan, FixedCohort(sent))[0]


def tiny_plan_of(clients):
    return Plan(0, 1, tuple(ClientSpec(k, base()) for k in range(clients)), Seed(3).at(round=0))


def test_without_pruning_or_a_brake_and_of_equal_weights_it_is_fedit_to_the_bit():
    config = {"by_norm": False, "decay": 0.0, "least_rank": 4}
    ours = play(language_setup("hetlora", **config), rounds=3, shards=language_shards())
    fedit = play(language_setup("fedit", weights="uniform"), rounds=3, shards=language_shards())
    assert equal(ours.state.model, fedit.state.model)


def test_what_was_filled_up_is_cut_to_what_it_was_and_what_was_cut_loses_its_tail_alone():
    state = adapters(3)
    assert equal(cut(pad(state, 7), 3), state)
    again = pad(cut(state, 2), 3)
    assert torch.equal(again["q.lora_A"][:2], state["q.lora_A"][:2])
    assert torch.equal(again["q.lora_B"][:, :2], state["q.lora_B"][:, :2])
    assert not again["q.lora_A"][2:].any()
    assert not again["q.lora_B"][:, 2:].any()


def test_the_norm_of_a_product_from_small_matrices_is_the_dense_one():
    state = adapters(3)
    assert product_norm(state) == pytest.approx(norm(products(state)), rel=1e-6)
    doubled = {name: 2 * value if name.endswith("lora_B") else value for name, value in state.items()}
    assert product_norm(doubled) == pytest.approx(2 * product_norm(state), rel=1e-6)


def test_shares_are_by_norm_and_each_factor_has_them():
    sent = {0: adapters(4, 1), 1: adapters(2, 2)}
    sizes = [product_norm(state) for state in sent.values()]
    q = [size / sum(sizes) for size in sizes]
    assert sum(q) == pytest.approx(1)
    found = averaged(sent)
    for name, value in found.model.items():
        expected = q[0] * sent[0][name] + q[1] * pad(sent[1], 4)[name]
        torch.testing.assert_close(value, expected)
    assert found.ranks == {0: 4, 1: 2}


def test_shares_by_norm_times_examples():
    """Clients 0 and 1 have one and two examples."""
    sent = {0: adapters(4, 1), 1: adapters(4, 2)}
    sizes = [product_norm(sent[0]), 2 * product_norm(sent[1])]
    found = averaged(sent, weights="examples").model["q.lora_A"]
    expected = (sizes[0] * sent[0]["q.lora_A"] + sizes[1] * sent[1]["q.lora_A"]) / sum(sizes)
    torch.testing.assert_close(found, expected)


def test_where_no_product_has_a_norm_all_clients_count_alike():
    sent = {k: {**adapters(4, k), "q.lora_B": torch.zeros(5, 4), "v.lora_B": torch.zeros(3, 4)} for k in range(2)}
    found = averaged(sent).model["q.lora_A"]
    torch.testing.assert_close(found, (sent[0]["q.lora_A"] + sent[1]["q.lora_A"]) / 2)


def test_ranks_that_no_client_has_become_zero():
    found = averaged({0: adapters(2, 1), 1: adapters(3, 2)}).model
    assert found["q.lora_A"][2].any()
    assert not found["q.lora_A"][3:].any()
    assert not found["q.lora_B"][:, 3:].any()


def one_step(**config):
    setup = language_setup("hetlora", work=Work(steps=1, epochs=None, batch=4, lr=0.05), least_rank=1, **config)
    method, received = method_of(setup), trained_adapters()
    return train(method, client_of(setup, language_shards(), 0, Payload.of(first_ranks=received))).payload, received


def trained_adapters(rank=4):
    """Adapters in which B is no longer 0."""
    start = method_of(language_setup("fedit")).kit.initial(base())
    draws = torch.Generator().manual_seed(1)
    b = {n: 0.1 * torch.randn(v.shape, generator=draws) for n, v in start.items() if n.endswith("lora_B")}
    return cut({**start, **b}, rank)


def test_without_a_brake_a_step_is_that_of_fedit_to_the_bit():
    sent, received = one_step(decay=0.0)
    setup = language_setup("fedit", work=Work(steps=1, epochs=None, batch=4, lr=0.05))
    plain = train(method_of(setup), client_of(setup, language_shards(), 0, Payload.of(weights=received))).payload
    found, expected = sent.tensors("weights"), plain.tensors("weights")
    assert equal(found, cut(expected, rank_of(found)))


def test_the_brake_moves_the_tail_by_its_gradient():
    """d/dB of ||B|| ||A|| is ||A|| B / ||B||: with lambda 1 and a rate of 0.05, the last column of B moves so much
    further. Ranks 0 to 2 move as without."""
    (with_brake, received), (without, _) = (one_step(decay=decay, gamma=0.8) for decay in (1.0, 0.0))
    ours, plain = (pad(sent.tensors("weights"), 4) for sent in (with_brake, without))
    assert with_brake.number("rank", "r") == 3, "the tail has shrunk and is gone"
    for name, value in plain.items():
        first = (slice(0, 3),) if name.endswith("lora_A") else (slice(None), slice(0, 3))
        torch.testing.assert_close(ours[name][first], value[first])
    net = {name: value.clone().requires_grad_() for name, value in received.items()}
    tail_norms(net, 3).backward()
    _, a, b = next(pairs(net))
    expected = a[3].detach().norm() * b[:, 3].detach() / b[:, 3].detach().norm()
    torch.testing.assert_close(b.grad[:, 3], expected)
    assert not b.grad[:, :3].any()


def test_a_tail_that_has_grown_or_stayed_is_kept():
    """B is 0 at first, so that it cannot shrink."""
    setup = language_setup("hetlora", decay=0.0, least_rank=1)
    received = method_of(setup).start(setup.clients).model
    sent = train(method_of(setup), client_of(setup, language_shards(), 0, Payload.of(first_ranks=received))).payload
    assert sent.number("rank", "r") == 4


@pytest.mark.parametrize(
    ("rank", "gamma", "least", "first"),
    [
        (8, 0.5, 2, 4),
        (8, 0.99, 2, 7),  # one rank at least
        (100, 0.29, 2, 29),  # 0.29 x 100 rounds to less than 29
        (4, 0.1, 3, 3),  # never below the least
        (2, 0.5, 2, 2),  # nothing to prune
        (1, 0.5, 2, 1),
    ],
)
def test_the_tail_begins_where_the_formula_says(rank, gamma, least, first):
    setup = language_setup("hetlora", gamma=gamma, least_rank=least)
    assert method_of(setup).tail(rank) == first


def test_ranks_never_rise_nor_fall_below_the_least_and_the_next_download_has_the_new_shape():
    setup = language_setup("hetlora", clients=2, widths=(1.0, 0.5), decay=5.0, gamma=0.5, least_rank=2)
    federation = Federation.inline(setup, language_shards(2), 4)
    history = []
    for number in range(4):
        federation.play(number)
        history.append(dict(federation.state.ranks))
    assert all(later[k] <= earlier[k] for earlier, later in pairwise(history) for k in (0, 1))
    assert history[-1] == {0: 2, 1: 2}
    sizes = [e.bytes for e in federation.book.entries if (e.client, e.direction, e.kind) == (0, "down", "first_ranks")]
    assert sizes[0] == 4 * 4 * 2 * ((64 + 64) + (64 + 32))
    assert sizes[-1] == sizes[0] / 2


def test_bytes_are_those_of_the_formula():
    """4 r (d_in + d_out) for queries and values of two layers, at ranks 4 and 2, and 8 bytes for the rank."""
    setup = language_setup("hetlora", clients=2, widths=(1.0, 0.5))
    entries = play(setup, rounds=1, shards=language_shards(2)).book.entries
    whole = 4 * 4 * 2 * ((64 + 64) + (64 + 32))
    found = {(e.client, e.direction, e.kind): e.bytes for e in entries}
    assert found == {
        (0, "down", "first_ranks"): whole,
        (0, "up", "adapters"): whole,
        (0, "up", "rank"): 8,
        (1, "down", "first_ranks"): whole / 2,
        (1, "up", "adapters"): whole / 2,
        (1, "up", "rank"): 8,
    }


def test_the_defaults_are_those_of_the_sources():
    config = HetLoRA.Config()
    assert (config.gamma, config.decay, config.least_rank) == (0.99, 0.01, 2)
    assert (config.by_norm, config.weights) == (True, "uniform")
    assert math.isclose(method_of(language_setup("hetlora")).kit.network(base(), 0.5).adapter.scale, 8 / 4)


def test_a_tail_that_did_not_move_is_kept():
    setup = language_setup("hetlora", work=Work(steps=0, epochs=None, batch=4, lr=0.05), least_rank=1)
    message = Payload.of(first_ranks=trained_adapters())
    assert train(method_of(setup), client_of(setup, language_shards(), 0, message)).payload.number("rank", "r") == 4
