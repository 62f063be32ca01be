"""The pipeline of a distillation (Ray Data): batch numbers -> latents -> inputs -> the teacher's logits.

One row of the data set is one batch, or one train worker's rows of it: tensor columns of shape (1, B, ...).

Ray Train passes the data set on through processes that compute nothing. They import this file, but not torch, which
would take each of them 1.3 s: hence the late imports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset, ExecutionOptions, ExecutionResources

from actors.distillation.plan import Actors, DistilResources, Row
from actors.process import keep_freed_memory, set_kernels

Monitor: TypeAlias = Any
"""Handle of the actor in `actors.distillation.job` that hears of progress; its methods are unknown to type checkers."""


@dataclass(frozen=True)
class Stages:
    """The parts that the pipeline's actors need, as references to the object store: each is put there once.

    Attributes:
        source, teacher: of the job.
        parts: the rows of a batch are dealt out to this many train workers.
        monitor: hears how far each stage has come.
    """

    source: ray.ObjectRef[Any]
    teacher: ray.ObjectRef[Any]
    parts: int
    monitor: Monitor


def pipeline(order: Sequence[int], stages: Stages, resources: DistilResources) -> Dataset:
    """The batches of these numbers, in this order; nothing runs before the data set is read."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A block of one row each: the unit that is dealt out to train workers, and the finest for bounding memory.
    context.target_max_block_size = 1
    # In-memory items: a read task would want a whole processor, and wait for ever where none is free.
    batches = ray.data.from_items([{"index": index} for index in order], override_num_blocks=len(order))
    generated = batches.map_batches(_SamplerActor, fn_constructor_args=(stages,), **_pool(resources.samplers))
    return generated.map_batches(_LabellerActor, fn_constructor_args=(stages,), **_pool(resources.teachers))


def options(resources: DistilResources) -> ExecutionOptions:
    """In the order of the batch numbers, with a bound on what lies in the object store."""
    limits = ExecutionResources.for_limits(object_store_memory=resources.ahead_mb * 2**20)
    return ExecutionOptions(preserve_order=True, resource_limits=limits)


def _pool(actors: Actors) -> dict[str, Any]:
    return {
        "batch_size": 1,
        "batch_format": "numpy",
        "compute": ActorPoolStrategy(size=actors.count, max_tasks_in_flight_per_actor=2),
        "num_cpus": actors.cpus,
        "num_gpus": actors.gpus,
    }


class _SamplerActor:
    """Draws latents and generates inputs."""

    def __init__(self, stages: Stages) -> None:
        from actors.distillation.rows import Sampler

        keep_freed_memory()
        set_kernels()
        stages.monitor.begin.remote("sampler", ray.get_runtime_context().get_actor_id())
        self._sample = Sampler(ray.get(stages.source))
        self._monitor = stages.monitor

    def __call__(self, row: Row) -> Row:
        made = self._sample(row)
        self._monitor.note.remote("sampled", int(row["index"][0]))
        return made


class _LabellerActor:
    """Labels inputs with the teacher's logits and deals the rows out to the train workers."""

    def __init__(self, stages: Stages) -> None:
        from actors.distillation.rows import Labeller

        keep_freed_memory()
        set_kernels()
        stages.monitor.begin.remote("teacher", ray.get_runtime_context().get_actor_id())
        self._label = Labeller(ray.get(stages.teacher), stages.parts)
        self._monitor = stages.monitor

    def __call__(self, row: Row) -> Iterator[Row]:
        yield from self._label(row)
        self._monitor.note.remote("labelled", int(row["index"][0]))
