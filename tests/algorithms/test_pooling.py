"""Max pooling has the values and gradients of torch's own, to the bit, ties and odd sizes included."""

import pytest
import torch
from torch import nn

from algorithms.nets import Images, build
from algorithms.nets.pooling import WORTHWHILE, MaxPool

SHAPES = [(64, 8, 28, 28), (50, 16, 9, 7), (64, 3, 32, 13), (2, 1, 3, 3)]


def tied(shape: tuple[int, ...]) -> torch.Tensor:
    """Few different values, as on the even ground of an image: most windows have their largest one several times."""
    return torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(0)).float().requires_grad_()


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_torch(shape):
    ours, theirs = tied(shape), tied(shape)
    pooled, expected = MaxPool()(ours), nn.MaxPool2d(2)(theirs)
    assert torch.equal(pooled, expected)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    pooled.backward(weights)
    expected.backward(weights)
    assert torch.equal(ours.grad, theirs.grad)
    with torch.no_grad():
        assert torch.equal(MaxPool()(ours), expected)


def test_both_ways_of_pooling_are_met_above():
    """Small tensors are left to torch."""
    sizes = [torch.Size(shape).numel() for shape in SHAPES]
    assert min(sizes) < WORTHWHILE < sorted(sizes)[1]


def test_of_equal_values_the_first_one_row_by_row_has_the_gradient():
    images = torch.zeros(1, 1, 256, 256, requires_grad=True)
    MaxPool()(images).sum().backward()
    assert images.grad[0, 0, :4, :4].tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("name", ["small_cnn", "cnn2"])
def test_a_networks_gradients_are_those_with_torchs_pooling(name):
    images = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    gradients = []
    for pooling in (MaxPool, lambda: nn.MaxPool2d(2)):
        torch.manual_seed(0)
        net = build(name, Images((1, 28, 28)), 10)
        for place, layer in enumerate(net.body):
            if isinstance(layer, nn.MaxPool2d):
                net.body[place] = pooling()
        net(images).logsumexp(1).sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))
