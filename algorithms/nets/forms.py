"""Forms: what a network takes, said by shapes and numbers alone, so that one can be built and tried without data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Inputs: TypeAlias = Tensor | Mapping[str, Tensor]
"""A network's inputs for a batch of B examples: a tensor (B, ...), or tensors (B, ...) by name."""


@dataclass(frozen=True)
class Images:
    """float32 (B, channels, height, width)."""

    shape: tuple[int, int, int]

    def probe(self, count: int = 2) -> Tensor:
        """Different images that rise from -1 to 1; nothing is drawn."""
        return torch.linspace(-1, 1, count * math.prod(self.shape)).view(count, *self.shape)

    def __str__(self) -> str:
        return f"images of {'x'.join(map(str, self.shape))}"


@dataclass(frozen=True)
class Signals:
    """float32 (B, channels, length): samples of several channels over time."""

    shape: tuple[int, int]

    def probe(self, count: int = 2) -> Tensor:
        """Different signals that rise from -1 to 1; nothing is drawn."""
        return torch.linspace(-1, 1, count * math.prod(self.shape)).view(count, *self.shape)

    def __str__(self) -> str:
        return f"signals of {_count_text(self.shape[0], 'channel')} and {_count_text(self.shape[1], 'sample')}"


@dataclass(frozen=True)
class Texts:
    """Token ids `ids`, int64 (B, length) in [0, vocabulary), 0 where a text has ended, and `length`, int64 (B,), the
    number of tokens of each text, at least 1."""

    vocabulary: int
    length: int

    def probe(self, count: int = 2) -> dict[str, Tensor]:
        """Different texts of different lengths; nothing is drawn."""
        ids = torch.arange(count * self.length).view(count, self.length) % max(self.vocabulary - 1, 1) + 1
        length = (torch.arange(count) % self.length) + 1
        ids = ids.clamp(max=self.vocabulary - 1)
        return {"ids": ids * (torch.arange(self.length) < length[:, None]), "length": length}

    def __str__(self) -> str:
        return f"texts of at most {self.length} tokens out of {self.vocabulary}"


@dataclass(frozen=True)
class Sequences:
    """Token ids, int64 (B, length) in [0, vocabulary), for networks that answer at every place: outputs are
    (B, length, outputs), those of a place made from it and the places before it alone."""

    vocabulary: int
    length: int

    def probe(self, count: int = 2) -> Tensor:
        """Different sequences; nothing is drawn."""
        return torch.arange(count * self.length).view(count, self.length) % self.vocabulary

    def __str__(self) -> str:
        return f"sequences of {self.length} tokens out of {self.vocabulary}"


@dataclass(frozen=True)
class Tables:
    """`numbers`, float32 (B, numbers), without NaN, and `categories`, int64 (B, len(categories)), column j in
    [0, categories[j]), 0 where the value is missing or was not met in training."""

    numbers: int
    categories: tuple[int, ...] = ()

    def probe(self, count: int = 2) -> dict[str, Tensor]:
        """Different rows; nothing is drawn."""
        values = torch.linspace(-1, 1, count * self.numbers).view(count, self.numbers)
        codes = torch.arange(count)[:, None] % torch.tensor(self.categories, dtype=torch.int64)[None]
        return {"numbers": values, "categories": codes}

    def __str__(self) -> str:
        counts = (self.numbers, "number", ""), (len(self.categories), "category", "categories")
        return f"rows of {' and '.join(_count_text(*count) for count in counts if count[0])}"


@dataclass(frozen=True)
class Modalities:
    """Several forms by the name of their modality.

    A batch holds for each modality its tensor by its name, or its tensors by `NAME.KEY`; and `present`, float32
    (B, modalities), 1 where an example has the modality (in the order of `parts`), 0 where it lacks it and its values
    are zeros.
    """

    parts: Mapping[str, Images | Signals | Texts | Tables]

    def probe(self, count: int = 2) -> dict[str, Tensor]:
        """Different examples that have every modality; nothing is drawn."""
        found: dict[str, Tensor] = {"present": torch.ones(count, len(self.parts))}
        for name, form in self.parts.items():
            inputs = form.probe(count)
            found |= {name: inputs} if isinstance(inputs, Tensor) else {f"{name}.{k}": v for k, v in inputs.items()}
        return found

    def part(self, name: str, inputs: Mapping[str, Tensor]) -> Inputs:
        """The inputs of one modality among those of a batch, as its own form has them."""
        if name in inputs:
            return inputs[name]
        return {key.removeprefix(f"{name}."): value for key, value in inputs.items() if key.startswith(f"{name}.")}

    def __str__(self) -> str:
        return " with ".join(f"{name} ({form})" for name, form in self.parts.items())


def _count_text(count: int, noun: str, several: str = "") -> str:
    """`1 number`, `2 numbers`."""
    return f"{count} {noun if count == 1 else several or noun + 's'}"


Form: TypeAlias = Images | Signals | Texts | Sequences | Tables | Modalities
"""The form of a network's inputs. Every form has `probe(count)`, inputs of so many examples, and says itself in
words."""
