"""The computations of a distillation's pipeline, row by row, and a train worker's view of its results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import ray
import torch
from torch import Tensor, nn

from actors.distillation.plan import Row
from actors.steps.worker import one_thread
from algorithms.core.distillation import LabelledBatch, Source, generate, label


class Sampler:
    """The number of a batch to its inputs and labels.

    Latents are drawn on the CPU, and inputs generated where they lie: on this actor's card, if it has one.
    """

    def __init__(self, source: Source) -> None:
        self._device = own_device()
        self._source = source

    def __call__(self, row: Row) -> Row:
        with one_thread():
            drawn = self._source.latents(int(row["index"][0]))
            inputs, labels = generate(self._source, {name: latent.to(self._device) for name, latent in drawn.items()})
        return {"index": row["index"], "inputs": as_column(inputs), "labels": as_column(labels)}


class Labeller:
    """Images of a batch to one row for each train worker, with the teacher's logits.

    The logits are computed on the whole batch, as in the plain loop, and dealt out afterwards: the first workers get
    one row more where the rows do not divide.
    """

    def __init__(self, teacher: nn.Module, parts: int) -> None:
        self._device = own_device()
        self._teacher = teacher.to(self._device)
        self._parts = parts

    def __call__(self, row: Row) -> Iterator[Row]:
        index, inputs, labels = row["index"], as_tensor(row["inputs"]), as_tensor(row["labels"])
        if len(inputs) < self._parts:
            raise ValueError(f"batch {index[0]} has {len(inputs)} inputs, too few for {self._parts} train workers")
        with one_thread():
            logits = label(self._teacher, inputs.to(self._device))
        for part in zip(*(torch.tensor_split(t, self._parts) for t in (inputs, labels, logits)), strict=True):
            columns = dict(zip(("inputs", "labels", "logits"), map(as_column, part), strict=True))
            yield {"index": index, "share": np.array([len(part[0]) / len(inputs)]), **columns}


def own_device() -> torch.device:
    """The card that Ray gave this actor, of which it may fill its share, or the CPU."""
    if not ray.get_gpu_ids():
        return torch.device("cpu")
    share = ray.get_runtime_context().get_assigned_resources()["GPU"]
    torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    return torch.device("cuda")


def as_column(tensor: Tensor) -> np.ndarray:
    """A tensor as the only value of a column."""
    column: np.ndarray = tensor.cpu().numpy()[None]
    return column


def as_tensor(column: np.ndarray) -> Tensor:
    """The only value of a column, copied: what lies in the object store may not be written to."""
    return torch.from_numpy(np.array(column[0]))


@dataclass(frozen=True)
class WorkerBatch:
    """A train worker's rows of one batch, and which share of the batch's rows they are."""

    index: int
    batch: LabelledBatch
    share: float


def worker_batches(rows: Iterable[Row]) -> Iterator[WorkerBatch]:
    """The batches that a train worker reads from its shard of the data set."""
    for row in rows:
        batch = LabelledBatch(*(as_tensor(row[name]) for name in ("inputs", "labels", "logits")))
        yield WorkerBatch(int(row["index"][0]), batch, float(row["share"][0]))
