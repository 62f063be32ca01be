"""Payloads between server and client: named tensors and numbers, each of a declared kind, counted to the byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

Tensors: TypeAlias = Mapping[str, Tensor]
"""Named tensors, such as a network's state dict."""

Value: TypeAlias = Tensor | int | float

Memory: TypeAlias = Mapping[str, Value]
"""A client's own state between rounds: named tensors and numbers, a value in and a value out."""

KINDS: Mapping[str, str] = {
    "weights": "the weights of a network after training on the client's data",
    "gradients": "gradients or updates computed on the client's data",
    "control": "running corrections of the optimiser, made from past updates",
    "examples": "how many training examples the client holds",
    "steps": "how many steps of its optimiser the client took",
    "label_counts": "how many examples of each class the client holds",
    "prototypes": "mean features of examples of one class; of a class with few examples nearly the example itself",
    "logits": "mean outputs of the client's network for each class",
    "generator": "the weights of a generator trained to imitate the client's data",
    "statistics": "means and covariances of the client's inputs or features, from which examples like them are drawn",
    "adapters": "low-rank additions to a network's weights",
    "loss": "the mean loss on the client's data",
}
"""Kinds of content that methods have in common, with a sentence on what each tells about a client. A method declares
which it sends, and gives such a sentence for any other. Raw data is no kind."""

NUMBER_BYTES = 8
"""A plain number travels as 64 bits."""


class PayloadError(ValueError):
    """A payload of an undeclared kind, or with contents that cannot travel."""


@dataclass(frozen=True)
class Payload:
    """Contents by kind, then by name: `Payload.of(weights=state, examples={"n": 12})`.

    Which kinds may travel is what the method declares; see `algorithms.core.needs.Needs`.

    Tensors are not copied: whoever receives a payload must not write into it.
    """

    parts: Mapping[str, Mapping[str, Value]]

    def __post_init__(self) -> None:
        for kind in self.parts:
            if not (isinstance(kind, str) and kind.isidentifier()):
                raise PayloadError(f"{kind!r} is no kind of payload; a kind is a word, as {', '.join(KINDS)}")
        for kind, contents in self.parts.items():
            for name, value in contents.items():
                if not isinstance(value, Tensor | int | float):
                    raise PayloadError(f"{kind}.{name} is a {type(value).__name__}; only tensors and numbers travel")

    @classmethod
    def of(cls, **parts: Mapping[str, Value]) -> Payload:
        """A payload with one part per keyword, the keyword naming the kind."""
        return cls(parts)

    def tensors(self, kind: str) -> dict[str, Tensor]:
        """The tensors of one kind; KeyError where the payload has no such part."""
        return {name: value for name, value in self.parts[kind].items() if isinstance(value, Tensor)}

    def number(self, kind: str, name: str) -> float:
        """One number of one kind."""
        value = self.parts[kind][name]
        if isinstance(value, Tensor):
            raise PayloadError(f"{kind}.{name} is a tensor of shape {tuple(value.shape)}, not a number")
        return value

    def nbytes(self) -> dict[str, int]:
        """Bytes by kind: elements times element size for tensors, 8 for a number."""
        return {kind: sum(map(_value_bytes, contents.values())) for kind, contents in self.parts.items()}


def _value_bytes(value: Value) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else NUMBER_BYTES


NOTHING: Memory = {}
"""A memory without contents."""


def memory_part(label: str, tensors: Tensors) -> dict[str, Value]:
    """Tensors as a part of a memory, told apart from others by a label; `memory_tensors` takes them out again."""
    return {f"{label}/{name}": value for name, value in tensors.items()}


def memory_tensors(label: str, memory: Memory) -> dict[str, Tensor]:
    """The tensors put into a memory by `memory_part` under this label, by their own names; {} where there are none."""
    start = f"{label}/"
    return {
        name.removeprefix(start): value
        for name, value in memory.items()
        if name.startswith(start) and isinstance(value, Tensor)
    }


EMPTY = Payload({})
"""A message without contents."""
