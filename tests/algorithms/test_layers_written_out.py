"""Backpropagation written out for linear layers: to the bit what torch's own gives."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from algorithms.core import training
from algorithms.core.layers import backpropagate, cross_entropy_slope, linear_layers, slope_of
from algorithms.core.seeds import Seed
from algorithms.core.training import Work, fit
from algorithms.nets import Classifier, Images, build
from algorithms.parts.corrections import proximal
from tests.support import tiny_shards, tiny_task

TASK = tiny_task()


def classifier(sizes, rectified, outputs):
    """Linear layers of these sizes, where `rectified` with a ReLU behind, and a head."""
    body = nn.Sequential(nn.Flatten())
    for before, after, has_relu in zip(sizes, sizes[1:], rectified, strict=False):
        body.extend([nn.Linear(before, after), nn.ReLU()] if has_relu else [nn.Linear(before, after)])
    return Classifier(body, nn.Linear(sizes[-1], outputs))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=4),
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.integers(1, 12),
    st.integers(2, 40),
    st.integers(0, 2**31),
)
def test_gradients_and_loss_are_those_of_torch_to_the_bit(sizes, rectified, outputs, rows, seed):
    """Of two rows at least, as the training loop has them; torch multiplies a single one in another order."""
    torch.manual_seed(seed)
    net = classifier(sizes, rectified, outputs)
    inputs, labels = torch.randn(rows, sizes[0]), torch.randint(outputs, (rows,))
    loss = F.cross_entropy(net(inputs), labels)
    loss.backward()
    expected = [p.grad.clone() for p in net.parameters()]
    layers = linear_layers(net)
    by_torch = partial(slope_of, lambda logits: F.cross_entropy(logits, labels))
    for slope in (by_torch, lambda logits: cross_entropy_slope(logits, labels)):
        found = backpropagate(list(net.parameters()), layers, inputs, slope)
        assert torch.equal(found, loss.detach())
        assert all(torch.equal(p.grad, one) for p, one in zip(net.parameters(), expected, strict=True))


WORK = Work(steps=7, epochs=None, batch=8, lr=0.1)
WORKS = {
    "plain": WORK,
    "momentum, weight decay and a clip": replace(WORK, momentum=0.9, weight_decay=0.01, clip=0.05),
    "adam on smoothed labels": replace(WORK, optimiser="adam", label_smoothing=0.1),
}


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
@pytest.mark.parametrize("is_pulled", [False, True])
def test_training_ends_with_the_bits_of_torchs_backpropagation(monkeypatch, work, is_pulled):
    torch.manual_seed(0)
    net = build("mlp", Images(TASK.shape), TASK.classes)
    other = copy.deepcopy(net)
    shard, seed = tiny_shards(1)(0), Seed(1, 0, "train", 0)
    correct = proximal(0.5, [p.detach().clone() for p in net.parameters()]) if is_pulled else None
    found = fit(net, TASK, shard, work, seed, correct=correct)
    monkeypatch.setattr(training, "linear_layers", lambda net: None)
    assert fit(other, TASK, shard, work, seed, correct=correct) == found
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_a_network_with_a_hook_is_left_to_torch():
    """Who listens to a layer hears every pass."""
    net = classifier([4, 3], [True], 2)
    assert linear_layers(net) == (True, False)
    net.head.register_forward_hook(lambda *_: None)
    assert linear_layers(net) is None
