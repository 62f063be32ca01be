"""Generated images from the generators of several clients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from algorithms.core.payload import Tensors
from algorithms.core.seeds import Seed

Shares = Literal["equal", "proportional"]

OWNER = "owner"
"""Entry of a batch's latents: int64 (B,), which of the parts makes each image."""


class Part(Protocol):
    """One client's generator. All parts of a mixture are of one family, and their latents have the same entries."""

    def latents(self, count: int, draws: torch.Generator) -> dict[str, Tensor]:
        """The random numbers of `count` images."""
        ...

    def samples(self, latents: Tensors) -> tuple[Tensor, Tensor]:
        """Images float32 (B, ...) as the generator makes them, and labels int64 (B,), -1 where no class was asked."""
        ...


@dataclass(frozen=True)
class Mixture:
    """A `Source`: batches to which every part contributes by its share.

    Attributes:
        parts: by client, in the order of their numbers.
        shares: not negative, one for each part; they need not sum to 1.
        batch: images in a batch.
        seed: latents depend on it, the batch's index and the client's number.
        to_inputs: what a part makes, to network inputs.
    """

    parts: dict[int, Part]
    shares: tuple[float, ...]
    batch: int
    seed: Seed
    to_inputs: Callable[[Tensor], Tensor]

    def latents(self, index: int) -> dict[str, Tensor]:
        counts = self._counts(index)
        drawn = [
            part.latents(count, self.seed.at(client=client).torch("latents", index))
            for (client, part), count in zip(self.parts.items(), counts, strict=True)
        ]
        merged = {name: torch.cat([one[name] for one in drawn]) for name in drawn[0]}
        return {OWNER: torch.repeat_interleave(torch.tensor(counts)), **merged}

    def _counts(self, index: int) -> list[int]:
        """Images of each part in a batch, by systematic sampling: B p_k, rounded so that it is right on average."""
        shares = torch.tensor(self.shares, dtype=torch.float64)
        ends = self.batch * shares.cumsum(0) / shares.sum()
        ends[-1] = self.batch
        start = float(self.seed.numpy("shares", index).random())
        reached = torch.floor(ends + start).to(torch.int64)
        return torch.diff(reached, prepend=torch.zeros(1, dtype=torch.int64)).tolist()

    def inputs(self, latents: Tensors) -> tuple[Tensor, Tensor]:
        owners, made = latents[OWNER], []
        for position, part in enumerate(self.parts.values()):
            mine = owners == position
            if bool(mine.any()):
                made.append(part.samples({name: value[mine] for name, value in latents.items() if name != OWNER}))
        images = torch.cat([images for images, _ in made])
        return self.to_inputs(images), torch.cat([labels for _, labels in made])
