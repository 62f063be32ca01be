"""The shape every classifier has: features, then a linear head."""

from __future__ import annotations

from torch import Tensor, nn


class Classifier(nn.Module):
    """A network in two parts: `body` maps images (B, C, H, W) to features (B, F), `head` maps features to logits.

    Attributes:
        body: everything up to the input of the last linear layer.
        head: linear, F to classes, with bias.
    """

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def features(self, images: Tensor) -> Tensor:
        """float (B, C, H, W) to (B, F)."""
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        """float (B, C, H, W) to logits (B, classes)."""
        return self.head(self.body(images))
