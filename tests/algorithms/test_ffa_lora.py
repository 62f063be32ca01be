"""FFA-LoRA: A stays at its start, B alone is trained, sent and averaged."""

import dataclasses

import pytest
import torch

from algorithms.core.payload import Payload
from algorithms.core.training import Work
from algorithms.methods.ffa_lora import FFALoRA
from algorithms.nets.interventions import orthonormal_rows
from algorithms.parts.low_rank import A, B, entries, products
from algorithms.parts.private_gradients import private_objective
from tests.algorithms.support_language import language_setup, language_shards
from tests.algorithms.support_methods import client_of, method_of, train
from tests.support import needs_of, play


def one_step(method: str, **changes):
    """The state after one step of SGD at each of two clients."""
    setup = language_setup(method, clients=2, work=Work(steps=1, epochs=None, batch=4, lr=0.05), **changes)
    return play(setup, rounds=1, shards=language_shards(2)).state.model


def whole(played):
    """A0 and B together."""
    return {**played.method.fixed_factors(played.state.net), **played.state.model}


def test_the_mean_of_the_products_is_the_product_of_the_means():
    setup, shards = language_setup("ffa_lora", clients=2), language_shards(2)
    both = play(setup, rounds=1, shards=shards)
    alone = [play(setup, rounds=1, shards=shards, cohort=lambda _, k=k: [k]) for k in range(2)]
    one, other = (products(whole(played)) for played in alone)
    for name, product in products(whole(both)).items():
        assert product.abs().max() > 0
        torch.testing.assert_close(product, (one[name] + other[name]) / 2, rtol=1e-5, atol=1e-8)


def test_the_fixed_factor_is_one_for_all_and_never_changes():
    setup = language_setup("ffa_lora")
    start = method_of(setup).kit.initial(setup.clients[0].net)
    method = method_of(setup)
    method.kit.network(setup.clients[0].net)  # as a worker that has already trained
    for number in range(3):
        train(method, client_of(setup, language_shards(), number, Payload.of(weights=entries(start, B))))
    net = method.kit.network(setup.clients[0].net)
    for name, value in entries(start, A).items():
        assert torch.equal(net.state_dict()[name], value)
        assert torch.equal(method.fixed_factors(setup.clients[0].net)[name], value)


def test_weight_decay_leaves_the_fixed_factor_alone():
    setup = dataclasses.replace(
        language_setup("ffa_lora"),
        work=Work(steps=2, epochs=None, batch=4, lr=0.05, optimiser="adamw", weight_decay=0.5),
    )
    method = method_of(setup)
    start = method.start(setup.clients)
    train(method, client_of(setup, language_shards(), 0, Payload.of(weights=start.model)))
    net = method.kit.network(start.net)
    assert all(torch.equal(net.state_dict()[name], a) for name, a in method.fixed_factors(start.net).items())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_the_first_step_is_that_of_fedit_to_the_bit():
    """B = 0, so that FedIT's A has no gradient either."""
    assert all(torch.equal(value, one_step("fedit")[name]) for name, value in one_step("ffa_lora").items())


def test_b_alone_travels_and_its_bytes_are_those_of_the_formula():
    """4 r d_out for queries (64) and values (32) of two layers."""
    played = play(language_setup("ffa_lora"), rounds=2, shards=language_shards())
    assert played.state.model
    assert all(name.endswith(".lora_B") for name in played.state.model)
    assert {e.bytes for e in played.book.entries if e.kind == "adapters"} == {4 * 4 * 2 * (64 + 32)}


def test_alpha_is_a_rate():
    """q times alpha and a rate of 1 / q^2: the same s B A0."""
    learnt = []
    for q in (1.0, 3.0):
        work = Work(steps=3, epochs=None, batch=4, lr=0.9 / q**2)
        setup = language_setup("ffa_lora", clients=1, work=work, task={"alpha": 8.0 * q})
        played = play(setup, rounds=2, shards=language_shards(1))
        learnt.append({name: value * 8.0 * q / 4 for name, value in products(whole(played)).items()})
    assert norm_of(learnt[0]) > 1e-3
    for name, value in learnt[0].items():
        torch.testing.assert_close(learnt[1][name], value, rtol=0, atol=1e-5)


def test_rows_of_an_orthogonal_start_are_orthonormal_and_span_the_same():
    a = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    rows = orthonormal_rows(a)
    torch.testing.assert_close(rows @ rows.T, torch.eye(3))
    torch.testing.assert_close(a @ rows.T @ rows, a)
    setup = language_setup("ffa_lora", init="orthogonal")
    for value in method_of(setup).fixed_factors(setup.clients[0].net).values():
        torch.testing.assert_close(value @ value.T, torch.eye(4))


def test_a_gradient_without_a_bound_worth_the_name_is_the_plain_one():
    """Of the mean over examples of their own losses, which batches of one make the task's loss."""
    plain, private = (one_step_of_one(privacy_clip=clip, batch=1) for clip in (None, 1e9))
    for name, value in plain.items():
        torch.testing.assert_close(private[name], value, rtol=1e-4, atol=1e-7)


def one_step_of_one(batch: int = 4, **config):
    work = Work(steps=1, epochs=None, batch=batch, lr=1.0)
    setup = language_setup("ffa_lora", clients=1, work=work, **config)
    return play(setup, rounds=1, shards=language_shards(1)).state.model


def norm_of(state):
    return float(torch.stack([value.square().sum() for value in state.values()]).sum().sqrt())


def test_a_step_is_no_longer_than_the_bound():
    assert norm_of(one_step_of_one()) > 1e-3
    assert norm_of(one_step_of_one(privacy_clip=1e-4)) <= 1e-4 * 1.0001


class Line(torch.nn.Module):
    """z = w x, with w = 0."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return x @ self.w


class Slope:
    """An example's loss is z, whose gradient is x."""

    def losses(self, outputs, targets):
        return outputs


def private_gradient(clip, noise=0.0, x=((3.0, 4.0), (0.0, 0.5)), is_lone=False):
    net, inputs = Line(), torch.tensor(x)
    objective = private_objective(Slope(), clip, noise, torch.Generator().manual_seed(5), is_lone)
    loss = objective(net, inputs, torch.zeros(len(inputs)))
    loss.backward()
    assert loss.item() == 0
    return net.w.grad


def test_each_examples_gradient_is_clipped_by_itself():
    """(3, 4) has the norm 5 and becomes (0.6, 0.8) under a bound of 1; (0, 0.5) stays; the mean is of both."""
    assert private_gradient(1.0).tolist() == pytest.approx([0.3, 0.65])


def test_noise_is_on_the_sum_in_units_of_the_bound():
    noise = torch.randn(2, generator=torch.Generator().manual_seed(5))
    expected = torch.tensor([0.3, 0.65]) + 2.0 * 1.0 * noise / 2
    torch.testing.assert_close(private_gradient(1.0, noise=2.0), expected)


def test_a_lone_example_that_is_shown_twice_counts_once():
    noise = torch.randn(2, generator=torch.Generator().manual_seed(5))
    found = private_gradient(1.0, noise=2.0, x=((0.0, 0.5), (0.0, 0.5)), is_lone=True)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.5]) + 2.0 * noise)


def test_noise_differs_from_client_to_client():
    setup = language_setup("ffa_lora", clients=2, privacy_clip=1e-6, privacy_noise=1e6)
    method = method_of(setup)
    message = Payload.of(weights=method.start(setup.clients).model)
    sent = [train(method, client_of(setup, language_shards(2), k, message)).payload.tensors("weights") for k in (0, 1)]
    assert not any(torch.allclose(sent[0][name], sent[1][name]) for name in sent[0])


def test_pieces_of_a_batch_are_refused_with_private_gradients():
    """Each piece would have noise of its own."""
    work = Work(steps=1, epochs=None, batch=4, lr=0.05, micro_batch=2)
    found = [needs_of(language_setup("ffa_lora", work=work, privacy_clip=clip)).refusals for clip in (None, 1.0)]
    assert [any("clients.micro_batch" in reason for reason in reasons) for reasons in found] == [False, True]


def test_noise_without_a_bound_is_refused():
    with pytest.raises(ValueError, match="privacy_noise = 1 is a factor of privacy_clip"):
        FFALoRA.Config(privacy_noise=1.0)
