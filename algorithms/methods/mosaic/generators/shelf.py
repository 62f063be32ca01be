"""Clients' generators as the server keeps them, and as they travel on to other clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from algorithms.core.payload import Memory, Payload, Value, kept, recalled


@dataclass(frozen=True)
class Sent:
    """What one client's generator is.

    Attributes:
        tensors: by name; empty where the client held too few examples for a generator.
        counts: int64 (C,), the examples by class that went into it.
    """

    tensors: dict[str, Tensor]
    counts: Tensor


def packed(generators: Mapping[int, Sent], kind: str) -> Payload:
    """All generators in one payload, their tensors as `kind` and their counts as label counts."""
    tensors = {f"{k}/{name}": value for k, sent in generators.items() for name, value in sent.tensors.items()}
    counts = {str(k): sent.counts for k, sent in generators.items()}
    return Payload({kind: tensors, "label_counts": counts})


def remembered(received: Payload, kind: str) -> dict[str, Value]:
    """A `packed` payload as a client keeps it in its memory."""
    counts = received.tensors("label_counts")
    return {**kept("made", received.tensors(kind)), **kept("counts", counts)}


def recalled_from(memory: Memory) -> dict[int, Sent]:
    """The generators that a client remembers."""
    shelf: dict[int, Sent] = {int(k): Sent({}, counts) for k, counts in recalled("counts", memory).items()}
    for name, value in recalled("made", memory).items():
        client, _, rest = name.partition("/")
        shelf[int(client)].tensors[rest] = value
    return shelf
