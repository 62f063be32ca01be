"""A network whose last operation is a linear layer, as body and head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from algorithms.nets.classifier import Classifier
from algorithms.nets.errors import NetworkError
from algorithms.nets.forms import Form


def answer(net: nn.Module, form: Form) -> Tensor:
    """The network's outputs for the form's probe, in eval mode and without gradients; left in train mode.

    Raises:
        NetworkError: whatever its forward pass raises, in one line.
    """
    net.eval()
    try:
        with torch.no_grad():
            output = net(form.probe())
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


def split(net: nn.Module, form: Form, outputs: int) -> nn.Module:
    """The same network with its last `nn.Linear` as head, and all before it as body; where that layer is not its last
    operation, or has no bias or another number of outputs, the network as it is."""
    if isinstance(net, Classifier):
        return net
    layers = [(path, module) for path, module in net.named_modules() if isinstance(module, nn.Linear) and path]
    path, head = layers[-1] if layers else ("", None)
    if head is None or head.bias is None or head.out_features != outputs:
        return net
    whole = answer(net, form)
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, nn.Identity())
    classifier = Classifier(net, head)
    if _same(classifier, whole, form):
        return classifier
    setattr(net.get_submodule(parent), name, head)
    return net


def _same(classifier: Classifier, whole: Tensor, form: Form) -> bool:
    """Whether body and head give the outputs of the whole network."""
    try:
        parts = answer(classifier, form)
    except NetworkError:
        return False
    return parts.shape == whole.shape and torch.allclose(parts, whole, rtol=1e-4, atol=1e-5)
