"""The lean families: Gaussians in the space of pixels, and in that of the global model's features."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from algorithms.core.contract import Client
from algorithms.core.kit import Kit
from algorithms.core.payload import Tensors
from algorithms.core.task import Shard, Task
from algorithms.methods.mosaic.generators.cells import CellConfig, Cells, summarise
from algorithms.methods.mosaic.generators.family import as_they_are
from algorithms.nets import require_head
from algorithms.tasks.images import IMAGE, images_of


class PixelCells:
    """The family `pca`: a client's images, class by class, as a few Gaussians of few directions. Nothing is trained."""

    kind = "statistics"
    needs_model = False

    def __init__(self, config: CellConfig, kit: Kit, released: Collection[str]) -> None:
        self.config, self.kit = config, kit

    def fit(self, client: Client) -> tuple[dict[str, Tensor], Tensor]:
        pixels = images_of(self.kit.task).to_signed(client.shard.own(IMAGE))
        statistics = summarise(pixels.flatten(1), client.shard.own_labels, self.config, client.seed)
        return _with_counts(statistics, self.kit.task.classes)

    def part(self, tensors: Tensors, counts: Tensor) -> Cells:
        return Cells(tensors, images_of(self.kit.task).shape, limits=(-1.0, 1.0))

    def to_inputs(self) -> Callable[[Tensor], Tensor]:
        return images_of(self.kit.task).from_signed


class FeatureCells:
    """The family `features`: the same of the features which the global model gives; there are no images.

    FedPFT, arXiv 2402.01862; CCVR, arXiv 2106.05001.
    """

    kind = "statistics"
    needs_model = True

    def __init__(self, config: CellConfig, kit: Kit, released: Collection[str]) -> None:
        self.config, self.kit = config, kit

    def fit(self, client: Client) -> tuple[dict[str, Tensor], Tensor]:
        net = self.kit.network(client.spec.net)
        net.load_state_dict(client.received.tensors("weights"))
        picks = torch.arange(len(client.shard)).split(self.kit.work.batch)
        features = torch.cat([features_of(net, self.kit.task, client.shard, some) for some in picks])
        statistics = summarise(features, client.shard.own_labels, self.config, client.seed)
        return _with_counts(statistics, self.kit.task.classes)

    def part(self, tensors: Tensors, counts: Tensor) -> Cells:
        return Cells(tensors, tuple(tensors["mean"].shape[1:]))

    def to_inputs(self) -> Callable[[Tensor], Tensor]:
        return as_they_are


@torch.no_grad()
def features_of(net: nn.Module, task: Task, shard: Shard, picks: Tensor) -> Tensor:
    """float32 (B, F) on the CPU: features of some of a client's examples, in eval mode, not augmented."""
    inputs, _ = task.batch(shard, picks, device=next(net.parameters()).device)
    return require_head(net.eval()).features(inputs).to("cpu", torch.float32)


def _with_counts(statistics: dict[str, Tensor], classes: int) -> tuple[dict[str, Tensor], Tensor]:
    counts = torch.zeros(classes, dtype=torch.int64).index_add(0, statistics["label"], statistics["count"])
    return (statistics if len(statistics["label"]) else {}), counts
