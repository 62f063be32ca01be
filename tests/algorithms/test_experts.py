"""Class-wise experts: their weights by hand, and that nothing changes them or fills the device with them."""

import io
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call

from algorithms.core.callbacks import ignore
from algorithms.core.distillation import Distillation, distil_here
from algorithms.core.seeds import Seed
from algorithms.core.states import snapshot
from algorithms.methods.mosaic.experts import ClassWiseMeans, PlainSum, Teacher
from algorithms.methods.mosaic.meta import Examples, MetaConfig, train_meta
from algorithms.nets import Images, build
from algorithms.parts import bank as module
from algorithms.parts.bank import Bank, Expert
from algorithms.parts.losses import DistillationObjective
from algorithms.parts.submodels import SubModel, rescale, scaling
from tests.algorithms.support_ensembles import tiny_kit
from tests.support import weighted_mean

SHAPE, CLASSES = (1, 8, 8), 3
META = MetaConfig(meta_width=12, meta_heads=3, meta_feedforward=16, meta_steps=5)


WHOLE = SubModel({})
"""Of a part that has every entry whole, no index is looked at."""


def means_of(*clients: tuple[dict[str, torch.Tensor], list[int]]) -> ClassWiseMeans:
    means = ClassWiseMeans(len(clients[0][1]), clients[0][0])
    for state, counts in clients:
        means.add(state, torch.tensor(counts), WHOLE)
    return means


def weight(*values: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(values)}


def network(name: str = "small_cnn", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = build(name, Images(SHAPE), CLASSES)
    net(torch.randn(8, *SHAPE))
    return net.eval()


def bank_of(*nets: nn.Module, name: str = "small_cnn") -> Bank:
    return Bank([Expert(name, snapshot(net)) for net in nets], tiny_kit())


def test_each_expert_is_the_average_by_examples_of_its_class():
    means = means_of((weight(1.0, 2.0), [3, 0, 1]), (weight(5.0, 6.0), [1, 2, 1]))
    first, second, third = means.experts(otherwise=weight(0.0, 0.0))
    assert first["w"].tolist() == [(3 * 1 + 1 * 5) / 4, (3 * 2 + 1 * 6) / 4]
    assert second["w"].tolist() == [5.0, 6.0]
    assert third["w"].tolist() == [3.0, 4.0]
    assert means.plain(otherwise=weight(0.0, 0.0))["w"].tolist() == [(4 * 1 + 4 * 5) / 8, (4 * 2 + 4 * 6) / 8]


def test_a_class_that_nobody_holds_has_the_plain_average_as_expert():
    means = means_of((weight(1.0), [1, 0]), (weight(4.0), [2, 0]))
    assert means.experts(otherwise=weight(0.0))[1]["w"].tolist() == [3.0]


def test_the_weights_of_an_expert_sum_to_one():
    means = means_of((weight(7.0), [5, 1]), (weight(7.0), [11, 3]), (weight(7.0), [2, 0]))
    assert [expert["w"].tolist() for expert in means.experts(otherwise=weight(0.0))] == [[7.0], [7.0]]


def test_with_one_client_every_expert_is_its_model():
    state = snapshot(network())
    for expert in means_of((state, [3, 0, 4])).experts(otherwise=state):
        assert all(torch.equal(expert[name], value) for name, value in state.items())


def test_where_all_clients_hold_the_classes_alike_every_expert_is_the_plain_average():
    means = means_of((weight(1.0), [2, 4]), (weight(4.0), [1, 2]))
    assert [e["w"].tolist() for e in means.experts(otherwise=weight(0.0))] == [[2.0], [2.0]]
    assert means.plain(otherwise=weight(0.0))["w"].tolist() == [2.0]


def test_an_expert_ignores_a_client_without_its_class_even_if_its_weights_are_nan():
    means = means_of((weight(1.0), [1, 0]), (weight(float("nan")), [0, 1]))
    assert means.experts(otherwise=weight(0.0))[0]["w"].tolist() == [1.0]


def test_experts_of_whole_networks_are_weighted_means_to_the_bit():
    states, counts = [snapshot(network(seed=k)) for k in range(3)], [[17, 0, 4], [3, 9, 1], [0, 5, 301]]
    means = means_of(*zip(states, counts, strict=True))
    for label, expert in enumerate(means.experts(otherwise=states[0])):
        expected = weighted_mean([(state, own[label]) for state, own in zip(states, counts, strict=True)], otherwise={})
        assert all(torch.equal(expert[name], value) for name, value in expected.items())


def test_the_entry_of_an_expert_is_averaged_over_those_with_the_class_who_have_it():
    """Client 0 has all four entries, with 3 and 1 examples of two classes; client 1 has entries 3 and 0, in this order,
    with 2 and 0. Entry 0: (3 * 1 + 2 * 6) / 5 for class 0. Class 1 knows client 0 alone."""
    means = ClassWiseMeans(2, weight(0.0, 0.0, 0.0, 0.0))
    means.add(weight(1.0, 2.0, 3.0, 4.0), torch.tensor([3, 1]), WHOLE)
    means.add(weight(9.0, 6.0), torch.tensor([2, 0]), SubModel({"w": (torch.tensor([3, 0]),)}))
    before = weight(7.0, 7.0, 7.0, 7.0)
    first, second = (expert["w"].tolist() for expert in means.experts(otherwise=before))
    assert first == pytest.approx([(3 * 1 + 2 * 6) / 5, 2.0, 3.0, (3 * 4 + 2 * 9) / 5])
    assert second == [1.0, 2.0, 3.0, 4.0]
    assert means.plain(before)["w"].tolist() == pytest.approx([(4 * 1 + 2 * 6) / 6, 2.0, 3.0, (4 * 4 + 2 * 9) / 6])


def test_an_entry_without_its_class_falls_back_on_the_average_and_then_on_what_it_was():
    """Client 0 has entries 0 and 1 and examples of class 0; client 1 has entries 1 and 2 and examples of class 1."""
    means = ClassWiseMeans(2, weight(0.0, 0.0, 0.0, 0.0))
    means.add(weight(1.0, 2.0), torch.tensor([3, 0]), SubModel({"w": (torch.tensor([0, 1]),)}))
    means.add(weight(6.0, 5.0), torch.tensor([0, 1]), SubModel({"w": (torch.tensor([1, 2]),)}))
    first, second = (expert["w"].tolist() for expert in means.experts(otherwise=weight(7.0, 7.0, 7.0, 7.0)))
    assert first == [1.0, 2.0, 5.0, 7.0]
    assert second == [1.0, 6.0, 5.0, 7.0]
    assert means.plain(weight(7.0, 7.0, 7.0, 7.0))["w"].tolist() == [1.0, (3 * 2 + 1 * 6) / 4, 5.0, 7.0]


def test_narrow_experts_answer_in_the_bank_as_they_did_in_training():
    """The perceptron has no batch normalisation, so that train mode and eval mode differ by the scaler alone."""
    net, images = build("mlp", Images(SHAPE), CLASSES, 0.25), torch.randn(5, *SHAPE)
    with scaling(net.train(), 0.25), torch.no_grad():
        inside = net(images)
    narrow = Expert("mlp", rescale(net, snapshot(net), 0.25), 0.25)
    whole = Expert("mlp", snapshot(network("mlp")))
    bank = Bank([narrow, whole], tiny_kit())
    assert torch.allclose(bank.logits(images)[:, 0], inside, atol=1e-6)
    with pytest.raises(ValueError, match="share no features"):
        bank.from_features(torch.randn(2, 64))


def test_counters_of_batch_normalisation_stay_whole_numbers():
    count = {"n": torch.tensor(3)}
    expert = means_of((count, [1]), ({"n": torch.tensor(5)}, [1])).experts(otherwise=count)[0]
    assert expert["n"].dtype == torch.int64
    assert expert["n"].item() == 5


def test_the_bank_answers_as_each_expert_does():
    nets, images = [network(seed=1), network(seed=2)], torch.randn(5, *SHAPE)
    with torch.no_grad():
        expected = torch.stack([net(images) for net in nets], 1)
    assert torch.allclose(bank_of(*nets).logits(images), expected, atol=1e-6)


def test_more_images_than_a_chunk_give_the_same_logits(monkeypatch):
    bank, images = bank_of(network(seed=1)), torch.randn(7, *SHAPE)
    whole = bank.logits(images)
    monkeypatch.setattr(module, "CHUNK", 3)
    assert torch.allclose(bank.logits(images), whole, atol=1e-6)


def test_the_feature_path_equals_the_image_path():
    net, images = network(seed=1), torch.randn(5, *SHAPE)
    bank = bank_of(net)
    with torch.no_grad():
        features = net.features(images)
    assert torch.allclose(bank.from_features(features), bank.logits(images), atol=1e-5)


def test_experts_of_different_networks_answer_to_images_and_refuse_features():
    bank = Bank([Expert(name, snapshot(network(name))) for name in ("small_cnn", "mlp")], tiny_kit())
    assert bank.logits(torch.randn(2, *SHAPE)).shape == (2, 2, CLASSES)
    with pytest.raises(ValueError, match="share no features"):
        bank.from_features(torch.randn(2, 64))


def test_the_plain_sum_adds_the_experts_logits():
    bank, images = bank_of(network(seed=1), network(seed=2)), torch.randn(4, *SHAPE)
    assert torch.allclose(PlainSum(bank)(images), bank.logits(images)[:, 0] + bank.logits(images)[:, 1])


def teacher_over(bank: Bank) -> Teacher:
    images, labels = torch.randn(30, *SHAPE), torch.arange(30) % CLASSES
    meta = train_meta(Examples(bank.logits(images), labels), META, (), Seed(1), ignore)
    return Teacher(bank, meta)


class RandomImages:
    """A source of noise."""

    def latents(self, index: int) -> dict[str, torch.Tensor]:
        return {"images": torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(index))}

    def inputs(self, latents):
        return latents["images"], torch.full((16,), -1)


def test_meta_training_and_distillation_leave_the_experts_untouched_to_the_bit():
    experts = [Expert("small_cnn", snapshot(network(seed=s))) for s in (1, 2)]
    before = [{name: value.clone() for name, value in expert.state.items()} for expert in experts]
    teacher = teacher_over(Bank(experts, tiny_kit()))
    teacher.train()
    loss = DistillationObjective(0.8, 1.0, 1.0, "js", "teacher")
    distil_here(Distillation(RandomImages(), teacher, network(), loss, steps=3, distinct=3, lr=1e-3))
    for expert, state in zip(experts, before, strict=True):
        assert all(torch.equal(expert.state[name], value) for name, value in state.items())


def test_train_and_parameters_of_a_teacher_do_not_reach_the_experts():
    teacher, images = teacher_over(bank_of(network(seed=1), network(seed=2))), torch.randn(6, *SHAPE)
    before = teacher.bank.logits(images)
    teacher.train()
    assert torch.equal(teacher.bank.logits(images), before)
    assert {id(p) for p in teacher.parameters()} == {id(p) for p in teacher.meta.parameters()}
    assert not any(name.startswith("bank") for name in teacher.state_dict())


def test_a_teacher_answers_from_images_and_from_features():
    net, images = network(seed=1), torch.randn(5, *SHAPE)
    teacher = teacher_over(bank_of(net)).eval()
    with torch.no_grad():
        features = net.features(images)
    assert torch.allclose(teacher(images), teacher.from_features(features), atol=1e-5)


def test_a_teacher_that_was_sent_to_another_process_answers_the_same():
    teacher, images = teacher_over(bank_of(network(seed=1), network(seed=2))).eval(), torch.randn(5, *SHAPE)
    buffer = io.BytesIO()
    torch.save(teacher, buffer)
    buffer.seek(0)
    sent = torch.load(buffer, weights_only=False)
    with torch.no_grad():
        assert torch.equal(sent(images), teacher(images))


def test_only_one_expert_lies_on_the_device_at_a_time(monkeypatch):
    alive: list[weakref.ref] = []
    most = []

    def watched(net, state, args):
        alive.append(weakref.ref(state["head.weight"]))
        most.append(sum(ref() is not None for ref in alive))
        return functional_call(net, state, args)

    monkeypatch.setattr(module, "functional_call", watched)
    bank = bank_of(*[network(seed=s) for s in range(4)])
    assert bank.logits(torch.empty(2, *SHAPE, device="meta")).shape == (2, 4, CLASSES)
    assert most == [1, 1, 1, 1]
