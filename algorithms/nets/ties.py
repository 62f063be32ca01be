"""Tied weights: one tensor that a network has under several names, as an embedding that is also the last layer.

A state dict would hold such a tensor once for each name. A server that steps one entry and averages another would then
contradict itself, and the name that is loaded last would win. So the states of a network that `build` returns hold each
tensor once, under the first of its names, and other names follow when a state is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


def aliases(net: nn.Module) -> dict[str, str]:
    """Further names of tensors in a state dict: name -> the first name of the same tensor."""
    first: dict[int, str] = {}
    entries = net.state_dict(keep_vars=True).items()
    names = {name: first.setdefault(id(value), name) for name, value in entries if isinstance(value, Tensor)}
    return {name: original for name, original in names.items() if name != original}


def hold_once(net: nn.Module) -> None:
    """Let the network's state dicts hold tied tensors once; does nothing to a network without any."""
    found = aliases(net)
    if found:
        net.register_state_dict_post_hook(_Leave(found))
        net.register_load_state_dict_pre_hook(_Follow(found))


@dataclass  # torch marks the hooks that it is given
class _Leave:
    """Takes the further names out of a state dict."""

    aliases: Mapping[str, str]

    def __call__(self, net: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        for name in self.aliases:
            del state[prefix + name]


@dataclass  # torch marks the hooks that it is given
class _Follow:
    """Gives the further names what their first name has, whatever stood there."""

    aliases: Mapping[str, str]

    def __call__(self, net: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for name, original in self.aliases.items():
            if prefix + original in state:
                state[prefix + name] = state[prefix + original]
