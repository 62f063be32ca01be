"""Ray clusters: start or attach, and what their machines have."""

from clusters.nodes import Node
from clusters.session import Cluster, ClusterError, attach_or_start

__all__ = ["Cluster", "ClusterError", "Node", "attach_or_start"]
