"""A network in two parts: features, then a linear head."""

from __future__ import annotations

from torch import Tensor, nn

from algorithms.nets.errors import NetworkError
from algorithms.nets.forms import Inputs


class Classifier(nn.Module):
    """A network in two parts: `body` maps inputs of B examples to features, `head` maps features to outputs.

    Attributes:
        body: everything up to the input of the last linear layer.
        head: linear, F features to the network's outputs, with bias.
    """

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def features(self, inputs: Inputs) -> Tensor:
        """float (B, F); of sequences (B, length, F)."""
        return self.body(inputs)

    def forward(self, inputs: Inputs) -> Tensor:
        """float (B, outputs); of sequences (B, length, outputs)."""
        return self.head(self.body(inputs))


def require_head(net: nn.Module) -> Classifier:
    """The network, where it has features and a head; every use of either begins here.

    Raises:
        NetworkError: for a network that does not end in a linear layer with a bias.
    """
    if isinstance(net, Classifier):
        return net
    raise NetworkError("has no head: its last operation is not an nn.Linear with a bias and one output for each class")
