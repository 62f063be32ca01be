"""Networks by name. Every classifier gives its features and its head apart."""

from __future__ import annotations

from algorithms.nets.classifier import Classifier
from algorithms.nets.registry import NetworkError, build, names

__all__ = ["Classifier", "NetworkError", "build", "names"]
