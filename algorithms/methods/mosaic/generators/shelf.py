"""Clients' generators as the server keeps them, and as they travel on to other clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from algorithms.core.payload import Memory, Payload, Value, memory_part, memory_tensors


@dataclass(frozen=True)
class ClientGenerator:
    """One client's generator.

    Attributes:
        tensors: by name; empty where the client held too few examples for a generator.
        counts: int64 (C,), the examples by class that went into it.
    """

    tensors: dict[str, Tensor]
    counts: Tensor


def pack(generators: Mapping[int, ClientGenerator], kind: str) -> Payload:
    """Pack all generators into one payload, their tensors as `kind` and their counts as label counts."""
    tensors = {f"{k}/{name}": value for k, sent in generators.items() for name, value in sent.tensors.items()}
    counts = {str(k): sent.counts for k, sent in generators.items()}
    return Payload({kind: tensors, "label_counts": counts})


def as_memory(received: Payload, kind: str) -> dict[str, Value]:
    """A `pack` payload as a client keeps it in its memory."""
    counts = received.tensors("label_counts")
    return {**memory_part("made", received.tensors(kind)), **memory_part("counts", counts)}


def generators_in(memory: Memory) -> dict[int, ClientGenerator]:
    """The generators that a client remembers."""
    shelf: dict[int, ClientGenerator] = {
        int(k): ClientGenerator({}, counts) for k, counts in memory_tensors("counts", memory).items()
    }
    for name, value in memory_tensors("made", memory).items():
        client, _, rest = name.partition("/")
        shelf[int(client)].tensors[rest] = value
    return shelf
