"""Networks of linear layers alone, and backpropagation through them written out.

For such a network calling the arithmetic takes longer than the arithmetic, and half of the calls are bookkeeping of
torch's own backpropagation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from algorithms.nets.classifier import Classifier

Layers = tuple[bool, ...]
"""Linear layers in their order: for each, whether a ReLU follows."""

_behind_relu: Callable[[Tensor, Tensor, int], Tensor] = torch.ops.aten.threshold_backward.default
"""(derivatives by a ReLU's outputs, its outputs, 0) -> derivatives by its inputs."""

_nll = torch.ops.aten.nll_loss_forward.default
_behind_nll = torch.ops.aten.nll_loss_backward.default
_behind_log_softmax = torch.ops.aten._log_softmax_backward_data.default
"""The parts of torch's cross-entropy; 1 stands for the mean over a batch, -100 for a class that no row has."""


def linear_layers(net: nn.Module) -> Layers | None:
    """The layers of a network that flattens its inputs first and has linear layers with biases, and ReLUs after them,
    none of them tied to another and all of them trained; None for any other network."""
    layers, parameters = _layers(net), list(net.parameters())
    if layers is None or len(parameters) != 2 * len(layers) or not all(p.requires_grad for p in parameters):
        return None
    return None if any(module._forward_hooks or module._forward_pre_hooks for module in net.modules()) else layers


def _layers(net: nn.Module) -> Layers | None:
    if type(net) is not Classifier or type(net.body) is not nn.Sequential:
        return None
    modules: list[nn.Module] = [*net.body, net.head]
    if type(modules[0]) is not nn.Flatten or (modules[0].start_dim, modules[0].end_dim) != (1, -1):
        return None
    layers: list[bool] = []
    for module in modules[1:]:
        if type(module) is nn.Linear and module.bias is not None:
            layers.append(False)
        elif type(module) is nn.ReLU and layers:
            layers[-1] = True
        else:
            return None
    return tuple(layers)


Slope = Callable[[Tensor], tuple[Tensor, Tensor]]
"""(answers of a network, (B, outputs)) -> the loss, a scalar, and its derivatives by the answers."""


@torch.no_grad()
def backpropagate(parameters: Sequence[Tensor], layers: Layers, inputs: Tensor, slope: Slope) -> Tensor:
    """Give every parameter its gradient, and return the loss, a scalar: to the bit what torch's `backward` gives.

    Args:
        parameters: weight and bias of each layer in turn, as the network has them; `grad` is set, not added to.
        inputs: (B, ...).
        slope: of the loss.
    """
    passed = [inputs.flatten(1)]
    for weight, bias, rectified in zip(parameters[::2], parameters[1::2], layers, strict=True):
        outputs = torch.addmm(bias, passed[-1], weight.t())
        passed.append(outputs.relu_() if rectified else outputs)
    loss, errors = slope(passed[-1])
    for layer in reversed(range(len(layers))):
        weight, bias = parameters[2 * layer], parameters[2 * layer + 1]
        if layers[layer]:
            errors = _behind_relu(errors, passed[layer + 1], 0)
        weight.grad, bias.grad = torch.mm(errors.t(), passed[layer]), errors.sum(0)
        if layer:
            errors = torch.mm(errors, weight)
    return loss


def slope_of(loss_of: Callable[[Tensor], Tensor], outputs: Tensor) -> tuple[Tensor, Tensor]:
    """A loss, and its derivatives by what the network answers, as torch finds them."""
    with torch.enable_grad():
        leaf = outputs.detach().requires_grad_()
        loss = loss_of(leaf)
        (errors,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), errors


def cross_entropy_slope(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The same of the mean cross-entropy of logits (B, C) and classes int64 (B,), written out: to the bit torch's."""
    logs = torch.log_softmax(logits, 1)
    loss, weight = _nll(logs, labels, None, 1, -100)
    errors = _behind_nll(torch.ones_like(loss), logs, labels, None, 1, -100, weight)
    return loss, _behind_log_softmax(errors, logs, 1, logits.dtype)
