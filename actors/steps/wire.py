"""Payloads and memories in the form in which Ray moves them fast: one block of bytes and a small header.

A tensor pickled by torch is copied and described anew each time. A numpy array leaves pickle (protocol 5) as a buffer
of its own, which Ray writes once into the object store and every process of the node maps without a copy.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from actors.steps.orders import Failure, Outcome
from algorithms.core.payload import Memory, Payload, Value
from algorithms.core.states import Dtypes, WeightedMean

ALIGNMENT = 64
"""Bytes: every tensor starts at a multiple, as torch's own allocations do."""

Parts: TypeAlias = Mapping[str, Mapping[str, Value]]
"""Tensors and numbers by part, then by name."""

_MEMORY = "memory"


@dataclass(frozen=True)
class Place:
    """A tensor's place in the block: dtype, shape, and the offset of its first byte."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, eq=False)
class PackedParts:
    """Parts ready to travel.

    Attributes:
        header: for each part and name a number itself, or the place of a tensor.
        block: uint8, (bytes,).
    """

    header: dict[str, dict[str, int | float | Place]]
    block: np.ndarray


@dataclass(frozen=True, eq=False)
class PackedOutcome:
    """An outcome on its way to the driver. The memory travels beside it, where the driver need not read it.

    Attributes:
        told: the outcome without what is packed.
        keeps: whether the step left the memory as it was.
    """

    told: Outcome
    payload: PackedParts | None
    group: PackedMeans | None
    keeps: bool


@dataclass(frozen=True, eq=False)
class PackedMeans:
    """Means by name.

    Attributes:
        about: weight and dtypes of each.
        sums: of each.
    """

    about: dict[str, tuple[float, Dtypes]]
    sums: PackedParts


def pack(parts: Parts) -> PackedParts:
    """Copy parts into one block, detached from any graph and on the CPU."""
    header: dict[str, dict[str, int | float | Place]] = {}
    tensors: list[tuple[Place, Tensor]] = []
    end = 0
    for part, contents in parts.items():
        entries = header[part] = {}
        for name, value in contents.items():
            if not isinstance(value, Tensor):
                entries[name] = value
                continue
            place = entries[name] = Place(value.dtype, tuple(value.shape), end)
            tensors.append((place, value.detach()))
            end += math.ceil(value.numel() * value.element_size() / ALIGNMENT) * ALIGNMENT
    block = torch.empty(end, dtype=torch.uint8).numpy()
    for place, tensor in tensors:
        _tensor_at(place, block).copy_(tensor)
    return PackedParts(header, block)


def unpack(packed: PackedParts, *, private: bool) -> dict[str, dict[str, Value]]:
    """The inverse of `pack`: the same names, dtypes, shapes and bits; numbers stay int or float.

    Args:
        private: copy the block first. Otherwise tensors are views on it, and where the block lies in Ray's object
            store nobody may write into them: torch does not know read-only memory, so a write would change what
            other processes read.
    """
    block = packed.block
    if private:
        block = torch.empty(len(block), dtype=torch.uint8).numpy()
        np.copyto(block, packed.block)
    with accept_read_only():
        return {
            part: {
                name: _tensor_at(value, block) if isinstance(value, Place) else value for name, value in entries.items()
            }
            for part, entries in packed.header.items()
        }


def pack_payload(payload: Payload) -> PackedParts:
    """See `pack`."""
    return pack(payload.parts)


def unpack_payload(packed: PackedParts, *, private: bool) -> Payload:
    """See `unpack`."""
    return Payload(unpack(packed, private=private))


def pack_memory(memory: Memory) -> PackedParts:
    """See `pack`."""
    return pack({_MEMORY: memory})


def unpack_memory(packed: PackedParts | None, *, private: bool) -> Memory:
    """See `unpack`; a client without a memory yet has an empty one."""
    return {} if packed is None else unpack(packed, private=private)[_MEMORY]


Head: TypeAlias = PackedOutcome | Failure
"""What of a step travels to the driver."""


def pack_outcome(outcome: Outcome | Failure) -> tuple[Head, PackedParts | None]:
    """Split an outcome into what the driver reads, and the memory that it passes on unread."""
    if isinstance(outcome, Failure):
        return outcome, None
    memory = None if outcome.memory is None else pack_memory(outcome.memory)
    payload = None if outcome.payload is None else pack_payload(outcome.payload)
    group = None if outcome.group is None else pack_means(outcome.group)
    told = replace(outcome, payload=None, memory=None, group=None)
    return PackedOutcome(told, payload, group, memory is None), memory


def pack_means(means: Mapping[str, WeightedMean]) -> PackedMeans:
    """See `pack`."""
    about = {name: (mean.weight, mean.dtypes) for name, mean in means.items()}
    return PackedMeans(about, pack({name: mean.sums for name, mean in means.items()}))


def unpack_means(packed: PackedMeans) -> dict[str, WeightedMean]:
    """The inverse of `pack_means`, in memory of its own."""
    sums = cast(dict[str, dict[str, Tensor]], unpack(packed.sums, private=True))
    return {name: WeightedMean(weight, sums[name], dtypes) for name, (weight, dtypes) in packed.about.items()}


def without_payload(head: PackedOutcome, outcome: Outcome) -> PackedOutcome:
    """The head of an outcome whose payload was added to others; the head as it is where the outcome has it still."""
    if outcome.payload is not None:
        return head
    group = None if outcome.group is None else pack_means(outcome.group)
    return replace(head, told=replace(outcome, group=None), payload=None, group=group)


def unpack_outcome(head: PackedOutcome, *, private: bool = True) -> Outcome:
    """An outcome without its memory.

    The payload is a private copy unless it is asked otherwise: a method may keep an update for many rounds, and a view
    would hold the whole reply of its host in the object store for as long.
    """
    payload = None if head.payload is None else unpack_payload(head.payload, private=private)
    group = None if head.group is None else unpack_means(head.group)
    return replace(head.told, payload=payload, group=group)


def _tensor_at(place: Place, block: np.ndarray) -> Tensor:
    """A view. Each tensor has its own version counter, so that a write can be told by name."""
    count = math.prod(place.shape)
    if count == 0:
        return torch.empty(place.shape, dtype=place.dtype)
    return torch.frombuffer(block, dtype=place.dtype, count=count, offset=place.offset).view(place.shape)


class accept_read_only(warnings.catch_warnings):
    """A block in which torch may view arrays that must not be written to.

    Arrays in Ray's object store are read-only. torch cannot express that and warns; nothing here writes.
    """

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", message="The given (NumPy array|buffer) is not writable")


def tensors_of(received: Payload, memory: Memory) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of what a step is given, with a name for people."""
    for kind, contents in received.parts.items():
        for name, value in contents.items():
            if isinstance(value, Tensor):
                yield f"received {kind}.{name}", value
    for name, value in memory.items():
        if isinstance(value, Tensor):
            yield f"memory.{name}", value
