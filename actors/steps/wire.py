"""Payloads and memories in the form in which Ray moves them fast: one block of bytes and a small header.

A tensor pickled by torch is copied and described anew each time. A numpy array leaves pickle (protocol 5) as a buffer
of its own, which Ray writes once into the object store and every process of the node maps without a copy. Small tensors
are gathered into one such buffer, since each costs Ray some time; a large one may be a buffer by itself, uncopied.
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

LARGE = 2**20
"""Bytes of a tensor that may travel as a buffer of its own: to copy it costs more than one buffer more."""

Parts: TypeAlias = Mapping[str, Mapping[str, Value]]
"""Tensors and numbers by part, then by name."""

_MEMORY = "memory"


@dataclass(frozen=True)
class Place:
    """A tensor's place: dtype, shape, which of the buffers, and the offset of its first byte."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    buffer: int = 0


@dataclass(frozen=True, eq=False)
class PackedParts:
    """Parts ready to travel.

    Attributes:
        header: for each part and name a number itself, or the place of a tensor.
        buffers: uint8, (bytes,) each: the one of the gathered tensors, then those of single ones; () without tensors.
    """

    header: dict[str, dict[str, int | float | Place]]
    buffers: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class PackedOutcome:
    """An outcome on its way to the driver. A memory with tensors travels beside it, where the driver need not read it.

    Attributes:
        outcome: the outcome without what is packed.
        keeps: whether the step left the memory as it was.
        memory: where it does not travel beside the outcome.
    """

    outcome: Outcome
    payload: PackedParts | None
    group: PackedMeans | None
    keeps: bool
    memory: PackedParts | None = None


@dataclass(frozen=True, eq=False)
class PackedMeans:
    """Means by name.

    Attributes:
        about: weight and dtypes of each.
        sums: of each.
    """

    about: dict[str, tuple[float, Dtypes]]
    sums: PackedParts


def pack(parts: Parts, *, copy: bool = True) -> PackedParts:
    """Parts detached from any graph and on the CPU.

    Args:
        copy: whether to copy every tensor. Otherwise large ones on the CPU are views, for parts that are sent, or
            dropped, before anything may write into them.
    """
    header: dict[str, dict[str, int | float | Place]] = {}
    gathered: list[tuple[Place, Tensor]] = []
    alone: list[np.ndarray] = []
    end = 0
    for part, contents in parts.items():
        entries = header[part] = {}
        for name, value in contents.items():
            if not isinstance(value, Tensor):
                entries[name] = value
            elif not copy and _is_buffer(value):
                alone.append(value.detach().view(-1).view(torch.uint8).numpy())
                entries[name] = Place(value.dtype, tuple(value.shape), 0, len(alone))
            else:
                place = entries[name] = Place(value.dtype, tuple(value.shape), end)
                gathered.append((place, value.detach()))
                end += math.ceil(value.numel() * value.element_size() / ALIGNMENT) * ALIGNMENT
    if not (gathered or alone):
        return PackedParts(header, ())
    block = _new_block(end)
    for place, tensor in gathered:
        _tensor_at(place, block).copy_(tensor)
    return PackedParts(header, (block, *alone))


def _is_buffer(tensor: Tensor) -> bool:
    """Whether a tensor's bytes lie one after the other in this process's memory, and are many."""
    plain = tensor.device.type == "cpu" and tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg())
    return plain and tensor.numel() * tensor.element_size() >= LARGE


def _new_block(size: int) -> np.ndarray:
    """Bytes that start at a multiple of `ALIGNMENT`.

    numpy asks the system for huge pages, where torch takes small ones, which cost five times the copy that fills them.
    """
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size]


def unpack(packed: PackedParts, *, private: bool) -> dict[str, dict[str, Value]]:
    """The inverse of `pack`: the same names, dtypes, shapes and bits; numbers stay int or float.

    Args:
        private: copy the buffers first. Otherwise tensors are views on them, and where they lie in Ray's object
            store nobody may write into them: torch does not know read-only memory, so a write would change what
            other processes read.
    """
    buffers = [_copy_of(buffer) for buffer in packed.buffers] if private else packed.buffers
    with accept_read_only():
        return {
            part: {
                name: _tensor_at(value, buffers[value.buffer]) if isinstance(value, Place) else value
                for name, value in entries.items()
            }
            for part, entries in packed.header.items()
        }


def _copy_of(buffer: np.ndarray) -> np.ndarray:
    block = _new_block(len(buffer))
    np.copyto(block, buffer)
    return block


def pack_payload(payload: Payload, *, copy: bool = True) -> PackedParts:
    """See `pack`."""
    return pack(payload.parts, copy=copy)


def unpack_payload(packed: PackedParts, *, private: bool) -> Payload:
    """See `unpack`."""
    return Payload(unpack(packed, private=private))


def pack_memory(memory: Memory, *, copy: bool = True) -> PackedParts:
    """See `pack`."""
    return pack({_MEMORY: memory}, copy=copy)


def unpack_memory(packed: PackedParts | None, *, private: bool) -> Memory:
    """See `unpack`; a client without a memory yet has an empty one."""
    return {} if packed is None else unpack(packed, private=private)[_MEMORY]


Head: TypeAlias = PackedOutcome | Failure
"""The part of a step's outcome that travels to the driver."""


def pack_outcome(outcome: Outcome | Failure, *, copy: bool = True) -> tuple[Head, PackedParts | None]:
    """Split an outcome into what the driver reads, and the memory that it passes on unread; `copy` as for `pack`."""
    if isinstance(outcome, Failure):
        return outcome, None
    memory = None if outcome.memory is None else pack_memory(outcome.memory, copy=copy)
    payload = None if outcome.payload is None else pack_payload(outcome.payload, copy=copy)
    group = None if outcome.group is None else pack_means(outcome.group)
    bare = replace(outcome, payload=None, memory=None, group=None)
    return PackedOutcome(bare, payload, group, memory is None), memory


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
    return replace(head, outcome=replace(outcome, group=None), payload=None, group=group)


def unpack_outcome(head: PackedOutcome, *, private: bool = True) -> Outcome:
    """An outcome without its memory.

    The payload is a private copy unless it is asked otherwise: a method may keep an update for many rounds, and a view
    would hold the whole reply of its host in the object store for as long.
    """
    payload = None if head.payload is None else unpack_payload(head.payload, private=private)
    group = None if head.group is None else unpack_means(head.group)
    return replace(head.outcome, payload=payload, group=group)


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
