"""Networks that the server holds as states, and one resident network of each form through which the states pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from algorithms.core.kit import Kit

CHUNK = 512
"""Images that one expert sees at a time."""


@dataclass(frozen=True)
class Expert:
    """One expert.

    Attributes:
        net: name of its network.
        state: every entry of its state dict, on the CPU.
        width: fraction of the network's hidden channels that it has.
    """

    net: str
    state: dict[str, Tensor]
    width: float = 1.0


class Bank:
    """Experts whose states stay on the CPU: one network of each form is resident, and the states pass through it.

    It is no `nn.Module`, so that putting a teacher in train mode, moving it or optimising it cannot reach the experts.
    """

    def __init__(self, experts: Sequence[Expert], kit: Kit) -> None:
        self._experts = tuple(experts)
        forms = sorted({(expert.net, expert.width) for expert in experts})
        self._nets = {form: kit.new_network(*form).eval().requires_grad_(False) for form in forms}

    def __len__(self) -> int:
        return len(self._experts)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Network inputs (B, ...) to every expert's logits (B, E, C)."""
        return torch.stack([self._answer(expert, images) for expert in self._experts], 1)

    def _answer(self, expert: Expert, images: Tensor) -> Tensor:
        net = self._nets[expert.net, expert.width].to(images.device)
        # One expert's copy on the device at a time: a hundred of ResNet-18 would fill 4.5 GB.
        state = {name: value.to(images.device) for name, value in expert.state.items()}
        return torch.cat([functional_call(net, state, (chunk,)) for chunk in images.split(CHUNK)])

    @torch.no_grad()
    def from_features(self, features: Tensor) -> Tensor:
        """Inputs (B, F) of the last linear layer to every expert's logits (B, E, C).

        Raises:
            ValueError: the experts' networks differ, so that no features are common to them.
        """
        if len(self._nets) > 1:
            raise ValueError("experts of different networks share no features; give them images")
        weight = torch.stack([e.state["head.weight"] for e in self._experts]).to(features.device)
        bias = torch.stack([e.state["head.bias"] for e in self._experts]).to(features.device)
        return torch.einsum("bf,ecf->bec", features, weight) + bias
