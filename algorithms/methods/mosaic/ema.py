"""Exponential moving averages of a network's parameters."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import nn

Form = Literal["ramp", "bias-corrected", "plain"]


class Average:
    """e <- d e + (1 - d) w after each optimiser step t = 1, 2, ..., over a network's parameters w.

    - plain: d = `decay`, and e starts as the first w, of which decay^t is still in it after t steps.
    - ramp: d = min(decay, t / (t + 9)), so that the start is soon forgotten.
    - bias-corrected: d = `decay`, e starts from 0 and is read as e / (1 - decay^t).
    """

    def __init__(self, net: nn.Module, form: Form, decay: float = 0.99) -> None:
        self.form, self.decay, self.steps = form, decay, 0
        self._net = net
        self._values = {
            name: torch.zeros_like(value) if form == "bias-corrected" else value.detach().clone()
            for name, value in net.named_parameters()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's present parameters in."""
        self.steps += 1
        decay = self.decay
        if self.form == "ramp":
            decay = min(decay, self.steps / (self.steps + 9))
        for name, value in self._net.named_parameters():
            self._values[name].lerp_(value, 1 - decay)

    @torch.no_grad()
    def network(self) -> nn.Module:
        """A copy of the network that holds the average, in eval mode and without gradients."""
        scale = 1 - self.decay**self.steps if self.form == "bias-corrected" else 1.0
        averaged = copy.deepcopy(self._net).eval().requires_grad_(False)
        for name, value in averaged.named_parameters():
            value.copy_(self._values[name] / scale)
        return averaged
