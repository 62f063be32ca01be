"""Networks by name and form. Those that end in a linear layer give their features and their head apart."""

from __future__ import annotations

from algorithms.nets.classifier import Classifier, require_head
from algorithms.nets.errors import NetworkError
from algorithms.nets.forms import Form, Images, Inputs, Modalities, Sequences, Signals, Tables, Texts
from algorithms.nets.registry import PATTERNS, build, forms_of, names, own_names

__all__ = [
    "PATTERNS",
    "Classifier",
    "Form",
    "Images",
    "Inputs",
    "Modalities",
    "NetworkError",
    "Sequences",
    "Signals",
    "Tables",
    "Texts",
    "build",
    "forms_of",
    "names",
    "own_names",
    "require_head",
]
