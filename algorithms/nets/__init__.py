"""Networks by name. Every classifier gives its features and its head apart."""

from __future__ import annotations

from algorithms.nets.classifier import Classifier
from algorithms.nets.errors import NetworkError
from algorithms.nets.registry import PATTERNS, build, names

__all__ = ["PATTERNS", "Classifier", "NetworkError", "build", "names"]
