"""The student of a distillation as a Ray Train job: the loop of each train worker, and its checkpoints."""

from __future__ import annotations

import tempfile
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.data.exceptions import UserCodeException
from ray.exceptions import RayError
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    DataConfig,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
)
from ray.train.torch import TorchTrainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from actors.distillation.checkpoint import StudentCheckpoint
from actors.distillation.norm import see_whole_batches
from actors.distillation.pipeline import Monitor, Stages, options, pipeline
from actors.distillation.plan import DistilResources
from actors.distillation.rows import WorkerBatch, own_device, worker_batches
from actors.process import keep_freed_memory, set_kernels
from actors.steps.worker import one_thread
from algorithms.core.distillation import BatchCache, DistillationLoss, Learner

_RUN = "student"
_BATCHES = "batches"


@dataclass(frozen=True)
class Lesson:
    """Everything that each train worker needs.

    Attributes:
        job: reference to the job without source and teacher, which stay with the pipeline.
        checkpoint_every: steps between checkpoints.
        monitor: hears of every step.
    """

    job: ray.ObjectRef[Any]
    checkpoint_every: int
    monitor: Monitor


@dataclass(frozen=True)
class Feed:
    """The data set of the Train job. Called whenever train workers start, so that the pipeline begins where they do."""

    steps: int
    distinct: int
    stages: Stages
    resources: DistilResources
    storage: Path

    def __call__(self) -> ray.data.Dataset:
        return pipeline(self.batch_numbers(steps_done(self.storage)), self.stages, self.resources)

    def batch_numbers(self, done: int) -> list[int]:
        """Numbers of the batches that the steps after the first `done` ones need, in the order of need; never none."""
        end = max(done + 1, min(done + self.distinct, self.steps))
        return [step % self.distinct for step in range(done, end)]


def train(feed: Feed, lesson: Lesson) -> dict[str, Tensor]:
    """Perform the Train job; the student's state dict after the last step."""
    workers = feed.resources.trainers
    card = {"GPU": workers.gpus} if workers.gpus else {}
    result = TorchTrainer(
        learn,
        train_loop_config={"lesson": lesson},
        scaling_config=ScalingConfig(
            num_workers=workers.count, use_gpu=bool(card), resources_per_worker={"CPU": workers.cpus, **card}
        ),
        run_config=RunConfig(
            name=_RUN,
            storage_path=str(feed.storage),
            failure_config=FailureConfig(max_failures=feed.resources.retries),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
        datasets={_BATCHES: feed},
        # One worker runs the pipeline itself: one process less to start.
        dataset_config=DataConfig("all" if workers.count > 1 else [], execution_options=options(feed.resources)),
    ).fit()
    assert result.checkpoint is not None  # the last step reports one
    return _load(result.checkpoint).student


def steps_done(storage: Path) -> int:
    """Steps of the student that the last checkpoint in a folder holds; 0 where there is none."""
    try:
        metrics = Result.from_path(storage / _RUN).metrics
    except RuntimeError:  # no run has begun in this folder, or none of its checkpoints was reached
        return 0
    return int(metrics["done"]) if metrics else 0


def learn(config: dict[str, Any]) -> None:
    """The loop of one train worker."""
    keep_freed_memory()
    set_kernels()
    lesson: Lesson = config["lesson"]
    workers = ray.train.get_context().get_world_size()
    try:
        with one_thread():
            _learn(lesson, workers)
    except Exception as error:
        if _would_recur(error, workers):
            ray.get(lesson.monitor.fail.remote(traceback.format_exc()))
        raise


def _would_recur(error: Exception, workers: int) -> bool:
    """Whether an error would come again after a restart: it does not stem from a process that was lost."""
    if isinstance(error, RayError):
        return isinstance(error, UserCodeException)
    return workers == 1  # with several, the loss of one is an error of torch in the others


def _learn(lesson: Lesson, workers: int) -> None:
    job = ray.get(lesson.job)
    student = job.student.to(own_device())
    share = _Share(job.loss, workers)
    if workers > 1:
        see_whole_batches(student)
        job = replace(job, loss=share)
    learner = Learner(job, _synchronise(student, workers))
    _resume(learner, student)
    kept, fresh = BatchCache[WorkerBatch](job), _ShardBatches()
    if ray.train.get_context().get_world_rank() == 0:  # where one is lost all begin anew
        lesson.monitor.begin.remote("train worker", "student")
    lesson.monitor.note.remote("trained", learner.done)
    while learner.done < job.steps:
        part = kept.at(learner.done, fresh)
        share.of_batch = part.share
        learner.step(part.batch)
        lesson.monitor.note.remote("trained", learner.done)
        if learner.done % lesson.checkpoint_every == 0 or learner.done == job.steps:
            _save(learner, student)


def _synchronise(student: nn.Module, workers: int) -> nn.Module:
    """The student as it is trained: several workers average their gradients in every step."""
    return DistributedDataParallel(student, broadcast_buffers=False) if workers > 1 else student


class _Share:
    """The loss of one worker's rows, weighted so that the mean over workers is the mean over the whole batch."""

    def __init__(self, loss: DistillationLoss, workers: int) -> None:
        self._loss, self._workers = loss, workers
        self.of_batch = 1.0

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return self._loss(student, teacher, labels) * (self.of_batch * self._workers)


class _ShardBatches:
    """Batches from this worker's shard of the pipeline."""

    def __init__(self) -> None:
        rows = ray.train.get_dataset_shard(_BATCHES).iter_batches(batch_size=1, prefetch_batches=1)
        self._batches = worker_batches(iter(rows))

    def __call__(self, index: int) -> WorkerBatch:
        part = next(self._batches)
        if part.index != index:
            raise RuntimeError(f"the pipeline delivered batch {part.index} where batch {index} was due")
        return part


def _resume(learner: Learner, student: nn.Module) -> None:
    """Restore a new learner from the last checkpoint, if there is one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return
    _load(checkpoint).restore(learner, student)


def _save(learner: Learner, student: nn.Module) -> None:
    """Checkpoint the student; every worker must call this at the same step."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if ray.train.get_context().get_world_rank() == 0:
            StudentCheckpoint.of(learner, student).write(Path(folder))
            checkpoint = Checkpoint.from_directory(folder)
        ray.train.report({"done": learner.done}, checkpoint=checkpoint)


def _load(checkpoint: Checkpoint) -> StudentCheckpoint:
    with checkpoint.as_directory() as folder:
        return StudentCheckpoint.read(Path(folder))
