"""Images without labels, as a server distils on them: some that there are, or noise. Both are a `Source`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.core.payload import Tensors
from algorithms.core.seeds import Seed
from algorithms.tasks.images import ImageTask


@dataclass(frozen=True)
class GivenInputs:
    """Network inputs that there are: pass after pass, each in a new order.

    Attributes:
        examples: float32 (N, C, H, W).
        batch: images in a batch; all of them where there are fewer. What remains of a pass is left out of it.
        seed: of the orders.
    """

    examples: Tensor
    batch: int
    seed: Seed

    def latents(self, index: int) -> dict[str, Tensor]:
        count = min(self.batch, len(self.examples))
        turn, place = divmod(index, len(self.examples) // count)
        order = torch.randperm(len(self.examples), generator=self.seed.torch("order", turn))
        return {"pick": order[place * count : (place + 1) * count]}

    def inputs(self, latents: Tensors) -> tuple[Tensor, Tensor]:
        picks = latents["pick"].to(self.examples.device)
        return self.examples[picks], torch.full((len(picks),), -1)


@dataclass(frozen=True)
class Noise:
    """Normal noise, each batch of it stretched to fill [0, 1]: FedDF's released code."""

    task: ImageTask
    batch: int
    seed: Seed

    def latents(self, index: int) -> dict[str, Tensor]:
        return {"noise": torch.randn(self.batch, *self.task.shape, generator=self.seed.torch("noise", index))}

    def inputs(self, latents: Tensors) -> tuple[Tensor, Tensor]:
        noise = latents["noise"]
        stretched = (noise - noise.min()) / (noise.max() - noise.min())
        return self.task.from_signed(2 * stretched - 1), torch.full((len(noise),), -1)
