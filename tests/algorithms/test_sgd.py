"""Gradient descent without bookkeeping gives the bits of torch's own."""

import pytest
import torch
from torch import nn

from algorithms.core.sgd import SGD


def parameters():
    generator = torch.Generator().manual_seed(5)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in [(4, 3), (4,), (2, 4)]]


def walk(optimiser, own):
    """Five steps; the last parameter has a gradient in every second one only, as a layer that is not always used."""
    generator = torch.Generator().manual_seed(6)
    for step in range(5):
        optimiser.zero_grad()
        for number, parameter in enumerate(own):
            if number < 2 or step % 2:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimiser.step()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_five_steps_end_at_the_very_bits_of_torchs_own(momentum, weight_decay):
    ours, theirs = parameters(), parameters()
    walk(SGD(ours, 0.1, momentum, weight_decay), ours)
    walk(torch.optim.SGD(theirs, lr=0.1, momentum=momentum, weight_decay=weight_decay), theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not torch.equal(ours[2], parameters()[2])


def test_a_step_without_gradients_changes_nothing():
    own = parameters()
    SGD(own, 0.1, 0.9, 0.01).step()
    assert all(torch.equal(a, b) for a, b in zip(own, parameters(), strict=True))


def test_gradients_are_left_as_they_are():
    """Whoever reads them after the step finds what the loss gave, not what weight decay and momentum made of it."""
    own = parameters()
    own[0].grad = torch.ones(4, 3)
    SGD(own[:1], 0.1, 0.9, 0.01).step()
    assert torch.equal(own[0].grad, torch.ones(4, 3))
