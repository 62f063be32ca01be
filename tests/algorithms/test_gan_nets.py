"""The DCGAN pair: sizes, counts, conditioning and initial weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from algorithms.core.seeds import torch_seeded
from algorithms.nets import NetworkError
from algorithms.nets.dcgan import DCDiscriminator, DCGenerator

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 16, 16), (3, 32, 32), (3, 64, 64), (4, 128, 128)]


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def noise(count: int, latent: int) -> torch.Tensor:
    return torch.randn(count, latent, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_generator_makes_images_that_the_discriminator_judges(shape, classes):
    labels = None if classes is None else torch.tensor([0, 1, 2, 2, 1])
    images = DCGenerator(shape, latent=7, width=2, classes=classes)(noise(5, 7), labels)
    assert images.shape == (5, *shape)
    assert DCDiscriminator(shape, width=2, classes=classes)(images, labels).shape == (5,)


def test_the_pair_for_32x32_is_mosaic_s_to_the_byte():
    generator, discriminator = DCGenerator((3, 32, 32)), DCDiscriminator((3, 32, 32))
    assert parameters(generator) == 3_573_824
    assert sum(value.numel() * value.element_size() for value in generator.state_dict().values()) == 14_303_008
    assert parameters(discriminator) == 2_759_424


def test_the_pair_for_28x28_starts_at_7x7_and_ends_at_3x3():
    maps = 10 * 64 * 49 + 16 * (64 * 32 + 32 * 16) + 16 * 1
    assert parameters(DCGenerator((1, 28, 28), latent=10, width=16)) == maps + 2 * (64 + 32 + 16)
    maps = 16 * (1 * 16 + 16 * 32 + 32 * 64) + 9 * 64
    assert parameters(DCDiscriminator((1, 28, 28), width=16)) == maps + 2 * (32 + 64)


def test_64x64_takes_one_doubling_more_than_32x32():
    smaller, larger = (parameters(DCGenerator((3, side, side), latent=10, width=4)) for side in (32, 64))
    first = 16 * 10 * (64 - 32)
    assert larger - smaller == first + 16 * 64 * 32 + 2 * 64


@pytest.mark.parametrize("side", [(20, 24), (30, 30), (4, 4), (7, 7), (32, 64), (56, 56), (48, 48)])
@pytest.mark.parametrize("net", [DCGenerator, DCDiscriminator])
def test_a_size_that_does_not_fit_is_refused_with_the_sizes_that_do(net, side):
    with pytest.raises(
        NetworkError, match=f"{side[0]}x{side[1]}; sizes that fit are 28x28, .*8x8, 16x16, 32x32, 64x64"
    ):
        net((3, *side))


def test_images_lie_between_minus_one_and_one_however_large_the_noise():
    images = DCGenerator((1, 8, 8), latent=5, width=4)(1e6 * noise(16, 5)).detach()
    assert float(images.min()) >= -1
    assert float(images.max()) <= 1
    assert float(images.std()) > 0


def test_another_label_gives_another_image_and_the_same_label_the_same():
    generator = DCGenerator((1, 8, 8), latent=5, width=4, classes=3).eval()
    z = noise(1, 5).repeat(3, 1)
    one, two, again = generator(z, torch.tensor([0, 1, 0]))
    assert torch.equal(one, again)
    assert not torch.allclose(one, two)


def test_the_label_enters_the_generator_as_one_more_one_hot_noise():
    with torch_seeded(1):
        conditional = DCGenerator((1, 8, 8), latent=5, width=4, classes=3)
    with torch_seeded(1):
        plain = DCGenerator((1, 8, 8), latent=8, width=4)
    z = noise(2, 5)
    one_hot = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert torch.equal(conditional(z, torch.tensor([2, 0])), plain(torch.cat([z, one_hot], dim=1)))


def test_the_discriminator_gives_the_logit_of_the_label():
    discriminator = DCDiscriminator((1, 8, 8), width=4, classes=3).eval()
    images = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1)).repeat(3, 1, 1, 1)
    logits = discriminator(images, torch.tensor([0, 1, 2]))
    assert len(set(logits.tolist())) == 3
    assert torch.allclose(logits.flip(0), discriminator(images, torch.tensor([2, 1, 0])))


def test_the_discriminator_ends_before_the_sigmoid_of_the_paper():
    discriminator = DCDiscriminator((1, 8, 8), width=4)
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    logits = discriminator(images).detach()
    assert float(logits.min()) < 0
    ones = torch.ones(6)
    with_sigmoid = F.binary_cross_entropy(torch.sigmoid(logits), ones)
    assert F.binary_cross_entropy_with_logits(logits, ones).item() == pytest.approx(with_sigmoid.item(), rel=1e-5)


@pytest.mark.parametrize("net", [DCGenerator((1, 8, 8), latent=5, width=4), DCDiscriminator((1, 8, 8), width=4)])
def test_labels_for_an_unconditional_net_are_refused(net):
    inputs = noise(2, 5) if isinstance(net, DCGenerator) else torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match="without classes"):
        net(inputs, torch.tensor([0, 1]))


@pytest.mark.parametrize("net", [DCGenerator((1, 8, 8), 5, 4, classes=2), DCDiscriminator((1, 8, 8), 4, classes=2)])
def test_a_conditional_net_without_labels_is_refused(net):
    inputs = noise(2, 5) if isinstance(net, DCGenerator) else torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match="labels are needed"):
        net(inputs)


@pytest.mark.parametrize("net", [DCGenerator, DCDiscriminator])
def test_initial_weights_are_those_of_the_paper_and_no_convolution_has_a_bias(net):
    with torch_seeded(1):
        layers = list(net((3, 32, 32), width=32).modules())
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    normalisations = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    assert all(layer.bias is None for layer in convolutions)
    weights = torch.cat([layer.weight.detach().flatten() for layer in convolutions])
    assert float(weights.mean()) == pytest.approx(0, abs=2e-4)
    assert float(weights.std()) == pytest.approx(0.02, rel=0.01)
    scales = torch.cat([layer.weight.detach() for layer in normalisations])
    assert float(scales.mean()) == pytest.approx(1, abs=0.005)
    assert float(scales.std()) == pytest.approx(0.02, rel=0.2)
    assert all(torch.equal(layer.bias, torch.zeros_like(layer.bias)) for layer in normalisations)


def test_the_first_layer_of_the_discriminator_and_the_last_of_the_generator_are_not_normalised():
    generator = [type(layer) for layer in DCGenerator((3, 32, 32), width=2).layers]
    discriminator = [type(layer) for layer in DCDiscriminator((3, 32, 32), width=2).layers]
    assert generator == [nn.ConvTranspose2d, nn.BatchNorm2d, nn.ReLU] * 4 + [nn.ConvTranspose2d, nn.Tanh]
    normalised = [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU] * 3
    assert discriminator == [nn.Conv2d, nn.LeakyReLU, *normalised, nn.Conv2d]
