"""FedGen: the generator of features, the clients' terms, and heads that are shared over networks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from algorithms.core.payload import Payload
from algorithms.core.seeds import Seed
from algorithms.core.states import snapshot
from algorithms.core.training import Work
from algorithms.methods.fedgen import FedGen, Heads, decayed_weight
from algorithms.nets.server_generators import LatentGenerator
from algorithms.parts.losses import kl
from tests.algorithms.support_ensembles import tiny_inputs, tiny_kit, tiny_net
from tests.algorithms.support_methods import Federation, Sizes, Travel, as_fedavg, by_class, client_of, method_of, train
from tests.support import needs_of, play, tiny_plan, tiny_setup, tiny_shards

SMALLEST = {"generated_batch": 4, "latent": 4, "hidden": 8, "generator_steps": 2, "generator_batch": 6}
ON_DIGITS = {"alpha": 1.0, "beta": 1.0, "generator_steps": 10, "generator_batch": 32}


def travels(size: Sizes) -> Travel:
    """FedAvg's bytes and three counts; from the second round on down the generator, which is 4 + 3 inputs, 8 hidden
    units with batch normalisation and a counter, 128 features; and the classes met."""
    generator = 4 * ((4 + 3) * 8 + 8 + 4 * 8 + 8 * 128 + 128) + 8
    down = {("down", "generator"): generator, ("down", "label_counts"): 8 * 3}
    later = {key: (size.rounds - 1) * count for key, count in down.items()}
    return {**as_fedavg(size), ("up", "label_counts"): size.rounds * 8 * 3, **later}


def small(nets: tuple[str, ...] = ("small_cnn",), **changes):
    return tiny_setup("fedgen", nets=nets, **{**SMALLEST, **changes})


def fedgen(**changes) -> FedGen:
    return FedGen(FedGen.Config(**{**SMALLEST, **changes}), tiny_kit())


def head_of(weight: list[list[float]], bias: list[float]) -> dict[str, torch.Tensor]:
    return {"head.weight": torch.tensor(weight), "head.bias": torch.tensor(bias)}


# --- The generator ------------------------------------------------------------------------------------------------


def test_the_generator_for_mnist_has_the_papers_19744_parameters():
    net = LatentGenerator(classes=10, features=32, noise=32, hidden=256)
    assert sum(p.numel() for p in net.parameters()) == 19_744


def test_heads_judge_features_by_their_share_of_the_label():
    heads = Heads([head_of([[1.0], [0.0]], [0.0, 0.0]), head_of([[0.0], [0.0]], [0.0, 1.0])], torch.device("cpu"))
    features, labels = torch.tensor([[2.0], [3.0]]), torch.tensor([0, 1])
    shares = torch.tensor([[1.0, 0.25], [0.0, 0.75]])
    first = math.log(1 + math.exp(-2))
    second = 0.25 * math.log(1 + math.exp(3)) + 0.75 * math.log(1 + math.exp(-1))
    found = heads.cross_entropy(features, labels, shares)
    assert found.item() == pytest.approx((first + second) / 2, rel=1e-5)


def test_of_one_client_the_generators_loss_is_the_plain_cross_entropy_of_its_head():
    net, features, labels = tiny_net("mlp"), torch.randn(6, 64), torch.arange(6) % 3
    heads = Heads([{"head.weight": net.head.weight.detach(), "head.bias": net.head.bias.detach()}], torch.device("cpu"))
    found = heads.cross_entropy(features, labels, torch.ones(1, 3))
    assert found.item() == pytest.approx(F.cross_entropy(net.head(features), labels).item(), rel=1e-5)


def learned(counts: list[list[int]], **changes) -> tuple[FedGen, dict[str, torch.Tensor], dict[str, float]]:
    """A generator taught by two random heads whose clients met so many examples by class."""
    method, setup = fedgen(**changes), small(("mlp",))
    states = [snapshot(tiny_net("mlp", seed)) for seed in range(2)]
    heads = Heads([{name: s[name] for name in ("head.weight", "head.bias")} for s in states], torch.device("cpu"))
    state = method.start(setup.clients)
    generator, told = method.train_generator(state, heads, [torch.tensor(c) for c in counts], tiny_plan(setup))
    return method, generator, told


def test_the_cross_entropy_of_its_own_teachers_falls_while_the_generator_learns():
    few, many = (learned([[3, 1, 2], [1, 1, 0]], generator_steps=n, generator_lr=1e-2, hidden=32)[2] for n in (1, 80))
    assert many["fidelity"] < few["fidelity"] / 2


def test_diversity_lies_between_0_and_its_weight():
    assert 0 < learned([[3, 1, 2], [1, 1, 0]], diversity=2.0)[2]["diversity"] <= 2


def test_only_labels_that_somebody_met_are_asked(monkeypatch):
    asked = []
    forward = LatentGenerator.forward
    monkeypatch.setattr(LatentGenerator, "forward", lambda self, z, y: asked.append(y) or forward(self, z, y))
    learned([[3, 0, 2], [1, 0, 0]], generator_steps=10)
    assert set(torch.cat(asked).tolist()) == {0, 2}


def test_noise_is_normal_or_uniform_as_released():
    draws = torch.Generator().manual_seed(0)
    uniform = fedgen(noise="uniform")._noise(500, draws)
    assert uniform.min() >= 0
    assert uniform.max() <= 1
    assert fedgen()._noise(500, draws).std().item() == pytest.approx(1, abs=0.05)


# --- The client's side --------------------------------------------------------------------------------------------


def received(setup, available: tuple[int, ...] = (1, 1, 1)) -> Payload:
    """A client's message from the second round on."""
    method = method_of(setup)
    state = method.start(setup.clients)
    return Payload.of(weights=state.model, generator=state.generator, label_counts={"counts": torch.tensor(available)})


def test_the_loss_of_a_step_is_the_papers_sum_of_three(monkeypatch):
    setup = small(("mlp",), alpha=3.0, beta=2.0, decay=0.5)
    method, net = method_of(setup), tiny_net("mlp", 5)
    client = client_of(setup, tiny_shards(), 0, received(setup), round=1)
    inputs, labels = tiny_inputs(8), torch.arange(8) % 3
    seen = []
    forward = LatentGenerator.forward

    def watched(self, z, y):
        seen.append((forward(self, z, y), y))
        return seen[-1][0]

    monkeypatch.setattr(LatentGenerator, "forward", watched)
    found = method.guided_objective(client)(net, inputs, labels)
    (made, asked), (same, of_batch) = seen
    assert of_batch.tolist() == labels.tolist()
    # Half of 3 and of 2 are left in round 1; 4 generated features beside batches of 8.
    expected = (
        F.cross_entropy(net(inputs), labels)
        + 1.5 * 4 / 8 * F.cross_entropy(net.head(made), asked)
        + 1.0 * kl(net.head(same), net(inputs))
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_answer_to_generated_features_is_a_constant_in_the_divergence():
    setup = small(("mlp",), alpha=0.0, beta=2.0, decay=1.0)
    net, client = tiny_net("mlp", 5), client_of(setup, tiny_shards(), 0, received(setup), round=1)
    net.body.requires_grad_(False)
    loss = method_of(setup).guided_objective(client)(net, tiny_inputs(8), torch.arange(8) % 3)
    (gradient,) = torch.autograd.grad(loss, net.head.bias)
    plain = net(tiny_inputs(8))
    generator = method_of(setup)._generator("mlp", client.received.tensors("generator")).eval()
    noise = method_of(setup)._noise(8, client.seed.torch("generated"))
    target = F.softmax(net.head(generator(noise, torch.arange(8) % 3)), 1)
    probabilities, one_hot = F.softmax(plain, 1), F.one_hot(torch.arange(8) % 3)
    expected = ((probabilities - one_hot) + 2.0 * (probabilities - target)).mean(0)
    assert torch.allclose(gradient, expected, atol=1e-5)


def test_weights_of_the_terms_fall_from_round_to_round_but_not_to_0():
    assert [decayed_weight(10.0, 0.98, Seed(0, round=r)) for r in (0, 1, 2)] == pytest.approx([10, 9.8, 9.604])
    assert decayed_weight(10.0, 0.5, Seed(0, round=100)) == 1e-4
    assert decayed_weight(0.0, 0.98, Seed(0, round=5)) == 0


def test_the_terms_act_in_the_first_epochs_of_a_round_alone():
    # 20 images in batches of 8 are three steps an epoch.
    setup = small(("mlp",), epochs=1)
    objective = method_of(setup).guided_objective(client_of(setup, tiny_shards(), 0, received(setup), round=1))
    net, inputs, labels = tiny_net("mlp", 5), tiny_inputs(8), torch.arange(8) % 3
    plain = F.cross_entropy(net(inputs), labels).item()
    guided = [objective(net, inputs, labels).item() > plain + 1e-3 for _ in range(5)]
    assert guided == [True, True, True, False, False]


def test_labels_are_drawn_from_those_that_some_client_has_met(monkeypatch):
    setup, asked = small(("mlp",), beta=0.0), []
    objective = method_of(setup).guided_objective(
        client_of(setup, tiny_shards(), 0, received(setup, (0, 1, 0)), round=1)
    )
    forward = LatentGenerator.forward
    monkeypatch.setattr(LatentGenerator, "forward", lambda self, z, y: asked.append(y) or forward(self, z, y))
    objective(tiny_net("mlp", 5), tiny_inputs(8), torch.arange(8) % 3)
    assert asked[0].tolist() == [1, 1, 1, 1]


def test_clients_do_not_touch_the_generator():
    setup = small(("mlp",))
    message = received(setup)
    before = {name: value.clone() for name, value in message.tensors("generator").items()}
    train(method_of(setup), client_of(setup, tiny_shards(), 0, message, round=1))
    assert all(torch.equal(value, before[name]) for name, value in message.tensors("generator").items())


def test_guided_training_differs_from_plain_training():
    setup = small(("mlp",))
    method, message = method_of(setup), received(setup)
    plain = Payload({"weights": message.parts["weights"]})
    replies = [train(method, client_of(setup, tiny_shards(), 0, given, round=1)) for given in (plain, message)]
    assert not torch.equal(*(reply.payload.tensors("weights")["head.bias"] for reply in replies))


def test_clients_count_the_examples_that_this_rounds_training_met():
    setup = small(("mlp",))
    reply = train(method_of(setup), client_of(setup, tiny_shards(), 0, received(setup)))
    # Three steps of at most eight of the client's twenty images are one epoch.
    assert reply.payload.tensors("label_counts")["counts"].sum() == 20


# --- Rounds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [{"alpha": 0.0, "beta": 0.0}, {"epochs": 0}])
def test_without_the_clients_terms_it_is_fedavg_to_the_bit_and_no_generator_travels(off):
    plain, same = play(tiny_setup("fedavg", nets=("small_cnn",)), rounds=3), play(small(**off), rounds=3)
    assert all(torch.equal(value, same.state.model[name]) for name, value in plain.state.model.items())
    assert {entry.kind for entry in same.book.entries if entry.direction == "down"} == {"weights"}


def test_the_first_round_is_not_guided():
    plain = play(tiny_setup("fedavg", nets=("small_cnn",)), rounds=1)
    played = play(small(), rounds=2)
    assert all(torch.equal(value, played.states[0].model[name]) for name, value in plain.state.model.items())
    down = {(entry.round, entry.kind) for entry in played.book.entries if entry.direction == "down"}
    assert down == {(0, "weights"), (1, "weights"), (1, "generator"), (1, "label_counts")}


def test_the_bytes_of_a_round_are_those_of_model_generator_and_counts():
    entries = [e for e in play(small(("mlp",)), rounds=2).book.entries if e.round == 1 and e.client == 0]
    model = 4 * (64 * 64 + 64 + 64 * 3 + 3)
    generator = 4 * ((4 + 3) * 8 + 8 + 4 * 8 + 8 * 64 + 64) + 8
    assert {e.kind: e.bytes for e in entries if e.direction == "down"} == {
        "weights": model,
        "generator": generator,
        "label_counts": 8 * 3,
    }
    assert {e.kind: e.bytes for e in entries if e.direction == "up"} == {
        "weights": model,
        "examples": 8,
        "label_counts": 8 * 3,
    }


def test_classes_become_available_when_a_client_has_met_them():
    # Clients 0 and 3 hold class 0, 1 and 4 class 1, 2 and 5 class 2.
    federation = Federation.inline(small(), by_class(), 3)
    found = [federation.play(r, asked).state.available.tolist() for r, asked in enumerate([[0], [3], [1]])]
    assert found == [[1, 0, 0], [1, 0, 0], [1, 1, 0]]


def test_the_generators_rate_falls_from_round_to_round(monkeypatch):
    rates = []
    adam = torch.optim.Adam
    monkeypatch.setattr(
        torch.optim, "Adam", lambda p, lr, weight_decay: rates.append(lr) or adam(p, lr, weight_decay=weight_decay)
    )
    play(small(("mlp",), generator_lr=0.1, decay=0.5), rounds=3)
    assert rates == pytest.approx([0.1, 0.05, 0.025])


# --- Different networks -------------------------------------------------------------------------------------------


def test_networks_with_features_of_one_size_share_their_head_and_keep_bodies_apart():
    state = play(small(("small_cnn", "cnn2"), student="cnn2"), rounds=2).state
    assert torch.equal(state.models["small_cnn"]["head.weight"], state.models["cnn2"]["head.weight"])
    assert sorted(state.models) == ["cnn2", "small_cnn"]
    entries = {name.split(".")[0] for model in state.models.values() for name in model}
    assert entries == {"body", "head"}


def test_the_common_head_is_the_average_over_all_clients():
    setup = small(("small_cnn", "cnn2"), student="cnn2")
    federation = Federation.inline(setup, tiny_shards(), 1).play(0, asked=[0, 1])
    method, start = federation.method, federation.method.start(setup.clients)
    heads = [
        train(method, client_of(setup, tiny_shards(), k, Payload.of(weights=start.models[setup.clients[k].net])))
        .payload.tensors("weights")["head.bias"]
        .double()
        for k in (0, 1)
    ]
    assert torch.allclose(federation.state.model["head.bias"].double(), (20 * heads[0] + 20 * heads[1]) / 40, atol=1e-7)


HEADLESS = "tests.algorithms.test_nets:without_bias"


@pytest.mark.parametrize(
    ("nets", "changes", "words"),
    [
        (("mlp", "small_cnn"), {"student": "mlp"}, ["mlp 64", "small_cnn 128"]),
        (("cnn2", "small_cnn"), {}, ["cnn2, small_cnn", "student"]),
        (("mlp",), {"student": "resnet8"}, ["resnet8", "mlp"]),
        ((HEADLESS,), {}, [f"{HEADLESS} does not end in one; let it end in an nn.Linear"]),
    ],
)
def test_networks_that_cannot_share_a_generator_are_refused(nets, changes, words):
    setup = small(nets, **changes)
    reasons = "; ".join(needs_of(setup).refusals)
    assert all(word in reasons for word in words)


def test_a_batch_of_one_example_is_guided_as_well():
    setup = tiny_setup("fedgen", nets=("mlp",), work=Work(steps=2, epochs=None, batch=1, lr=0.1), **SMALLEST)
    reply = train(method_of(setup), client_of(setup, tiny_shards(), 0, received(setup), round=1))
    assert torch.isfinite(reply.payload.tensors("weights")["head.weight"]).all()
