"""Horus: who stands out is dropped, the rest is weighted by agreement; and the rules beside it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.core.contract import ClientSpec, Plan, Update
from algorithms.core.payload import Payload
from algorithms.core.seeds import Seed
from algorithms.methods.horus import (
    Horus,
    HorusState,
    block_of,
    chosen_entries,
    clients_left,
    directed_mean,
    directed_weights,
    features,
    row_space_distance,
)
from algorithms.parts.robust import clip_rows, krum, median, norm_bounded_mean, robust_z, trimmed_mean
from tests.algorithms.support_language import base, language_setup, language_shards
from tests.algorithms.support_methods import method_of
from tests.support import needs_of, play


def draws(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def adapters(seed):
    """One adapted matrix of 5 x 8, of rank 3."""
    return {"0.q.lora_A": draws(3, 8, seed=seed).float(), "0.q.lora_B": draws(5, 3, seed=seed + 1000).float()}


def moved(state, by, seed):
    """A state a little further along one common way, with noise of its own."""
    return {
        name: value + by * (draws(*value.shape, seed=77) + 0.1 * draws(*value.shape, seed=seed)).float()
        for name, value in state.items()
    }


class FixedCohort:
    """Clients that send given adapters; client k has ten examples."""

    def __init__(self, sent):
        self._sent = sent

    def ask(self, step, message):
        for client, state in self._sent.items():
            yield Update(client, Payload.of(weights=state, examples={"n": 10}))


def after(start, sent, number=1, direction=None, **config):
    """The state and figures after clients have sent these."""
    method = method_of(language_setup("horus", **config))
    plan = Plan(number, 5, tuple(ClientSpec(k, base()) for k in sent), Seed(3).at(round=number))
    return method.round(HorusState(base(), start, direction or {}), plan, FixedCohort(sent))


def change(start, state):
    return torch.cat([(state.model[name] - start[name]).flatten() for name in start])


def test_of_clients_that_are_all_alike_nobody_is_dropped_and_the_result_is_fedavgs():
    start = adapters(0)
    sent = {k: moved(start, 0.1, seed=5) for k in range(5)}
    state, figures = after(start, sent)
    assert figures["dropped"] == 0
    for name, value in sent[0].items():
        torch.testing.assert_close(state.model[name], value)


def test_one_client_of_a_run_moves_the_model_as_fedavg_does():
    setup = language_setup("horus", clients=1)
    found = play(setup, rounds=1, shards=language_shards(1)).state.model
    fedit = play(language_setup("fedit", clients=1), rounds=1, shards=language_shards(1)).state.model
    for name, value in fedit.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("number", [0, 1])
def test_a_client_that_sends_ten_times_the_contrary_is_without_effect(number):
    start = adapters(0)
    honest = {k: moved(start, 0.1, seed=k) for k in range(9)}
    contrary = {name: value - 10 * (honest[0][name] - value) for name, value in start.items()}
    with_it, _ = after(start, {**honest, 9: contrary}, number)
    without, _ = after(start, honest, number)
    # Medians move by one client of ten, the mean of FedAvg by (9 - 10) / 9.
    ours, theirs = change(start, with_it), change(start, without)
    assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.99
    poisoned, _ = after(start, {**honest, 9: contrary}, number, rule="fedavg")
    assert torch.nn.functional.cosine_similarity(change(start, poisoned), theirs, dim=0) < 0


ATTACKS = {
    "sign flip": lambda u, all_: -4 * u,
    "scaling": lambda u, all_: 20 * u,
    "noise": lambda u, all_: 5 * draws(*u.shape, seed=4),
    "inner product": lambda u, all_: -2 * all_.mean(0),
    "a little is enough": lambda u, all_: all_.mean(0) - 1.5 * all_.std(0),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("rule", ["horus", "median", "trimmed_mean", "krum", "norm_bound"])
def test_one_attacker_of_ten_does_not_turn_the_change_round(rule, attack):
    start = adapters(0)
    states = {k: moved(start, 0.1, seed=k) for k in range(10)}
    flat = torch.stack([change(start, HorusState("", one, {})) for one in states.values()]).double()
    bad = ATTACKS[attack](flat[9], flat[:9])
    shapes = [value.shape for value in start.values()]
    parts = bad.split([math.prod(shape) for shape in shapes])
    states[9] = {n: start[n] + p.reshape(s).float() for n, p, s in zip(start, parts, shapes, strict=True)}
    state, _ = after(start, states, rule=rule)
    assert torch.nn.functional.cosine_similarity(change(start, state).double(), flat[:9].mean(0), dim=0) > 0.8


def test_the_order_of_clients_changes_nothing_but_rounding():
    start = adapters(0)
    sent = {k: moved(start, 0.1 + 0.01 * k, seed=k) for k in range(6)}
    one, _ = after(start, sent)
    other, _ = after(start, dict(reversed(sent.items())))
    for name, value in one.model.items():
        torch.testing.assert_close(other.model[name], value, rtol=0, atol=1e-6)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12))
def test_less_than_half_are_dropped_and_nobody_of_less_than_three(scores):
    left = clients_left(torch.tensor(scores), 3.0)
    count = len(scores)
    assert count - len(left) <= ((count - 1) // 2 if count >= 3 else 0)
    assert all(scores[k] > 3 for k in range(count) if k not in left)
    kept_above = [scores[k] for k in left if scores[k] > 3]
    gone = [scores[k] for k in range(count) if k not in left]
    assert not kept_above or not gone or max(kept_above) <= min(gone)


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 9))
def test_weights_are_shares_and_the_change_is_no_longer_than_the_median(seed, count):
    changes, p = draws(count, 6, seed=seed), torch.full((count,), 1 / count, dtype=torch.float64)
    weights = directed_weights(changes, p, median(changes))
    assert (weights >= 0).all()
    assert float(weights.sum()) == pytest.approx(1)
    mean = directed_mean(changes, p, median(changes))
    assert mean.norm() <= median(changes.norm(dim=1)) * (1 + 1e-9)


def test_weights_are_of_shares_times_agreement_and_equal_where_nobody_agrees():
    """Cosines with (1, 0): 1, 0.6, 0 for what points away."""
    changes = torch.tensor([[2.0, 0], [3, 4], [-1, 0]], dtype=torch.float64)
    p = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    found = directed_weights(changes, p, torch.tensor([1.0, 0], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([0.25, 0.3, 0.0], dtype=torch.float64) / 0.55)
    assert directed_weights(changes, p, torch.zeros(2, dtype=torch.float64)).tolist() == pytest.approx([1 / 3] * 3)


def test_the_direction_is_half_of_the_last_rounds_change():
    """All move along x, the last round went along y: g = (1, 1) / 2 is equally far from a client that went along y."""
    start = {"0.q.lora_A": torch.zeros(1, 2), "0.q.lora_B": torch.zeros(1, 1)}
    x, y = (torch.tensor([v]) for v in ([1.0, 0.0], [0.0, 1.0]))
    sent = {k: {**start, "0.q.lora_A": way} for k, way in enumerate((x, x, y))}
    last = {"0.q.lora_A": y.double(), "0.q.lora_B": torch.zeros(1, 1, dtype=torch.float64)}
    state, _ = after(start, sent, number=0, direction=last)
    torch.testing.assert_close(state.model["0.q.lora_A"], torch.tensor([[2 / 3, 1 / 3]]))
    alone, _ = after(start, sent, number=0)
    torch.testing.assert_close(alone.model["0.q.lora_A"], torch.tensor([[1.0, 0.0]]))


def test_features_are_those_of_their_formulas():
    """A = diag(3, 2, 1) in 4 columns: two of three squared singular values hold 13 / 14."""
    received = torch.cat([torch.eye(3), torch.zeros(3, 1)], 1).double()
    own = torch.cat([torch.diag(torch.tensor([3.0, 2.0, 1.0])), torch.zeros(3, 1)], 1).double()
    found = features(received, own[None])[0]
    assert found.tolist() == pytest.approx([13 / 14, math.log(math.sqrt(5)), 0, 0], abs=1e-6)


def test_the_row_space_is_the_same_under_any_invertible_change_and_apart_where_orthogonal():
    a, q = draws(3, 8), draws(3, 3, seed=2)
    assert float(row_space_distance(a, q @ a)) == pytest.approx(0, abs=1e-9)
    assert float(row_space_distance(q @ a, draws(3, 8, seed=4))) == pytest.approx(
        float(row_space_distance(a, draws(3, 8, seed=4)))
    )
    basis = torch.eye(8, dtype=torch.float64)
    assert float(row_space_distance(basis[:3], basis[3:6])) == pytest.approx(1)
    assert float(row_space_distance(basis[:3], basis[2:5])) == pytest.approx(2 / 3)


def test_robust_z_is_in_units_of_the_deviation():
    """1, 2, 3, 4, 100: the median is 3, the distances 2, 1, 0, 1, 97, their median 1."""
    found = robust_z(torch.tensor([1.0, 2, 3, 4, 100], dtype=torch.float64))
    assert found.tolist() == pytest.approx([d / 1.4826 for d in (2, 1, 0, 1, 97)], rel=1e-6)
    assert robust_z(torch.ones(4, dtype=torch.float64)).tolist() == [0] * 4


def test_the_rules_beside_it():
    one = torch.tensor([[1.0], [2], [3], [4], [100]], dtype=torch.float64)
    assert median(one).item() == 3
    assert median(one[:4]).item() == 2.5
    assert trimmed_mean(one).item() == 3
    assert krum(one).item() == 2  # the nearest two of 2 and of 3 are as near; the first counts
    assert krum(one[:1]).item() == 1
    assert clip_rows(one, 3.0).flatten().tolist() == pytest.approx([1, 2, 3, 3, 3])
    shares = torch.full((5,), 0.2, dtype=torch.float64)
    assert norm_bounded_mean(one, shares).item() == pytest.approx((1 + 2 + 3 + 3 + 3) / 5)


def test_scoring_waits_for_its_round():
    start = adapters(0)
    sent = {k: moved(start, 0.1, seed=k) for k in range(5)}
    assert after(start, sent, number=0)[1] == {}
    assert set(after(start, sent, number=0, first_scores=0)[1]) == {"dropped", "largest_score"}


def test_blocks_are_found_by_their_numbers_and_the_first_middle_and_last_are_usual():
    state = {f"model.layers.{n}.q.lora_{f}": torch.zeros(1, 1) for n in range(5) for f in "AB"}
    assert {block_of(name) for name in chosen_entries(state, ())} == {0, 2, 4}
    assert {block_of(name) for name in chosen_entries(state, (1, 3))} == {1, 3}
    assert block_of("transformer.h.11.attn.c_attn.lora_A") == 11


def test_what_travels_is_the_chosen_layers_and_nothing_else_changes():
    """4 r (d_in + d_out) for queries (64, 64) and values (64, 32) of one layer of two."""
    played = play(language_setup("horus", layers=(1,)), rounds=2, shards=language_shards())
    expected = 4 * 4 * ((64 + 64) + (64 + 32))
    assert {e.bytes for e in played.book.entries if e.kind == "adapters"} == {expected}
    net = played.method.predictor(played.state)
    start = played.method.kit.initial(base())
    same = {name for name, value in net.state_dict().items() if torch.equal(value, start[name])}
    assert {block_of(name) for name in same} == {0}


def test_layers_that_are_not_there_are_refused():
    assert any("blocks 7" in reason for reason in needs_of(language_setup("horus", layers=(7,))).refusals)


def test_the_defaults_are_those_of_the_specification():
    config = Horus.Config()
    assert (config.threshold, config.layers, config.rule, config.first_scores) == (3.0, (), "horus", 1)
