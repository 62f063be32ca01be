"""A client's training on a card as a plain PyTorch loop, and the ways to write that loop which may be faster there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actors.steps.shards import ShardArrays
from algorithms.core.kit import Kit
from algorithms.core.seeds import Seed
from algorithms.core.task import Shard
from algorithms.core.training import Batches, Work
from algorithms.tasks.images import ImageTask

TASK = ImageTask(tuple(map(str, range(10))), (3, 32, 32), mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
LR = 0.05


@dataclass(frozen=True)
class Problem:
    """The work of both sides.

    Attributes:
        steps: of the training of one client alone.
        clients: of the federation; each trains for one epoch in each round.
        examples: of each client, a multiple of `batch`: a CUDA graph knows batches of one size.
    """

    net: str
    steps: int
    batch: int
    clients: int
    examples: int

    def shards(self) -> ShardArrays:
        """Random images of CIFAR-10's shape, dealt in equal parts."""
        draws = torch.Generator().manual_seed(0)
        rows = torch.randperm(self.clients * self.examples, generator=draws)
        images = torch.randint(0, 256, (len(rows), *TASK.shape), dtype=torch.uint8, generator=draws)
        labels = torch.randint(0, TASK.classes, (len(rows),), generator=draws)
        return ShardArrays.of(
            {"image": images.numpy(), "label": labels.numpy()}, [part.numpy() for part in rows.split(self.examples)]
        )

    def kit(self, device: str) -> Kit:
        """Lends networks, all with the same first weights, and `training.fit`."""
        work = Work(steps=self.steps, epochs=None, batch=self.batch, lr=LR)
        return Kit(task=TASK, work=work, seed=Seed(0), device=torch.device(device))

    def picks(self, shard: Shard, seed: Seed, positions: range) -> list[Tensor]:
        """The rows, int64 (batch,), of the batches that `training.fit` draws at these positions."""
        batches = Batches(len(shard), self.batch, seed)
        return [shard.rows[batches[position]] for position in positions]


@dataclass(frozen=True)
class Variant:
    """A way to write the loop; what is not set is as in the plain one.

    Attributes:
        copies: how a batch goes to the device: `bytes`, normalised there; `pinned`, the same from pinned memory and
            without waiting for it; `floats`, normalised before, on the processor.
        tf32: whether 32-bit products, of matrices and in convolutions, are computed in TF32; torch's own choice, which
            is in convolutions alone, where None.
        bf16: forward and loss under autocast.
        step: `compiled`, forward and loss (and so backward) by torch.compile; `graph`, the whole step as a CUDA graph.
    """

    copies: Literal["bytes", "pinned", "floats"] = "bytes"
    channels_last: bool = False
    tf32: bool | None = None
    bf16: bool = False
    step: Literal["eager", "compiled", "graph"] = "eager"

    @property
    def needs_card(self) -> bool:
        """Whether a processor has nothing of the kind."""
        return self.copies == "pinned" or self.tf32 is not None or self.step != "eager"


VARIANTS = {
    "normalised on the processor, copied as floats": Variant(copies="floats"),
    "pinned, non-blocking copies": Variant(copies="pinned"),
    "channels_last": Variant(channels_last=True),
    "TF32 nowhere": Variant(tf32=False),
    "TF32 in matrix products too": Variant(tf32=True),
    "bf16 autocast": Variant(bf16=True),
    "torch.compile, reduce-overhead": Variant(step="compiled"),
    "CUDA graph of the step": Variant(step="graph"),
}
"""Each with one change of the plain loop, so that a reader sees what it brings. The last ones can leave a CUDA context
that is of no use to others where they fail."""


class Stepping(Protocol):
    """One step of training on a batch: its loss, a scalar."""

    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor: ...


class Step:
    """A step of SGD: the mathematics of every variant."""

    def __init__(self, net: nn.Module, variant: Variant) -> None:
        self._net, self._bf16 = net, variant.bf16
        self._loss = (
            torch.compile(self._forward, mode="reduce-overhead") if variant.step == "compiled" else self._forward
        )
        self.optimiser = torch.optim.SGD(net.parameters(), lr=LR)

    def _forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, torch.bfloat16) if self._bf16 else nullcontext():
            return F.cross_entropy(self._net(inputs), labels)

    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor:
        self.optimiser.zero_grad()
        loss = self._loss(inputs, labels)
        loss.backward()
        self.optimiser.step()
        return loss.detach()


class GraphStep:
    """A step as a CUDA graph, captured on the first batch; a call fills the graph's own inputs and replays it."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor:
        if self._graph is None:
            self._graph = self._capture(inputs, labels)
        self._inputs.copy_(inputs)
        self._labels.copy_(labels)
        self._graph.replay()
        return self._loss

    def _capture(self, inputs: Tensor, labels: Tensor) -> torch.cuda.CUDAGraph:
        self._inputs, self._labels = inputs.clone(), labels.clone()
        # What libraries make ready in their first calls must not be captured; these steps train, too.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                self._step(self._inputs, self._labels)
        torch.cuda.current_stream().wait_stream(aside)
        # Gradients made outside would not be the graph's own.
        self._step.optimiser.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._loss = self._step(self._inputs, self._labels)
        return graph


class PlainLoop:
    """Trains a network in place, on the device where it lies."""

    def __init__(self, net: nn.Module, images: Tensor, labels: Tensor, variant: Variant = Variant()) -> None:
        """`images` are uint8 (N, C, H, W), `labels` int64 (N,), both on the processor."""
        self._variant, self._images, self._labels = variant, images, labels
        self._layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        self._net = net.to(memory_format=self._layout).train()
        self._device = next(net.parameters()).device
        self._moments = {place: _moments(place) for place in (self._device, images.device)}
        step = Step(self._net, variant)
        self._step: Stepping = GraphStep(step) if variant.step == "graph" else step

    def train(self, picks: Sequence[Tensor]) -> float:
        """A step on each of these batches, int64 rows (B,); the mean loss, for which the device is waited."""
        total = torch.zeros((), device=self._device)
        with tf32(self._variant.tf32):
            for some in picks:
                total += self._step(*self._batch(some))
            return float(total) / len(picks)

    def _batch(self, picks: Tensor) -> tuple[Tensor, Tensor]:
        # Indexing images by [picks] takes ten times as long.
        pixels, labels = self._images.index_select(0, picks), self._labels[picks]
        if self._variant.copies == "floats":
            inputs = self._normalise(pixels).to(self._device)
        elif self._variant.copies == "pinned":
            inputs = self._normalise(pixels.pin_memory().to(self._device, non_blocking=True))
            labels = labels.pin_memory()
        else:
            inputs = self._normalise(pixels.to(self._device))
        labels = labels.to(self._device, non_blocking=self._variant.copies == "pinned")
        return inputs.contiguous(memory_format=self._layout), labels

    def _normalise(self, pixels: Tensor) -> Tensor:
        mean, std = self._moments[pixels.device]
        return (pixels.to(torch.float32) / 255 - mean) / std


def _moments(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of pixels in [0, 1], each (1, C, 1, 1)."""
    mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (TASK.mean, TASK.std))
    return mean, std


@contextmanager
def tf32(enabled: bool | None) -> Iterator[None]:
    """A block in which 32-bit products are computed in TF32, or are not; None leaves it to torch."""
    if enabled is None:
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = enabled
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
