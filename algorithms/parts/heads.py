"""Methods that look inside a network: at its features and at the linear layer that ends it."""

from __future__ import annotations

from collections.abc import Iterable

from algorithms.core.needs import network_of
from algorithms.core.task import Task
from algorithms.nets import Classifier, NetworkError


def head_refusal(nets: Iterable[str], task: Task, use: str, otherwise: str = "") -> list[str]:
    """The reason why something that needs features and a head cannot be had of some of these networks.

    Args:
        use: what needs them, as `generator: features`.
        otherwise: a setting with which nothing needs them, as `set mask: false`; empty where there is none.
    """
    lacking = [net for net in sorted(set(nets)) if not _has_head(net, task)]
    if not lacking:
        return []
    found = f"{lacking[0]} does not end" if len(lacking) == 1 else f"{', '.join(lacking)} do not end"
    remedy = "let it end in an nn.Linear with a bias and one output for each class"
    other = f", or {otherwise}" if otherwise else ""
    return [f"{use} needs the last linear layer of a network and its inputs, and {found} in one; {remedy}{other}"]


def _has_head(net: str, task: Task) -> bool:
    """Whether a network has a head; one that cannot be built counts as if it had, since that is refused elsewhere."""
    try:
        network = network_of(net, task)
    except NetworkError:
        return True
    return isinstance(network, Classifier)
