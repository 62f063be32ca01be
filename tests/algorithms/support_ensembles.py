"""Small networks, kits and ensembles for the methods whose server teaches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from algorithms.core.kit import Kit
from algorithms.core.seeds import Seed
from algorithms.core.states import snapshot
from algorithms.core.training import Work
from algorithms.nets import Classifier, Images, build
from algorithms.parts.bank import Expert
from algorithms.parts.ensembles import Ensemble
from tests.support import CLASSES, SHAPE, tiny_task


def tiny_kit(seed: int = 3) -> Kit:
    """A kit for the tiny task."""
    return Kit(task=tiny_task(), work=Work(steps=3, epochs=None, batch=8, lr=0.1), seed=Seed(seed))


def tiny_net(name: str = "small_cnn", seed: int = 0) -> Classifier:
    """A network of random weights, whose batch statistics have moved from where they started."""
    torch.manual_seed(seed)
    net = build(name, Images(SHAPE), CLASSES)
    net(torch.randn(16, *SHAPE))
    return net.eval()


def members(*names: str) -> list[Expert]:
    """Different networks of these names, as a server receives them."""
    return [Expert(name, snapshot(tiny_net(name, seed))) for seed, name in enumerate(names)]


def ensemble_of(*names: str) -> Ensemble:
    """Different networks of these names side by side."""
    return Ensemble.of(members(*names), tiny_kit())


def tiny_inputs(count: int = 12, seed: int = 5) -> Tensor:
    """Network inputs for the tiny task."""
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def hooks_on(net: nn.Module) -> int:
    """The number of forward hooks that a network's layers carry."""
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in net.modules())
