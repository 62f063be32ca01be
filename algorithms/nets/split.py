"""Any network whose last operation is a linear layer, as a classifier of body and head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from algorithms.nets.classifier import Classifier
from algorithms.nets.errors import NetworkError

NEEDED = (
    "needed is an algorithms.nets.Classifier, or a module whose last operation is an nn.Linear with a bias and one "
    "output for each class"
)


def probe(shape: tuple[int, int, int]) -> Tensor:
    """Two different images, float32 (2, C, H, W), that rise from -1 to 1; nothing is drawn."""
    return torch.linspace(-1, 1, 2 * shape[0] * shape[1] * shape[2]).view(2, *shape)


def answer(net: nn.Module, images: Tensor) -> Tensor:
    """The network's output in eval mode without gradients; left in train mode.

    Raises:
        NetworkError: whatever its forward pass raises, in one line.
    """
    net.eval()
    try:
        with torch.no_grad():
            output = net(images)
    # A network that does not fit fails in whatever way its layers and its author chose.
    except Exception as error:
        raise NetworkError(reason(error)) from error
    finally:
        net.train()
    if not isinstance(output, Tensor):
        raise NetworkError(f"gives a {type(output).__name__}, where a tensor is needed")
    return output


def reason(error: Exception) -> str:
    """An exception in one line: its kind and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def split(net: nn.Module, shape: tuple[int, int, int], classes: int) -> Classifier:
    """The same network with its last `nn.Linear` as head, and all before it as body; changed in place.

    Raises:
        NetworkError: where there is no such layer, or where the two parts do not give the network's own logits.
    """
    if isinstance(net, Classifier):
        return net
    logits = answer(net, probe(shape))
    head = _take_head(net, classes)
    classifier = Classifier(net, head)
    misplaced = f"its last linear layer is not its last operation; {NEEDED}"
    try:
        parts = answer(classifier, probe(shape))
    except NetworkError as error:
        raise NetworkError(misplaced) from error
    if parts.shape != logits.shape or not torch.allclose(parts, logits, rtol=1e-4, atol=1e-5):
        raise NetworkError(misplaced)
    return classifier


def _take_head(net: nn.Module, classes: int) -> nn.Linear:
    """Put an identity in the place of the last linear layer, and return that layer."""
    layers = [(path, module) for path, module in net.named_modules() if isinstance(module, nn.Linear) and path]
    if not layers:
        raise NetworkError(f"has no linear layer; {NEEDED}")
    path, head = layers[-1]
    if head.bias is None or head.out_features != classes:
        bias = "a" if head.bias is not None else "no"
        found = f"its last linear layer, {path}, has {head.out_features} outputs and {bias} bias"
        raise NetworkError(f"{found}; {NEEDED}")
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, nn.Identity())
    return head
