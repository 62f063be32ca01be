"""FLoRA: stacks add up exactly, everybody merges the same, and whoever was away gets what it missed."""

import pytest
import torch

from algorithms.core.payload import Payload, memory_tensors
from algorithms.core.scoring import score
from algorithms.core.training import Work
from algorithms.methods.flora import DENSE, FLoRA, FLoRAState, last_stacks, news, numbers
from algorithms.nets.generation import generate
from algorithms.parts.low_rank import products, stack
from tests.algorithms.support_language import language_setup, language_shards
from tests.algorithms.support_methods import Federation, client_of, method_of
from tests.algorithms.test_hetlora import adapters
from tests.support import play

WHOLE = (64 + 64) + (64 + 32)
"""d_in + d_out of queries and values together, of one of two layers."""

DENSE_BYTES = 4 * 2 * (64 * 64 + 64 * 32)
"""W - W0 of both layers."""


def stacked_bytes(ranks: int) -> int:
    return 4 * ranks * 2 * WHOLE


def changes(federation):
    """W - W0 by client."""
    return {k: memory_tensors("change", memory) for k, memory in federation.runner.memories().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_the_product_of_the_stack_is_the_mean_of_the_products(dtype, error):
    sent = [{name: v.to(dtype) for name, v in adapters(rank, rank).items()} for rank in (4, 2, 1)]
    shares = [0.5, 0.3, 0.2]
    whole = stack(sent, shares)
    assert whole["q.lora_A"].shape == (7, 4)
    assert whole["q.lora_B"].shape == (5, 7)
    for name in ("q", "v"):
        a, b = f"{name}.lora_A", f"{name}.lora_B"
        expected = sum(share * (one[b] @ one[a]) for share, one in zip(shares, sent, strict=True))
        torch.testing.assert_close(whole[b] @ whole[a], expected, rtol=0, atol=10 * error)


def test_one_client_alone_merges_its_own_adapters():
    setup, shards = language_setup("flora", clients=1), language_shards(1)
    played = play(setup, rounds=1, shards=shards)
    own = next(iter(played.state.stacks.values()))
    for name, product in products(own).items():
        assert product.any()
        assert torch.equal(played.state.model[name], 8.0 / 4 * product)


def test_the_order_of_clients_changes_little():
    sent, shares = [adapters(2, seed) for seed in range(3)], [0.5, 0.3, 0.2]
    there, back = products(stack(sent, shares)), products(stack(sent[::-1], shares[::-1]))
    for name, value in there.items():
        torch.testing.assert_close(back[name], value, rtol=0, atol=1e-6)


def test_clients_that_did_not_train_leave_the_model_as_it_was_to_the_bit():
    setup = language_setup("flora", clients=3, work=Work(steps=0, epochs=None, batch=4, lr=0.05))
    played = play(setup, rounds=2, shards=language_shards(3))
    assert not any(value.any() for value in played.state.model.values())
    inputs, _ = setup.task.batch(language_shards(1)(0), torch.arange(3))
    predictor, frozen = played.method.predictor(played.state), played.method.kit.network(setup.clients[0].net)
    with torch.no_grad():
        answers = predictor(inputs)
        with frozen.alone():
            assert torch.equal(frozen(inputs), answers)


class FLoRAFromOneDraw(FLoRA):
    """Every client begins with the adapters that FedIT begins with."""

    def fresh(self, client, net):
        return self.kit.initial(client.spec.net)


def test_from_equal_fresh_adapters_a_round_of_one_step_is_fedit_s():
    """One step from B = 0 leaves A alone, so that FedIT's mean has no error."""
    work, shards = Work(steps=1, epochs=None, batch=4, lr=0.05), language_shards(3)
    setup = language_setup("flora", clients=3, work=work)
    own = language_setup("tests.algorithms.test_flora:FLoRAFromOneDraw", clients=3, work=work)
    fedit = play(language_setup("fedit", clients=3, work=work), rounds=1, shards=shards)
    found = play(own, rounds=1, shards=shards).state.model
    for name, product in products(fedit.state.model).items():
        torch.testing.assert_close(found[name], 2 * product, rtol=0, atol=1e-6)
    assert not equal(found, play(setup, rounds=1, shards=shards).state.model)


def test_all_clients_and_the_server_have_merged_the_same_to_the_bit():
    setup = language_setup("flora", clients=3, widths=(1.0, 0.5, 0.25))
    federation = Federation.inline(setup, language_shards(3), 3).play(0).play(1)
    server = federation.state.model
    federation.play(2)
    assert any(value.any() for value in server.values())
    assert all(equal(one, server) for one in changes(federation).values())


def test_a_client_that_was_away_receives_what_it_missed():
    """Clients of rank 1; rounds of 2, 2 and 3 of them. In round 2, client 2 lacks two stacks of rank 2."""
    setup = language_setup("flora", clients=3, widths=(0.25,))
    federation = Federation.inline(setup, language_shards(3), 4)
    for number, asked in enumerate([(0, 1), (0, 1)]):
        federation.play(number, asked)
    server = federation.state.model
    federation.play(2)
    assert all(equal(one, server) for one in changes(federation).values())
    federation.play(3)
    down = [(e.client, e.bytes) for e in federation.book.entries if e.kind == "stack" and e.bytes]
    assert sorted(down) == sorted(
        [
            *((k, stacked_bytes(2)) for k in (0, 1)),  # in round 1
            *((k, stacked_bytes(2)) for k in (0, 1)),  # in round 2
            (2, 2 * stacked_bytes(2)),
            *((k, stacked_bytes(3)) for k in (0, 1, 2)),  # in round 3
        ]
    )


def test_the_sum_travels_where_stacks_would_be_larger():
    """Ranks of 24 a round: two of them have 2 x 24 x 448 numbers, and W - W0 has 12288."""
    setup = language_setup("flora", clients=7)
    federation = Federation.inline(setup, language_shards(7), 3)
    federation.play(0, range(6)).play(1, range(6))
    server = federation.state.model
    federation.play(2)
    found = {e.client: e.bytes for e in federation.book.entries if e.kind == "stack" and e.bytes}
    assert found[0] == stacked_bytes(24)
    assert found[6] == DENSE_BYTES < 2 * stacked_bytes(24)
    assert all(equal(one, server) for one in changes(federation).values())


def test_stacks_are_kept_as_long_as_they_are_smaller_than_the_sum():
    stacks = {number: {"q": torch.zeros(4)} for number in range(5)}
    assert [*last_stacks(stacks, 13)] == [2, 3, 4]
    assert [*last_stacks(stacks, 12)] == [3, 4]
    assert [*last_stacks(stacks, 3)] == []
    assert numbers(stacks[0]) == 4


def test_who_misses_more_than_is_kept_gets_the_sum():
    change = {"q": torch.zeros(10)}
    state = FLoRAState("net", change, {3: {"q.lora_A": torch.ones(4)}}, complete_from=3, rounds_seen={0: 3, 1: 2, 2: 4})
    assert [*news(state, 0)] == ["3/q.lora_A"]
    assert [*news(state, 1)] == [f"{DENSE}q"]
    assert [*news(state, 2)] == []
    assert [*news(state, 9)] == [f"{DENSE}q"]


def test_downloads_grow_with_the_sum_of_ranks():
    found = []
    for width in (0.25, 0.5, 1.0):
        setup = language_setup("flora", clients=3, widths=(width,))
        entries = play(setup, rounds=2, shards=language_shards(3)).book.entries
        found.append(max(e.bytes for e in entries if e.kind == "stack"))
        assert {e.bytes for e in entries if e.kind == "adapters"} == {stacked_bytes(round(4 * width))}
    assert found == [stacked_bytes(3 * rank) for rank in (1, 2, 4)]


def test_fresh_adapters_differ_from_client_to_client_and_round_to_round():
    played = play(language_setup("flora", clients=2), rounds=2, shards=language_shards(2))
    starts = [a for one in played.state.stacks.values() for n, v in one.items() if n.endswith("lora_A") for a in v]
    assert len({tuple((row / row.norm()).round(decimals=3).tolist()) for row in starts}) == len(starts)


def test_the_predictor_is_the_merged_model_and_holds_nothing_else():
    setup = language_setup("flora", clients=2)
    played = play(setup, rounds=2, shards=language_shards(2))
    predictor = played.method.predictor(played.state)
    assert not predictor.training
    assert sorted(predictor.state_dict()) == sorted(f"change.{name}.dense" for name in played.state.model)
    shard = language_shards(1)(0)
    before = score(predictor, setup.task, shard, torch.device("cpu"))
    played.method.kit.network(setup.clients[0].net).load_state_dict(
        {n: torch.ones_like(v) for n, v in method_of(setup).kit.initial(setup.clients[0].net).items()}
    )
    assert equal(score(predictor, setup.task, shard, torch.device("cpu")), before)


def test_the_merged_model_writes_what_it_says():
    setup = language_setup("flora", clients=2, work=Work(steps=4, epochs=None, batch=8, lr=2.0))
    played = play(setup, rounds=2, shards=language_shards(2))
    predictor, shard = played.method.predictor(played.state), language_shards(1)(0)
    prompts = setup.task.prompts(shard, torch.arange(3))
    for prompt, answer in zip(prompts, generate(predictor, prompts, [4] * 3), strict=True):
        with torch.no_grad():
            logits = predictor(torch.tensor([prompt + list(answer.ids)]))[0, len(prompt) - 1 : -1]
        assert logits.argmax(1).tolist() == list(answer.ids)


def test_a_stack_that_comes_again_is_not_merged_again():
    """As where a reply was lost on its way: the client has merged, and the server does not know."""
    setup = language_setup("flora", clients=2)
    federation = Federation.inline(setup, language_shards(2), 2).play(0).play(1)
    memory, message = federation.runner.memories()[0], Payload.of(stack=news(federation.state, client=9))
    assert memory["seen"] == 1
    found = federation.method.merged_change(client_of(setup, language_shards(2), 0, message, memory, round=2))
    assert equal(found, federation.state.model)
