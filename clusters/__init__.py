"""Ray clusters: start or attach (`clusters.session`, which needs Ray), and what their machines have."""

from clusters.nodes import Node

__all__ = ["Node"]
